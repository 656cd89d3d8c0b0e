"""Lists of rows, and what lists leave out: slices whose rows are kept, four bytes per row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hydrax.slices.law import Array, Figures, Part, RowLaw, blocks, count_while, per_head, strides


def shared_tables(tables: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], list[int]]:
    """Concatenate tables, each distinct object once, and return where each table begins in the result."""
    # Heads that were selected apart share their table. Joining them again by identity compares and copies no row.
    distinct = {id(table): table for table in tables}
    begins = dict(zip(distinct, np.cumsum([0, *map(len, distinct.values())]).tolist(), strict=False))
    table = tables[0] if len(distinct) == 1 else np.concatenate(list(distinct.values()))
    return table, [begins[id(table)] for table in tables]


def place_type(size: int) -> type[np.signedinteger[Any]]:
    """Return the integer type for places in a table. A compiled program takes 32 bits only, so 64 only if needed."""
    return np.int32 if size < 2**31 else np.int64


@dataclass(frozen=True, eq=False)
class _Kept(Part):
    """Lines that each hold a stretch of one table of rows.

    Attributes:
      rows: int32[], all lists, one after the other.
      firsts: int32[L] or int64[L], where in `rows` the list of each line begins.
      numbers: int32[L], the number that the recipe of each line shows: of the split, of the group, of rows.
      are_sets: whether every list is sorted and holds no row twice.
    """

    per_line: ClassVar[tuple[str, ...]] = ("lengths", "firsts", "numbers")

    rows: NDArray[np.int32]
    firsts: NDArray[np.signedinteger[Any]]
    numbers: NDArray[np.int32]
    are_sets: bool

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        rows, begins = shared_tables([part.rows for part in parts])
        firsts = np.concatenate([part.firsts + np.int64(begin) for part, begin in zip(parts, begins, strict=True)])
        are_sets = all(part.are_sets for part in parts)
        return cls._joined(parts, rows=rows, firsts=firsts.astype(place_type(rows.size)), are_sets=are_sets)

    def figures(self, at: NDArray[np.int64]) -> Figures:
        return super().figures(at) | {"number": self.numbers[at]}


@dataclass(frozen=True, eq=False)
class Lists(_Kept):
    """The listed rows, in the order given; a list may hold a row more than once."""

    code: ClassVar[int] = 2

    @classmethod
    def of(
        cls,
        num_rows: int,
        rows: NDArray[np.int32],
        lengths: NDArray[np.integer],
        *,
        numbers: NDArray[np.integer],
        are_sets: bool = False,
    ) -> Self:
        """Make lists from `rows`, which holds them one after the other."""
        firsts = (np.cumsum(lengths, dtype=np.int64) - lengths).astype(place_type(rows.size))
        return cls(num_rows, lengths.astype(np.int32), rows, firsts, numbers.astype(np.int32), are_sets)

    @classmethod
    def by_group(cls, labels: NDArray[Any]) -> tuple[Self, NDArray[Any]]:
        """List the rows of each distinct label [N], and return the labels too, both in sorted order."""
        names, number, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        rows = np.argsort(number, kind="stable").astype(np.int32)
        return cls.of(labels.size, rows, sizes, numbers=np.arange(names.size), are_sets=True), names

    def law(self) -> RowLaw:
        return RowLaw({"firsts": self.firsts}, {"rows": self.rows}, _take_listed, is_cheap=True)

    def _as_sets(self) -> "Lists":
        """Return the same lines as sets: sorted, each row once."""
        if self.are_sets:
            return self
        rows, lengths = [], []
        for block in blocks(self.lengths):
            part = self.pick(block)
            line = np.repeat(np.arange(block.size), part.lengths)
            offset = np.arange(line.size) - (np.cumsum(part.lengths, dtype=np.int64) - part.lengths)[line]
            listed = self.rows.take(part.firsts[line] + offset)
            # One number for (line, row), so that one sort serves all lines of the block.
            distinct = np.unique(line * self.num_rows + listed)
            line, listed = np.divmod(distinct, self.num_rows)
            rows.append(listed.astype(np.int32))
            lengths.append(np.bincount(line, minlength=block.size))
        return Lists.of(
            self.num_rows, np.concatenate(rows), np.concatenate(lengths), numbers=self.numbers, are_sets=True
        )

    def complement(self) -> "Unlisted":
        sets = self._as_sets()  # The complement shares this table, and so does its own complement.
        lengths = np.int32(self.num_rows) - sets.lengths
        return Unlisted(self.num_rows, lengths, sets.rows, sets.firsts, sets.numbers, are_sets=True)

    @cached_property  # it sorts all lists
    def has_repeats(self) -> bool:
        return int(self._as_sets().lengths.sum(dtype=np.int64)) < int(self.lengths.sum(dtype=np.int64))

    def content(self) -> Iterator[bytes]:
        return (rows.astype("<u4").tobytes() for _, rows in self.walk())


@dataclass(frozen=True, eq=False)
class Unlisted(_Kept):
    """All rows except the listed ones, in base order. The lists are sets."""

    code: ClassVar[int] = 3

    def law(self) -> RowLaw:
        listed = (np.int32(self.num_rows) - self.lengths).astype(np.uint32)
        tables = {"rows": self.rows, "strides": strides(int(listed.max(initial=0)))}
        return RowLaw({"firsts": self.firsts, "listed": listed}, tables, _take_unlisted)

    def complement(self) -> Lists:
        # The table already holds these rows, so nothing is computed or copied.
        lengths = np.int32(self.num_rows) - self.lengths
        return Lists(self.num_rows, lengths, self.rows, self.firsts, self.numbers, are_sets=True)

    def contains(self, at: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return ~self.complement().contains(at, rows)

    def content(self) -> Iterator[bytes]:
        return self.complement().content()


def _take_listed(columns: Mapping[str, Array], tables: Mapping[str, Array], offsets: Array, xp: ModuleType) -> Array:
    first = per_head(columns["firsts"], offsets)
    return xp.take(tables["rows"], first + offsets.astype(first.dtype), mode="clip")


def _take_unlisted(columns: Mapping[str, Array], tables: Mapping[str, Array], offsets: Array, xp: ModuleType) -> Array:
    first, listed = per_head(columns["firsts"], offsets), per_head(columns["listed"], offsets)

    def passed(count: Array) -> Array:
        # Before row L[i] of a sorted list there are L[i] - i rows that are not listed. So row number `offset` of those
        # not listed comes after all L[i] with L[i] - i <= offset, and their count is what it has to skip.
        last = count - np.uint32(1)
        row = xp.take(tables["rows"], first + last.astype(first.dtype), mode="clip").astype(xp.uint32)
        return (count <= listed) & (row - last <= offsets)

    return (offsets + count_while(passed, tables["strides"], offsets, xp)).astype(xp.int32)
