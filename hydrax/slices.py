"""Which rows each head may see: recipes, and what may be asked of them. Pure NumPy, checked on the host.

No array of heads x rows is ever made unless the user brings or asks for one.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hydrax.errors import ArgumentError, SliceError
from hydrax.row_store import RowStore
from hydrax.slice_arguments import (
    MAX_ROWS,
    array_of,
    checked_lengths,
    column,
    in_range,
    joined_lists,
    listed,
    mask_table,
    one_per_head,
    sizes_in_rows,
    whole_number,
)

_BLOCK_CELLS = 2**24  # Cells of a user's mask handled at once.


@dataclass(frozen=True, eq=False, repr=False)
class Slices:
    """The slices of all H heads on a base dataset of N rows. Immutable; made by the class methods below.

    Two `Slices` are equal when ids, windows, seeds and lists are: the same rows written down in another way (a list
    0, 1, 2 for a prefix of 3) compare unequal, since comparing the rows themselves would mean computing all of them.

    Attributes:
      ids: int32[H], each head's identity: it keys the head's rotation and stays with the head when it is picked out.
    """

    ids: NDArray[np.int32]
    _store: RowStore

    def __post_init__(self) -> None:
        self.ids.setflags(write=False)

    # ---- constructors -------------------------------------------------------------------------------------------

    @classmethod
    def full(cls, num_heads: int, num_rows: int) -> "Slices":
        """Every head sees every row: deep ensembles, sweeps of seeds or hyper-parameters.

        Raises:
          ArgumentError: a count is not a whole number of 1 or more.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        lengths = np.full(whole_number("num_heads", num_heads, 1, MAX_ROWS), num_rows)
        return cls._windows("full", num_rows, 0, lengths)

    @classmethod
    def prefix(cls, lengths: ArrayLike, num_rows: int, seed: ArrayLike | None = None) -> "Slices":
        """The first `lengths[h]` rows: a learning curve.

        Args:
          lengths: int[H], 1 <= length <= num_rows; a single number stands for all heads.
          num_rows: N.
          seed: None takes the base order. An int takes one keyed permutation of it for all heads; int[H] one for
            each. Heads of equal seed are nested: a longer prefix holds the shorter ones.

        Raises:
          SliceError: a slice is empty or longer than the dataset; the message names the head.
          ArgumentError: an argument has the wrong type, shape or range.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        rows = checked_lengths(column("lengths", lengths), num_rows)
        return cls._windows("prefix({length})", num_rows, 0, rows, None if seed is None else column("seed", seed))

    @classmethod
    def window(cls, starts: ArrayLike, lengths: ArrayLike, num_rows: int) -> "Slices":
        """Rows `starts[h]` to `starts[h] + lengths[h] - 1`: sliding windows, folds in row order.

        Args:
          starts: int[H], 0 <= start; a single number stands for all heads.
          lengths: int[H], 1 <= length, start + length <= num_rows; a single number stands for all heads.
          num_rows: N.

        Raises:
          SliceError: a window is empty or passes the end of the dataset; the message names the head.
          ArgumentError: an argument has the wrong type, shape or range.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        rows, first = checked_lengths(column("lengths", lengths), num_rows), column("starts", starts)
        return cls._windows("window({start}, {length})", num_rows, first, rows)

    @classmethod
    def random_subset(cls, lengths: ArrayLike, num_rows: int, seed: ArrayLike = 0) -> "Slices":
        """A random subset of exactly the length asked for, drawn without replacement and kept in O(1) memory.

        The subset of a seed is the first `length` rows of the permutation of the dataset that the seed keys. So heads
        of equal seed and growing length are nested, and different seeds are independent.

        Args:
          lengths: int[H], exact sizes, or float[H], fractions of num_rows in (0, 1], rounded to the nearest whole
            number of rows and at least 1; a single number stands for all heads.
          num_rows: N.
          seed: an int gives head h the seed `seed + h`, every head its own subset; int[H] is used as it is.
            0 <= seed < 2**32.

        Raises:
          SliceError: a subset is empty or larger than the dataset; the message names the head.
          ArgumentError: an argument has the wrong type, shape or range.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        rows = checked_lengths(sizes_in_rows(lengths, num_rows), num_rows)
        seeds = column("seed", seed)
        seeds = seeds + np.arange(rows.size) if seeds.ndim == 0 else seeds
        return cls._windows("random_subset({length})", num_rows, 0, rows, seeds)

    @classmethod
    def from_indices(cls, indices: Iterable[ArrayLike], num_rows: int) -> "Slices":
        """The rows listed for each head, in that order; a row may be listed more than once.

        Args:
          indices: H sequences of row numbers, int[n_h], 0 <= row < num_rows.
          num_rows: N.

        Raises:
          SliceError: a list is empty, is not of whole numbers, or holds a row outside the dataset; the message names
            head, position and row.
          ArgumentError: num_rows is not a whole number in range.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        return cls._of(
            RowStore.of_lists("from_indices({length})", num_rows, *joined_lists(listed("indices", indices), num_rows))
        )

    @classmethod
    def from_mask(cls, mask: ArrayLike) -> "Slices":
        """The rows where the mask of each head is True, in base order.

        Args:
          mask: bool[H, N].

        Raises:
          SliceError: a head's mask holds no True, or is of another length than the first head's.
          ArgumentError: the mask is not a boolean array of two axes.
        """
        table = mask_table(mask)
        lengths = checked_lengths(np.count_nonzero(table, axis=1))
        # In blocks of heads: nonzero() gives sixteen bytes for every True.
        blocks = np.array_split(table, min(len(table), 1 + table.size // _BLOCK_CELLS))
        rows = np.concatenate([np.nonzero(block)[1].astype(np.int32) for block in blocks])
        return cls._of(RowStore.of_lists("from_mask({length})", table.shape[1], rows, lengths))

    @classmethod
    def from_splits(cls, splits: Iterable[Any], num_rows: int, part: Literal["train", "test"] = "train") -> "Slices":
        """One head for each split of a scikit-learn splitter: k-fold, stratified, grouped, repeated, leave-one-out.

        Args:
          splits: pairs (train rows, test rows), as `splitter.split(X, y)` yields them.
          num_rows: N, the number of rows that were split.
          part: which of the two a head learns from.

        Raises:
          SliceError: there is no split, a part is empty, or holds a row outside the dataset.
          ArgumentError: part is unknown, or num_rows is not a whole number in range.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        if part not in ("train", "test"):
            raise ArgumentError(
                f"Unknown part of a split: argument part. Got {part!r}, expected 'train' or 'test'. "
                "Fix: 'train' for the rows a head learns from, 'test' for those held out."
            )
        chosen = []
        for number, split in enumerate(listed("splits", splits)):
            if not isinstance(split, tuple | list) or len(split) != 2:
                raise SliceError(
                    f"Not a split: head {number}. Got {split!r:.60}, expected a pair (train rows, test rows). "
                    "Fix: pass what `splitter.split(X, y)` yields."
                )
            chosen.append(split[part == "test"])
        return cls._of(RowStore.of_lists(f"from_splits({{number}}, {part})", num_rows, *joined_lists(chosen, num_rows)))

    @classmethod
    def concatenate(cls, parts: Iterable["Slices"]) -> "Slices":
        """The heads of all parts one after the other, with fresh ids 0..H-1. Seeds and recipes stay with their rows.

        Raises:
          ArgumentError: there is no part, or the parts are on datasets of different length.
        """
        parts = list(parts)
        if not parts or len({part.num_rows for part in parts}) > 1:
            raise ArgumentError(
                f"Slices cannot be joined: argument parts. Got num_rows {[part.num_rows for part in parts]}, "
                "expected one or more parts on the same dataset. Fix: make all of them with the same num_rows."
            )
        return cls._of(RowStore.concatenate([part._store for part in parts]))

    # ---- what one asks of them ----------------------------------------------------------------------------------

    @property
    def num_rows(self) -> int:
        """N, rows of the base dataset."""
        return self._store.num_rows

    @property
    def num_heads(self) -> int:
        """H."""
        return self.ids.size

    @property
    def lengths(self) -> NDArray[np.int32]:
        """int32[H], rows of each slice, duplicates counted."""
        return self._store.lengths

    @property
    def seeds(self) -> NDArray[np.int64]:
        """int64[H], the seed each head's rows depend on; -1 where they depend on none."""
        return self._store.seeds

    def recipe(self, head: int) -> str:
        """How the slice of the head at position `head` was made, such as "window(100, 37)"."""
        return self._store.recipe(int(self._positions([head])[0]))

    def rows(self, head: int) -> NDArray[np.int32]:
        """int32[n], the base rows of the head at position `head`, in the slice's own order."""
        at = self._positions([head])
        return self._store.take(at, np.arange(self.lengths[at[0]])[None])[0]

    def mask(self, heads: Any = None) -> NDArray[np.bool_]:
        """bool[heads, N]: which rows each head may see; `heads` as in `slices[heads]`, all by default."""
        chosen = self if heads is None else self[heads]
        mask = np.zeros((len(chosen), self.num_rows), np.bool_)
        for at, rows in chosen._store.walk():
            mask[at, rows] = True
        return mask

    def lookup(self, offsets: NDArray[Any]) -> NDArray[np.int32]:
        """Base rows at the given offsets inside the slices: what a batch gathers.

        Args:
          offsets: integers[H, B], 0 <= offsets[h] < lengths[h].

        Returns:
          int32[H, B].

        Raises:
          ArgumentError: the offsets have another first axis than H, or lie outside their slice.
        """
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
        return self._store.take(np.arange(len(self)), offsets.astype(np.int64))

    def digest(self) -> str:
        """SHA-256 in hex over ids, windows, seeds and listed rows; the same on every machine, in every process."""
        # The number 1 goes up when the rows of the same window and seed change, as with other rounds of `permute`.
        content = hashlib.sha256(f"hydrax.Slices 1: {len(self)} heads, {self.num_rows} rows".encode())
        content.update(self.ids.astype("<u4").tobytes())
        for piece in self._store.content():
            content.update(piece)
        return content.hexdigest()

    def with_ids(self, ids: ArrayLike) -> "Slices":
        """The same slices under other ids, int[H]: distinct, 0 <= id < 2**31 - 1."""
        fresh = in_range("ids", np.atleast_1d(column("ids", ids)), 0, MAX_ROWS, "an id is a small whole number")
        if fresh.size != len(self) or np.unique(fresh).size != fresh.size:
            raise ArgumentError(
                f"Ids do not tell the heads apart: argument ids. Got {fresh.size} ids, {np.unique(fresh).size} of them "
                f"distinct, expected {len(self)} distinct ids. Fix: give every head an id of its own."
            )
        return Slices(fresh.astype(np.int32), self._store)

    def __getitem__(self, heads: Any) -> "Slices":
        """The heads at the given positions, each with its id: an int, a slice, ints, or bool[H]."""
        at = self._positions(heads)
        return Slices(self.ids[at], self._store.pick(at))

    def __iter__(self) -> Iterator["Slices"]:
        return (self[head] for head in range(len(self)))

    def __len__(self) -> int:
        return self.ids.size

    def __eq__(self, other: object) -> bool:
        return self.digest() == other.digest() if isinstance(other, Slices) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        recipes = " + ".join(self._store.kinds)
        lengths = f"{self.lengths.min()}..{self.lengths.max()}"
        return f"Slices({recipes}, num_heads={len(self)}, num_rows={self.num_rows}, lengths={lengths})"

    @classmethod
    def _of(cls, store: RowStore) -> "Slices":
        return cls(np.arange(store.lengths.size, dtype=np.int32), store)

    @classmethod
    def _windows(
        cls, template: str, num_rows: int, start: ArrayLike, lengths: ArrayLike, seed: ArrayLike | None = None
    ) -> "Slices":
        """Windows on the base order, or with a seed on the permutations that the seeds key."""
        starts, rows, seeds = one_per_head(starts=start, lengths=lengths, seed=0 if seed is None else seed)
        in_range("seed", seeds, 0, 2**32, "take a whole number that fits into 32 bits")
        past = (starts < 0) | (starts > num_rows - rows)
        if past.any():
            head = np.flatnonzero(past)[0]
            raise SliceError(
                f"Window outside the dataset: slice of head {head}. Got start {starts[head]}, length {rows[head]}, "
                f"expected 0 <= start <= {num_rows} - length. Fix: move the window, or shorten it."
            )
        return cls._of(RowStore.of_windows(template, num_rows, starts, rows, None if seed is None else seeds))

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
