"""Rotation: a flat keyed bijection, the same integers in NumPy and JAX, rows that depend on their own head alone."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hydrax.errors import ArgumentError
from hydrax.slices import permutation
from hydrax.slices.permutation import ROUNDS, mix, permute, unpermute
from hydrax.slices.rotation import (
    batches_of,
    cursor,
    index_batch,
    pass_key,
    slots,
    slots_left,
)
from hydrax.slices.slices import Slices

HEADS, PASSES = 400, 250


def many_keys():
    """Keys as a run meets them: heads in sequence, passes in sequence; uint32[HEADS * PASSES]."""
    return pass_key(0, np.arange(HEADS)[:, None], np.arange(PASSES)[None, :], np).reshape(-1)


def deviations(counts):
    """Chi-square of equal cells, in standard deviations from its mean."""
    counts = np.asarray(counts, float).ravel()
    expected, freedom = counts.mean(), counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


def swap_or_not(x, length, key):
    """The paper's shuffle of one number, in Python's own integers, remainders and all."""
    word = 2**32
    for _ in range(ROUNDS):
        key = (key * 0x2C9277B5 + 0x9E3779B1) % word
        partner = (key * length // word - x) % length
        hashed = (max(x, partner) * 0x9E3779B1 % word) ^ key
        hashed = (hashed ^ (hashed >> 15)) * 0x846CA68B % word
        x = [x, partner][hashed >> 31]
    return x


@pytest.mark.parametrize("length", [*range(1, 301), 2000, 65_536, 65_537, 262_145])
def test_permute_is_a_bijection(length):
    np.testing.assert_array_equal(np.sort(permute(np.arange(length), length=length, key=1, xp=np)), np.arange(length))


@pytest.mark.parametrize("length", [1, 2, 3, 784, 65_535, 65_536, 65_537, 10**6 + 3, 2**31 - 1])
def test_permute_is_the_swap_or_not_shuffle_of_the_paper(length):
    offsets = np.random.default_rng(length).integers(0, length, 20)
    keys = np.random.default_rng(1).integers(0, 2**32, 20, dtype=np.uint32)
    expected = [swap_or_not(int(x), length, int(key)) for x, key in zip(offsets, keys, strict=True)]
    np.testing.assert_array_equal(permute(offsets, length=np.uint32(length), key=keys, xp=np), expected)


def test_the_order_of_a_key_stays_the_same_over_releases():
    # A change here breaks every resumed run and every stored seed: see also the number in Slices.digest.
    order = permute(np.arange(10), length=10, key=1, xp=np)
    np.testing.assert_array_equal(order, [9, 2, 5, 4, 7, 6, 1, 8, 3, 0])


def test_permute_takes_single_numbers_without_a_warning():
    assert permute(3, length=5, key=2**32 - 1, xp=np) == swap_or_not(3, 5, 2**32 - 1)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 50, 784, 65_536, 65_537, 2**31 - 1])
def test_permute_gives_the_same_integers_in_jax_and_numpy(length):
    offsets = np.random.default_rng(0).integers(0, length, (4, 100)).astype(np.int32)
    keys = np.random.default_rng(1).integers(0, 2**32, (4, 100), dtype=np.uint32)
    in_jax = jax.jit(lambda x, key: permute(x, length=jnp.uint32(length), key=key, xp=jnp))(offsets, keys)
    assert in_jax.dtype == jnp.uint32
    np.testing.assert_array_equal(in_jax, permute(offsets, length=np.uint32(length), key=keys, xp=np))


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_every_order_of_few_rows_is_equally_frequent(length):
    orders = permute(np.arange(length)[None], length=np.uint32(length), key=many_keys()[:, None], xp=np)
    codes = orders @ (length ** np.arange(length, dtype=np.uint32))
    counts = [
        np.count_nonzero(codes == np.dot(o, length ** np.arange(length))) for o in itertools.permutations(range(length))
    ]
    assert sum(counts) == HEADS * PASSES
    assert abs(deviations(counts)) < 3.5


@pytest.mark.parametrize("length", [8, 50])
def test_places_of_a_row_and_of_neighbours_are_equally_frequent(length):
    pair = permute(np.arange(2)[None], length=np.uint32(length), key=many_keys()[:, None], xp=np).astype(int)
    counts = np.bincount(pair[:, 0] * length + pair[:, 1], minlength=length**2).reshape(length, length)
    assert abs(deviations(counts.sum(axis=1))) < 3.5
    assert np.diagonal(counts).sum() == 0
    assert abs(deviations(counts[~np.eye(length, dtype=bool)])) < 3.5


@pytest.mark.parametrize("length", [1000, 60_000, 10**6 + 3])
def test_neighbours_of_a_long_slice_part_evenly(length):
    start, keys = min(length, 2000) - 1, many_keys()[:50, None]
    places = permute(np.arange(start)[None], length=np.uint32(length), key=keys, xp=np).astype(np.int64)
    distance = np.diff(places, axis=1) % length
    assert abs(deviations(np.bincount((distance * 50 // length).ravel(), minlength=50))) < 3.5


@pytest.mark.parametrize("length", [5, 50])
def test_place_in_one_pass_tells_nothing_of_the_place_in_the_next(length):
    places = (
        permute(np.zeros(1, int), length=np.uint32(length), key=many_keys(), xp=np).reshape(HEADS, PASSES).astype(int)
    )
    joint = np.bincount((places[:, :-1] * length + places[:, 1:]).ravel(), minlength=length**2)
    assert abs(deviations(joint)) < 3.5


def test_mix_is_one_to_one_and_sends_half_of_the_bits_over():
    words = np.arange(2**16, dtype=np.uint32)
    assert np.unique(mix(words, np)).size == words.size
    flipped = np.bitwise_count(mix(words, np) ^ mix(words ^ np.uint32(1), np)).mean()
    assert flipped == pytest.approx(16, abs=0.1)


def test_keys_of_heads_and_passes_are_distinct():
    assert np.unique(many_keys()).size > HEADS * PASSES - 10  # 1.2 equal pairs are to be expected of random words


@pytest.mark.parametrize("small_slices", ["mask", "wrap"])
@pytest.mark.parametrize("batch", [0, 1, 7, 2**20, 2**40])
def test_slots_are_the_same_in_jax_and_numpy(batch, small_slices):
    lengths, ids = np.array([1, 2, 3, 31, 32, 33, 50, 784, 10**6], np.int32), np.arange(9, dtype=np.int32)
    here = cursor(batch, lengths, 32, small_slices)
    in_numpy = slots(here, lengths, ids, 3_000_000_000, 32, np)
    in_jax = jax.jit(lambda *args: slots(*args, 32, jnp))(here, lengths, ids, np.uint32(3_000_000_000))
    np.testing.assert_array_equal(in_jax[0], in_numpy[0])
    np.testing.assert_array_equal(in_jax[1], in_numpy[1])


@pytest.mark.parametrize(
    ("batch", "length", "batch_size", "small_slices", "expected"),
    [
        (0, 5, 2, "mask", (0, 0, 2)),
        (4, 5, 2, "mask", (1, 3, 2)),  # place 8
        (4, 5, 8, "mask", (4, 0, 5)),  # one pass a batch
        (4, 5, 8, "wrap", (6, 2, 8)),  # place 32
        (2**40, 3, 2, "mask", (733_007_751_850 % 2**32, 2, 2)),  # place 2**41 = 3 * 733,007,751,850 + 2
        (2**40, 1, 2**20, "wrap", (2**60 % 2**32, 0, 2**20)),
    ],
)
def test_cursor_follows_the_law_p_is_t_times_width(batch, length, batch_size, small_slices, expected):
    here = cursor(batch, np.array([length], np.int32), batch_size, small_slices)
    assert tuple(int(part[0]) for part in here) == expected
    assert [part.dtype for part in here] == [np.uint32, np.uint32, np.int32]


def test_a_head_of_few_rows_has_padding_that_holds_its_own_rows_of_the_same_pass():
    rows, mask = index_batch(Slices.window([10, 40], [3, 6], 50), 7, batch_size=8, seed=1)
    np.testing.assert_array_equal(mask.sum(axis=1), [3, 6])
    np.testing.assert_array_equal(rows[0], rows[0, [0, 1, 2, 0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(rows[1], rows[1, [0, 1, 2, 3, 4, 5, 0, 1]])


def test_wrapped_heads_have_no_padding():
    assert index_batch(Slices.prefix([1, 3, 9], 9), 5, batch_size=8, seed=1, small_slices="wrap")[1].all()


@pytest.mark.parametrize("chosen", [[3], [0, 2], [4, 1, 3, 0, 2], slice(None, None, -1), np.arange(5) > 2], ids=str)
@pytest.mark.parametrize("batch", [0, 3, 100])
def test_rows_of_a_head_do_not_depend_on_the_heads_beside_it(chosen, batch):
    slices = Slices.concatenate([Slices.random_subset([9, 40], 60), Slices.prefix([4, 30], 60), Slices.full(1, 60)])
    rows, mask = index_batch(slices, batch, batch_size=8, seed=5)
    picked_rows, picked_mask = index_batch(slices[chosen], batch, batch_size=8, seed=5)
    np.testing.assert_array_equal(picked_rows, rows[chosen])
    np.testing.assert_array_equal(picked_mask, mask[chosen])


def test_rows_of_a_head_do_not_depend_on_heads_added_after_it():
    few, more = Slices.prefix([4, 30], 60), Slices.prefix([4, 30, 60, 1], 60)
    expected = index_batch(few, 11, batch_size=8, seed=5)[0]
    np.testing.assert_array_equal(index_batch(more, 11, batch_size=8, seed=5)[0][:2], expected)


@pytest.mark.parametrize("change", [{"seed": 6}, {"batch": 12}, {"ids": [2, 3]}], ids=lambda change: next(iter(change)))
def test_another_seed_batch_or_id_gives_other_rows(change):
    asked = {"seed": 5, "batch": 11, "ids": [0, 1]} | change
    slices = Slices.full(2, 1000).with_ids(asked["ids"])
    before = index_batch(Slices.full(2, 1000), 11, batch_size=8, seed=5)[0]
    after = index_batch(slices, asked["batch"], batch_size=8, seed=asked["seed"])[0]
    assert (before != after).any(axis=1).all()


def test_two_heads_walk_the_same_slice_in_different_orders():
    rows, _ = index_batch(Slices.full(2, 50), 0, batch_size=40, seed=0)
    assert (rows[0] != rows[1]).any()


def test_a_batch_of_the_whole_slice_keeps_its_order():
    rows, mask = index_batch(Slices.prefix([3, 5, 6], 6), 7, batch_size=5, seed=0)
    assert rows[:2].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]] and mask.sum(axis=1).tolist() == [3, 5, 5]
    assert rows[2].tolist() != [0, 1, 2, 3, 4]


def test_a_distant_batch_gives_rows_of_the_slice_without_overflow():
    rows, _ = index_batch(Slices.window([5], [7], 20), 2**40, batch_size=4, seed=0)
    assert set(rows.ravel()) <= set(range(5, 12))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"batch": -1}, "argument batch. Got -1, expected 0 <= batch"),
        ({"batch": 2**40 + 1}, "argument batch. Got 1099511627777"),
        ({"batch": 1.0}, "argument batch. Got 1.0"),
        ({"batch_size": 0}, "argument batch_size. Got 0, expected 1 <= batch_size"),
        ({"batch_size": True}, "argument batch_size. Got True"),
        ({"seed": -1}, "argument seed. Got -1, expected 0 <= seed"),
        ({"seed": 2**32}, "argument seed. Got 4294967296"),
        ({"seed": None}, "argument seed. Got None"),
        ({"small_slices": "pad"}, "argument small_slices. Got 'pad', expected 'mask' or 'wrap'"),
    ],
)
def test_an_argument_out_of_range_is_refused(asked, message):
    with pytest.raises(ArgumentError) as refused:
        index_batch(Slices.full(1, 5), **({"batch": 0, "batch_size": 2, "seed": 0} | asked))
    assert message in str(refused.value)
    assert " Fix: " in str(refused.value)


# ---- one to one, at every length


def test_permute_is_a_bijection_at_every_length_up_to_2000():
    lengths = np.arange(1, 2001)
    length = np.repeat(lengths, lengths)
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)  # where the offsets of a length begin, all in one line
    places = permute(np.arange(length.size) - first, length=length, key=mix(length, np), xp=np)
    assert (places < length).all()
    np.testing.assert_array_equal(np.bincount(first + places, minlength=length.size), 1)


@pytest.mark.parametrize("length", [65_537, 262_145, 10_000_000])
def test_permute_is_a_bijection_of_many_rows(length):
    met = np.zeros(length, bool)
    for first in range(0, length, 2**17):  # blocks that stay in the cache
        offsets = np.arange(first, min(first + 2**17, length), dtype=np.uint32)
        met[permute(offsets, length=np.uint32(length), key=np.uint32(5), xp=np)] = True
    assert met.all()  # as many places as offsets, and all met: each once


@pytest.mark.parametrize("length", [1, 2, 3, 784, 2000, 65_537, 262_145, 10_000_000, 2**31 - 1])
def test_unpermute_undoes_permute_and_is_undone_by_it(length):
    offsets = np.random.default_rng(length).integers(0, length, (3, 200))
    given = {"length": np.uint32(length), "key": np.array([[0], [1], [2**32 - 1]], np.uint32), "xp": np}
    np.testing.assert_array_equal(unpermute(permute(offsets, **given), **given), offsets)
    np.testing.assert_array_equal(permute(unpermute(offsets, **given), **given), offsets)


@pytest.mark.parametrize("length", [2, 65_537, 2**31 - 1])
def test_unpermute_gives_the_same_integers_in_jax_and_numpy(length):
    places = np.random.default_rng(length).integers(0, length, 200).astype(np.uint32)
    in_jax = jax.jit(lambda x: unpermute(x, length=jnp.uint32(length), key=jnp.uint32(9), xp=jnp))(places)
    np.testing.assert_array_equal(in_jax, unpermute(places, length=np.uint32(length), key=np.uint32(9), xp=np))


# ---- flat
#
# A flat shuffle would be told from a flat one with the probability of the threshold. At 1e-4 on either side one of the
# twenty claims below would be wrong once in 250 choices of the seed, which is fixed; eight rounds instead of ROUNDS
# are told apart by far (see the last one). Too even is as wrong as too uneven: a shuffle does not deal in turns.
FALSE_ALARM = 1e-4


def chance(statistic, freedom):
    """How often a flat shuffle is as uneven as this, or as even, whichever is rarer."""
    return min(stats.chi2.sf(statistic, freedom), stats.chi2.cdf(statistic, freedom))


def chance_of_equal_cells(counts):
    counts = np.asarray(counts, float)
    return chance(((counts - counts.mean()) ** 2).sum() / counts.mean(), counts.size - 1)


def chance_of_rows_and_places(counts):
    """Of a table of rows by places: in each order a place has one row, and a row one place, so (n - 1)**2 are free."""
    length, orders = len(counts), counts[0].sum()
    # For the same reason a cell varies by n / (n - 1) of what it would, were the places drawn one by one.
    return chance(((counts - orders / length) ** 2).sum() * (length - 1) / orders, (length - 1) ** 2)


def joint(first, second, length):
    """How often each pair occurs, int[length, length]."""
    pairs = first.astype(int).ravel() * length + second.astype(int).ravel()
    return np.bincount(pairs, minlength=length**2).reshape(length, length)


def rows_by_places(length):
    orders = permute(np.arange(length)[None], length=np.uint32(length), key=many_keys()[:20_000, None], xp=np)
    return joint(np.broadcast_to(np.arange(length), orders.shape), orders, length)


@pytest.mark.parametrize("length", [3, 7, 32, 100])
def test_every_row_is_equally_often_at_every_place_of_a_pass(length):
    counts = rows_by_places(length)
    assert counts.sum(axis=0).tolist() == counts.sum(axis=1).tolist() == [20_000] * length
    assert chance_of_rows_and_places(counts) > FALSE_ALARM


@pytest.mark.parametrize("length", [7, 32])
def test_every_pair_of_rows_is_equally_often_neighbours_wherever_in_the_pass(length):
    keys = many_keys()
    slot = np.arange(keys.size) % (length - 1)  # one pair of neighbours from each pass: pairs of one pass are not free
    first, second = (permute(slot + at, length=np.uint32(length), key=keys, xp=np) for at in (0, 1))
    counts = joint(first, second, length)
    assert np.diagonal(counts).sum() == 0
    assert chance_of_equal_cells(counts[~np.eye(length, dtype=bool)]) > FALSE_ALARM


EVEN, HEAD, PASS = np.arange(0, 300, 2), np.arange(300)[:, None], np.arange(300)[None]
# Keys of neighbours in pairs, each key in one pair only: else the pairs would not be free.
BESIDE = {
    "passes": [pass_key(0, HEAD, EVEN[None] + at, np) for at in (0, 1)],
    "heads": [pass_key(0, EVEN[:, None] + at, PASS, np) for at in (0, 1)],
    "seeds": [
        np.concatenate([pass_key(seed + at, HEAD[:50], PASS, np) for seed in range(0, 6, 2)], axis=1) for at in (0, 1)
    ],
}


@pytest.mark.parametrize("length", [5, 30])
@pytest.mark.parametrize("beside", BESIDE)
def test_the_place_of_a_row_tells_nothing_of_its_place_in_the_next(beside, length):
    one, next_one = (permute(1, length=np.uint32(length), key=keys, xp=np) for keys in BESIDE[beside])
    assert chance_of_equal_cells(joint(one, next_one, length)) > FALSE_ALARM


@pytest.mark.parametrize("batch", range(4))
def test_every_row_is_equally_often_in_every_batch_and_slot(batch):
    # What heads meet, and not the shuffle alone: 30 rows in batches of 8; the last ends in the next pass.
    slices = Slices.full(20_000, 30)
    rows, mask = index_batch(slices, batch, batch_size=8, seed=11)
    assert mask.all()
    found = [np.bincount(rows[:, slot], minlength=30) for slot in range(8)]
    assert min(map(chance_of_equal_cells, found)) > FALSE_ALARM / 8


@pytest.mark.parametrize(("rounds", "told_apart"), [(4, True), (8, True), (ROUNDS, False)])
def test_too_few_rounds_are_told_apart_where_those_in_use_are_not(rounds, told_apart, monkeypatch):
    monkeypatch.setattr(permutation, "ROUNDS", rounds)
    digits = 4 ** np.arange(4)  # an order of four rows as one number
    orders = permute(np.arange(4)[None], length=np.uint32(4), key=many_keys()[:, None], xp=np).astype(int)
    counts = np.bincount(orders @ digits, minlength=4**4)[[np.dot(o, digits) for o in itertools.permutations(range(4))]]
    assert (chance_of_equal_cells(counts) < FALSE_ALARM) == told_apart


# ---- as far as the words reach, against Python's own integers

MOST = 2**31 - 1


def mixed(x):
    """`mix` in Python's own integers."""
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def offset_met(place, length, head, seed):
    """The offset that a head meets at a place of its endless walk."""
    turn, offset = divmod(place, length)
    key = mixed(mixed(mixed(seed) ^ head) ^ mixed(turn % 2**32 ^ 0x9E3779B1))
    return swap_or_not(offset, length, key)


