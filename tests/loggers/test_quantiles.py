"""hydrax.spread: the few numbers that a log keeps of a value of many heads."""

import numpy as np
import pytest

from hydrax.loggers.quantiles import WORDS, count_not_finite, finite, spreads


@pytest.mark.parametrize("num_heads", [1, 2, 3, 101, 1000])
def test_spreads_over_finite_heads_are_numpys(num_heads):
    all_finite, some = np.random.default_rng(num_heads).normal(size=(2, num_heads + 3)).astype(np.float32)
    some[[0, -1, num_heads // 2 + 1]] = [np.nan, np.inf, -np.inf]
    found = spreads({"whole": all_finite, "lost": np.full_like(some, np.nan), "some": some})
    assert found["lost"] == {}
    for name, values in {"whole": all_finite, "some": some[np.isfinite(some)]}.items():
        exact = values.astype(np.float64)
        assert list(found[name]) == list(WORDS)
        np.testing.assert_allclose(
            list(found[name].values()), [exact.mean(), *np.quantile(exact, [0, 0.1, 0.5, 0.9, 1])], rtol=1e-12
        )


def test_no_metric_has_no_spread():
    assert spreads({}) == {}


def test_a_mean_of_float32_is_taken_in_float64():
    values = np.full(2**20, 0.1, np.float32)
    assert spreads({"loss": values})["loss"]["mean"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_finite_values_keep_their_order():
    assert finite(np.float32([3, np.nan, 1, np.inf, 2])).tolist() == [3, 1, 2]


def test_a_head_that_is_not_finite_in_two_metrics_counts_once():
    assert (
        count_not_finite({"loss": np.float32([np.nan, 1, np.inf, 1]), "accuracy": np.float32([1, 1, np.nan, 1])}) == 2
    )
