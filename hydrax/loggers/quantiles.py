"""The spread of a value over heads: the few numbers that a log keeps of H of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

QUANTILES = {"min": 0.0, "q10": 0.1, "median": 0.5, "q90": 0.9, "max": 1.0}
WORDS = ("mean", *QUANTILES)
_SHARES = np.array(list(QUANTILES.values()))


def spreads(metrics: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Mean and quantiles of each metric over the heads where it is finite, by the names in `WORDS`.

    Args:
      metrics: float[H] by name.

    Returns:
      By metric; empty of one that is finite nowhere.
    """
    if not metrics:
        return {}
    return dict(zip(metrics, spreads_of_ordered(*ordered(metrics)), strict=True))


def ordered(metrics: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The finite values of M metrics, float[H] each by name, in order.

    All metrics at once, as 20 of 1,000 heads one after the other take three times as long.

    Returns:
      table: float64[M, H], the least first; NaN stands where others would.
      counts: int64[M], how many are finite.
    """
    table = np.array(list(metrics.values()), np.float64)
    known = np.isfinite(table)
    table[~known] = np.nan
    table.sort(axis=1)  # puts NaN last
    return table, np.count_nonzero(known, axis=1)


def spreads_of_ordered(table: np.ndarray, counts: np.ndarray) -> list[dict[str, float]]:
    """Mean and quantiles of each row of what `ordered` gives."""
    # What `numpy.quantile` gives by default: between the two values next to a place, by distance.
    places = _SHARES * np.maximum(counts - 1, 0)[:, None]
    below = places.astype(np.int64)
    rows, above = np.arange(len(table))[:, None], np.minimum(below + 1, table.shape[1] - 1)
    # No weight, no value: above the greatest may be a NaN.
    steps = np.where(places > below, table[rows, above] - table[rows, below], 0.0)
    quantiles = table[rows, below] + (places - below) * steps
    means = np.nansum(table, axis=1) / np.maximum(counts, 1)
    numbers = np.column_stack([means, quantiles]).tolist()
    return [dict(zip(WORDS, row, strict=True)) if count else {} for row, count in zip(numbers, counts, strict=True)]


def finite(values: np.ndarray) -> np.ndarray:
    """float64[n], the finite ones of some values in their order.

    Args:
      values: float[H].
    """
    return np.asarray(values[np.isfinite(values)], np.float64)


def count_not_finite(metrics: Mapping[str, np.ndarray]) -> int:
    """Heads with a NaN or an infinity in one of the metrics.

    Args:
      metrics: float[H] by name, at least one.
    """
    return int(np.count_nonzero(~np.logical_and.reduce([np.isfinite(values) for values in metrics.values()])))