@pytest.mark.parametrize("word", [0, 1, 2**16, 2**31, 2**32 - 1])
def test_mix_is_the_hash_it_says_it_is(word):
    assert mix(np.uint32(word), np) == mixed(word)


FAR = [0, 1, 2**20 + 3, 2**31 // 5, 2**31, 2**32 + 7, 2**40 - 1, 2**40]


@pytest.mark.parametrize("batch", FAR)
@pytest.mark.parametrize("small_slices", ["mask", "wrap"])
def test_a_walk_is_that_of_python_however_far_and_however_long_the_slice(batch, small_slices):
    lengths, ids, seed, slots_each = np.array([1, 3, 5, 6, 784, MOST - 1, MOST]), np.arange(7) + 2**30, 2**32 - 1, 5
    slices = Slices.prefix(lengths, MOST).with_ids(ids)
    rows, mask = index_batch(slices, batch, batch_size=slots_each, seed=seed, small_slices=small_slices)
    width = {"mask": np.minimum(lengths, slots_each), "wrap": np.full(7, slots_each)}[small_slices].tolist()
    expected = [
        # A batch of the whole slice keeps its order.
        [slot if w == n else offset_met(batch * w + slot, int(n), int(head), seed) for slot in range(w)]
        for n, w, head in zip(lengths, width, ids, strict=True)
    ]
    assert mask.sum(axis=1).tolist() == width
    assert [line[live].tolist() for line, live in zip(rows, mask, strict=True)] == expected


@pytest.mark.parametrize("batch", [0, 8191, 8192, 2**40])
def test_a_wide_batch_of_the_longest_slice_is_that_of_python(batch):
    # 2**18 slots of 2**31 - 1 rows: a pass ends inside batch 8191.
    rows, mask = index_batch(Slices.full(1, MOST), batch, batch_size=2**18, seed=3)
    some = [0, 1, 2**17, 2**18 - 2, 2**18 - 1]
    assert mask.all()
    assert rows[0, some].tolist() == [offset_met(batch * 2**18 + slot, MOST, 0, 3) for slot in some]


@pytest.mark.parametrize("length", [2**22 + 1, MOST - 1, MOST])
def test_the_last_batch_of_the_most_slots_begins_where_python_says(length):
    here = cursor(2**40, np.array([length], np.int32), 2**22, "wrap")
    turn, offset = divmod(2**62, length)
    assert [int(part[0]) for part in here] == [turn % 2**32, offset, 2**22]


def test_the_last_rows_of_the_longest_dataset_are_met_each_once():
    rows, _ = index_batch(Slices.window([MOST - 7, MOST - 1], [7, 1], MOST), 2**33, batch_size=7, seed=1)
    assert sorted(rows[0].tolist()) == list(range(MOST - 7, MOST))
    assert set(rows[1].tolist()) == {MOST - 1}


def test_a_window_that_is_a_complement_goes_around_the_end_of_the_longest_dataset():
    # What rows 3..6 leave out begins at row 7 and ends, beyond the last row, with 0, 1, 2.
    outside = Slices.window([3], [4], MOST).complement()
    length = MOST - 4
    rows, _ = index_batch(outside, 2**40, batch_size=9, seed=8)
    expected = [(7 + offset_met(2**40 * 9 + slot, length, 0, 8)) % MOST for slot in range(9)]
    assert rows[0].tolist() == expected
    assert outside.lookup(np.array([[length - 1, length - 3, length - 4, 0]])).tolist() == [[2, 0, MOST - 1, 7]]


def test_a_keyed_subset_of_the_longest_dataset_is_that_of_python():
    subset = Slices.random_subset([6], MOST, seed=7)
    key = mixed(7 ^ 0x51A1CE5)
    expected = [swap_or_not(offset, MOST, key) for offset in range(6)]
    assert subset.rows(0).tolist() == expected
    rows, _ = index_batch(subset, 2**40, batch_size=4, seed=9)
    assert rows[0].tolist() == [expected[offset_met(2**42 + slot, 6, 0, 9)] for slot in range(4)]


# ---- repeats


def multiplicities(small_slices, batch_size):
    """How often each head of three meets each row in the first two passes, counted pass by pass."""
    slices = Slices.from_weights(np.array([[3, 1, 0, 2], [0, 0, 4, 0], [1, 1, 1, 0]]))
    walked = [index_batch(slices, t, batch_size=batch_size, seed=4, small_slices=small_slices) for t in range(12)]
    lines = [np.concatenate([rows[h][mask[h]] for rows, mask in walked]).tolist() for h in range(3)]
    return [
        [dict(sorted(Counter(line[n * turn : n * turn + n]).items())) for turn in (0, 1)]
        for line, n in zip(lines, slices.lengths, strict=True)
    ]


@pytest.mark.parametrize("small_slices", ["mask", "wrap"])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 16])
def test_a_row_drawn_so_often_is_met_so_often_in_each_pass(small_slices, batch_size):
    expected = [{0: 3, 1: 1, 3: 2}, {2: 4}, {0: 1, 1: 1, 2: 1}]
    assert multiplicities(small_slices, batch_size) == [[own] * 2 for own in expected]


