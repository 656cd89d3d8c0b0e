"""Slices: what each constructor selects, what picking and joining keep, and what is refused."""

import hashlib
import inspect
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    LeaveOneOut,
    PredefinedSplit,
    RepeatedKFold,
    ShuffleSplit,
    StratifiedGroupKFold,
    StratifiedKFold,
    TimeSeriesSplit,
)

from hydrax import PerHead
from hydrax.errors import ArgumentError, SliceError
from hydrax.slices import sets as row_sets
from hydrax.slices.bits import Bits
from hydrax.slices.lists import Lists, Unlisted
from hydrax.slices.slices import Slices
from hydrax.slices.store import RowStore


def some_of_each():
    """Two heads of every constructor on 20 rows."""
    return Slices.concatenate(
        [
            Slices.full(2, 20),
            Slices.prefix([3, 8], 20),
            Slices.prefix([3, 8], 20, seed=9),
            Slices.window([4, 12], [5, 8], 20),
            Slices.random_subset([6, 7], 20, seed=4),
            Slices.from_indices([[5, 5, 1], [19]], 20),
            Slices.from_mask(np.arange(40).reshape(2, 20) % 7 == 3),
            Slices.from_splits(KFold(2).split(np.zeros(20)), 20),
        ]
    )


def all_rows(slices):
    return [slices.rows(head).tolist() for head in range(len(slices))]


