"""Stratified subsets: of every class its share, drawn by a keyed permutation of the class."""

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hydrax.slices.law import Array, Part, RowLaw, add_mod, count_while, per_head, strides, sub_mod
from hydrax.slices.permutation import GOLDEN, mix, permute, unpermute

_SALT = np.uint32(0x57A7A5)  # Separates these orders from those of other parts with the same seed, see `windows.py`.


@dataclass(frozen=True, eq=False)
class Strata:
    """The rows of a dataset by class.

    Attributes:
      rows: int32[N], class after class, in base order within each.
      sizes: uint32[classes], rows of each class, at least 1.
    """

    rows: NDArray[np.int32]
    sizes: NDArray[np.uint32]

    @classmethod
    def of_labels(cls, labels: NDArray[Any]) -> Self:
        """Group rows by their labels [N]; classes are in the sorted order of the labels."""
        _, number, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        return cls(np.argsort(number, kind="stable").astype(np.int32), sizes.astype(np.uint32))

    @property
    def firsts(self) -> NDArray[np.uint32]:
        """uint32[classes], where each class begins in `rows`."""
        return np.cumsum(self.sizes, dtype=np.uint32) - self.sizes

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """int64[N], the position of each base row in `rows`."""
        return np.argsort(self.rows)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over rows and sizes."""
        return hashlib.sha256(self.rows.astype("<u4").tobytes() + self.sizes.astype("<u4").tobytes()).digest()


@dataclass(frozen=True, eq=False)
class Stratified(Part):
    """A window on the keyed permutation of each class, the permutation taken as a ring.

    A draw takes its quota of each class from the start of the ring. Its complement is the rest of each ring, which is a
    window too and needs no other representation.

    Attributes:
      strata: the classes, shared by all lines.
      keys: uint32[L], the seeds.
      outside: bool[L], whether a line holds the complement of its draw (of N - length rows) instead of the draw.
    """

    code: ClassVar[int] = 5
    per_line: ClassVar[tuple[str, ...]] = ("lengths", "keys", "outside")
    marks: ClassVar[tuple[str | None, str | None]] = ("outside", "keys")

    strata: Strata
    keys: NDArray[np.uint32]
    outside: NDArray[np.bool_]

    @cached_property
    def _quotas(self) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
        """The quota of each line, [L], and the starts and counts of each quota, [Q, classes] each.

        Lines of equal length share one quota, so the table stays small however many lines there are.
        """
        kinds, which = np.unique(2 * self.lengths.astype(np.int64) + self.outside, return_inverse=True)
        sizes = self.strata.sizes.astype(np.int64)
        length, outside = kinds >> 1, (kinds & 1)[:, None] == 1
        drawn = largest_remainder(np.where(outside[:, 0], self.num_rows - length, length), self.strata.sizes)
        # A start at the very end of the ring is its beginning.
        starts = np.where(outside, drawn, 0) % sizes
        return which.astype(np.uint32), starts, np.where(outside, sizes - drawn, drawn)

    @cached_property
    def _law(self) -> RowLaw:
        which, starts, counts = self._quotas
        tables = {
            "rows": self.strata.rows,
            "sizes": self.strata.sizes,
            "firsts": self.strata.firsts,
            # Flat, so that one index finds an entry: quota * classes + class.
            "starts": starts.astype(np.uint32).ravel(),
            "begins": (np.cumsum(counts, axis=1) - counts).astype(np.uint32).ravel(),
            "strides": strides(self.strata.sizes.size - 1),
        }
        columns = {"quotas": which * np.uint32(self.strata.sizes.size), "keys": self.keys}
        return RowLaw(columns, tables, _take_stratified)

    def law(self) -> RowLaw:
        return self._law

    def contains(self, at: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        which, starts, counts = self._quotas
        place, firsts = self.strata.places[rows], self.strata.firsts
        class_ = np.searchsorted(firsts, place, side="right") - 1
        size, quota = self.strata.sizes[class_], which[at][:, None]
        key = _key(self.keys[at][:, None], class_[None].astype(np.uint32), np)
        inner = unpermute((place - firsts[class_])[None], length=size[None], key=key, xp=np)
        offsets: NDArray[np.uint32] = sub_mod(inner, starts[quota, class_].astype(np.uint32), size, np)
        return offsets < counts[quota, class_]

    def complement(self) -> Self:
        return replace(self, lengths=np.int32(self.num_rows) - self.lengths, outside=~self.outside)

    @property
    def kin(self) -> Hashable:
        return type(self), self.strata.digest

    @property
    def table_digest(self) -> bytes:
        return self.strata.digest


def largest_remainder(totals: NDArray[np.int64], sizes: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Split totals in proportion to sizes: each part within 1 of its exact share, and the sum exact.

    Every class gets its share rounded down. What is left goes one by one to the largest remainders; ties go to the
    first class.

    Args:
      totals: int64[Q], 0 <= total <= sum of sizes.
      sizes: uint32[classes].

    Returns:
      int64[Q, classes], none above its size.

    Source: Hamilton's method of apportionment.
    """
    # Whole numbers throughout, so that equal remainders tie exactly. Both factors are below 2**31: no overflow.
    shares, remainders = np.divmod(totals[:, None] * sizes.astype(np.int64), np.sum(sizes, dtype=np.int64))
    # Sorting the order of a sort gives the rank of each remainder; a stable sort keeps ties in the order of classes.
    rank = np.argsort(np.argsort(-remainders, axis=1, kind="stable"), axis=1)
    dealt: NDArray[np.int64] = shares + (rank < (totals - shares.sum(axis=1))[:, None])
    return dealt


def _key(keys: Array, class_: Array, xp: ModuleType) -> Array:
    """Compute the key of one class of one head; classes of equal size must not be drawn alike."""
    return mix(mix(keys ^ _SALT, xp) ^ mix(class_ ^ GOLDEN, xp), xp)


def _take_stratified(
    columns: Mapping[str, Array], tables: Mapping[str, Array], offsets: Array, xp: ModuleType
) -> Array:
    first, sizes = per_head(columns["quotas"], offsets), tables["sizes"]

    def begun(count: Array) -> Array:
        # Past the last class this reads the entry of another quota (or a clipped one), so the count is checked too.
        begin = xp.take(tables["begins"], (first + count).astype(xp.int32), mode="clip")
        return (count < np.uint32(sizes.size)) & (begin <= offsets)

    # A line holds its classes one after the other. First find the class that the offset falls into, then the place in
    # the ring of this class, then the row there.
    class_ = count_while(begun, tables["strides"], offsets, xp)
    quota, number = (first + class_).astype(xp.int32), class_.astype(xp.int32)
    size = xp.take(sizes, number, mode="clip")
    inner = offsets - xp.take(tables["begins"], quota, mode="clip")
    place = add_mod(inner, xp.take(tables["starts"], quota, mode="clip"), size, xp)
    key = _key(per_head(columns["keys"], offsets), class_, xp)
    place = permute(place, length=size, key=key, xp=xp) + xp.take(tables["firsts"], number, mode="clip")
    return xp.take(tables["rows"], place.astype(xp.int32), mode="clip")