def test_a_bootstrap_meets_every_copy_once_in_each_pass():
    slices = Slices.bootstrap(3, 10, seed=2)
    walked = [index_batch(slices, t, batch_size=5, seed=4)[0] for t in range(6)]
    passes = np.concatenate(walked, axis=1).reshape(3, 3, 10)
    expected = np.stack([np.sort(slices.rows(head)) for head in range(3)])
    np.testing.assert_array_equal(np.sort(passes, axis=2), np.repeat(expected[:, None], 3, axis=1))
    assert all(len(set(line)) < 10 for line in expected.tolist())


# ---- so many passes and no more


@pytest.mark.parametrize(
    ("small_slices", "live"),
    [
        # Batches of 4, two passes: 3 rows are a batch a pass, or 6 slots; 6 rows 12 slots; 5 rows 10.
        ("mask", [[3, 3, 0, 0], [4, 4, 4, 0], [4, 4, 2, 0]]),
        ("wrap", [[4, 2, 0, 0], [4, 4, 4, 0], [4, 4, 2, 0]]),
    ],
)
def test_slots_beyond_the_last_pass_are_padding(small_slices, live):
    slices = Slices.prefix([3, 6, 5], 6)
    how = {"batch_size": 4, "seed": 2, "small_slices": small_slices}
    found = [index_batch(slices, t, passes=2, **how) for t in range(4)]
    endless = [index_batch(slices, t, **how)[0] for t in range(4)]
    assert np.stack([mask.sum(axis=1) for _, mask in found], axis=1).tolist() == live
    np.testing.assert_array_equal([rows for rows, _ in found], endless)


