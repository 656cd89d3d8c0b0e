"""Promise 2, isolation: nothing that is done to one head changes a bit of another."""

import functools

import numpy as np
import pytest
from heads_under_test import MODELS, NUM_ROWS, Classifier, data_of, differing, rows_of, run, state_of

import hydrax as hx

HEADS, STEPS, STOP_AT = 6, 9, 4
RATES = np.linspace(3e-3, 2e-2, HEADS)
# No two heads share a row: what is done to the rows of one is done to it alone.
OWN_ROWS = np.split(np.random.default_rng(0).permutation(NUM_ROWS), [3, 10, 18, 25, 28])
IDS = np.arange(HEADS)


def fit(kind="norm_dropout", rows=OWN_ROWS, ids=IDS, rates=RATES, spoil=(), **how):
    slices = hx.Slices.from_indices(rows, NUM_ROWS).with_ids(ids)
    train = rows_of(kind)
    for head, value in spoil:
        train["x"][OWN_ROWS[head], 2] = value
    data = data_of(slices, kind, train, check_finite="off", val=None)
    return run(Classifier(kind, hx.PerHead(rates)), data, **{"max_steps": STEPS, **how})


def replaced(values, head, value):
    values = list(values)
    values[head] = value
    return values


CHANGES = {
    "rows": lambda head: {"rows": replaced(OWN_ROWS, head, OWN_ROWS[head][::-1])},
    "fewer rows": lambda head: {"rows": replaced(OWN_ROWS, head, OWN_ROWS[head][:2])},
    "id": lambda head: {"ids": replaced(IDS, head, 77)},
    "learning rate": lambda head: {"rates": replaced(RATES, head, 0.05)},
    "NaN": lambda head: {"spoil": [(head, np.nan)]},
    "Inf": lambda head: {"spoil": [(head, np.inf)]},
}


@functools.cache
def untouched(kind="norm_dropout"):
    return fit(kind)


# Head 0 is the one whose copies fill the last chunk up, in which head 4 trains.
WHAT = [*((change, 4) for change in CHANGES), ("rows", 0), ("NaN", 0)]

# One model with parameters, statistics and keys meets all changes, one with convolutions two of them.
QUICK = {"mlp": [], "norm_dropout": WHAT, "cnn": WHAT[-2:]}


@pytest.mark.parametrize(
    ("kind", "change", "head"),
    [
        pytest.param(kind, *what, marks=[] if what in QUICK[kind] else pytest.mark.slow)
        for kind in MODELS
        for what in WHAT
    ],
)
def test_changing_one_head_changes_no_bit_of_the_others(kind, change, head):
    others = np.delete(np.arange(HEADS), head)
    touched = fit(kind, **CHANGES[change](head))
    assert differing(touched.of(others), untouched(kind).of(others)) == []
    assert any(name.startswith("trainable.") for name in differing(touched.of(head), untouched(kind).of(head)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_spoiled_head_itself_has_a_loss_that_is_not_finite(value):
    touched = fit(spoil=[(4, value)])
    finite = np.isfinite(touched.arrays["step.train_loss"]).all(axis=1)
    np.testing.assert_array_equal(finite, np.arange(HEADS) != 4)


class StopOne(hx.Callback):
    """Stops one head at a step, and keeps what it then is."""

    def __init__(self, head):
        self.head, self.then = head, {}

    def next_due(self, step):
        return STOP_AT

    def on_train_steps_end(self, event):
        stop = np.zeros(HEADS, bool)
        stop[self.head] = event.step == STOP_AT
        self.then = self.then if event.step != STOP_AT else state_of(event.trainer)
        return hx.Control(stop=stop)


@pytest.fixture(scope="module", params=[0, 4])
def stopped(request):
    callback = StopOne(request.param)
    return callback, fit(callbacks=[callback])


def test_a_stopped_head_is_frozen_bit_for_bit(stopped):
    callback, run = stopped
    # Its accumulators are emptied where an epoch begins; all else, optimiser, statistics and keys included, stays.
    kept = [name for name in callback.then if not name.startswith(("epoch.", "live"))]
    assert {"opt_state.0.count", "state.norm.mean", "state.dropout.rngs.count"} <= {*kept}
    then, now = ({name: arrays[name][[callback.head]] for name in kept} for arrays in (callback.then, run.arrays))
    assert differing(now, then) == []


def test_stopping_one_head_changes_no_bit_of_the_others(stopped):
    callback, run = stopped
    others = np.delete(np.arange(HEADS), callback.head)
    assert differing(run.of(others), untouched().of(others)) == []


def test_a_stopped_head_is_reported_as_stopped(stopped):
    callback, run = stopped
    np.testing.assert_array_equal(run.result.live, np.arange(HEADS) != callback.head)
