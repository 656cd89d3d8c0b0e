"""`Slices`: which rows of the dataset each head may learn from. Pure NumPy, on the host.

No array of heads x rows is ever made, unless the user brings or asks for one. `store.py` says how slices are kept.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hydrax.errors import ArgumentError, SliceError
from hydrax.notebook import text_box
from hydrax.slices.arguments import (
    MAX_HEADS,
    MAX_ROWS,
    checked_lengths,
    column,
    concentration,
    ends_of_windows,
    entries,
    in_range,
    joined_lists,
    labels_of_rows,
    lengths_and_keys,
    lengths_of_copies,
    mask_table,
    offsets_inside,
    parts_of_splits,
    positions,
    seed_per_head,
    sizes_in_rows,
    weight_table,
    whole_number,
    windows_inside,
)
from hydrax.slices.axes import Axes, crossed, joined
from hydrax.slices.draws import Draws
from hydrax.slices.law import RowLaw
from hydrax.slices.lists import Lists
from hydrax.slices.sets import kept_sets, mask_blocks, mask_lines
from hydrax.slices.store import RowStore, stores_of_splits
from hydrax.slices.strata import Strata, Stratified
from hydrax.slices.summary import summary
from hydrax.slices.weights import copies_by_weight, dealt_by_class
from hydrax.slices.windows import Windows


@dataclass(frozen=True, eq=False, repr=False)
class Slices:
    """The slices of all H heads on a base dataset of N rows. Immutable; the class methods make them.

    The rows of some constructors are computed, so they take a few bytes per head whatever their number: `full`,
    `prefix`, `window`, `expanding_window`, `random_subset`, `bootstrap`, `leave_one_out`. Those of the others are kept,
    in four bytes per row or one bit per row of the dataset: `from_indices`, `from_mask`, `from_splits`, `partition_by`,
    `leave_group_out`, `dirichlet`, `from_weights`. `concatenate` and `product` combine slices.

    Two `Slices` are equal if their ids, windows, seeds and lists are equal. The same rows in another representation (a
    list 0, 1, 2 for a prefix of 3) compare unequal, because comparing rows would mean computing all of them. Recipes
    and axes are labels for the reader and do not count.

    Attributes:
      ids: int32[H], the identity of each head. It keys the rotation of the head and stays with it when it is selected.
    """

    ids: NDArray[np.int32]
    _store: RowStore
    _axes: Axes = field(default_factory=dict)
    _tests: RowStore | None = None  # None: all rows that a head does not see

    def __post_init__(self) -> None:
        for array in (self.ids, *self._axes.values()):
            array.setflags(write=False)

    # ---- constructors: computed rows

    @classmethod
    def full(cls, num_heads: int, num_rows: int) -> Self:
        """Give every head every row: deep ensembles, sweeps of seeds or hyper-parameters.

        Args:
          num_heads: number of heads, H.
          num_rows: rows of the base dataset, N.

        Raises:
          ArgumentError: a count is not a whole number of 1 or more.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        lengths = np.full(whole_number("num_heads", num_heads, 1, MAX_HEADS), num_rows)
        return cls._numbered(RowStore.of(Windows.of(num_rows, 0, lengths), "full"))

    @classmethod
    def prefix(cls, lengths: ArrayLike, num_rows: int, seed: ArrayLike | None = None) -> Self:
        """Give head h the first `lengths[h]` rows: a learning curve.

        >>> slices = hx.Slices.prefix([2, 4], num_rows=5, seed=1)
        >>> slices.rows(0), slices.rows(1)
        (array([3, 0], dtype=int32), array([3, 0, 4, 1], dtype=int32))

        Args:
          lengths: int[H], 1 <= length <= num_rows; a single number makes one head, or as many as there are seeds.
          num_rows: rows of the base dataset, N.
          seed: if None, the rows are taken in base order. With an int, they are taken in one random order for all
            heads; with int[H], in one order for each. A longer prefix holds the shorter ones of the same seed.

        Raises:
          SliceError: a slice is empty or longer than the dataset; the message names the head.
          ArgumentError: an argument has the wrong type, shape or range.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        rows: NDArray[Any] = checked_lengths(column("lengths", lengths), num_rows)
        rows, keys = (rows, None) if seed is None else lengths_and_keys(rows, column("seed", seed))
        return cls._numbered(RowStore.of(Windows.of(num_rows, 0, rows, keys), "prefix", "length"))

    @classmethod
    def window(cls, starts: ArrayLike, lengths: ArrayLike, num_rows: int) -> Self:
        """Give head h rows `starts[h]` to `starts[h] + lengths[h] - 1`: sliding windows, folds in row order.

        Args:
          starts: int[H], 0 <= start; a single number serves all heads.
          lengths: int[H], 1 <= length, start + length <= num_rows; a single number serves all heads.
          num_rows: rows of the base dataset, N.

        Raises:
          SliceError: a window is empty or passes the end of the dataset; the message names the head.
          ArgumentError: an argument has the wrong type, shape or range.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        first, rows = windows_inside(starts, lengths, num_rows)
        return cls._numbered(RowStore.of(Windows.of(num_rows, first, rows), "window", "start", "length"))

    @classmethod
    def expanding_window(cls, initial: int, step: int, num_rows: int, horizon: int = 0) -> Self:
        """Give each head more of the past than the one before: backtesting of rows in the order of time.

        Head h learns from rows 0 to `initial + h * step - 1`, and heads go on as long as `horizon` rows are left. So
        `Slices.window(slices.lengths, horizon, num_rows)` validates each head on the rows that follow its own.

        >>> hx.Slices.expanding_window(initial=2, step=2, num_rows=7, horizon=1).mask().astype(int)
        array([[1, 1, 0, 0, 0, 0, 0],
               [1, 1, 1, 1, 0, 0, 0],
               [1, 1, 1, 1, 1, 1, 0]])

        Args:
          initial: rows of head 0, 1 <= initial.
          step: rows that each head has more than the one before, 1 <= step.
          num_rows: rows of the base dataset, N.
          horizon: rows to leave free after those of each head, 0 <= horizon.

        Raises:
          SliceError: there is no room for the first head.
          ArgumentError: an argument has the wrong type or range.
        """
        num_rows, ends = ends_of_windows(initial, step, num_rows, horizon)
        return cls._numbered(RowStore.of(Windows.of(num_rows, 0, ends), "expanding_window", "length"))

    @classmethod
    def random_subset(
        cls, lengths: ArrayLike, num_rows: int, seed: ArrayLike = 0, stratify: ArrayLike | None = None
    ) -> Self:
        """Draw a random subset of exact length for each head, without replacement and in O(1) memory.

        A seed keys a random order of the dataset, and a subset is the first `length` rows in it. So subsets of one seed
        are nested, and those of different seeds are independent. Data attribution and random learning curves use them.

        >>> slices = hx.Slices.random_subset([0.3, 0.5], num_rows=10, seed=[7, 7])
        >>> slices.rows(0), slices.rows(1)
        (array([9, 4, 3], dtype=int32), array([9, 4, 3, 2, 7], dtype=int32))

        Args:
          lengths: int[H], exact sizes, or float[H], fractions of num_rows in (0, 1], rounded to the nearest whole
            number of rows and at least 1; a single number makes one head, or as many as there are seeds.
          num_rows: rows of the base dataset, N.
          seed: with an int, head h has the seed `seed + h`, so each head has its own subset; int[H] is used as given.
            0 <= seed < 2**32.
          stratify: a label for each row, [N]: ints, strings or bools. Every subset then has each class in its share of
            the dataset, to within one row (largest remainders). Subsets of one seed are nested as long as no class has
            fewer rows in the longer one. A table of distinct lengths x classes is kept; making it takes about 33 bytes
            per entry.

        Raises:
          SliceError: a subset is empty or larger than the dataset; the message names the head.
          ArgumentError: an argument has the wrong type, shape or range.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        rows = checked_lengths(sizes_in_rows(lengths, num_rows), num_rows)
        drawn, keys = lengths_and_keys(rows, seed_per_head(seed, rows.size))
        if stratify is None:
            return cls._numbered(RowStore.of(Windows.of(num_rows, 0, drawn, keys), "random_subset", "length"))
        strata = Strata.of_labels(labels_of_rows("stratify", stratify, num_rows))
        part = Stratified(num_rows, drawn, strata, keys, outside=np.zeros(drawn.size, np.bool_))
        return cls._numbered(RowStore.of(part, "random_subset", "length", settings="stratified"))

    @classmethod
    def bootstrap(cls, num_heads: int, num_rows: int, lengths: ArrayLike | None = None, seed: ArrayLike = 0) -> Self:
        """Draw rows with replacement: bagging. `complement()` gives the rows out of bag.

        Every copy of a row counts as a row of the slice, and each pass meets all copies. Draw j of a head is a hash of
        (seed, j), so draws take no memory. The probability of a row differs from 1 / num_rows by less than 2**-32.

        >>> slices = hx.Slices.bootstrap(num_heads=2, num_rows=5)
        >>> slices.rows(1), slices.complement().rows(1)
        (array([2, 3, 1, 3, 3], dtype=int32), array([0, 4], dtype=int32))

        Args:
          num_heads: number of heads, H.
          num_rows: rows of the base dataset, N.
          lengths: number of draws, by default num_rows; int[H], or float[H] as fractions of num_rows in (0, 1]. A
            single number serves all heads.
          seed: with an int, head h has the seed `seed + h`; int[H] is used as given. 0 <= seed < 2**32.

        Raises:
          SliceError: a head draws nothing.
          ArgumentError: an argument has the wrong type, shape or range.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        num_heads = whole_number("num_heads", num_heads, 1, MAX_HEADS)
        draws = sizes_in_rows(num_rows if lengths is None else lengths, num_rows)
        draws = checked_lengths(in_range("lengths", draws, 0, MAX_ROWS + 1, "a head has fewer than 2**31 draws"))
        drawn, keys = lengths_and_keys(draws, seed_per_head(seed, num_heads), num_heads=np.zeros(num_heads))
        return cls._numbered(RowStore.of(Draws(num_rows, drawn, keys), "bootstrap", "number"))

    @classmethod
    def leave_one_out(cls, num_rows: int) -> Self:
        """Give head h every row but row h: jackknife, influence of single rows. `complement()` gives row h.

        >>> hx.Slices.leave_one_out(4).rows(1)
        array([2, 3, 0], dtype=int32)

        Args:
          num_rows: rows of the base dataset, N, and number of heads; 2 <= num_rows.

        Raises:
          ArgumentError: num_rows is not a whole number in range.
        """
        num_rows = whole_number("num_rows", num_rows, 2, MAX_HEADS)
        windows = Windows.of(num_rows, (np.arange(num_rows) + 1) % num_rows, np.full(num_rows, num_rows - 1))
        return cls._numbered(RowStore.of(windows, "leave_one_out", "end"))

    # ---- constructors: kept rows

    @classmethod
    def from_indices(cls, indices: Iterable[ArrayLike], num_rows: int) -> Self:
        """Give each head the rows listed for it, in that order; a row may be listed more than once.

        Args:
          indices: H lists of row numbers, int[n_h] each, 0 <= row < num_rows.
          num_rows: rows of the base dataset, N.

        Raises:
          SliceError: a list is empty, has values that are not whole numbers, or holds a row outside the dataset; the
            message names head, position and row.
          ArgumentError: num_rows is not a whole number in range.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        rows, lengths = joined_lists(entries("indices", indices, "pass the rows of each head as a list"), num_rows)
        return cls._numbered(RowStore.of(Lists.of(num_rows, rows, lengths, numbers=lengths), "from_indices", "number"))

    @classmethod
    def from_mask(cls, mask: ArrayLike) -> Self:
        """Give each head the rows where its mask is True, in base order.

        They are kept as lists of rows, as lists of the rows left out, or as bits, whichever is smallest, but always as
        lists up to 64 MiB. The same holds for `from_splits` and for the complement of `bootstrap`.

        Args:
          mask: bool[H, N].

        Raises:
          SliceError: the mask of a head has no True, or differs in length from that of the first head.
          ArgumentError: the mask is not a boolean array of two axes.
        """
        table = mask_table(mask)
        num_rows = whole_number("num_rows", table.shape[1], 1, MAX_ROWS)
        lengths = checked_lengths(np.count_nonzero(table, axis=1))
        lines = (mask_lines(table[block]) for block in mask_blocks(len(table), num_rows))
        return cls._numbered(RowStore.of(kept_sets(lines, num_rows, numbers=lengths), "from_mask", "number"))

    @classmethod
    def from_splits(cls, splits: Iterable[Any], num_rows: int, part: Literal["train", "test"] = "train") -> Self:
        """Make one head for each split of a scikit-learn splitter: k-fold, stratified, grouped, repeated.

        A split is a set, so its rows are kept in base order. A generator of splits is never held as a whole. The other
        part of each split is remembered too: `held_out()` returns it, and `Trainer.predict_held_out` predicts it.

        >>> from sklearn.model_selection import KFold
        >>> slices = hx.Slices.from_splits(KFold(3).split(np.zeros(6)), num_rows=6)
        >>> slices.mask().astype(int)
        array([[0, 0, 1, 1, 1, 1],
               [1, 1, 0, 0, 1, 1],
               [1, 1, 1, 1, 0, 0]])

        Args:
          splits: pairs (train rows, test rows), as `splitter.split(X, y)` yields them.
          num_rows: rows of the dataset that was split, N.
          part: which of the two parts a head learns from, "train" (the default) or "test".

        Raises:
          SliceError: there is no split; or a part is empty, repeats a row, holds a row outside the dataset, or one of
            the other part.
          ArgumentError: part is unknown, or num_rows is not a whole number in range.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        pairs = entries("splits", splits, "of a scikit-learn splitter pass what `splitter.split(X, y)` yields")
        store, tests = stores_of_splits(parts_of_splits(pairs, num_rows, part), num_rows, part)
        return cls._numbered(store, tests=tests)

    @classmethod
    def partition_by(cls, groups: ArrayLike) -> Self:
        """Make one head for each group, which gets the rows of the group: one model per client, site or species.

        >>> slices = hx.Slices.partition_by(["oslo", "bonn", "oslo", "rome"])
        >>> slices.recipes()
        ["partition_by('bonn')", "partition_by('oslo')", "partition_by('rome')"]
        >>> slices.rows(1)
        array([0, 2], dtype=int32)

        Args:
          groups: the group of each row, [N]: ints, strings or bools. Heads are in the sorted order of the groups.

        Raises:
          ArgumentError: groups are not one label per row, all of one type.
        """
        lists, names = Lists.by_group(labels_of_rows("groups", groups))
        return cls._numbered(RowStore.of(lists, "partition_by", "group", names=names))

    @classmethod
    def leave_group_out(cls, groups: ArrayLike) -> Self:
        """Make one head for each group, which gets all rows but those of the group: cross-validation over sites.

        Four bytes per row are kept, whatever the number of groups. `complement()` gives the rows left out.

        >>> hx.Slices.leave_group_out(["oslo", "bonn", "oslo", "rome"]).mask().astype(int)
        array([[1, 0, 1, 1],
               [0, 1, 0, 1],
               [1, 1, 1, 0]])

        Args:
          groups: the group of each row, [N]: ints, strings or bools. Heads are in the sorted order of the groups.

        Raises:
          SliceError: there is only one group.
          ArgumentError: groups are not one label per row, all of one type.
        """
        lists, names = Lists.by_group(labels_of_rows("groups", groups))
        if names.size == 1:
            raise SliceError(
                f"Slice of head 0 is empty: every row is of its group. Got 1 group, {names[0].item()!r}, expected 2 or "
                "more. Fix: pass the groups of all rows."
            )
        return cls._numbered(RowStore.of(lists.complement(), "leave_group_out", "group", names=names))

    @classmethod
    def dirichlet(cls, labels: ArrayLike, alpha: float, num_heads: int, min_size: int = 1, seed: int = 0) -> Self:
        """Deal every row to one head, class by class in shares drawn from a Dirichlet distribution: federated clients.

        A small alpha gives each head few classes, a large one the same mixture to all. The deal is drawn again until
        every head has `min_size` rows, at most 1000 times.

        >>> labels = np.arange(12) // 6
        >>> slices = hx.Slices.dirichlet(labels, alpha=0.3, num_heads=2)
        >>> [np.bincount(labels[head.rows(0)], minlength=2).tolist() for head in slices]
        [[6, 4], [0, 2]]

        Args:
          labels: the class of each row, [N]: ints, strings or bools.
          alpha: concentration of the distribution, 0 < alpha <= 1e9.
          num_heads: number of heads, H.
          min_size: smallest number of rows of a head, 1 <= min_size.
          seed: seed of the deal, 0 <= seed < 2**32.

        Raises:
          SliceError: no deal gave every head its rows; the message shows the best one.
          ArgumentError: an argument has the wrong type, shape or range.

        Source: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
        Classification", 2019; drawn class by class, and again, as in Li, Diao, Chen, He, "Federated Learning on Non-IID
        Data Silos: An Experimental Study", ICDE 2022.
        """
        classes = labels_of_rows("labels", labels)
        num_heads = whole_number("num_heads", num_heads, 1, MAX_HEADS)
        min_size = whole_number("min_size", min_size, 1, MAX_ROWS)
        seed, alpha = whole_number("seed", seed, 0, 2**32 - 1), concentration(alpha)
        rows, lengths = dealt_by_class(classes, alpha, num_heads, min_size, np.random.default_rng(seed))
        lists = Lists.of(classes.size, rows, lengths, numbers=np.arange(num_heads), are_sets=True)
        return cls._numbered(RowStore.of(lists, "dirichlet", "number", settings=f"alpha={alpha:g}, seed={seed}"))

    @classmethod
    def from_weights(cls, weights: ArrayLike, lengths: ArrayLike | None = None, seed: ArrayLike = 0) -> Self:
        """Give each head copies of rows in proportion to weights: importance weights, boosting, class balance.

        >>> hx.Slices.from_weights([[2, 0, 1]]).rows(0)
        array([0, 0, 2], dtype=int32)
        >>> hx.Slices.from_weights([[0.5, 0.25, 0.25]], lengths=4).rows(0)
        array([0, 0, 1, 2], dtype=int32)

        Args:
          weights: int or float[H, N], 0 <= weight. Ints without lengths are numbers of copies: row i is
            `weights[h, i]` times in the slice.
          lengths: rows of each slice, including copies: int[H], or float[H] as fractions of N in (0, 1]; a single
            number serves all heads. Row i then has `lengths[h] * weights[h, i] / sum(weights[h])` copies, rounded up or
            down so that the total is exact and the mean over seeds unbiased (systematic sampling).
          seed: seed of the rounding. With an int, head h has the seed `seed + h`; int[H] is used as given.
            0 <= seed < 2**32.

        Raises:
          SliceError: a weight is negative or not finite, all weights of a head are 0, or its copies are more than
            2**31 - 1; the message names the head.
          ArgumentError: weights are not numbers[H, N], floats have no lengths, or another argument is out of range.
        """
        table = weight_table(weights)
        num_rows = whole_number("num_rows", table.shape[1], 1, MAX_ROWS)
        sums = lengths_of_copies(table) if lengths is None else sizes_in_rows(lengths, num_rows)
        hint = "a slice has fewer than 2**31 rows, including copies"
        sums = checked_lengths(in_range("lengths", sums, 0, MAX_ROWS + 1, hint))
        totals, keys = lengths_and_keys(sums, seed_per_head(seed, len(table)), weights=np.zeros(len(table)))
        copies = table if lengths is None else copies_by_weight(table, totals, keys)
        every = np.arange(num_rows, dtype=np.int32)
        rows = np.concatenate([np.repeat(every, line.astype(np.int64, copy=False)) for line in copies])
        return cls._numbered(RowStore.of(Lists.of(num_rows, rows, totals, numbers=totals), "from_weights", "number"))

    # ---- constructors: from other slices

    @classmethod
    def concatenate(cls, parts: Iterable["Slices"]) -> "Slices":
        """Put the heads of all parts one after the other, with new ids 0..H-1.

        Seeds, recipes and axes stay with their heads. On the axis "slice" a head keeps its number from the product that
        it comes from.

        Args:
          parts: slices of the same dataset.

        Raises:
          ArgumentError: there is no part, or the parts differ in num_rows or in axes.
        """
        parts = [_checked(part) for part in entries("parts", parts, "pass a list of Slices")]
        if not parts or len({part.num_rows for part in parts}) > 1:
            raise ArgumentError(
                f"Slices cannot be concatenated: argument parts. Got num_rows {[part.num_rows for part in parts]}, "
                "expected one or more parts on the same dataset. Fix: make all parts with the same num_rows."
            )
        axes, store = joined([part._axes for part in parts]), RowStore.concatenate([part._store for part in parts])
        if all(part._tests is None for part in parts):
            return cls._numbered(store, axes)
        return cls._numbered(store, axes, RowStore.concatenate([part.held_out()._store for part in parts]))

    @classmethod
    def product(cls, slices: "Slices", /, **axes: Any) -> "Slices":
        """Make one head for every slice and every value of every axis: sweeps of seeds and hyper-parameters.

        The last axis varies fastest. Each head has its own id, and so its own start values and rotation.
        `hx.PerHead(slices.axes["lr"])` passes the values of an axis to the module.

        >>> slices = hx.Slices.product(hx.Slices.prefix([10, 20], num_rows=20), lr=[0.1, 0.2])
        >>> slices.axes["slice"], slices.lengths, slices.axes["lr"]
        (array([0, 0, 1, 1]), array([10, 10, 20, 20], dtype=int32), array([0.1, 0.2, 0.1, 0.2]))

        Args:
          slices: the slices to cross. Their own axes are kept.
          **axes: by name, an int n for the values 0..n-1, or a list of numbers, strings or bools.

        Returns:
          The product. Its `axes` hold the value of each head on every axis and, under "slice", the position of its
          slice in `slices` (for a product of a product, in the first).

        Raises:
          ArgumentError: a name is taken by an axis or a column of the ledger, an axis has no values, or its values are
            of mixed types.
        """
        at, labels = crossed(len(_checked(slices)), slices._axes, axes)
        return cls._numbered(slices._store.pick(at), labels, slices._tests and slices._tests.pick(at))

    @classmethod
    def _numbered(cls, store: RowStore, axes: Axes | None = None, tests: RowStore | None = None) -> Self:
        return cls(np.arange(store.lengths.size, dtype=np.int32), store, axes or {}, tests)

    # ---- what the slices are

    @property
    def num_rows(self) -> int:
        """Rows of the base dataset, N."""
        return self._store.num_rows

    @property
    def num_heads(self) -> int:
        """Number of heads, H."""
        return self.ids.size

    @property
    def lengths(self) -> NDArray[np.int32]:
        """int32[H], rows of each slice, including copies."""
        return self._store.lengths

    @property
    def seeds(self) -> NDArray[np.int64]:
        """int64[H], the seed that the rows of each head are computed from, or -1."""
        return self._store.seeds

    @property
    def axes(self) -> Mapping[str, NDArray[Any]]:
        """The axes of a product by name: for each head its value, [H]. Empty without a product. Read-only."""
        return MappingProxyType(self._axes)

    @property
    def has_repeats(self) -> bool:
        """Whether a head may hold a row more than once; for draws with replacement always True."""
        return self._store.has_repeats

    def recipe(self, head: int) -> str:
        """Describe how the slice of the head at position `head` was made, such as "window(100, 37)"."""
        text: str = self._store.recipe_texts(positions([head], len(self)))[0]
        return text

    def recipes(self) -> list[str]:
        """Describe how the slice of every head was made, [H]."""
        texts: list[str] = self._store.recipe_texts(np.arange(len(self))).tolist()
        return texts

    def describe(self) -> str:
        """Summarise the slices for a reader: recipes, lengths, coverage, copies, axes and memory, one line each.

        >>> print(hx.Slices.window([0, 2], [2, 4], num_rows=10).describe())
        Slices of 2 heads on 10 rows
          recipes: window x 2
          lengths: min 2, median 3, max 4, total 6
          share: 20.00% to 40.00% of the dataset
          rows in no slice: 4
          repeats: no head holds a row twice
          memory: 22 bytes
        """
        return summary(self._store, self._axes, self._tests)

    def digest(self) -> str:
        """Compute SHA-256 in hex over ids, windows, seeds and kept rows: equal on all machines, in all processes."""
        # The version 1 goes up when the same window and seed give other rows, as with other constants in `permutation`.
        content = hashlib.sha256(f"hydrax.Slices 1: {len(self)} heads, {self.num_rows} rows".encode())
        content.update(self.ids.astype("<u4").tobytes())
        for store in filter(None, (self._store, self._tests)):
            for piece in store.content():
                content.update(piece)
        return content.hexdigest()

    # ---- rows

    def rows(self, head: int) -> NDArray[np.int32]:
        """Return the base rows of the head at position `head`, int32[n], in the order of the slice.

        >>> hx.Slices.from_indices([[0], [7, 3, 7]], num_rows=10).rows(1)
        array([7, 3, 7], dtype=int32)
        """
        at = positions([head], len(self))
        return self._store.take(at, np.arange(self.lengths[at[0]], dtype=np.uint32)[None])[0, :]

    def mask(self, heads: Any = None) -> NDArray[np.bool_]:
        """Tell which rows each head may see: bool[heads, N], for all heads or those of `slices[heads]`.

        >>> hx.Slices.window([0, 2], 3, num_rows=5).mask()
        array([[ True,  True,  True, False, False],
               [False, False,  True,  True,  True]])
        """
        at = positions(slice(None) if heads is None else heads, len(self))
        return self._store.contains(at, np.arange(self.num_rows))

    def contains(self, heads: Any, rows: ArrayLike) -> NDArray[np.bool_]:
        """Tell which of the given rows each head may see, without computing whole masks.

        Args:
          heads: as in `slices[heads]`.
          rows: int[B], 0 <= row < N, in any order.

        Returns:
          bool[heads, B].

        Raises:
          ArgumentError: rows are not whole numbers, or lie outside the dataset.
          SliceError: a head is selected twice, or none is.
        """
        hint = "rows count from 0 in the base dataset"
        asked = in_range("rows", np.atleast_1d(column("rows", rows)), 0, self.num_rows, hint)
        return self._store.contains(positions(heads, len(self)), asked)

    def lookup(self, offsets: ArrayLike) -> NDArray[np.int32]:
        """Compute the base rows at the given offsets inside the slices: what a batch gathers.

        Args:
          offsets: integers[H, B], 0 <= offsets[h] < lengths[h].

        Returns:
          int32[H, B].

        Raises:
          ArgumentError: the first axis of the offsets is not H, or an offset lies outside its slice.
        """
        return self._store.take(np.arange(len(self)), offsets_inside(offsets, self.lengths))

    def law(self) -> RowLaw | None:
        """Return the function by which a compiled program computes itself what `lookup` gives.

        None if the rows of the heads are kept in several ways, or if places in a table exceed 2**31.
        """
        return self._store.law()

    # ---- other slices

    def complement(self, allow_empty: bool = False) -> "Slices":
        """Return the rows that each head does not see, under the same ids: out of fold, out of bag, held out.

        Each row comes once, whatever the copies in the slice. The complement takes no more memory than the slices: that
        of a window is a window, and that of lists shares one sorted copy of them. Only rows out of bag must be kept.

        >>> hx.Slices.window([0, 2], 3, num_rows=5).complement().mask().astype(int)
        array([[0, 0, 0, 1, 1],
               [1, 1, 0, 0, 0]])

        Args:
          allow_empty: whether a head may be left without rows; such slices answer questions but cannot be trained on.

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

    def held_out(self) -> "Slices":
        """Return the rows that each head is tested on, under the same ids; a head may have none.

        These are the test rows of its split for `from_splits`, and otherwise all rows that it does not see.

        >>> slices = hx.Slices.from_splits([([0, 1], [2]), ([0, 1, 2], [3])], num_rows=4)
        >>> slices.held_out().rows(0), slices.complement().rows(0)
        (array([2], dtype=int32), array([2, 3], dtype=int32))
        """
        tests = self._store.complement() if self._tests is None else self._tests
        return Slices(self.ids, tests, self._axes)

    def with_ids(self, ids: ArrayLike) -> "Slices":
        """Return the same slices under other ids, int[H]: distinct, 0 <= id < 2**31 - 1.

        Raises:
          ArgumentError: the ids are not one per head, not distinct, or out of range.
        """
        fresh = in_range("ids", np.atleast_1d(column("ids", ids)), 0, MAX_ROWS, "ids are small whole numbers")
        if fresh.size != len(self) or np.unique(fresh).size != fresh.size:
            raise ArgumentError(
                f"Not one distinct id per head: argument ids. Got {fresh.size} ids, {np.unique(fresh).size} of them "
                f"distinct, expected {len(self)} distinct ids. Fix: give every head its own id."
            )
        return Slices(fresh.astype(np.int32), self._store, self._axes, self._tests)

    def __getitem__(self, heads: Any) -> "Slices":
        """Select the heads at the given positions, each with its id: an int, a slice, ints, or bool[H].

        Raises:
          ArgumentError: a position is out of range.
          SliceError: a head is selected twice, or none is.
        """
        at = positions(heads, len(self))
        axes = {name: values[at] for name, values in self._axes.items()}
        return Slices(self.ids[at], self._store.pick(at), axes, self._tests and self._tests.pick(at))

    def __iter__(self) -> Iterator["Slices"]:
        return (self[head] for head in range(len(self)))

    def __len__(self) -> int:
        return self.ids.size

    def __eq__(self, other: object) -> bool:
        return self.digest() == other.digest() if isinstance(other, Slices) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest())

    def _repr_html_(self) -> str:
        return text_box(self.describe())

    def __repr__(self) -> str:
        recipes = " + ".join(self._store.recipes.kinds())
        lengths = f"{self.lengths.min()}..{self.lengths.max()}"
        return f"Slices({recipes}, num_heads={len(self)}, num_rows={self.num_rows}, lengths={lengths})"


def _checked(slices: Any) -> Slices:
    if not isinstance(slices, Slices):
        raise ArgumentError(
            f"Not a Slices object: argument slices or parts. Got {slices!r:.60}, expected hydrax.Slices. "
            "Fix: make it with Slices.full, Slices.prefix or another constructor."
        )
    return slices
