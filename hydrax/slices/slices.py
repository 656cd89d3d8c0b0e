"""Which rows each head may see: recipes, and what may be asked of them. Pure NumPy, checked on the host.

No array of heads x rows is ever made unless the user brings or asks for one. The constructors stand in
`computed_slices.py` and `listed_slices.py`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hydrax.errors import ArgumentError, SliceError
from hydrax.slices.arguments import MAX_ROWS, array_of, column, entries, in_range
from hydrax.slices.axes import Axes, crossed, joined
from hydrax.slices.computed import ComputedSlices
from hydrax.slices.description import description
from hydrax.slices.law import RowLaw
from hydrax.slices.listed import ListedSlices
from hydrax.slices.store import RowStore

__all__ = ["RowLaw", "Slices"]


@dataclass(frozen=True, eq=False, repr=False)
class Slices(ComputedSlices, ListedSlices):
    """The slices of all H heads on a base dataset of N rows. Immutable; made by the class methods.

    Two `Slices` are equal when ids, windows, seeds and lists are: the same rows written down in another way (a list
    0, 1, 2 for a prefix of 3) compare unequal, since comparing the rows themselves would mean computing all of them.
    Recipes and axes are names for a reader: they do not count.

    Attributes:
      ids: int32[H], each head's identity: it keys the head's rotation and stays with the head when it is picked out.
    """

    ids: NDArray[np.int32]
    _store: RowStore
    _axes: Axes = field(default_factory=dict)

    def __post_init__(self) -> None:
        for array in (self.ids, *self._axes.values()):
            array.setflags(write=False)

    @classmethod
    def concatenate(cls, parts: Iterable["Slices"]) -> "Slices":
        """The heads of all parts one after the other, with fresh ids 0..H-1. Seeds and recipes stay with their rows.

        Axes stay, too, with the values they have: the axis "slice" goes on counting in the product it came from.

        Raises:
          ArgumentError: there is no part, the parts are on datasets of different length, or have other axes.
        """
        parts = [_checked(part) for part in entries("parts", parts, "pass a list of Slices")]
        if not parts or len({part.num_rows for part in parts}) > 1:
            raise ArgumentError(
                f"Slices cannot be joined: argument parts. Got num_rows {[part.num_rows for part in parts]}, "
                "expected one or more parts on the same dataset. Fix: make all of them with the same num_rows."
            )
        axes = joined([part._axes for part in parts])
        return cls._of(RowStore.concatenate([part._store for part in parts]), axes)

    @classmethod
    def product(cls, slices: "Slices", /, **axes: Any) -> "Slices":
        """One head for every slice and every value of every axis: sweeps of seeds and hyper-parameters.

        `Slices.product(base, seed=5, lr=[1e-3, 1e-2])` has 10 heads for each slice of `base`, the last axis fastest.
        Each has an id of its own, and so its own key and rotation. `hx.PerHead(slices.axes["lr"])` hands the values
        of an axis to the module.

        Args:
          slices: the slices to cross. Their own axes are kept.
          **axes: by name, an int n for the values 0..n-1, or a sequence of numbers, strings or bools.

        Returns:
          The product, whose `axes` name the value of each head on every axis, and under "slice" the position of its
          slice in `slices` (of a product of a product, in the first).

        Raises:
          ArgumentError: a name is taken, by an axis or a column of the ledger, or an axis has no values, or values of
            mixed types.
        """
        at, labels = crossed(len(_checked(slices)), slices._axes, axes)
        return cls._of(slices._store.pick(at), labels)

    # ---- what one asks of them ----------------------------------------------------------------------------------

    @property
    def num_rows(self) -> int:
        """N, rows of the base dataset."""
        return self._store.num_rows

    @property
    def num_heads(self) -> int:
        """H, the number of heads."""
        return self.ids.size

    @property
    def lengths(self) -> NDArray[np.int32]:
        """int32[H], rows of each slice, duplicates counted."""
        return self._store.lengths

    @property
    def seeds(self) -> NDArray[np.int64]:
        """int64[H], the seed each head's rows depend on; -1 where they depend on none."""
        return self._store.seeds

    @property
    def axes(self) -> Mapping[str, NDArray[Any]]:
        """By name, [H] each: what every head of a product stands for; empty where there was none. Read-only."""
        return MappingProxyType(self._axes)

    @property
    def has_repeats(self) -> bool:
        """Whether a head may hold a row more than once; draws with replacement count as if they did."""
        return self._store.has_repeats

    def recipe(self, head: int) -> str:
        """How the slice of the head at position `head` was made, such as "window(100, 37)"."""
        return self._store.recipe(int(self._positions([head])[0]))

    def recipes(self) -> list[str]:
        """The recipe of every head, [H]."""
        return [self._store.recipe(at) for at in range(len(self))]

    def rows(self, head: int) -> NDArray[np.int32]:
        """int32[n], the base rows of the head at position `head`, in the slice's own order."""
        at = self._positions([head])
        return self._store.take(at, np.arange(self.lengths[at[0]], dtype=np.uint32)[None])[0, :]

    def mask(self, heads: Any = None) -> NDArray[np.bool_]:
        """bool[heads, N]: which rows each head may see; `heads` as in `slices[heads]`, all by default."""
        at = self._positions(slice(None) if heads is None else heads)
        return self._store.contains(at, np.arange(self.num_rows))

    def contains(self, heads: Any, rows: ArrayLike) -> NDArray[np.bool_]:
        """Which of some rows each head may see: without the masks of all rows.

        Args:
          heads: as in `slices[heads]`.
          rows: int[B], 0 <= row < N, in any order.

        Returns:
          bool[heads, B].

        Raises:
          ArgumentError: rows are not whole numbers, or lie outside the dataset.
          SliceError: a head is picked twice, or none is.
        """
        hint = "rows count from 0 in the base dataset"
        asked = in_range("rows", np.atleast_1d(column("rows", rows)), 0, self.num_rows, hint)
        return self._store.contains(self._positions(heads), asked)

    def complement(self, allow_empty: bool = False) -> "Slices":
        """The rows that each head does not see, under the same ids: out of fold, out of bag, held out.

        Each row once, whatever the copies in the slice. It costs what the slices cost, or less: the complement of a
        window is a window, that of lists shares one sorted copy of them. The complement of an empty one is all N rows.

        Args:
          allow_empty: whether a head may be left with no row; such slices can be asked, not trained on.

        Raises:
          SliceError: a head sees every row, and allow_empty is False; the message names the head.
        """
        outside = Slices(self.ids, self._store.complement(), self._axes)
        empty = np.flatnonzero(outside.lengths == 0)
        if empty.size and not allow_empty:
            raise SliceError(
                f"Complement of head {empty[0]} is empty: its slice holds every row. Got {self.num_rows} rows of "
                f"{self.num_rows}, expected fewer. Fix: leave the head out, or pass allow_empty=True."
            )
        return outside

    def lookup(self, offsets: ArrayLike) -> NDArray[np.int32]:
        """Base rows at the given offsets inside the slices: what a batch gathers.

        Args:
          offsets: integers[H, B], 0 <= offsets[h] < lengths[h].

        Returns:
          int32[H, B].

        Raises:
          ArgumentError: the offsets have another first axis than H, or lie outside their slice.
        """
        offsets = array_of("offsets", offsets)
        if offsets.ndim != 2 or len(offsets) != len(self) or offsets.dtype.kind not in "iu":
            raise ArgumentError(
                f"Offsets of the wrong shape: argument offsets. Got {offsets.dtype}{list(offsets.shape)}, "
                f"expected integers[{len(self)}, slots]. Fix: give one line of whole numbers for each head."
            )
        outside = (offsets < 0) | (offsets >= self.lengths[:, None])
        if outside.any():
            head, slot = np.argwhere(outside)[0]
            raise ArgumentError(
                f"Offset outside its slice: head {head}, slot {slot}. Got {offsets[head, slot]}, expected "
                f"0 <= offset < {self.lengths[head]}. Fix: offsets count inside the slice, not inside the dataset."
            )
        return self._store.take(np.arange(len(self)), offsets.astype(np.uint32))

    def law(self) -> RowLaw | None:
        """How rows follow from offsets, for the compiled program to compute itself what `lookup` gives.

        None where the heads' rows are kept in several ways, or places in a table pass 2**31.
        """
        return self._store.law()

    def digest(self) -> str:
        """SHA-256 in hex over ids, windows, seeds and kept rows; the same on every machine, in every process."""
        # The number 1 goes up when the rows of the same window and seed change, as with other rounds of `permute`.
        content = hashlib.sha256(f"hydrax.Slices 1: {len(self)} heads, {self.num_rows} rows".encode())
        content.update(self.ids.astype("<u4").tobytes())
        for piece in self._store.content():
            content.update(piece)
        return content.hexdigest()

    def with_ids(self, ids: ArrayLike) -> "Slices":
        """The same slices under other ids, int[H]: distinct, 0 <= id < 2**31 - 1.

        Raises:
          ArgumentError: the ids are not as many, not distinct, or out of range.
        """
        fresh = in_range("ids", np.atleast_1d(column("ids", ids)), 0, MAX_ROWS, "an id is a small whole number")
        if fresh.size != len(self) or np.unique(fresh).size != fresh.size:
            raise ArgumentError(
                f"Ids do not tell the heads apart: argument ids. Got {fresh.size} ids, {np.unique(fresh).size} of them "
                f"distinct, expected {len(self)} distinct ids. Fix: give every head an id of its own."
            )
        return Slices(fresh.astype(np.int32), self._store, self._axes)

    def __getitem__(self, heads: Any) -> "Slices":
        """The heads at the given positions, each with its id: an int, a slice, ints, or bool[H].

        Raises:
          ArgumentError: a position is out of range.
          SliceError: a head is picked twice, or none is.
        """
        at = self._positions(heads)
        return Slices(self.ids[at], self._store.pick(at), {name: values[at] for name, values in self._axes.items()})

    def __iter__(self) -> Iterator["Slices"]:
        return (self[head] for head in range(len(self)))

    def __len__(self) -> int:
        return self.ids.size

    def __eq__(self, other: object) -> bool:
        return self.digest() == other.digest() if isinstance(other, Slices) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest())

    def describe(self) -> str:
        """A few lines: recipes, lengths, share of the dataset, rows in no slice, repeats, axes, memory."""
        return description(self._store, self._axes)

    def __repr__(self) -> str:
        recipes = " + ".join(self._store.recipes.makers())
        lengths = f"{self.lengths.min()}..{self.lengths.max()}"
        return f"Slices({recipes}, num_heads={len(self)}, num_rows={self.num_rows}, lengths={lengths})"

    @classmethod
    def _of(cls, store: RowStore, axes: Axes | None = None) -> "Slices":
        return cls(np.arange(store.lengths.size, dtype=np.int32), store, axes or {})

    def _positions(self, heads: Any) -> NDArray[np.int64]:
        """Positions 0..H-1 from an int, slice, list, int array or bool mask; refuses repeats and what is not there."""
        count = len(self)
        if isinstance(heads, slice):
            at = np.arange(count)[heads]
        else:
            given = array_of("heads", heads)
            if given.dtype == np.bool_ and given.shape == (count,):
                at = np.flatnonzero(given)
            else:
                at = in_range("heads", column("heads", given), -count, count, f"there are {count} heads")
                at = np.atleast_1d(at % count)
        if np.unique(at).size != at.size or not at.size:
            raise SliceError(
                f"A head is picked twice, or none is picked: argument heads. Got {at.size} positions, "
                f"{np.unique(at).size} of them distinct, expected one or more distinct positions. "
                "Fix: pick each head once; Slices.concatenate gives copies ids of their own."
            )
        return at


def _checked(slices: Any) -> Slices:
    if not isinstance(slices, Slices):
        raise ArgumentError(
            f"Not slices: argument slices or parts. Got {slices!r:.60}, expected hydrax.Slices. "
            "Fix: make them with Slices.full, Slices.prefix and the like."
        )
    return slices
