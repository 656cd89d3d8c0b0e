"""Promise 1, parity: the bits of a head depend on nothing beside it: not on H, the order, its neighbours, or K."""

import functools

import numpy as np
import pytest
from heads_under_test import MODELS, NUM_ROWS, Classifier, data_of, differing, named_arrays, rows_of, run

import hydrax as hx

HEADS, STEPS = 64, 12
LENGTHS = 2 + np.arange(HEADS) * 7 % (NUM_ROWS - 1)
SLICES = hx.Slices.random_subset(LENGTHS, NUM_ROWS, seed=3)
VALIDATED = {"mlp": None, "norm_dropout": rows_of("norm_dropout", 21, seed=1), "cnn": None}
# Heads one by one, as is the rule on a CPU, or four at a time; the longer form trades the two.
CHUNKS = {"mlp": 1, "norm_dropout": 4, "cnn": 1}
OTHER_CHUNKS = {"mlp": 4, "norm_dropout": 1, "cnn": 4}
RATES = hx.PerHead(np.geomspace(1e-3, 3e-2, HEADS))

# Each holds a head of two batches or more: an epoch is a pass of the longest slice, so that means over an epoch are the
# same only where its length, here limited to two batches, is.
WHO = {
    "alone": np.array([37]),
    "two": np.array([5, 6]),
    "three": np.array([63, 0, 31]),
    "seven": np.arange(50, 57),
    "eight": np.arange(8),
    "nine": np.arange(0, 63, 7),
    "one removed": np.delete(np.arange(HEADS), 30),
    "permuted": np.random.default_rng(0).permutation(HEADS),
}


def fit(kind, heads, **how):
    """The heads at these positions of the 64, with their own ids, slices and learning rates."""
    data = data_of(SLICES[heads], kind, val=VALIDATED[kind])
    return run(
        Classifier(kind, RATES[heads]),
        data,
        **{"chunk": CHUNKS[kind], "max_steps": STEPS, "limit_train_batches": 2, **how},
    )


@functools.cache
def among(kind, who="all", chunk=None):
    """One fit for all tests of this file that need it."""
    return fit(kind, WHO.get(who, np.arange(HEADS)), chunk=chunk or CHUNKS[kind])


# Of another number of heads each is a program to compile: one model meets all neighbours, the others some.
QUICK = {"mlp": {"alone", "permuted"}, "norm_dropout": {*WHO}, "cnn": {"three", "permuted"}}
PAIRS = [
    pytest.param(kind, who, marks=[] if who in QUICK[kind] else pytest.mark.slow) for kind in MODELS for who in WHO
]


@pytest.mark.parametrize(("kind", "who"), PAIRS)
def test_a_head_has_the_same_bits_whatever_is_trained_beside_it(kind, who):
    assert differing(among(kind, who).arrays, among(kind).of(WHO[who])) == []


@pytest.mark.slow
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize(("kind", "chunk"), OTHER_CHUNKS.items())
def test_a_head_has_the_same_bits_whatever_is_trained_beside_it_at_the_other_width(kind, chunk, who):
    assert differing(among(kind, who, chunk).arrays, among(kind, chunk=chunk).of(WHO[who])) == []


def test_a_head_has_the_same_bits_when_another_is_added():
    before, after = np.arange(7), np.arange(8)
    # The new head comes first: it moves every other one to another place, some to another chunk.
    assert differing(fit("norm_dropout", np.roll(after, 1)).of(1 + before), among("norm_dropout").of(before)) == []


@pytest.mark.parametrize("steps_per_call", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_head_has_the_same_bits_however_the_steps_are_cut(steps_per_call):
    whole = fit("norm_dropout", WHO["three"], limit_train_batches=1.0, steps_per_call=50)
    cut = fit("norm_dropout", WHO["three"], limit_train_batches=1.0, steps_per_call=steps_per_call)
    assert differing(cut.arrays, whole.arrays) == []


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_what_a_head_is_evaluated_to_does_not_depend_on_its_neighbours(method):
    found = named_arrays(getattr(among("norm_dropout", "seven").trainer, method)())
    expected = named_arrays(getattr(among("norm_dropout").trainer, method)())
    assert differing(found, {name: array[WHO["seven"]] for name, array in expected.items()}) == []


def test_the_heads_compared_are_not_all_alike():
    arrays = among("norm_dropout").arrays
    assert len(np.unique(arrays["trainable.out.kernel"], axis=0)) == HEADS
    assert len(np.unique(arrays["step.noise"], axis=0)) == HEADS


def test_the_bits_of_a_head_do_depend_on_the_seed():
    other = fit("norm_dropout", WHO["alone"], seed=1)
    assert "trainable.out.kernel" in differing(other.arrays, among("norm_dropout").of(WHO["alone"]))
