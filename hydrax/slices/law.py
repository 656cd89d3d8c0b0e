"""The interface of every way of keeping rows, and the law by which rows follow from offsets, in NumPy and in JAX.

A part is a group of slices that are kept in the same way; it holds one line per head. `store.py` puts the parts of all
heads together.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 2**20  # Rows to handle at once where the rows of many heads are walked: it bounds the temporaries.

Array = Any  # numpy.ndarray or jax.Array, whichever `xp` makes.
Figures = dict[str, NDArray[Any]]  # The numbers that a recipe may show, by name; each has one entry per line.
Take = Callable[[Mapping[str, Array], Mapping[str, Array], Array, ModuleType], Array]


class RowLaw(NamedTuple):
    """How rows follow from offsets: the same integers from NumPy and, without x64, from jax.numpy.

    Attributes:
      columns: by name, int32[H] or uint32[H]: what differs between heads.
      tables: by name, arrays that all heads share.
      take: `take(columns, tables, offsets uint32[..., H, B], xp) -> int32[..., H, B]` computes the base rows at offsets
        inside the slices. It is one and the same function for all slices of a kind, so it can be a static argument of
        a compiled program, and other slices of that kind do not compile it again.
      is_cheap: whether `take` costs no more than reading a row from a list of all rows.
    """

    columns: dict[str, NDArray[Any]]
    tables: dict[str, NDArray[Any]]
    take: Take
    is_cheap: bool = False


@dataclass(frozen=True, eq=False)
class Part(ABC):
    """L lines that are all kept in one way and already checked. Read-only.

    Attributes:
      num_rows: rows of the base dataset, N.
      lengths: int32[L], rows of each line; 0 only in a complement that has no row left.
    """

    # Stands for the kind in digests, so it must never change.
    code: ClassVar[int]
    # Names of the fields that have one entry per line.
    per_line: ClassVar[tuple[str, ...]] = ()
    # Names of the fields with the start (or the side) and the seed of each line; digests hold them.
    marks: ClassVar[tuple[str | None, str | None]] = (None, None)

    num_rows: int
    lengths: NDArray[np.int32]

    def __post_init__(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    @abstractmethod
    def law(self) -> RowLaw:
        """Return the law of all lines.

        A column is int64 where places in a table exceed 2**31; such a law works on the host only.
        """

    @abstractmethod
    def complement(self) -> "Part":
        """Return the same lines with the rows that each does not hold."""

    def contains(self, at: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which of the rows [B] the lines at `at` [K] hold: bool[K, B]."""
        asked, place = np.unique(rows, return_inverse=True)
        held = np.zeros((at.size, asked.size), np.bool_)
        if not asked.size:
            return held
        for line, found in self.pick(at).walk():
            spot = np.minimum(np.searchsorted(asked, found), asked.size - 1)
            hit = asked[spot] == found
            held[line[hit], spot[hit]] = True
        return held[:, place]

    def take(self, at: NDArray[np.int64], offsets: NDArray[np.unsignedinteger]) -> NDArray[np.int32]:
        """Compute the rows at offsets[k] inside the line at[k]: int[K] and uint32[K, B] give int32[K, B]."""
        columns, tables, take, _ = self.law()
        rows: NDArray[np.int32] = take({name: column[at] for name, column in columns.items()}, tables, offsets, np)
        return rows

    def walk(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """Yield all rows of all lines, line after line, in blocks of (lines, rows)."""
        return walk(self.lengths, self.take)

    def pick(self, at: NDArray[np.int64]) -> Self:
        """Select lines by position; a line may be selected more than once. Tables are shared, not copied."""
        return replace(self, **{name: getattr(self, name)[at] for name in self.per_line})

    @property
    def kin(self) -> Hashable:
        """Equal for parts that can be joined."""
        return type(self)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the lines of parts of equal kin."""
        return cls._joined(parts)

    @classmethod
    def _joined(cls, parts: Sequence[Self], **changes: Any) -> Self:
        """Concatenate the fields with one entry per line; changes are other fields, or entries to use instead."""
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in cls.per_line}
        return replace(parts[0], **(columns | changes))

    @property
    def seeds(self) -> NDArray[np.int64]:
        """int64[L], the seed that the rows of each line are computed from, or -1."""
        return np.full(self.lengths.size, -1) if self.marks[1] is None else self.mark(1).astype(np.int64)

    def mark(self, which: int) -> NDArray[Any]:
        """Return the start (0) or the seed (1) of each line, [L]; zeros for a kind without it."""
        name = self.marks[which]
        return np.zeros(self.lengths.size, np.uint32) if name is None else getattr(self, name)

    @property
    def has_repeats(self) -> bool:
        """Whether a line may hold a row more than once."""
        return False

    def figures(self, at: NDArray[np.int64]) -> Figures:
        """Return the figures of the lines at `at` [K]."""
        return {"length": self.lengths[at], "rest": self.num_rows - self.lengths[at]}

    # Kind, lengths and marks, together with the following, determine the rows of a part. Digests are made of them.

    @property
    def table_digest(self) -> bytes:
        """Digest of the table that the rows of all lines depend on; empty if there is none."""
        return b""

    def content(self) -> Iterator[bytes]:
        """Yield the rows that are kept and not computed, line after line, little-endian."""
        return iter(())


def walk(
    lengths: NDArray[np.int32], take: Callable[[NDArray[np.int64], NDArray[Any]], NDArray[np.int32]]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
    """Yield all rows of all slices, one slice after the other, in blocks of (positions of the slices, rows)."""
    ends = np.cumsum(lengths, dtype=np.int64)
    for first in range(0, int(ends[-1]), BLOCK_ROWS):
        place = np.arange(first, min(first + BLOCK_ROWS, int(ends[-1])))
        at = np.searchsorted(ends, place, side="right")
        offset = place - (ends - lengths)[at]
        yield at, take(at, offset.astype(np.uint32)[:, None])[:, 0]


def blocks(sizes: NDArray[np.integer], limit: int = BLOCK_ROWS) -> Iterator[NDArray[np.int64]]:
    """Split positions into blocks whose sizes add up to about the limit; each block has at least one position."""
    block = np.cumsum(sizes, dtype=np.int64) // limit
    return iter(np.split(np.arange(sizes.size), np.flatnonzero(np.diff(block)) + 1))


def per_head(column: Array, offsets: Array) -> Array:
    """Reshape a column [H] so that it broadcasts against offsets [..., H, B]."""
    # All axes are written out, because JAX may be set to refuse to add axes (jax_numpy_rank_promotion).
    return column.reshape((1,) * (offsets.ndim - 2) + (-1, 1))


# The arithmetic of laws, in 32 bits. Places and sizes are below 2**31, so the sum of two fits into uint32, and a
# difference below zero wraps to above 2**31. A minimum then finds the remainder, where `%` would be a slow division.


def add_mod(place: Array, distance: Array, size: Array, xp: ModuleType) -> Array:
    """Compute (place + distance) % size for uint32 place < size and distance < size."""
    total = place + distance
    return xp.minimum(total, total - size)


def sub_mod(place: Array, start: Array, size: Array, xp: ModuleType) -> Array:
    """Compute (place - start) % size for uint32 place < size and start < size."""
    distance = place - start
    return xp.minimum(distance, distance + size)


# A binary search whose number of steps is known when the program is compiled.


def strides(most: int) -> NDArray[np.uint32]:
    """Return the steps of `count_while` for counts up to `most`: powers of two, the largest first."""
    return (1 << np.arange(int(most).bit_length())[::-1]).astype(np.uint32)


def count_while(holds: Callable[[Array], Array], steps: Array, like: Array, xp: ModuleType) -> Array:
    """Find the largest count for which `holds` is true, by binary search; uint32 in the shape of `like`.

    Args:
      holds: bool of a count, uint32[...] >= 1: true up to some count and false from there on.
      steps: from `strides`.
      like: an array of the shape wanted.
      xp: `numpy` or `jax.numpy`.
    """
    count = xp.zeros(like.shape, xp.uint32)
    for level in range(steps.size):
        probe = count + steps[level]
        count = xp.where(holds(probe), probe, count)
    return count
