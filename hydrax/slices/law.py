"""What every way of keeping rows can do, and the law by which its rows are computed, on the host and in the program.

A part holds some lines; a line is the slice of one head. How parts make up all heads: `row_store.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 2**20  # Rows handled at once where rows of many heads are walked: bounds the temporaries.

Array = Any  # numpy.ndarray or jax.Array, whichever the argument xp makes.
Take = Callable[[Mapping[str, Array], Mapping[str, Array], Array, ModuleType], Array]


class RowLaw(NamedTuple):
    """How rows follow from offsets: the same integers from NumPy and, without x64, from jax.numpy.

    Attributes:
      columns: by name, int32[H] or uint32[H]: what differs from head to head.
      tables: by name, arrays that all heads share.
      take: `take(columns, tables, offsets uint32[..., H, B], xp) -> int32[..., H, B]`, the base rows at offsets
        inside the slices. One and the same function for all slices of a kind, so it may be static in a program.
    """

    columns: dict[str, NDArray[Any]]
    tables: dict[str, NDArray[Any]]
    take: Take


@dataclass(frozen=True, eq=False)
class Part(ABC):
    """Slices that are all kept in one way, L lines of them, already checked. Read-only.

    Attributes:
      num_rows: N.
      lengths: int32[L]; 0 in a complement that nothing is left for.
    """

    # Names the kind in digests, so it never changes.
    code: ClassVar[int]
    # The fields that hold one entry per line.
    per_line: ClassVar[tuple[str, ...]] = ()

    num_rows: int
    lengths: NDArray[np.int32]

    def __post_init__(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    @abstractmethod
    def law(self) -> RowLaw:
        """The law of all lines. A column is int64 where places in a table pass 2**31: then for the host only."""

    @abstractmethod
    def complement(self) -> "Part":
        """The same lines with the rows that each does not hold."""

    def contains(self, at: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the rows [B] the lines at `at` [K] hold: bool[K, B]."""
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
        """Rows at offsets[k] inside line at[k]: uint32[K, B] by int[K] gives int32[K, B]."""
        columns, tables, take = self.law()
        rows: NDArray[np.int32] = take({name: column[at] for name, column in columns.items()}, tables, offsets, np)
        return rows

    def walk(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """All rows of all lines, line after line, in blocks of (lines, rows)."""
        return walk(self.lengths, self.take)

    def pick(self, at: NDArray[np.int64]) -> Self:
        """The lines at the given positions; a line may be picked more than once. Tables are shared, not copied."""
        return replace(self, **{name: getattr(self, name)[at] for name in self.per_line})

    @property
    def kin(self) -> Hashable:
        """Parts of equal kin can be joined."""
        return type(self)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The lines of all parts, one after the other."""
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in cls.per_line
        }
        return replace(parts[0], **columns)

    @property
    def seeds(self) -> NDArray[np.int64]:
        """int64[L], the seed that the rows of each line are computed from, -1 where there is none."""
        return np.full(self.lengths.size, -1)

    @property
    def has_repeats(self) -> bool:
        """Whether a line may hold a row more than once."""
        return False

    def figures(self, at: int) -> dict[str, int]:
        """What a recipe may tell of the line at `at`."""
        return {"length": int(self.lengths[at]), "rest": self.num_rows - int(self.lengths[at])}

    # With its kind and lengths, these say which rows a part holds; digests are made of them.

    @property
    def marks(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Two numbers per line, uint32[L] each: where it starts and its seed, as far as its kind knows these."""
        nothing = np.zeros(self.lengths.size, np.uint32)
        return nothing, nothing

    @property
    def table_digest(self) -> bytes:
        """Digest of a table that the rows of all lines depend on; empty where there is none."""
        return b""

    def content(self) -> Iterator[bytes]:
        """What else makes up the lines, line after line, little-endian."""
        return iter(())


def walk(
    lengths: NDArray[np.int32], take: Callable[[NDArray[np.int64], NDArray[Any]], NDArray[np.int32]]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
    """All rows of all slices, one slice after the other, in blocks of (positions of the slices, rows)."""
    ends = np.cumsum(lengths, dtype=np.int64)
    for first in range(0, int(ends[-1]), BLOCK_ROWS):
        place = np.arange(first, min(first + BLOCK_ROWS, int(ends[-1])))
        at = np.searchsorted(ends, place, side="right")
        offset = place - (ends - lengths)[at]
        yield at, take(at, offset.astype(np.uint32)[:, None])[:, 0]


def blocks(sizes: NDArray[np.integer], limit: int = BLOCK_ROWS) -> Iterator[NDArray[np.int64]]:
    """Positions in blocks whose sizes add up to about the limit: one position at least, all of them once."""
    block = np.cumsum(sizes, dtype=np.int64) // limit
    return iter(np.split(np.arange(sizes.size), np.flatnonzero(np.diff(block)) + 1))


def beside(column: Array, offsets: Array) -> Array:
    """A column [H] in the shape that stands beside offsets [..., H, B]: JAX may refuse to add axes by itself."""
    return column.reshape((1,) * (offsets.ndim - 2) + (-1, 1))


def around(place: Array, size: Array, xp: ModuleType) -> Array:
    """A place in [0, 2 * size) taken modulo size; uint32."""
    # Without a slow modulo: below zero the difference has wrapped around to above 2**31, and the place is the smaller.
    return xp.minimum(place, place - size)


def since(place: Array, start: Array, size: Array, xp: ModuleType) -> Array:
    """How far a place lies after the start, going around in [0, size); uint32."""
    way = place - start
    return xp.minimum(way, way + size)


def strides(most: int) -> NDArray[np.uint32]:
    """The steps of `count_while` for counts up to `most`: powers of two, the largest first."""
    return (1 << np.arange(int(most).bit_length())[::-1]).astype(np.uint32)


def count_while(holds: Callable[[Array], Array], steps: Array, like: Array, xp: ModuleType) -> Array:
    """The largest count for which `holds` is true, by halving; uint32 of the shape of `like`.

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