@pytest.mark.parametrize("small_slices", ["mask", "wrap"])
@pytest.mark.parametrize("passes", [1, 2, 3, 7])
def test_a_head_is_through_with_the_batch_in_which_its_last_live_slot_is(small_slices, passes):
    slices = Slices.prefix([1, 3, 4, 5, 9], 9)
    how = {"batch_size": 4, "seed": 2, "small_slices": small_slices, "passes": passes}
    live = np.stack([index_batch(slices, t, **how)[1].any(axis=1) for t in range(20)])
    np.testing.assert_array_equal(live.sum(axis=0), batches_of(passes, slices.lengths, 4, small_slices))
    np.testing.assert_array_equal(live, np.sort(live, axis=0)[::-1])  # once through, through for good


@pytest.mark.parametrize(
    ("batch", "length", "width", "passes", "expected"),
    [
        (0, 5, 4, 2, 10),
        (2, 5, 4, 2, 2),
        (3, 5, 4, 2, 0),
        (2**40, 5, 4, 2, 0),
        (0, MOST, 4, 1, MOST),
        (0, MOST, 4, 2, 2**31),  # no end in sight
        (2**29, MOST, 4, 2, 2**31 - 2),
        (2**40, MOST, 2**20, 2**30, 2**31),
        (2**31, 2**30, 2**20, 2**21, 0),
        (2**31 - 1, 2**30, 2**20, 2**21, 2**20),
    ],
)
def test_the_slots_left_are_counted_without_overflow(batch, length, width, passes, expected):
    left = slots_left(batch, np.array([length], np.int32), np.array([width], np.int32), passes)
    assert (left.tolist(), left.dtype) == ([expected], np.uint32)


