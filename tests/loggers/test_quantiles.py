"""The spread of a metric over heads: the few numbers that a log keeps of many values."""

import numpy as np
import pytest

from hydrax.loggers.quantiles import STATISTICS, count_not_finite, finite, spread


@pytest.mark.parametrize("num_heads", [1, 2, 3, 101, 1000])
def test_spreads_over_finite_heads_are_numpys(num_heads):
    all_finite, some = np.random.default_rng(num_heads).normal(size=(2, num_heads + 3)).astype(np.float32)
    some[[0, -1, num_heads // 2 + 1]] = [np.nan, np.inf, -np.inf]
    found = spread({"whole": all_finite, "lost": np.full_like(some, np.nan), "some": some})
    assert list(found) == [f"{name}/{statistic}" for name in ("whole", "some") for statistic in STATISTICS]
    for name, values in {"whole": all_finite, "some": some[np.isfinite(some)]}.items():
        exact = values.astype(np.float64)
        numbers = [found[f"{name}/{statistic}"] for statistic in STATISTICS]
        np.testing.assert_allclose(numbers, [exact.mean(), *np.quantile(exact, [0, 0.1, 0.5, 0.9, 1])], rtol=1e-12)


def test_no_metric_has_no_spread():
    assert spread({}) == {}


def test_a_mean_of_float32_is_taken_in_float64():
    values = np.full(2**20, 0.1, np.float32)
    assert spread({"loss": values})["loss/mean"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_finite_values_keep_their_order():
    assert finite(np.float32([3, np.nan, 1, np.inf, 2])).tolist() == [3, 1, 2]


def test_a_head_that_is_not_finite_in_two_metrics_counts_once():
    assert (
        count_not_finite({"loss": np.float32([np.nan, 1, np.inf, 1]), "accuracy": np.float32([1, 1, np.nan, 1])}) == 2
    )
