"""The constructors of `Slices` whose rows are computed: a few bytes a head, whatever the lengths."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hydrax.errors import SliceError
from hydrax.slices.arguments import (
    MAX_ROWS,
    checked_lengths,
    column,
    in_range,
    labels_of_rows,
    one_per_head,
    seed_per_head,
    sizes_in_rows,
    whole_number,
)
from hydrax.slices.draws import Draws
from hydrax.slices.store import RowStore
from hydrax.slices.strata import Strata, Stratified
from hydrax.slices.windows import KeyedWindows, Windows


class ComputedSlices:
    """Constructors for `Slices`, which gives them `_of`."""

    @classmethod
    def _of(cls, store: RowStore) -> Self:
        raise NotImplementedError

    @classmethod
    def full(cls, num_heads: int, num_rows: int) -> Self:
        """Every head sees every row: deep ensembles, sweeps of seeds or hyper-parameters.

        Args:
          num_heads: H.
          num_rows: N.

        Raises:
          ArgumentError: a count is not a whole number of 1 or more.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        lengths = np.full(whole_number("num_heads", num_heads, 1, MAX_ROWS), num_rows)
        return cls._of(_windows("full", num_rows, 0, lengths))

    @classmethod
    def prefix(cls, lengths: ArrayLike, num_rows: int, seed: ArrayLike | None = None) -> Self:
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
        if seed is None:
            return cls._of(_windows("prefix({length})", num_rows, 0, rows))
        return cls._of(_keyed("prefix({length})", num_rows, rows, column("seed", seed)))

    @classmethod
    def window(cls, starts: ArrayLike, lengths: ArrayLike, num_rows: int) -> Self:
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
        first, rows = one_per_head(starts=first, lengths=rows)
        past = np.flatnonzero((first < 0) | (first > num_rows - rows))
        if past.size:
            head = past[0]
            raise SliceError(
                f"Window outside the dataset: slice of head {head}. Got start {first[head]}, length {rows[head]}, "
                f"expected 0 <= start <= {num_rows} - length. Fix: move the window, or shorten it."
            )
        return cls._of(_windows("window({start}, {length})", num_rows, first, rows))

    @classmethod
    def expanding_window(cls, initial: int, step: int, num_rows: int, horizon: int = 0) -> Self:
        """Heads that learn from ever more of the past: backtesting of rows in the order of time.

        Head h learns from rows 0 to `initial + h * step - 1`, as long as `horizon` rows follow. So
        `Slices.window(slices.lengths, horizon, num_rows)` validates every head on the rows that follow its own.

        Args:
          initial: rows of head 0, 1 <= initial.
          step: rows that each head has more than the one before, 1 <= step.
          num_rows: N.
          horizon: rows to leave after those of a head, 0 <= horizon.

        Raises:
          SliceError: there is no room for the first head.
          ArgumentError: an argument has the wrong type or range.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        initial, step = whole_number("initial", initial, 1, MAX_ROWS), whole_number("step", step, 1, MAX_ROWS)
        horizon = whole_number("horizon", horizon, 0, MAX_ROWS)
        if initial + horizon > num_rows:
            raise SliceError(
                f"Window outside the dataset: slice of head 0. Got initial {initial}, horizon {horizon}, expected "
                f"initial + horizon <= {num_rows}. Fix: shorten one of them."
            )
        ends = np.arange(initial, num_rows - horizon + 1, step)
        return cls._of(_windows("expanding_window({length})", num_rows, 0, ends))

    @classmethod
    def random_subset(
        cls, lengths: ArrayLike, num_rows: int, seed: ArrayLike = 0, stratify: ArrayLike | None = None
    ) -> Self:
        """A random subset of exactly the length asked for, drawn without replacement and kept in O(1) memory.

        The subset of a seed is the first `length` rows of the permutation of the dataset that the seed keys. So heads
        of equal seed and growing length are nested, and different seeds are independent. Data attribution and random
        learning curves are made of them.

        Args:
          lengths: int[H], exact sizes, or float[H], fractions of num_rows in (0, 1], rounded to the nearest whole
            number of rows and at least 1; a single number stands for all heads.
          num_rows: N.
          seed: an int gives head h the seed `seed + h`, every head its own subset; int[H] is used as it is.
            0 <= seed < 2**32.
          stratify: a label for each row, [N]: ints, strings or bools. Every subset then has each class in its share of
            the dataset, within one row (`hydrax.row_strata.largest_remainder`); subsets of equal seed are nested
            wherever no class is given fewer rows by the longer one. A table of distinct lengths x classes is kept, and
            making it takes about 33 bytes an entry.

        Raises:
          SliceError: a subset is empty or larger than the dataset; the message names the head.
          ArgumentError: an argument has the wrong type, shape or range.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        rows = checked_lengths(sizes_in_rows(lengths, num_rows), num_rows)
        seeds = seed_per_head(seed, rows.size)
        if stratify is None:
            return cls._of(_keyed("random_subset({length})", num_rows, rows, seeds))
        strata = Strata.of_labels(labels_of_rows("stratify", stratify, num_rows))
        drawn, keys = _with_keys(rows, seeds)
        part = Stratified(num_rows, drawn, strata, keys, outside=np.zeros(drawn.size, np.bool_))
        return cls._of(RowStore.of(part, "random_subset({length}, stratified)"))

    @classmethod
    def bootstrap(cls, num_heads: int, num_rows: int, lengths: ArrayLike | None = None, seed: ArrayLike = 0) -> Self:
        """Rows drawn with replacement: bagging. `complement()` gives the rows out of bag.

        Every copy of a row counts as a row of the slice, and is met once per pass. Draw j of a head is a hash of
        (seed, j), so draws take no memory; a row is drawn with a probability within 2**-32 of 1 / num_rows.

        Args:
          num_heads: H.
          num_rows: N.
          lengths: draws: None for num_rows of them; else int[H], or float[H] as fractions of num_rows in (0, 1]; a
            single number stands for all heads.
          seed: an int gives head h the seed `seed + h`; int[H] is used as it is. 0 <= seed < 2**32.

        Raises:
          SliceError: a head draws nothing.
          ArgumentError: an argument has the wrong type, shape or range.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        num_heads = whole_number("num_heads", num_heads, 1, MAX_ROWS)
        draws = sizes_in_rows(num_rows if lengths is None else lengths, num_rows)
        draws = checked_lengths(in_range("lengths", draws, 0, MAX_ROWS + 1, "a head has fewer than 2**31 draws"))
        heads, seeds = np.zeros(num_heads, np.int64), seed_per_head(seed, num_heads)
        _, draws, seeds = one_per_head(num_heads=heads, lengths=draws, seed=seeds)
        drawn, keys = _with_keys(draws, seeds)
        return cls._of(RowStore.of(Draws(num_rows, drawn, keys), "bootstrap({number})"))

    @classmethod
    def leave_one_out(cls, num_rows: int) -> Self:
        """Head h sees every row but row h: jackknife, influence of single rows. `complement()` gives the row left out.

        Args:
          num_rows: N, 2 <= num_rows; there are as many heads.

        Raises:
          ArgumentError: num_rows is not a whole number in range.
        """
        num_rows = whole_number("num_rows", num_rows, 2, MAX_ROWS)
        starts = (np.arange(num_rows) + 1) % num_rows
        return cls._of(_windows("leave_one_out({end})", num_rows, starts, np.full(num_rows, num_rows - 1)))


def _windows(text: str, num_rows: int, starts: Any, lengths: NDArray[np.int64]) -> RowStore:
    starts, lengths = one_per_head(starts=starts, lengths=lengths)
    return RowStore.of(Windows(num_rows, lengths.astype(np.int32), starts.astype(np.int32)), text)


def _keyed(text: str, num_rows: int, lengths: NDArray[np.int64], seeds: NDArray[np.int64]) -> RowStore:
    rows, keys = _with_keys(lengths, seeds)
    return RowStore.of(KeyedWindows(num_rows, rows, np.zeros(rows.size, np.int32), keys), text)


def _with_keys(lengths: NDArray[np.int64], seeds: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    """Lengths and seeds, one per head each, as parts keep them."""
    lengths, seeds = one_per_head(lengths=lengths, seed=seeds)
    in_range("seed", seeds, 0, 2**32, "take a whole number that fits into 32 bits")
    return lengths.astype(np.int32), seeds.astype(np.uint32)
