"""Rotation: a flat keyed bijection, the same integers in NumPy and JAX, rows that depend on their own head alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrax.errors import ArgumentError
from hydrax.rotation import ROUNDS, cursor, index_batch, mix, pass_key, permute, slots
from hydrax.slices import Slices

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
    rows, _ = index_batch(Slices.full(2, 50), 0, batch_size=50, seed=0)
    assert (rows[0] != rows[1]).any()


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