# ---- all heads together


def test_heads_that_share_their_rows_meet_each_row_of_the_dataset_once_in_a_pass():
    slices = Slices.prefix([2, 9], 10)
    rows = np.concatenate([index_batch(slices, t, batch_size=5, seed=3, shared=True)[0] for t in range(6)]).reshape(
        3, 10
    )
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(10), (3, 1)))
    assert len({tuple(turn) for turn in rows.tolist()}) == 3


@pytest.mark.parametrize("batch", [0, 3, 2**40])
def test_a_shared_slot_is_live_for_the_heads_that_hold_its_row(batch):
    mask = np.random.default_rng(0).random((6, 30)) < 0.5
    rows, live = index_batch(Slices.from_mask(mask), batch, batch_size=8, seed=3, shared=True)
    assert (rows.shape, rows.dtype, live.dtype) == ((8,), np.int32, np.bool_)
    np.testing.assert_array_equal(live, mask[:, rows])


def test_shared_rows_depend_on_no_head():
    few = index_batch(Slices.window([3], [4], 30), 7, batch_size=8, seed=3, shared=True)[0]
    many = index_batch(Slices.full(5, 30).with_ids([9, 8, 7, 6, 5]), 7, batch_size=8, seed=3, shared=True)[0]
    np.testing.assert_array_equal(few, many)


def test_shared_rows_are_no_heads_own():
    together = index_batch(Slices.full(1, 1000), 0, batch_size=50, seed=3, shared=True)[0]
    alone = index_batch(Slices.full(100, 1000), 0, batch_size=50, seed=3)[0]
    assert (together == alone).mean(axis=1).max() < 0.2


@pytest.mark.parametrize(("small_slices", "live"), [("mask", [3, 3, 0]), ("wrap", [5, 1, 0])])
def test_a_dataset_shorter_than_the_batch_is_masked_or_wrapped_for_all(small_slices, live):
    # Two passes over three rows in batches of five, of which head 1 holds two.
    slices = Slices.from_indices([[0, 1, 2], [0, 2]], 3)
    how = {"batch_size": 5, "seed": 6, "small_slices": small_slices, "passes": 2}
    found = [index_batch(slices, t, **how, shared=True) for t in range(3)]
    met = np.stack([mask.sum(axis=1) for _, mask in found], axis=1)
    assert met[0].tolist() == live
    for_one = [(mask[1] == (mask[0] & np.isin(rows, [0, 2]))).all() for rows, mask in found]
    assert for_one == [True] * 3
    assert met.sum(axis=1).tolist() == [6, 4]
