"""How the slices of all heads are kept: in parts, one for each way of keeping rows that is in use.

Every part is an array per property, a few bytes a head. The ways: windows on the base order or on a keyed permutation
(`row_windows.py`), stratified subsets (`row_strata.py`), draws with replacement (`row_draws.py`), lists and what lists
leave out (`row_lists.py`), packed bits (`row_bits.py`).
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrax.slices.law import BLOCK_ROWS, Part, RowLaw, blocks, walk
from hydrax.slices.recipes import Recipe, Recipes

_MANY_ROWS = 2**24  # Rows looked for at once: lists are walked anew for every lot.


@dataclass(frozen=True, eq=False)
class RowStore:
    """The rows of H slices on a dataset of N rows, already checked. Read-only.

    Attributes:
      parts: no two of them could be joined. Within a part lines stand in the order of their heads.
      owners: unsigned[H], the part of each head; None where there is one part.
      recipes: how each slice was made.
    """

    parts: tuple[Part, ...]
    owners: NDArray[np.unsignedinteger[Any]] | None
    recipes: Recipes

    @classmethod
    def of(cls, part: Part, text: str, names: NDArray[Any] | None = None) -> "RowStore":
        """Heads that are all kept and made in one way; text and names as in `Recipe`."""
        return cls((part,), None, Recipes.of_one(Recipe(text, names), part.lengths.size))

    @classmethod
    def concatenate(cls, stores: Sequence["RowStore"]) -> "RowStore":
        """The heads of all stores, one after the other, on the dataset of the first."""
        kin: dict[Hashable, list[Part]] = {}
        for store in stores:
            for part in store.parts:
                kin.setdefault(part.kin, []).append(part)
        number = {key: at for at, key in enumerate(kin)}
        parts = tuple(members[0].join(members) if len(members) > 1 else members[0] for members in kin.values())
        recipes = Recipes.join([store.recipes for store in stores])
        if len(parts) == 1:
            return cls(parts, None, recipes)
        kind = np.min_scalar_type(len(parts))
        owners = [
            np.array([number[part.kin] for part in store.parts], kind)[_owners_or_zeros(store)] for store in stores
        ]
        return cls(parts, np.concatenate(owners), recipes)

    def pick(self, at: NDArray[np.int64]) -> "RowStore":
        """The heads at the given positions; one may be picked more than once. Tables are shared, not copied."""
        recipes = self.recipes.pick(at)
        if self.owners is None:
            return RowStore((self.parts[0].pick(at),), None, recipes)
        used, owners = np.unique(self.owners[at], return_inverse=True)
        parts = tuple(self.parts[number].pick(self._lines[at[owners == new]]) for new, number in enumerate(used))
        return RowStore(parts, owners.astype(self.owners.dtype) if len(parts) > 1 else None, recipes)

    def complement(self) -> "RowStore":
        """The same heads with the rows that each does not hold; some may hold none."""
        store = RowStore(tuple(part.complement() for part in self.parts), self.owners, self.recipes.complement())
        # Parts of two kinds may have come to be of one.
        return store if self.owners is None else RowStore._regrouped(store)

    @staticmethod
    def _regrouped(store: "RowStore") -> "RowStore":
        if len({part.kin for part in store.parts}) == len(store.parts):
            return store
        by_part = [np.flatnonzero(store.owners == number) for number in range(len(store.parts))]
        grouped = RowStore.concatenate([store.pick(at) for at in by_part])
        return grouped.pick(np.argsort(np.concatenate(by_part)))

    @cached_property
    def _lines(self) -> NDArray[np.int64]:
        """int64[H], which line of its part each head is, where there are several parts."""
        lines = np.empty(self.recipes.codes.size, np.int64)
        for number in range(len(self.parts)):
            own = self.owners == number
            lines[own] = np.arange(np.count_nonzero(own))
        return lines

    def _gathered(self, of: Callable[[Part], NDArray[Any]]) -> NDArray[Any]:
        """What every part says of its lines, by head."""
        if self.owners is None:
            return of(self.parts[0])
        said = [of(part) for part in self.parts]
        gathered = np.empty((self.owners.size, *said[0].shape[1:]), np.result_type(*said))
        for number, values in enumerate(said):
            gathered[self.owners == number] = values
        return gathered

    @property
    def num_rows(self) -> int:
        return self.parts[0].num_rows

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        lengths = self._gathered(lambda part: part.lengths)
        lengths.setflags(write=False)
        return lengths

    @property
    def seeds(self) -> NDArray[np.int64]:
        """int64[H], -1 where the rows are computed from no seed."""
        return self._gathered(lambda part: part.seeds)

    @property
    def has_repeats(self) -> bool:
        """Whether a slice may hold a row more than once."""
        return any(part.has_repeats for part in self.parts)

    @property
    def size_bytes(self) -> int:
        """Memory that the slices take, tables included."""
        arrays: list[NDArray[Any]] = [self.recipes.codes, *([] if self.owners is None else [self.owners])]
        for part in self.parts:
            columns, tables, _ = part.law()
            arrays += [part.lengths, *columns.values(), *tables.values()]
        return sum(array.nbytes for array in arrays)

    def recipe(self, at: int) -> str:
        """How the slice of the head at position `at` was made."""
        if self.owners is None:
            return self.recipes.told(at, self.parts[0].figures(at))
        return self.recipes.told(at, self.parts[self.owners[at]].figures(int(self._lines[at])))

    def law(self) -> RowLaw | None:
        """The law of all heads; None where they lie in several parts, or places in a table pass 2**31."""
        if self.owners is not None:
            return None
        law = self.parts[0].law()
        return None if any(column.dtype.itemsize > 4 for column in law.columns.values()) else law

    def take(self, at: NDArray[np.int64], offsets: NDArray[np.unsignedinteger]) -> NDArray[np.int32]:
        """Rows at offsets[k] inside the slice at position at[k]: uint32[K, B] by int[K] gives int32[K, B]."""
        return self._by_part(at, lambda part, line, own: part.take(line, offsets[own]), offsets.shape[1], np.int32)

    def contains(self, at: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the slice at position at[k] holds the rows [B]: bool[K, B], block by block."""
        held = np.empty((at.size, rows.size), np.bool_)
        if rows.size > _MANY_ROWS:
            for first in range(0, rows.size, _MANY_ROWS):
                held[:, first : first + _MANY_ROWS] = self.contains(at, rows[first : first + _MANY_ROWS])
            return held
        for block in blocks(np.full(at.size, rows.size), BLOCK_ROWS):
            held[block] = self._by_part(at[block], lambda part, line, _: part.contains(line, rows), rows.size, np.bool_)
        return held

    def _by_part(
        self, at: NDArray[np.int64], ask: Callable[[Part, NDArray[np.int64], Any], NDArray[Any]], width: int, kind: Any
    ) -> NDArray[Any]:
        """What `ask(part, lines, places in at)` says of the heads at `at`, [K, width]."""
        if self.owners is None:  # The common case, and without copies.
            return ask(self.parts[0], at, slice(None))
        answer = np.empty((at.size, width), kind)
        owners = self.owners[at]
        for number in np.unique(owners):
            own = np.flatnonzero(owners == number)
            answer[own] = ask(self.parts[number], self._lines[at[own]], own)
        return answer

    def walk(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """All rows of all heads, head after head, in blocks of (positions of the heads, rows)."""
        return walk(self.lengths, self.take)

    def content(self) -> Iterator[bytes]:
        """What makes two stores the same: kinds, windows, seeds, listed rows, little-endian; not recipes or layout."""
        columns = (
            self.lengths,
            self._gathered(lambda part: np.full(part.lengths.size, part.code, np.uint8)),
            self._gathered(lambda part: part.marks[0]),
            self._gathered(lambda part: part.marks[1]),
        )
        for column in columns:
            yield column.astype("<u4").tobytes()
        for number in sorted(range(len(self.parts)), key=lambda at: (self.parts[at].code, self.parts[at].table_digest)):
            part = self.parts[number]
            if part.table_digest:
                yield part.table_digest + np.flatnonzero(_owners_or_zeros(self) == number).astype("<u4").tobytes()
            yield from part.content()


def _owners_or_zeros(store: RowStore) -> NDArray[np.unsignedinteger[Any]]:
    return np.zeros(store.recipes.codes.size, np.uint8) if store.owners is None else store.owners
