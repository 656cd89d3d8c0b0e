"""Slices of every kind against Python lists and sets: rows, masks, complements, picking, joining, products, the law.

Each kind makes slices at random, and the rows that every head should have, written with NumPy alone. Where rows come
from a hash the reference is the full walk, and what makes such a walk right stands in claims of its own below.
"""

import pickle
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrax.slices.bits import Bits, packed
from hydrax.slices.slices import Slices
from hydrax.slices.store import RowStore
from hydrax.slices.strata import largest_remainder

H = 5


def windows(rng, n):
    starts = rng.integers(0, n, H)
    lengths = rng.integers(1, n - starts + 1)
    return Slices.window(starts, lengths, n), [list(range(s, s + k)) for s, k in zip(starts, lengths, strict=True)]


def expanding_windows(rng, n):
    return Slices.expanding_window(3, 4, n, horizon=2), [list(range(end)) for end in range(3, n - 1, 4)]


def leave_one_out(rng, n):
    return Slices.leave_one_out(n), [[row for row in range(n) if row != left] for left in range(n)]


def random_subsets(rng, n):
    lengths, seeds = rng.integers(1, n + 1, H), rng.integers(0, 2**32, H)
    whole = Slices.random_subset([n] * H, n, seeds)
    return Slices.random_subset(lengths, n, seeds), [whole.rows(h)[:k].tolist() for h, k in enumerate(lengths)]


def stratified_subsets(rng, n):
    labels, lengths, seeds = rng.integers(0, 4, n), rng.integers(1, n + 1, H), rng.integers(0, 2**32, H)
    counts = largest_remainder(lengths, np.unique(labels, return_counts=True)[1].astype(np.uint32))
    # The whole dataset is walked class after class; a subset has the first rows of each.
    whole = Slices.random_subset([n] * H, n, seeds, stratify=labels)
    walks = [whole.rows(h) for h in range(H)]
    expected = [
        [
            row
            for class_, count in zip(np.unique(labels), counts[h], strict=True)
            for row in w[labels[w] == class_][:count]
        ]
        for h, w in enumerate(walks)
    ]
    return Slices.random_subset(lengths, n, seeds, stratify=labels), expected


def bootstraps(rng, n):
    lengths, seeds = rng.integers(1, 2 * n, H), rng.integers(0, 2**32, H)
    whole = Slices.bootstrap(H, n, 2 * n, seeds)
    return Slices.bootstrap(H, n, lengths, seeds), [whole.rows(h)[:k].tolist() for h, k in enumerate(lengths)]


def lists(rng, n):
    rows = [rng.integers(0, n, rng.integers(1, 2 * n)).tolist() for _ in range(H)]
    return Slices.from_indices(rows, n), rows


def random_mask(rng, n):
    mask = rng.random((H, n)) < rng.random((H, 1))
    mask[:, rng.integers(n)] = True
    return mask


def masks(rng, n):
    mask = random_mask(rng, n)
    return Slices.from_mask(mask), [np.flatnonzero(line).tolist() for line in mask]


def packed_masks(rng, n):
    mask, ids = random_mask(rng, n), np.arange(H, dtype=np.int32)
    slices = Slices(ids, RowStore.of(Bits.of(n, packed(mask), numbers=ids), "from_mask", "number"))
    return slices, [np.flatnonzero(line).tolist() for line in mask]


def splits(rng, n):
    cuts = [np.split(rng.permutation(n), [rng.integers(1, n)]) for _ in range(H)]
    return Slices.from_splits(cuts, n), [sorted(train.tolist()) for train, _ in cuts]


def partitions(rng, n):
    groups = rng.integers(0, H, n)
    return Slices.partition_by(groups), [np.flatnonzero(groups == g).tolist() for g in np.unique(groups)]


def leave_group_out(rng, n):
    groups = np.append(rng.integers(0, H, n - 1), H)
    return Slices.leave_group_out(groups), [np.flatnonzero(groups != g).tolist() for g in np.unique(groups)]


def weights(rng, n):
    copies = rng.integers(0, 3, (H, n))
    copies[:, 0] = 1
    return Slices.from_weights(copies), [np.repeat(np.arange(n), line).tolist() for line in copies]


