"""Promise 3, coverage: each row of a slice once per pass, none from outside, for every kind of slice."""

from collections import Counter

import numpy as np
import pytest

from hydrax.slices.bits import Bits, packed
from hydrax.slices.rotation import index_batch
from hydrax.slices.slices import Slices
from hydrax.slices.store import RowStore

NUM_HEADS = 6


def full(rng, num_rows):
    return Slices.full(NUM_HEADS, num_rows), [range(num_rows)] * NUM_HEADS


def prefix(rng, num_rows):
    lengths = rng.integers(1, num_rows + 1, NUM_HEADS)
    return Slices.prefix(lengths, num_rows), [range(length) for length in lengths]


def window(rng, num_rows):
    starts = rng.integers(0, num_rows, NUM_HEADS)
    lengths = rng.integers(1, num_rows - starts + 1)
    expected = [range(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    return Slices.window(starts, lengths, num_rows), expected


def keyed_prefix(rng, num_rows):
    # The walk over all rows, cut: the rows of a shorter prefix are the first of those of the full one.
    lengths = rng.integers(1, num_rows + 1, NUM_HEADS)
    whole = Slices.prefix([num_rows], num_rows, seed=3).rows(0)
    return Slices.prefix(lengths, num_rows, seed=3), [whole[:length] for length in lengths]


def random_subset(rng, num_rows):
    lengths, seeds = rng.integers(1, num_rows + 1, NUM_HEADS), rng.integers(0, 2**32, NUM_HEADS)
    whole = Slices.random_subset([num_rows] * NUM_HEADS, num_rows, seed=seeds)
    expected = [whole.rows(head)[:length] for head, length in enumerate(lengths)]
    return Slices.random_subset(lengths, num_rows, seed=seeds), expected


def from_indices(rng, num_rows):
    lists = [rng.integers(0, num_rows, rng.integers(1, 2 * num_rows)).tolist() for _ in range(NUM_HEADS)]
    return Slices.from_indices(lists, num_rows), lists


def from_mask(rng, num_rows):
    mask = rng.random((NUM_HEADS, num_rows)) < 0.4
    mask[:, 0] = True
    return Slices.from_mask(mask), [np.flatnonzero(line) for line in mask]


def from_splits(rng, num_rows):
    cuts = [np.split(rng.permutation(num_rows), [1 + num_rows // 2]) for _ in range(NUM_HEADS)]
    return Slices.from_splits(cuts, num_rows), [train for train, _ in cuts]


def from_packed_mask(rng, num_rows):
    mask = rng.random((NUM_HEADS, num_rows)) < 0.4
    mask[:, 0] = True
    ids = np.arange(NUM_HEADS, dtype=np.int32)
    part = Bits.of(num_rows, packed(mask), numbers=ids)
    return Slices(ids, RowStore.of(part, "from_mask", "number")), [np.flatnonzero(line) for line in mask]


def leave_one_out(rng, num_rows):
    slices = Slices.leave_one_out(num_rows + 1)
    return slices, [np.delete(np.arange(num_rows + 1), row) for row in range(num_rows + 1)]


def expanding_window(rng, num_rows):
    return Slices.expanding_window(1, 3, num_rows), [range(end) for end in range(1, num_rows + 1, 3)]


def stratified(rng, num_rows):
    lengths, labels = rng.integers(1, num_rows + 1, NUM_HEADS), rng.integers(0, 3, num_rows)
    slices = Slices.random_subset(lengths, num_rows, stratify=labels)
    return slices, [np.flatnonzero(line) for line in slices.mask()]


def bootstrap(rng, num_rows):
    # Fewer draws are the first of more.
    lengths, seeds = rng.integers(1, 2 * num_rows, NUM_HEADS), rng.integers(0, 2**32, NUM_HEADS)
    whole = Slices.bootstrap(NUM_HEADS, num_rows, 2 * num_rows, seeds)
    expected = [whole.rows(head)[:length] for head, length in enumerate(lengths)]
    return Slices.bootstrap(NUM_HEADS, num_rows, lengths, seeds), expected


def from_weights(rng, num_rows):
    weights = rng.integers(0, 4, (NUM_HEADS, num_rows))
    weights[:, 0] = 1
    return Slices.from_weights(weights), [np.repeat(np.arange(num_rows), line) for line in weights]


def partition_by(rng, num_rows):
    groups = rng.integers(0, 4, num_rows)
    return Slices.partition_by(groups), [np.flatnonzero(groups == group) for group in np.unique(groups)]


def leave_group_out(rng, num_rows):
    groups = np.append(rng.integers(0, 4, num_rows), 4)
    return Slices.leave_group_out(groups), [np.flatnonzero(groups != group) for group in np.unique(groups)]


def dirichlet(rng, num_rows):
    slices = Slices.dirichlet(rng.integers(0, 3, num_rows), 2.0, num_heads=1 + num_rows // 8)
    return slices, [np.flatnonzero(line) for line in slices.mask()]


def complement(rng, num_rows):
    slices = Slices.concatenate([stratified(rng, num_rows + 1)[0], bootstrap(rng, num_rows + 1)[0]])
    slices = slices[slices.mask().sum(axis=1) <= num_rows]
    return slices.complement(), [np.flatnonzero(~line) for line in slices.mask()]


def product(rng, num_rows):
    base, rows = window(rng, num_rows)
    return Slices.product(base, seed=2), [own for own in rows for _ in range(2)]


def joined(rng, num_rows):
    (a, rows_of_a), (b, rows_of_b) = from_indices(rng, num_rows), random_subset(rng, num_rows)
    return Slices.concatenate([a, b])[::2], [*rows_of_a, *rows_of_b][::2]


RECIPES = [
    *(full, prefix, window, keyed_prefix, random_subset, from_indices, from_mask, from_splits, joined),
    *(from_packed_mask, leave_one_out, expanding_window, stratified, bootstrap, from_weights, partition_by),
    *(leave_group_out, dirichlet, complement, product),
]


def walk(slices, num_batches, **how):
    """Live rows that each head meets in the first batches, one after the other, and all rows of its padding slots."""
    live, padding = [[] for _ in range(len(slices))], [set() for _ in range(len(slices))]
    for batch in range(num_batches):
        rows, mask = index_batch(slices, batch, **how)
        for head in range(len(slices)):
            live[head].extend(rows[head, mask[head]].tolist())
            padding[head].update(rows[head, ~mask[head]].tolist())
    return live, padding


def passes_of(rows, length):
    """The whole passes of a walk, each as how often it holds each row."""
    return [Counter(rows[at : at + length]) for at in range(0, len(rows) - length + 1, length)]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
@pytest.mark.parametrize("small_slices", ["mask", "wrap"])
@pytest.mark.parametrize(
    ("num_rows", "batch_size", "seed"), [(1, 4, 0), (7, 3, 1), (12, 5, 2), (40, 16, 3), (25, 32, 4)]
)
def test_each_row_of_a_slice_is_met_once_per_pass_and_none_from_outside(
    recipe, small_slices, num_rows, batch_size, seed
):
    slices, expected = recipe(np.random.default_rng(seed), num_rows)
    num_batches = 3 * (2 * num_rows // batch_size + 1)  # three passes of the longest list
    live, padding = walk(slices, num_batches, batch_size=batch_size, seed=seed, small_slices=small_slices)
    wanted = [Counter(map(int, rows)) for rows in expected]
    met = [passes_of(rows, len(own)) for rows, own in zip(live, expected, strict=True)]
    assert met == [[want] * len(passes) for want, passes in zip(wanted, met, strict=True)]
    assert min(map(len, met)) >= 3
    assert all(set(rows) <= set(want) for rows, want in zip(live, wanted, strict=True))
    assert all(rows <= set(want) for rows, want in zip(padding, wanted, strict=True))


def test_passes_differ():
    live, _ = walk(Slices.full(1, 50), 15, batch_size=10, seed=0)
    assert len({tuple(live[0][at : at + 50]) for at in (0, 50, 100)}) == 3
