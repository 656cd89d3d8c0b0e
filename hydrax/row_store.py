"""How slices are kept: every head is a window (start, length) on one of three sequences of rows.

The sequences are the base order 0..N-1; the permutation of it that the head's seed keys, which is computed and never
stored; and a list of the head's own. A window costs 13 bytes a head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrax.rotation import mix, permute

_BLOCK_ROWS = 2**20  # Rows handled at once where all rows of all heads are walked: bounds the temporaries.
_SALT = np.uint32(0x51A1CE5)  # Keeps the order of a subset apart from the orders in which the rotation walks it.


class _Order(IntEnum):
    """The sequence of rows that a head's window lies on."""

    BASE = 0
    KEYED = 1
    LISTED = 2


# A head keeps the number of its line here, one byte, so lines are only ever added.
_RECIPES = (
    ("full", _Order.BASE),
    ("prefix({length})", _Order.BASE),
    ("prefix({length})", _Order.KEYED),
    ("window({start}, {length})", _Order.BASE),
    ("random_subset({length})", _Order.KEYED),
    ("from_indices({length})", _Order.LISTED),
    ("from_mask({length})", _Order.LISTED),
    ("from_splits({number}, train)", _Order.LISTED),
    ("from_splits({number}, test)", _Order.LISTED),
)
_ORDERS = np.array([order for _, order in _RECIPES], np.uint8)


@dataclass(frozen=True, eq=False)
class _Lists:
    """Lists of rows, one after the other; list k is rows[offsets[k]:offsets[k + 1]]."""

    rows: NDArray[np.int32]
    offsets: NDArray[np.int64]
    numbers: NDArray[np.int32]  # What its maker called list k: the number of the split.

    def __post_init__(self) -> None:
        for array in (self.rows, self.offsets, self.numbers):
            array.setflags(write=False)


_NO_LISTS = _Lists(np.empty(0, np.int32), np.zeros(1, np.int64), np.empty(0, np.int32))