# ---- constructors


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        (Slices.full(2, 3), [[0, 1, 2], [0, 1, 2]]),
        (Slices.prefix(range(1, 4), 5), [[0], [0, 1], [0, 1, 2]]),
        (Slices.prefix(2, 5), [[0, 1]]),
        (Slices.window([0, 3], [1, 2], 5), [[0], [3, 4]]),
        (Slices.window([0, 3], 2, 5), [[0, 1], [3, 4]]),
        (Slices.from_indices([[4, 0, 4], (2,), np.array([1, 3], np.uint8)], 5), [[4, 0, 4], [2], [1, 3]]),
        (Slices.from_mask([[True, False, True], [False, True, False]]), [[0, 2], [1]]),
        (Slices.from_splits([([0, 1], [2]), ([2], [0, 1])], 3, part="test"), [[2], [0, 1]]),
        (Slices.from_splits([((2, 0, 1), [3])], 4), [[0, 1, 2]]),
        (Slices.expanding_window(2, 2, 7), [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]),
        (Slices.expanding_window(2, 2, 7, horizon=2), [[0, 1], [0, 1, 2, 3]]),
        (Slices.leave_one_out(3), [[1, 2], [2, 0], [0, 1]]),
        (Slices.leave_one_out(3).complement(), [[0], [1], [2]]),
        (Slices.window([1, 3], 2, 5).complement(), [[3, 4, 0], [0, 1, 2]]),
        (Slices.partition_by(["b", "a", "b", "c"]), [[1], [0, 2], [3]]),
        (Slices.partition_by([True, False, True]), [[1], [0, 2]]),
        (Slices.leave_group_out([7, -1, 7, 3]), [[0, 2, 3], [0, 1, 2], [1, 3]]),
        (Slices.from_indices([[4, 0, 4]], 5).complement(), [[1, 2, 3]]),
        (Slices.from_weights([[2, 0, 1], [0, 1, 0]]), [[0, 0, 2], [1]]),
        (Slices.from_weights([[0.5, 0.25, 0.25], [0, 1, 3]], lengths=4), [[0, 0, 1, 2], [1, 2, 2, 2]]),
        (Slices.dirichlet([0, 1, 1], alpha=1.0, num_heads=1), [[0, 1, 2]]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_constructor_selects_the_rows_written_out_by_hand(slices, expected):
    assert all_rows(slices) == expected
    np.testing.assert_array_equal(slices.lengths, [len(rows) for rows in expected])
    np.testing.assert_array_equal(slices.ids, np.arange(len(expected)))


@pytest.mark.parametrize(
    ("splitter", "groups"),
    [
        (KFold(5), None),
        (KFold(4, shuffle=True, random_state=0), None),
        (StratifiedKFold(3, shuffle=True, random_state=1), None),
        (GroupKFold(3), np.arange(30) // 4),
        (StratifiedGroupKFold(3, shuffle=True, random_state=3), np.arange(30) // 4),
        (RepeatedKFold(n_splits=3, n_repeats=2, random_state=4), None),
        (ShuffleSplit(6, test_size=0.3, random_state=2), None),
        (LeaveOneOut(), None),
        (LeaveOneGroupOut(), np.arange(30) // 4),
        (PredefinedSplit(np.arange(30) % 5 - 1), None),
        (TimeSeriesSplit(4), None),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize(("part", "at"), [("train", 0), ("test", 1)])
def test_the_splits_of_scikit_learn_come_out_as_the_same_sets(splitter, groups, part, at):
    data = np.zeros((30, 1)), np.arange(30) % 3, groups
    slices = Slices.from_splits(splitter.split(*data), 30, part=part)
    assert all_rows(slices) == [sorted(split[at].tolist()) for split in splitter.split(*data)]


def test_leaving_groups_out_is_what_scikit_learn_does():
    groups = np.random.default_rng(0).choice(["north", "south", "east"], 40)
    splits = list(LeaveOneGroupOut().split(np.zeros(40), groups=groups))
    slices = Slices.leave_group_out(groups)
    assert all_rows(slices) == [train.tolist() for train, _ in splits]
    assert all_rows(slices.complement()) == all_rows(Slices.partition_by(groups)) == [t.tolist() for _, t in splits]


def test_the_window_of_the_horizon_follows_what_each_head_learns_from():
    train = Slices.expanding_window(3, 2, 10, horizon=2)
    assert all_rows(Slices.window(train.lengths, 2, 10)) == [[3, 4], [5, 6], [7, 8]]


@pytest.mark.parametrize(("alpha", "num_heads", "min_size"), [(0.1, 8, 1), (1.0, 20, 5), (100.0, 3, 300)])
def test_dirichlet_deals_every_row_to_one_head_and_enough_to_each(alpha, num_heads, min_size):
    labels = np.random.default_rng(0).integers(0, 5, 1000)
    slices = Slices.dirichlet(labels, alpha, num_heads, min_size, seed=1)
    assert sorted(np.concatenate(all_rows(slices)).tolist()) == list(range(1000))
    assert slices.num_heads == num_heads
    assert slices.lengths.min() >= min_size


def test_a_small_alpha_gives_heads_few_classes_and_a_large_one_all_alike():
    labels = np.repeat(np.arange(4), 500)
    few, alike = (Slices.dirichlet(labels, alpha, 6, seed=0) for alpha in (0.05, 1000.0))
    largest = [[np.bincount(labels[rows], minlength=4).max() / len(rows) for rows in all_rows(s)] for s in (few, alike)]
    assert np.mean(largest[0]) > 0.7
    assert max(largest[1]) < 0.3


def test_dirichlet_deals_differently_by_seed_and_alike_by_the_same():
    labels = np.arange(60) % 3
    one, again, other = (Slices.dirichlet(labels, 1.0, 4, seed=seed) for seed in (3, 3, 4))
    assert one == again
    assert one != other


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint64])
def test_whole_weights_are_the_copies(dtype):
    weights = np.random.default_rng(0).integers(0, 5, (6, 30)).astype(dtype)
    counts = [np.bincount(rows, minlength=30) for rows in all_rows(Slices.from_weights(weights))]
    np.testing.assert_array_equal(counts, weights)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_weights_give_each_row_its_share_rounded_up_or_down_and_the_length_asked_for(dtype):
    weights = np.random.default_rng(0).gamma(0.5, size=(40, 50)) * 10.0 ** np.arange(-20, 20)[:, None]
    weights = weights.astype(dtype)
    lengths = np.random.default_rng(1).integers(1, 400, 40)
    counts = np.array([np.bincount(rows, minlength=50) for rows in all_rows(Slices.from_weights(weights, lengths))])
    np.testing.assert_array_equal(counts.sum(axis=1), lengths)
    weights = weights.astype(np.float64)
    share = lengths[:, None] * weights / weights.sum(axis=1, keepdims=True)
    assert ((counts >= np.floor(share)) & (counts <= np.ceil(share))).all()


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 1e300])
def test_a_whole_share_is_met_exactly_whatever_the_weights_add_up_to(scale):
    slices = Slices.from_weights(np.full((50, 10), scale), lengths=20)
    assert all_rows(slices) == [np.repeat(np.arange(10), 2).tolist()] * 50


def test_over_seeds_a_row_has_its_share_of_copies():
    weights = np.tile([0.05, 0.15, 0.3, 0.5], (4000, 1))
    counts = np.array([np.bincount(rows, minlength=4) for rows in all_rows(Slices.from_weights(weights, 3))])
    # Shares .15 .45 .9 1.5; a Bernoulli fraction has standard deviation 0.5 at most, the mean of 4000 within 4 of it.
    np.testing.assert_allclose(counts.mean(axis=0), [0.15, 0.45, 0.9, 1.5], atol=0.032)


@pytest.mark.parametrize(("asked", "length"), [(0.5, 50), (0.014, 1), (0.001, 1), (1.0, 100), (1, 1), (37, 37)])
def test_a_random_subset_has_exactly_the_size_asked_for_and_no_row_twice(asked, length):
    rows = Slices.random_subset([asked], 100).rows(0)
    assert len(set(rows.tolist())) == len(rows) == length
    assert set(rows.tolist()) <= set(range(100))


def test_random_subsets_of_one_seed_are_nested():
    small, large = all_rows(Slices.random_subset([10, 60], 100, seed=[7, 7]))
    assert large[:10] == small


def test_a_single_seed_gives_head_h_the_subset_of_seed_plus_h():
    slices = Slices.random_subset([10, 10, 10], 100, seed=5)
    np.testing.assert_array_equal(slices.seeds, [5, 6, 7])
    assert slices == Slices.random_subset(10, 100, seed=[5, 6, 7])
    assert len({tuple(rows) for rows in all_rows(slices)}) == 3


def test_every_row_is_equally_likely_in_a_random_subset():
    counts = Slices.random_subset([0.3] * 4000, 50).mask().sum(axis=0)
    # Binomial(4000, 0.3): standard deviation 29; the largest of 50 stays within 4 of them.
    assert abs(counts - 1200).max() < 116


def test_a_keyed_prefix_takes_one_order_for_all_heads():
    short, long = all_rows(Slices.prefix([4, 30], 40, seed=2))
    assert long[:4] == short
    assert long != list(range(30))


def test_a_keyed_prefix_and_a_random_subset_of_the_same_seed_are_equal():
    assert Slices.prefix([4, 30], 40, seed=2) == Slices.random_subset([4, 30], 40, seed=[2, 2])


def test_the_largest_dataset_is_taken():
    assert Slices.window([2**31 - 3], [2], 2**31 - 1).rows(0).tolist() == [2**31 - 3, 2**31 - 2]


def test_the_complement_of_a_window_goes_around_the_end_of_the_largest_dataset():
    outside = Slices.window([5], [2], 2**31 - 1).complement()
    offsets = np.array([[0, 2**31 - 9, 2**31 - 8, 2**31 - 4]])
    assert outside.lookup(offsets).tolist() == [[7, 2**31 - 2, 0, 4]]
    assert outside.contains(0, [4, 5, 6, 7, 2**31 - 2]).tolist() == [[True, False, False, True, True]]


@pytest.mark.parametrize(
    "make", [Slices.random_subset, lambda k, n: Slices.bootstrap(1, n, k)], ids=["subset", "draws"]
)
def test_hashed_rows_spread_over_the_largest_dataset(make):
    slices = make([1000], 2**31 - 1)
    rows = slices.rows(0).astype(np.int64)
    # Uniform on [0, N): the mean of 1000 has standard deviation 0.0091 N; within 4 of it.
    assert abs(rows.mean() / (2**31 - 1) - 0.5) < 0.037
    assert rows.min() >= 0
    assert slices.contains(0, rows).all()
    assert not slices.contains(0, np.setdiff1d(np.arange(1000), rows)).any()


# ---- what one asks of them


def test_recipes_say_how_each_slice_was_made():
    slices = some_of_each()
    assert [slices.recipe(head) for head in range(len(slices))] == [
        "full",
        "full",
        "prefix(3)",
        "prefix(8)",
        "prefix(3)",
        "prefix(8)",
        "window(4, 5)",
        "window(12, 8)",
        "random_subset(6)",
        "random_subset(7)",
        "from_indices(3)",
        "from_indices(1)",
        "from_mask(3)",
        "from_mask(3)",
        "from_splits(0, train)",
        "from_splits(1, train)",
    ]


def test_recipes_are_those_of_every_head():
    slices = some_of_each()[::-1]
    assert slices.recipes() == [slices.recipe(head) for head in range(len(slices))]


def test_seeds_are_minus_one_where_rows_depend_on_none():
    np.testing.assert_array_equal(some_of_each().seeds, [-1] * 4 + [9, 9] + [-1] * 2 + [4, 5] + [-1] * 6)


def test_mask_is_true_at_the_rows_of_each_head():
    slices = some_of_each()
    expected = np.array([np.isin(np.arange(20), slices.rows(head)) for head in range(len(slices))])
    np.testing.assert_array_equal(slices.mask(), expected)
    np.testing.assert_array_equal(slices.mask([3, 1]), expected[[3, 1]])


def test_a_mask_comes_back_through_from_mask():
    mask = np.random.default_rng(0).random((2000, 900)) < 0.7  # Over a million rows: more than one block.
    np.testing.assert_array_equal(Slices.from_mask(mask).mask(), mask)


def test_lookup_gives_the_row_at_each_offset():
    slices = some_of_each()
    offsets = np.random.default_rng(0).integers(0, slices.lengths[:, None], (len(slices), 9))
    rows = slices.lookup(offsets)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows, [slices.rows(head)[line] for head, line in enumerate(offsets)])
    np.testing.assert_array_equal(slices.lookup(offsets.tolist()), rows)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (np.zeros((3, 2), int), "Got int64[3, 2], expected integers[2, slots]"),
        (np.zeros((2, 2)), "Got float64[2, 2]"),
        ([[0], [0, 1]], "Lists of unequal lengths: argument offsets"),
        (np.array([[0, 1], [0, 3]]), "head 1, slot 1. Got 3, expected 0 <= offset < 3"),
        (np.array([[0, -1], [0, 0]]), "head 0, slot 1. Got -1, expected 0 <= offset < 2"),
    ],
    ids=["other heads", "floats", "ragged", "past the end", "negative"],
)
def test_an_offset_that_is_not_in_its_slice_is_refused(offsets, message):
    with pytest.raises(ArgumentError) as refused:
        Slices.prefix([2, 3], 5).lookup(offsets)
    assert message in str(refused.value)


