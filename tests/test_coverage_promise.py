"""Promise 3, coverage: each row of a slice once per pass, none from outside, for every kind of slice."""

from collections import Counter

import numpy as np
import pytest

from hydrax.rotation import index_batch
from hydrax.slices import Slices

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
    cuts = [np.split(rng.permutation(num_rows + 1) % num_rows, [1 + num_rows // 2]) for _ in range(NUM_HEADS)]
    return Slices.from_splits(cuts, num_rows), [train for train, _ in cuts]


def joined(rng, num_rows):
    (a, rows_of_a), (b, rows_of_b) = from_indices(rng, num_rows), random_subset(rng, num_rows)
    return Slices.concatenate([a, b])[::2], [*rows_of_a, *rows_of_b][::2]


RECIPES = [full, prefix, window, keyed_prefix, random_subset, from_indices, from_mask, from_splits, joined]


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
