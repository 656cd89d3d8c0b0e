"""hydrax.spread: the few numbers that a log keeps of a value of many heads."""

import numpy as np
import pytest

from hydrax.spread import WORDS, count_not_finite, finite, spread


@pytest.mark.parametrize("num_heads", [1, 2, 3, 101, 1000])
def test_the_spread_over_finite_heads_is_numpys(num_heads):
    values = np.random.default_rng(num_heads).normal(size=num_heads).astype(np.float32)
    expected = [values.astype(np.float64).mean(), *np.quantile(values.astype(np.float64), [0, 0.1, 0.5, 0.9, 1])]
    found = spread(np.concatenate([[np.nan], values, [np.inf, -np.inf]]).astype(np.float32))
    assert list(found) == list(WORDS)
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-12)


def test_values_without_a_finite_one_have_no_spread():
    assert spread(np.float32([np.nan, np.inf])) == {}


def test_a_mean_of_float32_is_taken_in_float64():
    values = np.full(2**20, 0.1, np.float32)
    assert spread(values)["mean"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_finite_values_keep_their_order():
    assert finite(np.float32([3, np.nan, 1, np.inf, 2])).tolist() == [3, 1, 2]


def test_a_head_that_is_not_finite_in_two_metrics_counts_once():
    assert (
        count_not_finite({"loss": np.float32([np.nan, 1, np.inf, 1]), "accuracy": np.float32([1, 1, np.nan, 1])}) == 2
    )