def test_the_complement_tells_what_it_leaves_out():
    slices = Slices.concatenate([some_of_each()[2:], Slices.leave_one_out(20)[[4]], Slices.bootstrap(1, 20, 9)])
    outside = slices.complement()
    told = [f"complement({slices.recipe(head)})" for head in range(len(slices))]
    assert [outside.recipe(head) for head in range(len(slices))] == told
    assert told[-2:] == ["complement(leave_one_out(4))", "complement(bootstrap(9))"]
    twice = outside.complement()
    assert [twice.recipe(head) for head in (0, 4, 6, 8)] == ["prefix(3)", "window(4, 5)", "random_subset(6)"] + [
        "complement(complement(from_indices(3)))"
    ]


@pytest.mark.parametrize(
    ("slices", "recipe"),
    [
        (Slices.expanding_window(3, 2, 9), "expanding_window(5)"),
        (Slices.random_subset([4, 4], 9, stratify=[0] * 9), "random_subset(4, stratified)"),
        (Slices.bootstrap(2, 9), "bootstrap(9)"),
        (Slices.leave_one_out(4), "leave_one_out(1)"),
        (Slices.leave_group_out(["x", "y"]), "leave_group_out('y')"),
        (Slices.partition_by([3, 8, 3]), "partition_by(8)"),
        (Slices.dirichlet([0, 1] * 20, 5.0, 2), "dirichlet(1, alpha=5, seed=0)"),
        (Slices.from_weights([[1, 2], [3, 4]]), "from_weights(7)"),
        (Slices.product(Slices.window(2, 3, 9), seed=2), "window(2, 3)"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_the_recipe_of_the_second_head(slices, recipe):
    assert slices.recipe(1) == recipe


def test_describe_tells_a_reader_the_whole_in_a_few_lines():
    base = Slices.concatenate([Slices.window([0, 2], [2, 4], 10), Slices.bootstrap(1, 10, 1).complement()])
    slices = Slices.product(base, seed=2, lr=[0.1, 0.2, 0.3])
    memory = slices.describe().splitlines()[-1]
    assert slices.describe().splitlines()[:-1] == [
        "Slices of 18 heads on 10 rows",
        "  recipes: window x 12, complement(bootstrap) x 6",
        "  lengths: min 2, median 4, max 9, total 90",
        "  share: 20.00% to 90.00% of the dataset",
        "  rows in no slice: 0",
        "  repeats: no head holds a row twice",
        "  axes: slice (3), seed (2), lr (3)",
    ]
    assert re.fullmatch(r"  memory: [\d,]+ bytes", memory)


def test_describe_counts_the_rows_that_no_head_sees():
    assert "rows in no slice: 3" in Slices.window([0, 2], [2, 3], 8).describe()


@pytest.mark.parametrize("slices", [Slices.full(1, 1), Slices.from_indices([[0]], 1)], ids=["computed", "listed"])
def test_describe_tells_of_slices_that_hold_nothing(slices):
    lines = slices.complement(allow_empty=True).describe().splitlines()
    assert (lines[0], lines[4]) == ("Slices of 1 head on 1 row", "  rows in no slice: 1")


def test_the_complement_of_an_empty_one_is_all_rows():
    outside = Slices.bootstrap(2, 3, 100).complement(allow_empty=True)
    assert outside.lengths.tolist() == [0, 0]
    assert all_rows(outside.complement()) == [[0, 1, 2]] * 2


def test_whether_rows_repeat_is_worked_out_once(monkeypatch):
    slices = Slices.from_indices([[1, 2, 1], [0]], 3)
    assert slices.has_repeats
    monkeypatch.setattr(Lists, "_as_sets", None)  # A second look would fail.
    assert slices.has_repeats


def test_describe_does_not_walk_what_is_large():
    assert "rows in no slice: not counted" in Slices.window(range(20), 10**6, 10**8).describe()


def test_describe_stops_as_soon_as_all_rows_are_found(monkeypatch):
    walked = []
    take = RowStore.take

    def counted(self, heads, offsets):
        found = take(self, heads, offsets)
        walked.append(found.size)
        return found

    monkeypatch.setattr(RowStore, "take", counted)
    assert "rows in no slice: 0" in Slices.random_subset([0.5] * 10_000, 1_000).describe()
    assert sum(walked) < 200_000  # of 5,000,000
    assert "rows in no slice: 0" in Slices.leave_one_out(10_000).describe()


def test_repr_is_one_short_line():
    assert repr(Slices.prefix(range(1, 785), 784)) == "Slices(prefix, num_heads=784, num_rows=784, lengths=1..784)"


@pytest.mark.parametrize("name", ["ids", "lengths"])
def test_arrays_are_read_only(name):
    with pytest.raises(ValueError, match="read-only"):
        getattr(some_of_each(), name)[0] = 7


def test_the_users_own_arrays_stay_his():
    rows, lengths, mask = np.array([1, 2], np.int32), np.array([1], np.int32), np.ones((1, 3), bool)
    made = [Slices.from_indices([rows], 3), Slices.prefix(lengths, 3), Slices.from_mask(mask)]
    rows[0] = lengths[0] = 2
    mask[0, 0] = False
    assert [slices.rows(0).tolist() for slices in made] == [[1, 2], [0], [0, 1, 2]]


# ---- picking, joining


@pytest.mark.parametrize(
    ("heads", "expected"),
    [(3, [3]), (-1, [15]), ([5, 0], [5, 0]), (slice(12, None), [12, 13, 14, 15]), (np.arange(16) == 9, [9])],
    ids=repr,
)
def test_picked_heads_keep_ids_rows_recipes_and_seeds(heads, expected):
    slices = some_of_each()
    picked = slices[heads]
    np.testing.assert_array_equal(picked.ids, expected)
    np.testing.assert_array_equal(picked.seeds, slices.seeds[expected])
    assert all_rows(picked) == [all_rows(slices)[head] for head in expected]
    assert [picked.recipe(at) for at in range(len(picked))] == [slices.recipe(head) for head in expected]


def test_a_loop_goes_through_the_heads():
    assert [int(head.ids[0]) for head in Slices.full(3, 5)] == [0, 1, 2]


def test_joined_heads_have_fresh_ids_and_keep_rows_and_recipes():
    slices = some_of_each()
    twice = Slices.concatenate([slices[10:], slices[::-1]])
    np.testing.assert_array_equal(twice.ids, np.arange(22))
    assert all_rows(twice) == all_rows(slices)[10:] + all_rows(slices)[::-1]
    assert twice.recipe(21 - 15) == "from_splits(1, train)"


def test_with_ids_changes_nothing_but_the_ids():
    slices = some_of_each()[:3].with_ids([7, 0, 12])
    np.testing.assert_array_equal(slices.ids, [7, 0, 12])
    assert all_rows(slices) == all_rows(some_of_each()[:3])


# ---- axes


def test_an_axis_is_a_count_or_values():
    slices = Slices.product(Slices.full(1, 5), seed=2, lr=(0.1, 0.2), norm=["batch", "none"], bias=[True, False])
    assert {name: values[:5].tolist() for name, values in slices.axes.items()} == {
        "slice": [0, 0, 0, 0, 0],
        "seed": [0, 0, 0, 0, 0],
        "lr": [0.1, 0.1, 0.1, 0.1, 0.2],
        "norm": ["batch", "batch", "none", "none", "batch"],
        "bias": [True, False, True, False, True],
    }
    assert len(slices) == 16


def test_an_axis_becomes_a_hyper_parameter():
    slices = Slices.product(Slices.full(2, 5), lr=[0.1, 0.2], depth=range(1, 3))
    np.testing.assert_array_equal(PerHead(slices.axes["lr"]).values, [0.1, 0.1, 0.2, 0.2] * 2)
    np.testing.assert_array_equal(PerHead(slices.axes["depth"]).values, [1, 2] * 4)


def test_a_product_of_a_product_is_the_product_of_both():
    base = Slices.prefix([2, 3], 5)
    twice = Slices.product(Slices.product(base, seed=2), lr=[0.1, 0.2])
    once = Slices.product(base, seed=2, lr=[0.1, 0.2])
    assert {name: values.tolist() for name, values in twice.axes.items()} == {
        name: values.tolist() for name, values in once.axes.items()
    }
    assert twice == once


@pytest.mark.parametrize(
    "of",
    [
        lambda slices: slices[[4, 1]],
        lambda slices: slices[[4, 1]].with_ids([7, 8]),
        lambda slices: slices[[4, 1]].complement(),
        lambda slices: Slices.concatenate([slices[4], slices[1]]),
    ],
    ids=["picked", "with ids", "complement", "joined"],
)
def test_axes_stay_with_their_heads(of):
    axes = of(Slices.product(Slices.prefix([2, 3], 5), lr=[0.1, 0.2, 0.3])).axes
    assert {name: values.tolist() for name, values in axes.items()} == {"slice": [1, 0], "lr": [0.2, 0.2]}


def test_axes_are_names_and_do_not_count_for_equality():
    base = Slices.full(1, 5)
    assert Slices.product(base, lr=[0.1, 0.2]) == Slices.product(base, lr=[0.3, 0.4]) == Slices.full(2, 5)


def test_axes_cannot_be_written_to():
    axes = Slices.product(Slices.full(1, 5), lr=[0.1, 0.2]).axes
    with pytest.raises(ValueError, match="read-only"):
        axes["lr"][0] = 7
    with pytest.raises(TypeError):
        axes["wd"] = np.zeros(2)


# ---- digest and equality


@pytest.mark.parametrize(
    "other",
    [
        Slices.from_indices([[0, 2], [3, 1, 4]], 5),
        Slices.from_indices([[0, 1, 3], [1, 4]], 5),
        Slices.from_indices([[1, 0], [3, 1, 4]], 5),
        Slices.from_indices([[0, 1], [3, 1, 4]], 6),
        Slices.from_indices([[0, 1], [3, 1, 4]], 5).with_ids([0, 2]),
        Slices.from_indices([[0, 1]], 5),
    ],
    ids=["a row", "a cut between heads", "the order", "the dataset", "an id", "a head fewer"],
)
def test_the_digest_changes_with(other):
    slices = Slices.from_indices([[0, 1], [3, 1, 4]], 5)
    assert slices.digest() != other.digest()
    assert slices != other


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Slices.prefix([3, 4], 9), Slices.prefix([3, 5], 9)),
        (Slices.window([3], [4], 9), Slices.window([4], [4], 9)),
        (Slices.random_subset([3], 9, seed=0), Slices.random_subset([3], 9, seed=1)),
        (Slices.prefix([3], 9), Slices.prefix([3], 9, seed=0)),
    ],
    ids=["length", "start", "seed", "keyed or not"],
)
def test_the_digest_of_windows_changes_with(one, other):
    assert one.digest() != other.digest()


