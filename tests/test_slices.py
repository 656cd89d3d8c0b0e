"""Slices: what each constructor selects, what picking and joining keep, and what is refused."""

import hashlib
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import KFold, LeaveOneOut, ShuffleSplit, StratifiedKFold

from hydrax.errors import ArgumentError, SliceError
from hydrax.slices import Slices


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
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_constructor_selects_the_rows_written_out_by_hand(slices, expected):
    assert all_rows(slices) == expected
    np.testing.assert_array_equal(slices.lengths, [len(rows) for rows in expected])
    np.testing.assert_array_equal(slices.ids, np.arange(len(expected)))


@pytest.mark.parametrize(
    "splitter",
    [
        KFold(5),
        KFold(4, shuffle=True, random_state=0),
        StratifiedKFold(3, shuffle=True, random_state=1),
        ShuffleSplit(6, test_size=0.3, random_state=2),
        LeaveOneOut(),
    ],
    ids=lambda splitter: type(splitter).__name__,
)
@pytest.mark.parametrize(("part", "at"), [("train", 0), ("test", 1)])
def test_the_splits_of_scikit_learn_come_out_as_they_are(splitter, part, at):
    features, labels = np.zeros((30, 1)), np.arange(30) % 3
    slices = Slices.from_splits(splitter.split(features, labels), 30, part=part)
    assert all_rows(slices) == [split[at].tolist() for split in splitter.split(features, labels)]


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


def test_seeds_are_minus_one_where_rows_depend_on_none():
    np.testing.assert_array_equal(some_of_each().seeds, [-1] * 4 + [9, 9] + [-1] * 2 + [4, 5] + [-1] * 6)


def test_mask_is_true_at_the_rows_of_each_head():
    slices = some_of_each()
    expected = np.array([np.isin(np.arange(20), slices.rows(head)) for head in range(len(slices))])
    np.testing.assert_array_equal(slices.mask(), expected)
    np.testing.assert_array_equal(slices.mask([3, 1]), expected[[3, 1]])


def test_a_mask_comes_back_through_from_mask():
    mask = np.random.default_rng(0).random((50, 80)) < 0.3
    np.testing.assert_array_equal(Slices.from_mask(mask).mask(), mask)


def test_lookup_gives_the_row_at_each_offset():
    slices = some_of_each()
    offsets = np.random.default_rng(0).integers(0, slices.lengths[:, None], (len(slices), 9))
    rows = slices.lookup(offsets)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows, [slices.rows(head)[line] for head, line in enumerate(offsets)])


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (np.zeros((3, 2), int), "Got int64[3, 2], expected integers[2, slots]"),
        (np.zeros((2, 2)), "Got float64[2, 2]"),
        (np.array([[0, 1], [0, 3]]), "head 1, slot 1. Got 3, expected 0 <= offset < 3"),
        (np.array([[0, -1], [0, 0]]), "head 0, slot 1. Got -1, expected 0 <= offset < 2"),
    ],
    ids=["other heads", "floats", "past the end", "negative"],
)
def test_an_offset_that_is_not_in_its_slice_is_refused(offsets, message):
    with pytest.raises(ArgumentError) as refused:
        Slices.prefix([2, 3], 5).lookup(offsets)
    assert message in str(refused.value)


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


def test_a_single_head_takes_a_single_id():
    np.testing.assert_array_equal(Slices.full(1, 5).with_ids(3).ids, [3])


def test_slices_do_not_equal_something_else():
    assert Slices.full(1, 2) != "full"


@pytest.mark.parametrize("file", ["slices", "row_store", "slice_arguments", "rotation"])
def test_slices_and_rotation_do_not_import_jax(file):
    source = Path(Slices.full.__code__.co_filename).with_name(f"{file}.py").read_text()
    assert [line for line in source.splitlines() if re.match(r"\s*(import|from) jax", line)] == []


# ---- size


def test_a_hundred_thousand_windows_stay_below_two_megabytes():
    starts = np.arange(100_000)
    tracemalloc.start()
    slices = Slices.window(starts, 50, 10**6)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(slices) == 100_000
    assert kept < 2_000_000


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
        (lambda: Slices.prefix([], 5), SliceError, ["No head at all", "Got 0 slices"]),
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
        (lambda: Slices.prefix([2**70], 5), ArgumentError, ["argument lengths", "(object)"]),
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
        (lambda: Slices.from_indices([], 5), SliceError, ["No head at all"]),
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
        (lambda: Slices.from_mask([True, False]), ArgumentError, ["argument mask", "bool[2]", "bool[heads, rows]"]),
        (lambda: Slices.from_mask([[0, 1]]), ArgumentError, ["argument mask", "int64[1, 2]"]),
        (lambda: Slices.from_mask(np.zeros((0, 5), bool)), SliceError, ["No head at all"]),
        (lambda: Slices.from_splits(iter([]), 5), SliceError, ["No head at all"]),
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
        (lambda: Slices.concatenate([]), ArgumentError, ["argument parts", "one or more"]),
        (lambda: Slices.concatenate([Slices.full(1, 5), Slices.full(1, 6)]), ArgumentError, ["num_rows [5, 6]"]),
    ],
)
def test_bad_input_is_refused_with_the_place_the_value_and_the_mend(make, error, parts):
    with pytest.raises(error) as refused:
        make()
    message = str(refused.value)
    assert [part for part in [*parts, ". Got ", ", expected ", " Fix: "] if part not in message] == []
