"""The spread of a value over heads: the few numbers that a log keeps of H of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

QUANTILES = {"min": 0.0, "q10": 0.1, "median": 0.5, "q90": 0.9, "max": 1.0}
WORDS = ("mean", *QUANTILES)


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean and quantiles over the heads whose value is finite, by the names in `WORDS`; empty where there is none.

    Args:
      values: float[H].
    """
    numbers = finite(values)
    if numbers.size == 0:
        return {}
    # What `numpy.quantile` gives by default, in a quarter of its time.
    places = np.array(list(QUANTILES.values())) * (numbers.size - 1)
    quantiles = np.interp(places, np.arange(numbers.size), np.sort(numbers)).tolist()
    return {"mean": float(numbers.mean()), **dict(zip(QUANTILES, quantiles, strict=True))}


def finite(values: np.ndarray) -> np.ndarray:
    """float64[n], the finite ones of some values in their order.

    Args:
      values: float[H].
    """
    return values[np.isfinite(values)].astype(np.float64)


def count_not_finite(metrics: Mapping[str, np.ndarray]) -> int:
    """Heads with a NaN or an infinity in one of the metrics.

    Args:
      metrics: float[H] by name, at least one.
    """
    return int(np.count_nonzero(~np.logical_and.reduce([np.isfinite(values) for values in metrics.values()])))