@pytest.mark.parametrize(
    "other",
    [
        some_of_each(),
        some_of_each()[:],
        some_of_each()[::-1][::-1],
        Slices.concatenate(list(some_of_each())),
        Slices.concatenate([some_of_each()[:11], some_of_each()[11:]]),
    ],
    ids=["made again", "picked whole", "turned twice", "taken apart", "cut in two"],
)
def test_the_digest_does_not_depend_on_how_the_same_slices_came_about(other):
    assert other.digest() == some_of_each().digest()
    assert other == some_of_each()
    assert hash(other) == hash(some_of_each())


def test_the_digest_stays_the_same_over_machines_and_releases():
    slices = Slices.concatenate([Slices.prefix([1, 2], 5, seed=3), Slices.from_indices([[4, 0]], 5)])
    numbers = [*[0, 1, 2], *[1, 2, 2], *[1, 1, 2], *[0, 0, 0], *[3, 3, 0], *[4, 0]]
    by_hand = b"hydrax.Slices 1: 3 heads, 5 rows" + struct.pack("<17I", *numbers)
    assert slices.digest() == hashlib.sha256(by_hand).hexdigest()


@pytest.mark.parametrize(
    ("slices", "numbers"),
    [
        (Slices.leave_one_out(4)[[3]], [3, 3, 0, 0, 0]),
        (Slices.random_subset([3], 4, seed=7).complement(), [0, 1, 1, 3, 7]),
        (Slices.partition_by([5, 6, 5, 5]).complement(), [0, 1, 1, 3, 3, 3, 0, 0, 0, 0, 0, 2, 3, 1]),
        (Slices.bootstrap(1, 4, 9, seed=7), [0, 9, 6, 0, 7]),
    ],
    ids=["leave one out", "keyed complement", "left out lists", "draws"],
)
def test_the_digest_of_what_is_computed_stays_the_same_over_machines_and_releases(slices, numbers):
    # Ids; then lengths, kinds, starts and seeds of all heads; then listed rows.
    by_hand = f"hydrax.Slices 1: {len(slices)} heads, 4 rows".encode() + struct.pack(f"<{len(numbers)}I", *numbers)
    assert slices.digest() == hashlib.sha256(by_hand).hexdigest()


