"""Promise 1, parity: the bits of a head depend on nothing beside it: not on H, the order, its neighbours, or K."""

import hydrax as hx
import numpy as np
import pytest
from heads_under_test import CHUNK, MODELS, NUM_ROWS, Classifier, data_of, differing, rows_of, run

HEADS, STEPS = 64, 12
LENGTHS = 2 + np.arange(HEADS) * 7 % (NUM_ROWS - 1)
SLICES = hx.Slices.random_subset(LENGTHS, NUM_ROWS, seed=3)
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
    return run(Classifier(kind, RATES[heads]), data_of(SLICES[heads], kind), **{"max_steps": STEPS, "limit_train_batches": 2, **how})


@pytest.fixture(scope="module", params=MODELS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def all_heads(kind):
    return fit(kind, np.arange(HEADS))


@pytest.mark.parametrize("heads", WHO.values(), ids=WHO.keys())
def test_a_head_has_the_same_bits_whatever_is_trained_beside_it(kind, all_heads, heads):
    assert differing(fit(kind, heads).arrays, all_heads.of(heads)) == []
