"""The slices of all heads, in parts: one for each way of keeping rows that is in use.

The ways are windows on the base order or on a keyed permutation (`windows.py`), stratified subsets (`strata.py`), draws
with replacement (`draws.py`), lists and what lists leave out (`lists.py`), and packed bits (`bits.py`). A part has one
array per property, not one object per head, so 10^5 heads take a few bytes each.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrax.slices.law import BLOCK_ROWS, Part, RowLaw, blocks, walk
from hydrax.slices.recipes import Recipe, Recipes
from hydrax.slices.sets import KeptSets

_MANY_ROWS = 2**24  # Rows to look for at once. More take several rounds, each of which walks all lists.


@dataclass(frozen=True, eq=False)
class RowStore:
    """The rows of H slices on a dataset of N rows, already checked. Read-only.

    Attributes:
      parts: the parts; no two of them can be joined. The lines of a part are in the order of their heads.
      owners: unsigned[H], the part of each head; None if there is one part.
      recipes: how each slice was made.
    """

    parts: tuple[Part, ...]
    owners: NDArray[np.unsignedinteger[Any]] | None
    recipes: Recipes

    @classmethod
    def of(
        cls, part: Part, maker: str, *fields: str, settings: str = "", names: NDArray[Any] | None = None
    ) -> "RowStore":
        """Keep heads that one constructor made; the other arguments are those of `Recipe`."""
        recipe = Recipe(maker, fields, settings, names)
        return cls((part,), None, Recipes(np.zeros(part.lengths.size, np.uint8), (recipe,)))

    @classmethod
    def concatenate(cls, stores: Sequence["RowStore"]) -> "RowStore":
        """Concatenate the heads of all stores, which are on one dataset."""
        # As few parts as possible: one part has one law, which a compiled program can compute. With several, the host
        # draws the rows.
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
        """Select heads by position; one may be selected more than once. Tables are shared, not copied."""
        recipes = self.recipes.pick(at)
        if self.owners is None:
            return RowStore((self.parts[0].pick(at),), None, recipes)
        used, owners = np.unique(self.owners[at], return_inverse=True)
        parts = tuple(self.parts[number].pick(self._lines[at[owners == new]]) for new, number in enumerate(used))
        return RowStore(parts, owners.astype(self.owners.dtype) if len(parts) > 1 else None, recipes)

    def replaced(self, at: NDArray[np.int64], by: "RowStore") -> "RowStore":
        """Return the same heads, but those at some positions with the rows of another store's heads."""
        others = np.setdiff1d(np.arange(self.lengths.size), at)
        joined = RowStore.concatenate([self.pick(others), by])
        return joined.pick(np.argsort(np.concatenate([others, at])))

    def complement(self) -> "RowStore":
        """Return the same heads with the rows that each does not hold; some may hold none."""
        store = RowStore(tuple(part.complement() for part in self.parts), self.owners, self.recipes.complement())
        if len({part.kin for part in store.parts}) == len(store.parts):
            return store
        # Two parts can now be joined, such as lists and what draws leave over: join them, then restore the order.
        by_part = [np.flatnonzero(store.owners == number) for number in range(len(store.parts))]
        grouped = RowStore.concatenate([store.pick(at) for at in by_part])
        return grouped.pick(np.argsort(np.concatenate(by_part)))

    @cached_property
    def _lines(self) -> NDArray[np.int64]:
        """int64[H], the line of each head in its part, if there are several parts."""
        lines = np.empty(self.recipes.codes.size, np.int64)
        for number in range(len(self.parts)):
            own = self.owners == number
            lines[own] = np.arange(np.count_nonzero(own))
        return lines

    def _gathered(self, of: Callable[[Part], NDArray[Any]]) -> NDArray[Any]:
        """Apply `of` to every part and put the entries of its lines in the order of the heads."""
        if self.owners is None:
            return of(self.parts[0])
        by_part = [of(part) for part in self.parts]
        # Lines of a part are in the order of their heads, so a boolean mask puts them where they belong.
        gathered = np.empty((self.owners.size, *by_part[0].shape[1:]), np.result_type(*by_part))
        for number, values in enumerate(by_part):
            gathered[self.owners == number] = values
        return gathered

    @property
    def num_rows(self) -> int:
        """Rows of the base dataset, N."""
        return self.parts[0].num_rows

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """int32[H], rows of each slice."""
        lengths = self._gathered(lambda part: part.lengths)
        lengths.setflags(write=False)
        return lengths

    @property
    def seeds(self) -> NDArray[np.int64]:
        """int64[H], the seed that the rows of each head are computed from, or -1."""
        return self._gathered(lambda part: part.seeds)

    @property
    def has_repeats(self) -> bool:
        """Whether a slice may hold a row more than once."""
        return any(part.has_repeats for part in self.parts)

    @property
    def size_bytes(self) -> int:
        """Memory that the slices take, including tables."""
        arrays: list[NDArray[Any]] = [self.recipes.codes, *([] if self.owners is None else [self.owners])]
        for part in self.parts:
            columns, tables, *_ = part.law()
            arrays += [part.lengths, *columns.values(), *tables.values()]
        return sum(array.nbytes for array in arrays)

    def recipe_texts(self, at: NDArray[np.int64]) -> NDArray[np.object_]:
        """Write how the slices of the heads at positions `at` [K] were made; equal texts are one object."""
        texts, codes = np.empty(at.size, np.object_), self.recipes.codes[at]
        lines, owners = (at if self.owners is None else self._lines[at]), _owners_or_zeros(self)[at]
        for number, part in enumerate(self.parts):
            for code, recipe in enumerate(self.recipes.recipes):
                own = np.flatnonzero((owners == number) & (codes == code))
                if own.size:
                    texts[own] = recipe.format(part.figures(lines[own]))
        return texts

    def law(self) -> RowLaw | None:
        """Return the law of all heads; None if there are several parts, or places in a table exceed 2**31."""
        if self.owners is not None:
            return None
        law = self.parts[0].law()
        return None if any(column.dtype.itemsize > 4 for column in law.columns.values()) else law

    def take(self, at: NDArray[np.int64], offsets: NDArray[np.unsignedinteger]) -> NDArray[np.int32]:
        """Compute the rows at offsets[k] inside the slice at[k]: int[K] and uint32[K, B] give int32[K, B]."""
        return self._by_part(at, lambda part, line, own: part.take(line, offsets[own]), offsets.shape[1], np.int32)

    def contains(self, at: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which of the rows [B] the slices at positions `at` [K] hold: bool[K, B]."""
        held = np.empty((at.size, rows.size), np.bool_)
        if rows.size > _MANY_ROWS:
            for first in range(0, rows.size, _MANY_ROWS):
                held[:, first : first + _MANY_ROWS] = self.contains(at, rows[first : first + _MANY_ROWS])
            return held
        # In blocks of heads: the temporaries of a lookup are several times as large as its answer.
        for block in blocks(np.full(at.size, rows.size), BLOCK_ROWS):
            held[block] = self._by_part(at[block], lambda part, line, _: part.contains(line, rows), rows.size, np.bool_)
        return held

    def _by_part(
        self, at: NDArray[np.int64], ask: Callable[[Part, NDArray[np.int64], Any], NDArray[Any]], width: int, kind: Any
    ) -> NDArray[Any]:
        """Combine what `ask(part, lines, places in at)` returns for the heads at `at`: [K, width]."""
        if self.owners is None:  # The common case; it makes no copies.
            return ask(self.parts[0], at, slice(None))
        answer = np.empty((at.size, width), kind)
        owners = self.owners[at]
        for number in np.unique(owners):
            own = np.flatnonzero(owners == number)
            answer[own] = ask(self.parts[number], self._lines[at[own]], own)
        return answer

    def num_unused_rows(self, most: int) -> int | None:
        """Count the rows that no head holds, or return None if that takes a walk over more than `most` rows.

        The longest slices come first: mostly a few of them hold all rows, and then the others need no walk.
        """
        order = np.argsort(-self.lengths.astype(np.int64), kind="stable")
        # No more heads than the walk may reach: there may be millions.
        order = order[: 1 + np.searchsorted(np.cumsum(self.lengths[order], dtype=np.int64), most, side="right")]
        used, walked = np.zeros(self.num_rows, bool), 0
        for block in blocks(self.lengths[order], max(1, most // 32)):
            heads = order[block]
            walked += int(self.lengths[heads].sum(dtype=np.int64))
            if walked > most:
                return None
            for _, rows in walk(self.lengths[heads], partial(self._take_of, heads)):
                used[rows] = True
            if walked >= self.num_rows and used.all():
                break
        return self.num_rows - int(np.count_nonzero(used))

    def _take_of(self, heads: NDArray[np.int64], at: NDArray[np.int64], offsets: NDArray[Any]) -> NDArray[np.int32]:
        return self.take(heads[at], offsets)

    def content(self) -> Iterator[bytes]:
        """Yield what two equal stores share, little-endian: kinds, windows, seeds and listed rows.

        Recipes do not count, nor how the heads are spread over parts.
        """
        columns = (
            self.lengths,
            self._gathered(lambda part: np.full(part.lengths.size, part.code, np.uint8)),
            self._gathered(lambda part: part.mark(0)),
            self._gathered(lambda part: part.mark(1)),
        )
        for column in columns:
            yield column.astype("<u4").tobytes()
        # In an order of content alone: the same slices, put together in another way, have the same digest.
        for number in sorted(range(len(self.parts)), key=lambda at: (self.parts[at].code, self.parts[at].table_digest)):
            part = self.parts[number]
            if part.table_digest:
                yield part.table_digest + np.flatnonzero(_owners_or_zeros(self) == number).astype("<u4").tobytes()
            yield from part.content()


def stores_of_splits(
    splits: Iterable[tuple[NDArray[np.int32], NDArray[np.int32]]], num_rows: int, part: str
) -> tuple[RowStore, RowStore | None]:
    """Keep both parts of splits, one pair after the other.

    Args:
      splits: the part that a head learns from and the other one, each sorted and distinct; they do not overlap.
      num_rows: rows of the dataset, N.
      part: "train" or "test", which of the two the heads learn from.

    Returns:
      The rows that the heads learn from; and their other parts, or None if these are always all other rows, which need
      not be kept.
    """
    kept, tests = KeptSets(num_rows), KeptSets(num_rows)
    own: list[int] = []  # heads whose two parts do not make up the dataset
    for number, (rows, other) in enumerate(splits):
        kept.add(rows, np.array([rows.size]))
        if rows.size + other.size < num_rows:
            own.append(number)
            tests.add(other, np.array([other.size]))
    store = RowStore.of(kept.part(), "from_splits", "number", settings=part)
    if not own:
        return store, None
    at, name = np.array(own), "test" if part == "train" else "train"
    found = RowStore.of(tests.part(at), "from_splits", "number", settings=name)
    return store, (found if at.size == store.lengths.size else store.complement().replaced(at, found))


def _owners_or_zeros(store: RowStore) -> NDArray[np.unsignedinteger[Any]]:
    return np.zeros(store.recipes.codes.size, np.uint8) if store.owners is None else store.owners
