"""The constructors of `Slices` whose rows are kept: four bytes a row, or one bit per row of the dataset."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hydrax.errors import ArgumentError, SliceError
from hydrax.slices.arguments import (
    MAX_ROWS,
    checked_lengths,
    entries,
    in_range,
    joined_lists,
    labels_of_rows,
    lengths_of_copies,
    mask_table,
    one_per_head,
    seed_per_head,
    set_of_head,
    sizes_in_rows,
    weight_table,
    whole_number,
)
from hydrax.slices.lists import Lists
from hydrax.slices.sets import kept_sets, mask_blocks, mask_lines
from hydrax.slices.store import RowStore
from hydrax.slices.weights import copies_by_weight, dealt_by_class


class ListedSlices:
    """Constructors for `Slices`, which gives them `_of`."""

    @classmethod
    def _of(cls, store: RowStore) -> Self:
        raise NotImplementedError

    @classmethod
    def from_indices(cls, indices: Iterable[ArrayLike], num_rows: int) -> Self:
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
        rows, lengths = joined_lists(entries("indices", indices, "pass the rows of each head as a list"), num_rows)
        return cls._of(RowStore.of(Lists.of(num_rows, rows, lengths, numbers=lengths), "from_indices({number})"))

    @classmethod
    def from_mask(cls, mask: ArrayLike) -> Self:
        """The rows where the mask of each head is True, in base order.

        They are kept as lists, as lists of the rows left out, or as bits, whichever is smallest; as lists up to 64 MiB
        in any case. The same holds for `from_splits` and for the complement of `bootstrap`.

        Args:
          mask: bool[H, N].

        Raises:
          SliceError: a head's mask holds no True, or is of another length than the first head's.
          ArgumentError: the mask is not a boolean array of two axes.
        """
        table = mask_table(mask)
        num_rows = whole_number("num_rows", table.shape[1], 1, MAX_ROWS)
        lengths = checked_lengths(np.count_nonzero(table, axis=1))
        lines = (mask_lines(table[block]) for block in mask_blocks(len(table), num_rows))
        return cls._of(RowStore.of(kept_sets(lines, num_rows, numbers=lengths), "from_mask({number})"))

    @classmethod
    def from_splits(cls, splits: Iterable[Any], num_rows: int, part: Literal["train", "test"] = "train") -> Self:
        """One head for each split of a scikit-learn splitter: k-fold, stratified, grouped, repeated, leave-one-out.

        A split is a set: its rows are kept in base order. Splits are taken one by one, as a generator yields them.

        Args:
          splits: pairs (train rows, test rows), as `splitter.split(X, y)` yields them.
          num_rows: N, the number of rows that were split.
          part: which of the two a head learns from.

        Raises:
          SliceError: there is no split, a part is empty, holds a row twice, or one outside the dataset.
          ArgumentError: part is unknown, or num_rows is not a whole number in range.
        """
        num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
        if part not in ("train", "test"):
            raise ArgumentError(
                f"Unknown part of a split: argument part. Got {part!r}, expected 'train' or 'test'. "
                "Fix: 'train' for the rows a head learns from, 'test' for those held out."
            )
        pairs = entries("splits", splits, "of a scikit-learn splitter pass what `splitter.split(X, y)` yields")
        kept = kept_sets(_parts_of_splits(pairs, num_rows, part == "test"), num_rows)
        return cls._of(RowStore.of(kept, f"from_splits({{number}}, {part})"))

    @classmethod
    def partition_by(cls, groups: ArrayLike) -> Self:
        """One head per distinct group, which sees the rows of that group: one model per client, site or species.

        Args:
          groups: the group of each row, [N]: ints, strings or bools. Heads stand in the sorted order of the groups.

        Raises:
          ArgumentError: groups are not one label per row, all of one type.
        """
        return cls._of(RowStore.of(*_by_group("partition_by({group})", groups)))

    @classmethod
    def leave_group_out(cls, groups: ArrayLike) -> Self:
        """One head per distinct group, which sees all rows but those of the group: cross-validation over sites.

        Four bytes a row are kept, whatever the number of groups. `complement()` gives the rows left out.

        Args:
          groups: the group of each row, [N]: ints, strings or bools. Heads stand in the sorted order of the groups.

        Raises:
          SliceError: there is one group only.
          ArgumentError: groups are not one label per row.
        """
        lists, text, names = _by_group("leave_group_out({group})", groups)
        if names.size == 1:
            raise SliceError(
                f"Slice of head 0 is empty: there is nothing but its group. Got 1 group, {names[0].item()!r}, expected "
                "2 or more. Fix: pass the groups of all rows."
            )
        return cls._of(RowStore.of(lists.complement(), text, names))

    @classmethod
    def dirichlet(cls, labels: ArrayLike, alpha: float, num_heads: int, min_size: int = 1, seed: int = 0) -> Self:
        """Deals every row to one head, class by class in shares drawn from a Dirichlet distribution: federated clients.

        A small alpha gives each head few classes, a large one the same mixture to all. The whole deal is drawn again
        until every head has `min_size` rows, at most 1000 times.

        Args:
          labels: the class of each row, [N]: ints, strings or bools.
          alpha: concentration, 0 < alpha <= 1e9.
          num_heads: H.
          min_size: rows that every head has at least, 1 <= min_size.
          seed: of the deal, 0 <= seed < 2**32.

        Raises:
          SliceError: no deal gave every head its rows; the message tells the best that was seen.
          ArgumentError: an argument has the wrong type, shape or range.

        Source: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
        Classification", 2019; drawn class by class, and again, as in Li, Diao, Chen, He, "Federated Learning on Non-IID
        Data Silos: An Experimental Study", ICDE 2022.
        """
        classes = labels_of_rows("labels", labels)
        num_heads = whole_number("num_heads", num_heads, 1, MAX_ROWS)
        min_size = whole_number("min_size", min_size, 1, MAX_ROWS)
        seed = whole_number("seed", seed, 0, 2**32 - 1)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float | np.number) or not 0 < alpha <= 1e9:
            raise ArgumentError(
                f"Not a concentration: argument alpha. Got {alpha!r:.60}, expected a number 0 < alpha <= 1e9. "
                "Fix: 0.1 for few classes a head, 100 for the same mixture everywhere."
            )
        rows, lengths = dealt_by_class(classes, float(alpha), num_heads, min_size, np.random.default_rng(seed))
        lists = Lists.of(classes.size, rows, lengths, numbers=np.arange(num_heads), are_sets=True)
        return cls._of(RowStore.of(lists, f"dirichlet({{number}}, alpha={float(alpha):g}, seed={seed})"))

    @classmethod
    def from_weights(cls, weights: ArrayLike, lengths: ArrayLike | None = None, seed: ArrayLike = 0) -> Self:
        """Rows in proportion to weights: importance weights, boosting, class balance. A slice may hold copies of a row.

        Args:
          weights: int or float[H, N], 0 <= weight. Ints without lengths are the copies: row i is in the slice
            `weights[h, i]` times.
          lengths: rows of each slice, copies counted: int[H], or float[H] as fractions of N in (0, 1]; a single number
            stands for all heads. Row i then has `lengths[h] * weights[h, i] / sum(weights[h])` copies, rounded up or
            down such that the total is exact and the expectation over seeds unbiased (systematic sampling).
          seed: of the rounding: an int gives head h the seed `seed + h`; int[H] is used as it is. 0 <= seed < 2**32.

        Raises:
          SliceError: a weight is negative or not finite, all weights of a head are 0, or its copies are more than
            2**31 - 1; the message names the head.
          ArgumentError: weights are no numbers[H, N], floats come without lengths, or another argument is out of range.

        Source: Madow, "On the Theory of Systematic Sampling, II", Annals of Mathematical Statistics, 1949.
        """
        table = weight_table(weights)
        num_rows = whole_number("num_rows", table.shape[1], 1, MAX_ROWS)
        if lengths is None and table.dtype.kind == "f":
            raise ArgumentError(
                "Float weights without lengths: argument lengths. Got None, expected int[heads]. "
                "Fix: pass the length of each slice, or whole weights as ints."
            )
        seeds = seed_per_head(seed, len(table))
        totals = lengths_of_copies(table) if lengths is None else sizes_in_rows(lengths, num_rows)
        hint = "a slice has fewer than 2**31 rows, copies counted"
        totals = checked_lengths(in_range("lengths", totals, 0, MAX_ROWS + 1, hint))
        _, totals, seeds = one_per_head(weights=np.zeros(len(table), np.int64), lengths=totals, seed=seeds)
        in_range("seed", seeds, 0, 2**32, "take a whole number that fits into 32 bits")
        copies = table if lengths is None else copies_by_weight(table, totals, seeds.astype(np.uint32))
        every = np.arange(num_rows, dtype=np.int32)
        rows = np.concatenate([np.repeat(every, line.astype(np.int64, copy=False)) for line in copies])
        return cls._of(RowStore.of(Lists.of(num_rows, rows, totals, numbers=totals), "from_weights({number})"))


def _parts_of_splits(
    splits: Iterable[Any], num_rows: int, part: int
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """One part of every split as a line of its own."""
    number = -1
    for number, split in enumerate(splits):
        if not isinstance(split, tuple | list) or len(split) != 2:
            raise SliceError(
                f"Not a split: head {number}. Got {split!r:.60}, expected a pair (train rows, test rows). "
                "Fix: pass what `splitter.split(X, y)` yields."
            )
        rows = set_of_head(number, split[part], num_rows)
        yield rows, np.array([rows.size])
    checked_lengths(np.ones(number + 1, np.int64))  # There is a split at all.


def _by_group(text: str, groups: ArrayLike) -> tuple[Lists, str, NDArray[Any]]:
    """The rows of each group, with a recipe's text and names."""
    labels = labels_of_rows("groups", groups)
    names, number, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    rows = np.argsort(number, kind="stable").astype(np.int32)
    return Lists.of(labels.size, rows, sizes, numbers=np.arange(names.size), are_sets=True), text, names