def joined(rng, n):
    made = [windows(rng, n), lists(rng, n), stratified_subsets(rng, n), bootstraps(rng, n), packed_masks(rng, n)]
    made += [leave_group_out(rng, n), random_subsets(rng, n), stratified_subsets(rng, n)]
    order = rng.permutation(sum(len(slices) for slices, _ in made))
    rows = [own for _, expected in made for own in expected]
    return Slices.concatenate([slices for slices, _ in made])[order], [rows[at] for at in order]


IN_ONE_WAY = [
    *(windows, expanding_windows, leave_one_out, random_subsets, stratified_subsets, bootstraps, lists, masks),
    *(packed_masks, splits, partitions, leave_group_out, weights),
]
KINDS = [*IN_ONE_WAY, joined]


def made(kind, seed):
    rng = np.random.default_rng(seed)
    return kind(rng, int(rng.integers(9, 700)))


every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
some_seeds = pytest.mark.parametrize("seed", range(3))


def mask_of(expected, num_rows):
    return np.array([np.isin(np.arange(num_rows), rows) for rows in expected])


def sets_of(slices):
    return [set(slices.rows(head).tolist()) for head in range(len(slices))]


# ---- what is in them


@every_kind
@some_seeds
def test_every_head_has_its_rows_in_its_order(kind, seed):
    slices, expected = made(kind, seed)
    # What leave-one-out skips is where its order begins.
    order = sorted if kind is leave_one_out else list
    assert [order(slices.rows(head).tolist()) for head in range(len(slices))] == expected
    np.testing.assert_array_equal(slices.lengths, [len(rows) for rows in expected])


@every_kind
@some_seeds
def test_masks_are_those_of_the_reference(kind, seed):
    slices, expected = made(kind, seed)
    mask = mask_of(expected, slices.num_rows)
    np.testing.assert_array_equal(slices.mask(), mask)
    np.testing.assert_array_equal(slices.mask([2, -1]), mask[[2, -1]])


@every_kind
@some_seeds
def test_contains_is_the_mask_at_the_rows_asked_for(kind, seed):
    slices, expected = made(kind, seed)
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, slices.num_rows, 30)
    heads = rng.permutation(len(slices))[:4]
    mask = mask_of(expected, slices.num_rows)
    np.testing.assert_array_equal(slices.contains(heads, rows), mask[heads][:, rows])
    np.testing.assert_array_equal(slices.contains(slice(None), rows[0]), mask[:, rows[:1]])


@every_kind
def test_no_rows_can_be_asked_for(kind):
    slices, _ = made(kind, 0)
    assert slices.contains([1, 0], []).shape == (2, 0)
    assert slices.complement(allow_empty=True).contains([1, 0], []).shape == (2, 0)


@every_kind
def test_contains_is_the_same_however_many_rows_are_looked_for_at_once(kind, monkeypatch):
    slices, expected = made(kind, 1)
    monkeypatch.setattr("hydrax.slices.store._MANY_ROWS", 70)
    np.testing.assert_array_equal(slices.mask(), mask_of(expected, slices.num_rows))


@every_kind
def test_has_repeats_tells_whether_a_head_holds_a_row_twice(kind):
    slices, expected = made(kind, 0)
    assert slices.has_repeats == any(len(set(rows)) < len(rows) for rows in expected)


# ---- what is not in them


@every_kind
@some_seeds
def test_the_complement_has_all_other_rows_once_under_the_same_ids(kind, seed):
    slices, expected = made(kind, seed)
    slices = slices.with_ids(np.random.default_rng(seed).permutation(len(slices)))
    outside = slices.complement(allow_empty=True)
    assert sets_of(outside) == [set(range(slices.num_rows)) - set(rows) for rows in expected]
    np.testing.assert_array_equal(outside.lengths, [slices.num_rows - len(set(rows)) for rows in expected])
    np.testing.assert_array_equal(outside.mask(), ~mask_of(expected, slices.num_rows))
    np.testing.assert_array_equal(outside.ids, slices.ids)
    assert not outside.has_repeats


