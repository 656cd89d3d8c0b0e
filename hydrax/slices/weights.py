"""Rows by weight and by chance: copies in proportion to weights, and classes dealt to heads."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrax.errors import SliceError
from hydrax.slices.permutation import mix

_SALT = np.uint32(0x3E167)  # Separates the roundings from the orders of other parts with the same seed.
_WHOLE = 1e-12  # A share within this relative distance of a whole number counts as whole: the rest is rounding error.
_MAX_DEALS = 1000


def copies_by_weight(
    weights: NDArray[Any], totals: NDArray[np.integer], seeds: NDArray[np.uint32]
) -> Iterator[NDArray[np.int64]]:
    """Yield the copies of every row, head by head: its share of the total, rounded up or down, with an exact sum.

    This is systematic sampling of the fractions of the shares. Laid end to end on a line, each fraction gets as many
    copies as it covers of the points u, u + 1, u + 2, ..., with one u, uniform on [0, 1), for each head.

    Args:
      weights: [H, N], none below 0, some above 0 in each head.
      totals: int[H], the sums.
      seeds: uint32[H], each the seed of one u.

    Source: Madow, "On the Theory of Systematic Sampling, II", Annals of Mathematical Statistics, 1949.
    """
    for line, total, start in zip(weights, totals, mix(seeds ^ _SALT, np) / 2.0**32, strict=True):
        # Scaled down first, because large weights could add up to infinity.
        scaled = line / np.float64(line.max())
        share = total * (scaled / scaled.sum())
        nearest = np.rint(share)
        share = np.where(abs(share - nearest) <= _WHOLE * np.maximum(nearest, 1), nearest, share)
        whole = np.floor(share)
        fraction = share - whole
        left = total - whole.sum()
        ends = np.minimum(np.cumsum(fraction), left)
        # A rounding error in the sum must not lose the last copy: from the last fraction on, the ends are exact.
        ends[np.flatnonzero(fraction)[-1:].sum() :] = left
        yield (whole + np.diff(np.floor(ends + start), prepend=np.floor(start))).astype(np.int64)


def dealt_by_class(
    labels: NDArray[Any], alpha: float, num_heads: int, min_size: int, rng: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Deal the rows of each class to the heads in shares drawn from Dirichlet(alpha, ..., alpha).

    The deal is drawn again until every head has `min_size` rows.

    Args:
      labels: the class of each row, [N].
      alpha, num_heads, min_size: as in `Slices.dirichlet`.
      rng: generator of NumPy.

    Returns:
      `(rows of head after head, sorted in each, int32[N]; length of each head, int64[H])`.

    Raises:
      SliceError: no deal gave every head its rows.
    """
    _, class_, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    least = -1
    for _ in range(_MAX_DEALS if num_heads * min_size <= labels.size else 0):
        shares = rng.dirichlet(np.full(num_heads, alpha), sizes.size)
        # Rounding the cuts between heads, not the shares, deals every row exactly once.
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
            f"Too few rows per head: argument min_size, {num_heads} heads. Got {best}, expected {min_size} or more in "
            "each. Fix: ask for fewer heads, a larger alpha or a smaller min_size."
        )
    shuffled = rng.permutation(labels.size)
    by_class = shuffled[np.argsort(class_[shuffled], kind="stable")]
    owner = np.repeat(np.tile(np.arange(num_heads), sizes.size), counts.ravel())
    return by_class[np.lexsort((by_class, owner))].astype(np.int32), lengths
