"""Rows by chance and share: copies in proportion to weights, and classes dealt to heads."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrax.errors import SliceError
from hydrax.slices.rotation import mix

_SALT = np.uint32(0x3E167)
_WHOLE = 1e-12  # A share this near to a whole number, relatively, is that number: the rest is rounding.
_MAX_DEALS = 1000


def copies_by_weight(
    weights: NDArray[Any], totals: NDArray[np.int64], seeds: NDArray[np.uint32]
) -> Iterator[NDArray[np.int64]]:
    """Copies of every row, head by head: its share of the total, rounded up or down, and the sum exact.

    Systematic sampling of the fractions that are left of the shares: laid end to end, each takes as many copies as it
    spans of the points u, u + 1, u + 2, ... with one u, uniform on [0, 1), for the head.

    Args:
      weights: [H, N], none below 0, some above 0 in each head.
      totals: int64[H].
      seeds: uint32[H], of u.
    """
    # Weights are scaled down first: large ones must not add up to infinity.
    for line, total, start in zip(weights, totals, mix(seeds ^ _SALT, np) / 2.0**32, strict=True):
        scaled = line / np.float64(line.max())
        share = total * (scaled / scaled.sum())
        nearest = np.rint(share)
        share = np.where(abs(share - nearest) <= _WHOLE * np.maximum(nearest, 1), nearest, share)
        whole = np.floor(share)
        fraction = share - whole
        left = total - whole.sum()
        ends = np.minimum(np.cumsum(fraction), left)
        # Rounding must not lose the last copy: the fractions end where they should.
        ends[np.flatnonzero(fraction)[-1:].sum() :] = left
        yield (whole + np.diff(np.floor(ends + start), prepend=np.floor(start))).astype(np.int64)


def dealt_by_class(
    labels: NDArray[Any], alpha: float, num_heads: int, min_size: int, rng: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Deals the rows of each class to heads in shares drawn from Dirichlet(alpha, ..., alpha).

    Args:
      labels: [N].
      alpha, num_heads, min_size: as in `Slices.dirichlet`.
      rng: NumPy's generator.

    Returns:
      `(rows of head after head, sorted in each, int32[N]; length of each head, int64[H])`.

    Raises:
      SliceError: no deal gave every head its rows.
    """
    _, class_, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    least = -1
    for _ in range(_MAX_DEALS if num_heads * min_size <= labels.size else 0):
        shares = rng.dirichlet(np.full(num_heads, alpha), sizes.size)
        cuts = np.rint(np.cumsum(shares, axis=1) * sizes[:, None]).astype(np.int64)
        cuts[:, -1] = sizes
        counts = np.diff(cuts, axis=1, prepend=0)
        lengths = counts.sum(axis=0)
        least = max(least, int(lengths.min()))
        if least >= min_size:
            break
    else:
        best = f"{least} rows in the smallest head at best" if least >= 0 else f"{labels.size} rows in all"
        raise SliceError(
            f"Heads are left with too few rows: argument min_size, {num_heads} heads. Got {best}, expected {min_size} "
            "or more in each. Fix: take fewer heads, a larger alpha or a smaller min_size."
        )
    shuffled = rng.permutation(labels.size)
    by_class = shuffled[np.argsort(class_[shuffled], kind="stable")]
    owner = np.repeat(np.tile(np.arange(num_heads), sizes.size), counts.ravel())
    return by_class[np.lexsort((by_class, owner))].astype(np.int32), lengths
