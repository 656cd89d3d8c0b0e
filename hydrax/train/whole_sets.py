"""Metrics over whole evaluation sets, `hydrax.WholeSet`: computed on the host, head by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hydrax.errors import ModuleError
from hydrax.step import WholeSet


def scores(
    metrics: Mapping[str, WholeSet], gathered: Sequence[tuple[Any, np.ndarray]], runs: np.ndarray, ids: np.ndarray
) -> dict[str, np.ndarray]:
    """Computes each metric for each head, float32[H] by name.

    Args:
      metrics: the metrics by name.
      gathered: for each dispatch of K batches, the arrays by name, `[K, H, B, ...]`, and the live slots, bool[K, B] or
        bool[K, H, B].
      runs: bool[H], the heads that were evaluated; the others get NaN.
      ids: int32[H], the heads' ids, for errors.
    """
    found = {name: np.full(len(ids), np.nan, np.float32) for name in metrics}
    for head in np.flatnonzero(runs):
        live = [mask if mask.ndim == 2 else mask[:, head] for _, mask in gathered]
        for name, metric in metrics.items():
            parts = [
                [array[:, head][mask] for array in values[name]]
                for (values, _), mask in zip(gathered, live, strict=True)
            ]
            arrays = [np.concatenate(column) for column in zip(*parts, strict=True)]
            if len(arrays[0]) and all(map(_is_finite, arrays)):
                found[name][head] = _score(metric, arrays, f"{name!r}, head {ids[head]}")
    return found


def _is_finite(array: np.ndarray) -> bool:
    return not np.issubdtype(array.dtype, np.inexact) or bool(np.isfinite(array).all())


def _score(metric: WholeSet, arrays: list[np.ndarray], where: str) -> float:
    name = getattr(metric.function, "__name__", type(metric.function).__name__)
    try:
        return float(metric.function(*arrays))
    except Exception as error:
        shapes = ", ".join(f"{array.dtype}{list(array.shape)}" for array in arrays)
        raise ModuleError(
            f"A metric over a whole set failed: {where}. Got {type(error).__name__} from {name}({shapes}): "
            f"{str(error).strip()[:200]}, expected one number. Fix: pass arguments that it takes, or wrap it in a "
            "function that returns NaN where it has no value."
        ) from error