@dataclass(frozen=True, eq=False)
class RowStore:
    """The rows of H slices on a dataset of N rows, already checked. Read-only."""

    num_rows: int
    lengths: NDArray[np.int32]
    starts: NDArray[np.int32]  # First place of the window; for a listed head the number of its list.
    keys: NDArray[np.uint32]  # Seed of the keyed permutation; 0 on other sequences.
    recipes: NDArray[np.uint8]
    lists: _Lists

    def __post_init__(self) -> None:
        for array in (self.lengths, self.starts, self.keys, self.recipes):
            array.setflags(write=False)

    @classmethod
    def of_windows(
        cls,
        template: str,
        num_rows: int,
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        seeds: NDArray[np.int64] | None,
    ) -> "RowStore":
        """Windows on the base order, or on the permutations that the seeds key; integers[H] each."""
        order, keys = (_Order.BASE, np.zeros_like(starts)) if seeds is None else (_Order.KEYED, seeds)
        recipes = np.full(lengths.size, _RECIPES.index((template, order)), np.uint8)
        columns = lengths.astype(np.int32), starts.astype(np.int32), keys.astype(np.uint32), recipes
        return cls(num_rows, *columns, _NO_LISTS)

    @classmethod
    def of_lists(cls, template: str, num_rows: int, rows: NDArray[np.int32], lengths: NDArray[np.int64]) -> "RowStore":
        """Lists, one after the other in `rows`; list h belongs to head h."""
        numbers = np.arange(lengths.size, dtype=np.int32)
        lists = _Lists(rows, np.concatenate([[0], np.cumsum(lengths)]), numbers)
        recipes = np.full(lengths.size, _RECIPES.index((template, _Order.LISTED)), np.uint8)
        return cls(num_rows, lengths.astype(np.int32), numbers, np.zeros(lengths.size, np.uint32), recipes, lists)

    @classmethod
    def concatenate(cls, parts: Sequence["RowStore"]) -> "RowStore":
        """The heads of all parts, one after the other, on the dataset of the first."""
        before = np.cumsum([0, *(part.lists.numbers.size for part in parts)])
        rows_before = np.cumsum([0, *(part.lists.rows.size for part in parts)])
        starts = [
            np.where(part.orders == _Order.LISTED, part.starts + shift, part.starts).astype(np.int32)
            for part, shift in zip(parts, before, strict=False)
        ]
        ends = [part.lists.offsets[1:] + shift for part, shift in zip(parts, rows_before, strict=False)]
        return cls(
            num_rows=parts[0].num_rows,
            lengths=np.concatenate([part.lengths for part in parts]),
            starts=np.concatenate(starts),
            keys=np.concatenate([part.keys for part in parts]),
            recipes=np.concatenate([part.recipes for part in parts]),
            lists=_Lists(
                rows=np.concatenate([part.lists.rows for part in parts]),
                offsets=np.concatenate([[0], *ends]),
                numbers=np.concatenate([part.lists.numbers for part in parts]),
            ),
        )

    def pick(self, at: NDArray[np.int64]) -> "RowStore":
        """The heads at the given positions. Lists are shared, not copied."""
        columns = self.lengths[at], self.starts[at], self.keys[at], self.recipes[at]
        return RowStore(self.num_rows, *columns, self.lists)

    @property
    def orders(self) -> NDArray[np.uint8]:
        return _ORDERS[self.recipes]

    @property
    def seeds(self) -> NDArray[np.int64]:
        """int64[H], -1 where the rows depend on no seed."""
        return np.where(self.orders == _Order.KEYED, self.keys.astype(np.int64), -1)

    @property
    def kinds(self) -> list[str]:
        """Names of the recipes in use, each once."""
        return list(dict.fromkeys(_RECIPES[code][0].split("(")[0] for code in np.unique(self.recipes)))

    def recipe(self, at: int) -> str:
        """How the head at position `at` was made."""
        template, order = _RECIPES[self.recipes[at]]
        start = int(self.starts[at])
        number = int(self.lists.numbers[start]) if order == _Order.LISTED else None
        return template.format(start=start, length=int(self.lengths[at]), number=number)

    def take(self, heads: NDArray[np.integer], offsets: NDArray[np.int64]) -> NDArray[np.int32]:
        """Rows at offsets[k] inside the slice at position heads[k]: int[K, B] by int[K] gives int32[K, B]."""
        orders = self.orders[heads]
        if (orders == orders[0]).all():  # The common case, and without the copies below.
            return self._take_on(orders[0], heads, offsets)
        rows = np.empty(offsets.shape, np.int32)
        for order in np.unique(orders):
            chosen = orders == order
            rows[chosen] = self._take_on(order, heads[chosen], offsets[chosen])
        return rows

    def _take_on(self, order: int, heads: NDArray[np.integer], offsets: NDArray[np.int64]) -> NDArray[np.int32]:
        """`take` of heads whose windows all lie on one kind of sequence."""
        start = self.starts[heads][:, None]
        if order == _Order.BASE:
            return (start + offsets).astype(np.int32)
        if order == _Order.LISTED:
            return self.lists.rows.take(self.lists.offsets[start] + offsets)
        key = mix(self.keys[heads][:, None] ^ _SALT, np)
        return permute(start + offsets, length=np.uint32(self.num_rows), key=key, xp=np).astype(np.int32)

    def walk(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """All rows of all heads, head after head, in blocks of (positions of the heads, rows)."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        for first in range(0, int(ends[-1]), _BLOCK_ROWS):
            place = np.arange(first, min(first + _BLOCK_ROWS, int(ends[-1])))
            head = np.searchsorted(ends, place, side="right")
            offset = place - (ends - self.lengths)[head]
            yield head, self.take(head, offset[:, None])[:, 0]

    def content(self) -> Iterator[bytes]:
        """What makes two stores the same: windows, seeds and listed rows, little-endian; not recipes or layout."""
        listed = self.orders == _Order.LISTED
        columns: tuple[NDArray[Any], ...] = (self.lengths, self.orders, np.where(listed, 0, self.starts), self.keys)
        for column in columns:
            yield column.astype("<u4").tobytes()
        if listed.any():
            for _, rows in self.pick(np.flatnonzero(listed)).walk():
                yield rows.astype("<u4").tobytes()