def test_the_digest_of_stratified_slices_stays_the_same_over_machines_and_releases():
    by_class = hashlib.sha256(struct.pack("<6I", *[0, 2, 1, 3], *[2, 2])).digest()
    by_hand = b"hydrax.Slices 1: 1 heads, 4 rows" + struct.pack("<5I", 0, 3, 5, 0, 7) + by_class + struct.pack("<I", 0)
    slices = Slices.random_subset([3], 4, seed=7, stratify=["a", "b", "a", "b"])
    assert slices.digest() == hashlib.sha256(by_hand).hexdigest()


def test_a_single_head_takes_a_single_id():
    np.testing.assert_array_equal(Slices.full(1, 5).with_ids(3).ids, [3])


def test_slices_do_not_equal_something_else():
    assert Slices.full(1, 2) != "full"


@pytest.mark.parametrize("file", sorted(path.name for path in Path(inspect.getfile(Slices)).parent.glob("*.py")))
def test_slices_and_rotation_do_not_import_jax(file):
    source = Path(inspect.getfile(Slices)).with_name(file).read_text()
    assert [line for line in source.splitlines() if re.match(r"\s*(import|from) jax", line)] == []


# ---- size


def memory_of(make):
    """Slices, and the bytes that they keep and that making them took at most."""
    tracemalloc.start()
    slices = make()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return slices, kept, peak


def test_a_hundred_thousand_windows_stay_below_two_megabytes():
    starts = np.arange(100_000)
    slices, kept, _ = memory_of(lambda: Slices.window(starts, 50, 10**6))
    assert len(slices) == 100_000
    assert kept < 2_000_000


@pytest.mark.parametrize("stratify", [None, np.arange(50_000) % 10], ids=["plain", "stratified"])
def test_three_hundred_thousand_random_halves_stay_below_twenty_megabytes(stratify):
    lengths = np.full(300_000, 0.5)
    slices, kept, peak = memory_of(lambda: Slices.random_subset(lengths, 50_000, stratify=stratify))
    assert len(slices) == 300_000
    assert kept < 7_000_000
    assert peak < 20_000_000


def test_leaving_out_ten_thousand_groups_of_a_million_rows_stays_below_twenty_megabytes():
    groups = np.arange(10**6) % 10_000
    slices, kept, _ = memory_of(lambda: Slices.leave_group_out(groups))
    assert slices.lengths.sum(dtype=np.int64) == 9_999 * 10**6
    assert kept < 20_000_000
    outside, kept, _ = memory_of(slices.complement)
    assert outside.lengths.sum() == 10**6
    assert kept < 1_000_000


def test_splits_are_kept_as_they_come_and_never_all_as_lists():
    rows = np.arange(200_000)
    splits = ((rows[rows % 5 != k % 5], rows[rows % 5 == k % 5]) for k in range(150))
    slices, kept, peak = memory_of(lambda: Slices.from_splits(splits, 200_000))
    assert slices.rows(149)[:5].tolist() == [0, 1, 2, 3, 5]
    assert kept < 5_000_000  # As lists of int64 192 MB, of int32 96 MB.
    assert peak < 80_000_000


def test_leave_one_out_splits_are_kept_as_the_rows_left_out(monkeypatch):
    monkeypatch.setattr(row_sets, "LISTS_BYTES", 0)
    slices, kept, _ = memory_of(lambda: Slices.from_splits(LeaveOneOut().split(np.zeros(1500)), 1500))
    assert slices == Slices.leave_group_out(np.arange(1500))
    assert kept < 100_000  # As bits 324 kB, as lists 9 MB.


def test_joining_what_shares_a_table_does_not_copy_the_table():
    slices = Slices.leave_group_out(np.arange(100_000) % 500)
    joined, kept, _ = memory_of(lambda: Slices.concatenate(list(slices)))
    assert joined == slices
    assert kept < 100_000


def test_lists_of_many_rows_become_sets_block_by_block():
    lists = np.random.default_rng(0).integers(0, 50_000, (30, 40_000))
    outside = Slices.from_indices(lists, 50_000).complement()
    np.testing.assert_array_equal(outside.lengths, [50_000 - len(np.unique(rows)) for rows in lists])
    np.testing.assert_array_equal(outside.rows(29), np.setdiff1d(np.arange(50_000), lists[29]))


LARGE, SMALL = (np.arange(0, 900, 2, dtype=np.int32), np.array([450])), (np.array([7], np.int32), np.array([1]))
NEARLY = np.delete(np.arange(900, dtype=np.int32), 7), np.array([899])


@pytest.mark.parametrize(
    ("limit", "lines", "kept_as"),
    [
        (2**26, [LARGE] * 9, Lists),
        (4000, [LARGE] * 9, Bits),
        (0, [LARGE] * 9, Bits),
        (0, [SMALL] * 9, Lists),
        (0, [LARGE, *[SMALL] * 60], Lists),
        (2000, [SMALL, *[LARGE] * 9, *[SMALL] * 3], Bits),
        (2**26, [NEARLY] * 9, Lists),
        (4000, [NEARLY] * 9, Unlisted),
        (0, [SMALL, LARGE, *[NEARLY] * 60], Unlisted),
        (0, [NEARLY, *[SMALL] * 60], Lists),
        (0, [NEARLY, *[LARGE] * 9], Bits),
    ],
    ids=[
        *("few", "many", "large", "small", "mostly small", "mostly large"),
        *("few nearly all", "nearly all", "mostly nearly all", "nearly all and small", "nearly all and large"),
    ],
)
def test_sets_are_kept_in_the_smallest_way_and_come_out_the_same(monkeypatch, limit, lines, kept_as):
    monkeypatch.setattr(row_sets, "LISTS_BYTES", limit)
    kept = row_sets.kept_sets(iter(lines), 900)
    assert type(kept) is kept_as
    np.testing.assert_array_equal(
        np.concatenate([rows for _, rows in kept.walk()]), np.concatenate([r for r, _ in lines])
    )
    np.testing.assert_array_equal(kept.lengths, np.concatenate([lengths for _, lengths in lines]))
    assert [kept.figures(at)["number"] for at in range(len(lines))] == list(range(len(lines)))