@every_kind
@some_seeds
def test_the_complement_of_the_complement_is_the_same_set(kind, seed):
    slices, expected = made(kind, seed)
    twice = slices.complement(allow_empty=True).complement(allow_empty=True)
    assert sets_of(twice) == [set(rows) for rows in expected]
    np.testing.assert_array_equal(twice.mask(), mask_of(expected, slices.num_rows))


@pytest.mark.parametrize(
    "kind", [windows, leave_one_out, random_subsets, stratified_subsets, packed_masks], ids=lambda kind: kind.__name__
)
def test_where_rows_are_computed_twice_the_complement_is_the_same_slices(kind):
    slices, _ = made(kind, 1)
    twice = slices.complement(allow_empty=True).complement(allow_empty=True)
    assert twice == slices


# ---- lookup and law


@every_kind
@some_seeds
def test_lookup_gives_the_rows_at_the_offsets(kind, seed):
    slices, _ = made(kind, seed)
    offsets = np.random.default_rng(seed).integers(0, slices.lengths[:, None], (len(slices), 7))
    np.testing.assert_array_equal(
        slices.lookup(offsets), [slices.rows(head)[line] for head, line in enumerate(offsets)]
    )


@pytest.mark.parametrize("kind", IN_ONE_WAY, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("of", [lambda slices: slices, Slices.complement], ids=["slices", "complement"])
def test_the_law_gives_the_same_rows_inside_a_program(kind, of):
    slices, expected = made(kind, 2)
    slices = of(slices[[len(set(rows)) < slices.num_rows for rows in expected]])
    columns, tables, take, _ = slices.law()
    offsets = np.random.default_rng(0).integers(0, slices.lengths[:, None], (3, len(slices), 6)).astype(np.uint32)
    rows = jax.jit(lambda *given: take(*given, jnp))(columns, tables, offsets)
    assert rows.dtype == jnp.int32
    np.testing.assert_array_equal(rows, [slices.lookup(step) for step in offsets])


@pytest.mark.parametrize("kind", IN_ONE_WAY, ids=lambda kind: kind.__name__)
def test_the_law_of_a_kind_is_one_function_whose_columns_have_a_line_per_head(kind):
    one, other = made(kind, 0)[0].law(), made(kind, 1)[0][1:].law()
    assert one.take is other.take
    assert hash(one.take) == hash(other.take)
    assert {column.shape for column in other.columns.values()} == {(len(made(kind, 1)[0]) - 1,)}
    assert {str(column.dtype) for column in one.columns.values()} <= {"int32", "uint32"}


def test_slices_kept_in_several_ways_have_no_law():
    assert made(joined, 0)[0].law() is None


# ---- picking, joining, crossing


@every_kind
@some_seeds
def test_picked_heads_keep_rows_recipes_and_seeds(kind, seed):
    slices, expected = made(kind, seed)
    at = np.random.default_rng(seed).permutation(len(slices))[:4]
    picked = slices[at]
    assert sets_of(picked) == [set(expected[head]) for head in at]
    assert [picked.recipe(k) for k in range(4)] == [slices.recipe(head) for head in at]
    np.testing.assert_array_equal(picked.seeds, slices.seeds[at])


@every_kind
@some_seeds
def test_heads_taken_apart_and_joined_again_are_equal(kind, seed):
    slices, _ = made(kind, seed)
    again = Slices.concatenate(list(slices)).with_ids(slices.ids)
    assert again.digest() == slices.digest()
    assert [again.recipe(head) for head in range(len(again))] == [slices.recipe(head) for head in range(len(slices))]
    assert again.law() is None or again.law().columns.keys() == slices.law().columns.keys()


@every_kind
def test_other_slices_of_the_kind_have_another_digest(kind):
    rng = np.random.default_rng(7)
    assert kind(rng, 90)[0] != kind(rng, 91)[0]


@every_kind
def test_slices_can_be_sent_to_another_process(kind):
    slices, _ = made(kind, 0)
    again = pickle.loads(pickle.dumps(slices))
    assert again == slices
    assert sets_of(again) == sets_of(slices)


@every_kind
def test_a_product_has_a_head_for_every_slice_and_value_the_last_axis_fastest(kind):
    slices, expected = made(kind, 3)
    product = Slices.product(slices, seed=2, lr=[0.1, 0.2, 0.3])
    wanted = [(k, s, lr) for k in range(len(slices)) for s in range(2) for lr in (0.1, 0.2, 0.3)]
    assert list(zip(*(product.axes[name].tolist() for name in ("slice", "seed", "lr")), strict=True)) == wanted
    assert sets_of(product) == [set(expected[k]) for k, _, _ in wanted]
    np.testing.assert_array_equal(product.ids, np.arange(len(wanted)))


# ---- what makes hashed rows right


def test_stratified_counts_are_those_worked_out_by_hand():
    labels = np.repeat(["cat", "dog", "eel"], [5, 3, 2])
    slices = Slices.random_subset([1, 2, 4, 7, 10], 10, stratify=np.random.default_rng(0).permutation(labels))
    # Shares .5 .3 .2 of the length: rounded down, and what is left to the largest remainders, of equal ones the first.
    counts = [[1, 0, 0], [1, 1, 0], [2, 1, 1], [4, 2, 1], [5, 3, 2]]
    shuffled = np.random.default_rng(0).permutation(labels)
    drawn = [Counter(shuffled[slices.rows(head)].tolist()) for head in range(5)]
    assert [[count[name] for name in ("cat", "dog", "eel")] for count in drawn] == counts


def test_every_row_of_a_class_is_equally_likely_in_a_stratified_subset():
    labels = np.arange(40) % 4 == 0
    counts = Slices.random_subset([0.3] * 4000, 40, stratify=labels).mask().sum(axis=0)
    # 12 rows: 3 of the 10, 9 of the 30. Binomial(4000, 0.3): standard deviation 29; the largest of 40 within 4 of them.
    assert abs(counts - 1200).max() < 116


def test_classes_of_one_head_are_drawn_independently():
    labels = np.repeat([0, 1], 200)
    rows = Slices.random_subset(100, 400, seed=range(50), stratify=labels)
    alike = [np.isin(own[50:] - 200, own[:50]).sum() for own in (rows.rows(head) for head in range(50))]
    # Hypergeometric, mean 12.5 and standard deviation 2.66; the mean of 50 heads within 4 of its own 0.38.
    assert abs(np.mean(alike) - 12.5) < 1.5


def test_draws_with_replacement_are_flat():
    num_rows, num_draws = 1000, 200_000
    draws = np.bincount(Slices.bootstrap(1, num_rows, num_draws, seed=5).rows(0), minlength=num_rows)
    expected = num_draws / num_rows
    chi_square = ((draws - expected) ** 2 / expected).sum()
    # 999 degrees of freedom: standard deviation sqrt(2 * 999) = 44.7; within 4 of them.
    assert abs(chi_square - 999) < 179


def test_neighbouring_draws_and_heads_are_independent():
    draws = np.stack([rows.rows(0) for rows in Slices.bootstrap(100, 10, 2000, seed=0)])
    along = np.bincount((draws[:, ::2] * 10 + draws[:, 1::2]).ravel(), minlength=100)
    across = np.bincount((draws[::2] * 10 + draws[1::2]).ravel(), minlength=100)
    # 100,000 pairs in 100 cells: 99 degrees of freedom, standard deviation 14; within 4 of them.
    assert max(abs(((cells - 1000) ** 2 / 1000).sum() - 99) for cells in (along, across)) < 56


def test_a_bootstrap_holds_the_share_of_rows_that_it_should():
    inside = Slices.bootstrap(100, 1000).mask().mean()
    # 1 - (1 - 1/N)**N; the share of one head has standard deviation 0.0099, the mean of 100 within 4 of its 0.00099.
    assert abs(inside - (1 - 0.999**1000)) < 0.004
    assert abs(inside - (1 - 1 / np.e)) < 0.005


def test_largest_remainder_stays_within_one_of_the_share_and_keeps_the_sum():
    sizes = np.random.default_rng(0).integers(1, 1000, 37).astype(np.uint32)
    totals = np.arange(int(sizes.sum()))
    counts = largest_remainder(totals, sizes)
    np.testing.assert_array_equal(counts.sum(axis=1), totals)
    assert abs(counts - totals[:, None] * (sizes / sizes.sum())).max() < 1
    assert (counts <= sizes).all()