# ---- what is refused


@pytest.mark.parametrize(
    ("make", "error", "parts"),
    [
        (lambda: Slices.full(0, 5), ArgumentError, ["argument num_heads", "Got 0", "1 <= num_heads"]),
        (lambda: Slices.full(2, 0), ArgumentError, ["argument num_rows", "Got 0", "1 <= num_rows <= 2147483647"]),
        (lambda: Slices.full(2, -3), ArgumentError, ["argument num_rows", "Got -3"]),
        (lambda: Slices.full(2, 2**31), ArgumentError, ["argument num_rows", "Got 2147483648"]),
        (lambda: Slices.full(2, True), ArgumentError, ["argument num_rows", "Got True"]),
        (lambda: Slices.full(2, 5.0), ArgumentError, ["argument num_rows", "Got 5.0"]),
        (lambda: Slices.prefix([], 5), SliceError, ["No slices", "Got 0"]),
        (lambda: Slices.prefix([1, 0], 5), SliceError, ["Slice of head 1 is empty", "Got length 0"]),
        (lambda: Slices.prefix([1, -2], 5), SliceError, ["Slice of head 1 is empty", "Got length -2"]),
        (lambda: Slices.prefix([1, 6], 5), SliceError, ["head 1 is longer than the dataset", "Got 6", "<= 5"]),
        (lambda: Slices.prefix([2**40], 5), SliceError, ["head 0 is longer than the dataset", "Got 1099511627776"]),
        (lambda: Slices.prefix([1.5], 5), ArgumentError, ["argument lengths", "Got 1.5 (float64) at position 0"]),
        (lambda: Slices.prefix([1, np.nan], 5), ArgumentError, ["argument lengths", "Got nan", "position 1"]),
        (lambda: Slices.prefix([[1, 2]], 5), ArgumentError, ["argument lengths", "shape [1, 2]"]),
        (lambda: Slices.prefix([[1], [1, 2]], 5), ArgumentError, ["Lists of unequal lengths", "argument lengths"]),
        (lambda: Slices.prefix([True], 5), ArgumentError, ["argument lengths", "bool"]),
        (lambda: Slices.prefix(None, 5), ArgumentError, ["argument lengths", "Got None (object)"]),
        (lambda: Slices.prefix([2**70], 5), ArgumentError, [f"Got {2**70}", "pass a smaller lengths"]),
        (lambda: Slices.prefix([1, 2], 5, seed=-1), ArgumentError, ["argument seed", "Got -1"]),
        (lambda: Slices.prefix([1, 2], 5, seed=1.5), ArgumentError, ["argument seed", "Got 1.5"]),
        (lambda: Slices.prefix([1, 2], 5, seed=[1, 2, 3]), ArgumentError, ["disagree", "lengths and seed"]),
        (
            lambda: Slices.window([0, 4], [2, 2], 5),
            SliceError,
            ["slice of head 1", "start 4, length 2", "<= 5 - length"],
        ),
        (lambda: Slices.window([-1], [2], 5), SliceError, ["slice of head 0", "start -1"]),
        (lambda: Slices.window([0, 1], [2], 5), ArgumentError, ["disagree", "starts and lengths"]),
        (lambda: Slices.random_subset([0.5, 0.0], 5), ArgumentError, ["head 1", "Got 0.0", "0 < fraction <= 1"]),
        (lambda: Slices.random_subset([1.1], 5), ArgumentError, ["head 0", "Got 1.1"]),
        (lambda: Slices.random_subset([np.nan], 5), ArgumentError, ["head 0", "Got nan"]),
        (lambda: Slices.random_subset([0.5, 1], 5), ArgumentError, ["argument lengths", "do not mix"]),
        (lambda: Slices.random_subset([1, 1], 5, seed=2**32 - 1), ArgumentError, ["seed at position 1", "4294967296"]),
        (lambda: Slices.random_subset([1], 5, seed="a"), ArgumentError, ["argument seed", "Got", "'a'"]),
        (lambda: Slices.from_indices([], 5), SliceError, ["No slices"]),
        (lambda: Slices.from_indices(7, 5), ArgumentError, ["argument indices", "Got 7"]),
        (lambda: Slices.from_indices([[1], []], 5), SliceError, ["Slice of head 1 is empty"]),
        (lambda: Slices.from_indices([[1], [0, 2, 5]], 5), SliceError, ["head 1 holds row 5 at position 2", "< 5"]),
        (lambda: Slices.from_indices([[1], [0, -1]], 5), SliceError, ["head 1 holds row -1 at position 1"]),
        (lambda: Slices.from_indices([[2**40]], 5), SliceError, ["head 0 holds row 1099511627776 at position 0"]),
        (lambda: Slices.from_indices([[1], [0, 0.5]], 5), SliceError, ["head 1", "Got 0.5 (float64) at position 1"]),
        (lambda: Slices.from_indices([[1], [np.nan]], 5), SliceError, ["head 1", "Got nan"]),
        (lambda: Slices.from_indices([[1], [True, False]], 5), SliceError, ["head 1", "bool", "Slices.from_mask"]),
        (lambda: Slices.from_indices([[1], [[1]]], 5), SliceError, ["head 1", "shape [1, 1]"]),
        (lambda: Slices.from_indices([[1], [[1], [1, 2]]], 5), ArgumentError, ["head 1", "unequal lengths"]),
        (lambda: Slices.from_indices([0, 1], 5), SliceError, ["head 0", "a single number"]),
        (lambda: Slices.from_indices([[1], [None]], 5), SliceError, ["head 1", "Got None (object)"]),
        (lambda: Slices.from_mask([[True, False], [True]]), SliceError, ["Mask of head 1", "Got 1", "expected 2"]),
        (lambda: Slices.from_mask([[True], [False]]), SliceError, ["Slice of head 1 is empty"]),
        (lambda: Slices.from_mask([[[True], [True]], [[True, True]]]), ArgumentError, ["argument mask", "unequal"]),
        (lambda: Slices.from_mask([[[True], [True, False]]]), ArgumentError, ["argument mask", "unequal"]),
        (lambda: Slices.from_mask([True, False]), ArgumentError, ["argument mask", "bool[2]", "bool[heads, rows]"]),
        (lambda: Slices.from_mask([[0, 1]]), ArgumentError, ["argument mask", "int64[1, 2]"]),
        (lambda: Slices.from_mask(np.zeros((0, 5), bool)), SliceError, ["No slices"]),
        (lambda: Slices.from_splits(iter([]), 5), SliceError, ["No slices"]),
        (lambda: Slices.from_splits(KFold(2), 5), ArgumentError, ["argument splits", "KFold", "splitter.split(X, y)"]),
        (lambda: Slices.from_splits([([0], [1])], 5, part="val"), ArgumentError, ["argument part", "Got 'val'"]),
        (lambda: Slices.from_splits([([0], [1]), [2]], 5), SliceError, ["Not a split: head 1", "Got [2]"]),
        (lambda: Slices.from_splits([([0], [1]), ([], [2])], 5), SliceError, ["Slice of head 1 is empty"]),
        (lambda: Slices.from_splits([([0, 9], [1])], 5), SliceError, ["head 0 holds row 9 at position 1"]),
        (lambda: Slices.full(4, 5)[[3, 3]], SliceError, ["argument heads", "2 positions, 1 of them distinct"]),
        (lambda: Slices.full(4, 5)[[3, -1]], SliceError, ["argument heads", "2 positions, 1 of them distinct"]),
        (lambda: Slices.full(4, 5)[[]], SliceError, ["argument heads", "Got 0 positions"]),
        (lambda: Slices.full(4, 5)[[0, 4]], ArgumentError, ["heads at position 1", "Got 4", "there are 4 heads"]),
        (lambda: Slices.full(4, 5)[[True, False]], ArgumentError, ["argument heads", "bool"]),
        (lambda: Slices.full(4, 5)[1.0], ArgumentError, ["argument heads", "Got 1.0"]),
        (lambda: Slices.full(4, 5).rows([0, 1]), ArgumentError, ["argument heads", "shape [1, 2]"]),
        (lambda: Slices.full(2, 5).with_ids([1, 1]), ArgumentError, ["argument ids", "2 ids, 1 of them distinct"]),
        (lambda: Slices.full(2, 5).with_ids([0, -1]), ArgumentError, ["ids at position 1", "Got -1"]),
        (lambda: Slices.concatenate(5), ArgumentError, ["argument parts", "Got 5", "list of Slices"]),
        (lambda: Slices.concatenate(None), ArgumentError, ["argument parts", "Got None"]),
        (lambda: Slices.concatenate([]), ArgumentError, ["argument parts", "one or more"]),
        (lambda: Slices.concatenate([Slices.full(1, 5), [0, 1]]), ArgumentError, ["Not a Slices object", "Got [0, 1]"]),
        (lambda: Slices.product([0, 1], seed=2), ArgumentError, ["Not a Slices object", "Got [0, 1]"]),
        (lambda: Slices.concatenate([Slices.full(1, 5), Slices.full(1, 6)]), ArgumentError, ["num_rows [5, 6]"]),
        (lambda: Slices.expanding_window(0, 1, 5), ArgumentError, ["argument initial", "Got 0"]),
        (lambda: Slices.expanding_window(1, 0, 5), ArgumentError, ["argument step", "Got 0"]),
        (lambda: Slices.expanding_window(1, 1, 5, horizon=-1), ArgumentError, ["argument horizon", "Got -1"]),
        (lambda: Slices.expanding_window(3, 1, 5, horizon=3), SliceError, ["head 0", "initial 3, horizon 3", "<= 5"]),
        (lambda: Slices.random_subset([2], 5, stratify=[0, 1]), ArgumentError, ["stratify", "Got 2", "expected 5"]),
        (lambda: Slices.random_subset([2], 2, stratify=[0.5, 1]), ArgumentError, ["stratify", "float64[2]"]),
        (lambda: Slices.random_subset([2], 2, stratify=[[0], [1]]), ArgumentError, ["stratify", "int64[2, 1]"]),
        (lambda: Slices.random_subset([2], 2, stratify=["a", None]), ArgumentError, ["stratify", "object[2]"]),
        (lambda: Slices.random_subset([3], 2, stratify=["a", "b"]), SliceError, ["head 0 is longer", "Got 3"]),
        (lambda: Slices.bootstrap(0, 5), ArgumentError, ["argument num_heads", "Got 0"]),
        (lambda: Slices.bootstrap(2, 5, [1, 2, 3], [0, 1, 2]), ArgumentError, ["disagree", "num_heads and lengths"]),
        (lambda: Slices.bootstrap(2, 5, [1, 0]), SliceError, ["Slice of head 1 is empty"]),
        (lambda: Slices.bootstrap(2, 5, [0.5, -0.5]), ArgumentError, ["head 1", "Got -0.5"]),
        (lambda: Slices.bootstrap(1, 5, 2**31), ArgumentError, ["argument lengths", "Got 2147483648"]),
        (lambda: Slices.bootstrap(2, 5, seed=[1, 2, 3]), ArgumentError, ["disagree", "seed"]),
        (lambda: Slices.bootstrap(2, 5, seed=-1), ArgumentError, ["argument seed at position 0", "Got -1"]),
        (lambda: Slices.leave_one_out(1), ArgumentError, ["argument num_rows", "Got 1", "2 <= num_rows"]),
        (lambda: Slices.leave_group_out([3, 3, 3]), SliceError, ["head 0 is empty", "1 group, 3"]),
        (lambda: Slices.leave_group_out([]), ArgumentError, ["argument groups", "float64[0]"]),
        (lambda: Slices.partition_by([1.5, 2.0]), ArgumentError, ["argument groups", "groups.astype(int)"]),
        (lambda: Slices.partition_by([1, "a", 10]), ArgumentError, ["argument groups", "Got [1, 'a', 10]", "one type"]),
        (lambda: Slices.partition_by((1, b"a")), ArgumentError, ["argument groups", "Got (1, b'a')"]),
        (lambda: Slices.partition_by("north"), ArgumentError, ["argument groups"]),
        (lambda: Slices.partition_by([[1], [1, 2]]), ArgumentError, ["argument groups", "unequal lengths"]),
        (lambda: Slices.dirichlet([0, 1], 0.0, 2), ArgumentError, ["argument alpha", "Got 0.0"]),
        (lambda: Slices.dirichlet([0, 1], np.nan, 2), ArgumentError, ["argument alpha", "Got nan"]),
        (lambda: Slices.dirichlet([0, 1], 1e10, 2), ArgumentError, ["argument alpha", "Got 10000000000.0", "<= 1e9"]),
        (lambda: Slices.dirichlet([0, 1], "1", 2), ArgumentError, ["argument alpha", "Got '1'"]),
        (lambda: Slices.dirichlet([0, 1], 1.0, 0), ArgumentError, ["argument num_heads", "Got 0"]),
        (lambda: Slices.dirichlet([0, 1], 1.0, 2, min_size=0), ArgumentError, ["argument min_size", "Got 0"]),
        (lambda: Slices.dirichlet([0, 1], 1.0, 2, seed=0.5), ArgumentError, ["argument seed", "Got 0.5"]),
        (lambda: Slices.dirichlet([0.5, 1], 1.0, 2), ArgumentError, ["argument labels", "float64[2]"]),
        (lambda: Slices.dirichlet([0, 1], 1.0, 3), SliceError, ["min_size, 3 heads", "2 rows in all"]),
        (
            lambda: Slices.dirichlet([0] * 40, 0.01, 10, min_size=4),
            SliceError,
            ["min_size, 10 heads", "rows in the smallest head at best", "expected 4"],
        ),
        (lambda: Slices.from_weights([1, 2]), ArgumentError, ["argument weights", "int64[2]"]),
        (lambda: Slices.from_weights([[True]]), ArgumentError, ["argument weights", "bool[1, 1]", "Slices.from_mask"]),
        (lambda: Slices.from_weights([[1], [1, 2]]), ArgumentError, ["argument weights", "unequal lengths"]),
        (lambda: Slices.from_weights([[1.0, 2.0]]), ArgumentError, ["argument lengths", "Got None", "int[heads]"]),
        (lambda: Slices.from_weights([[1, 2], [0, -3]]), SliceError, ["head 1, row 1", "Got -3"]),
        (lambda: Slices.from_weights([[1, np.nan]], 2), SliceError, ["head 0, row 1", "Got nan"]),
        (lambda: Slices.from_weights([[1, np.inf]], 2), SliceError, ["head 0, row 1", "Got inf"]),
        (lambda: Slices.from_weights([[1, 1], [0, 0]]), SliceError, ["head 1 is empty", "all its weights are 0"]),
        (lambda: Slices.from_weights([[1.0]], lengths=0), SliceError, ["Slice of head 0 is empty"]),
        (lambda: Slices.from_weights([[1.0]], lengths=[1, 2]), ArgumentError, ["disagree", "weights and lengths"]),
        (lambda: Slices.from_weights([[2**31, 0]]), SliceError, ["head 0 has too many rows", "Got 2147483648 in all"]),
        (lambda: Slices.from_weights([[1, 1], [2**30] * 2]), SliceError, ["head 1 has too many", "Got 2147483648"]),
        (lambda: Slices.from_weights([[2**62] * 4]), SliceError, ["head 0 has too many", "Got 18446744073709551616"]),
        (lambda: Slices.from_weights([[*[2**62] * 3, 2**62 + 5]]), SliceError, ["head 0 has too many"]),
        (lambda: Slices.from_weights(np.full((1, 2), 2**63, np.uint64)), SliceError, ["head 0 has too many"]),
        (
            lambda: Slices.from_weights([[1, -1]]),
            SliceError,
            ["A weight is negative or not finite: head 0, row 1", "0 <= weight < inf"],
        ),
        (lambda: Slices.from_weights([[1]], seed=2**32), ArgumentError, ["argument seed", "Got 4294967296"]),
        (lambda: Slices.from_weights(np.zeros((0, 3))), SliceError, ["No slices"]),
        (lambda: Slices.from_weights(np.zeros((0, 3), int)), SliceError, ["No slices"]),
        (lambda: Slices.from_mask(np.zeros((2, 0), bool)), ArgumentError, ["argument num_rows", "Got 0"]),
        (lambda: Slices.from_splits([([0, 1, 0], [1])], 5), SliceError, ["head 0 holds a row twice", "Got row 0"]),
        (lambda: Slices.product(Slices.full(1, 5), seed=0), ArgumentError, ["argument seed", "Got 0"]),
        (lambda: Slices.product(Slices.full(1, 5), seed=True), ArgumentError, ["argument seed", "Got True"]),
        (lambda: Slices.product(Slices.full(1, 5), lr=[]), ArgumentError, ["argument lr", "Got []"]),
        (lambda: Slices.product(Slices.full(1, 5), lr=0.1), ArgumentError, ["argument lr", "Got 0.1"]),
        (lambda: Slices.product(Slices.full(1, 5), norm="batch"), ArgumentError, ["argument norm", "Got 'batch'"]),
        (lambda: Slices.product(Slices.full(1, 5), lr=[0.1, "a"]), ArgumentError, ["argument lr", "Got [0.1, 'a']"]),
        (lambda: Slices.product(Slices.full(1, 5), lr=[[1], [2]]), ArgumentError, ["argument lr", "Got [[1], [2]]"]),
        (lambda: Slices.product(Slices.full(1, 5), lr=[1, None]), ArgumentError, ["argument lr", "None"]),
        (lambda: Slices.product(Slices.full(1, 5), slice=2), ArgumentError, ["taken: argument slice"]),
        (
            lambda: Slices.product(Slices.product(Slices.full(1, 5), lr=2), lr=2),
            ArgumentError,
            ["taken: argument lr", "'length', 'lr', 'reason', 'recipe'"],
        ),
        *(
            (lambda name=name: Slices.product(Slices.full(1, 5), **{name: 2}), ArgumentError, [f"Got {name!r}"])
            for name in (
                "",
                "head",
                "recipe",
                "length",
                "score",
                "status",
                "reason",
                "slice_seed",
                "axis.lr",
                "hparams.lr",
            )
        ),
        (lambda: Slices.product(Slices.full(1, 5), **{"module.lr": 2}), ArgumentError, ["begins with 'axis.' or"]),
        (
            lambda: Slices.product(Slices.full(2**16, 5), a=2**8, b=2**8),
            ArgumentError,
            ["too many heads", "4294967296"],
        ),
        (
            lambda: Slices.concatenate([Slices.product(Slices.full(1, 5), lr=2), Slices.full(1, 5)]),
            ArgumentError,
            ["part 1", "Got []", "['lr', 'slice'] as in part 0", "Slices.product(part"],
        ),
        (
            lambda: Slices.concatenate([Slices.product(Slices.full(1, 5), a=v) for v in (2, ["x"])]),
            ArgumentError,
            ["Axis 'a'", "part 1", "Got <U1"],
        ),
        (lambda: Slices.prefix([3, 5], 5).complement(), SliceError, ["Complement of head 1 is empty", "5 rows of 5"]),
        (lambda: Slices.full(4, 5).contains([0], [5]), ArgumentError, ["rows at position 0", "Got 5", "rows < 5"]),
        (lambda: Slices.full(4, 5).contains([0], [0, -1]), ArgumentError, ["rows at position 1", "Got -1"]),
        (lambda: Slices.full(4, 5).contains([0], [0.5]), ArgumentError, ["argument rows", "Got 0.5"]),
        (lambda: Slices.full(4, 5).contains([0], [True]), ArgumentError, ["argument rows", "bool"]),
        (lambda: Slices.full(4, 5).contains([0, 0], [1]), SliceError, ["selected twice"]),
        (lambda: Slices.full(4, 5).contains([4], [1]), ArgumentError, ["heads at position 0", "Got 4"]),
        (lambda: Slices.full(4, 5).mask([7]), ArgumentError, ["heads at position 0", "Got 7"]),
    ],
)
def test_bad_input_is_refused_with_the_place_the_value_and_the_mend(make, error, parts):
    with pytest.raises(error) as refused:
        make()
    message = str(refused.value)
    assert [part for part in [*parts, ". Got ", ", expected ", " Fix: "] if part not in message] == []
