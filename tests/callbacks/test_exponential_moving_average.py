"""ExponentialMovingAverage, against NumPy on the parameters of every step."""

import jax
import numpy as np
import pytest
from heads_under_test import NUM_ROWS, QUIET, Classifier, data_of

import hydrax as hx
from hydrax.callbacks import ExponentialMovingAverage
from hydrax.errors import ArgumentError

SLICES = hx.Slices.prefix([40, 17, 9], NUM_ROWS)
STEPS = 7


class Keeps(hx.Callback):
    """The parameters of all heads before the first and after every step."""

    def __init__(self):
        self.steps = []

    def next_due(self, step):
        return step + 1

    def on_fit_start(self, event):
        self.keep(event)

    def on_train_steps_end(self, event):
        self.keep(event)

    def keep(self, event):
        self.steps.append(jax.tree.map(np.asarray, event.trainer.heads.trainable))


@pytest.mark.parametrize(("decay", "start_step"), [(0.5, 0), (0.9, 4)])
def test_the_average_is_that_of_numpy(decay, start_step):
    average, keeps = ExponentialMovingAverage(decay, start_step), Keeps()
    trainer = hx.Trainer(max_steps=STEPS, chunk=2, callbacks=[average, keeps], **QUIET)
    result = trainer.fit(Classifier("mlp"), data_of(SLICES))
    expected = keeps.steps[start_step]
    for new in keeps.steps[start_step + 1 :]:
        expected = jax.tree.map(lambda old, new: decay * old.astype(float) + (1 - decay) * new, expected, new)
    heads = average.heads(trainer)
    for found, wanted in zip(jax.tree.leaves(heads.trainable), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
    x = np.ones((2, 6), np.float32)
    np.testing.assert_allclose(heads[1](x), heads(x)[1], rtol=1e-5)
    assert not np.allclose(heads(x), result.heads(x))


@pytest.mark.parametrize(
    "how", [{"decay": 1.0}, {"decay": 0}, {"decay": "0.9"}, {"start_step": -1}, {"start_step": 0.5}]
)
def test_bad_arguments_are_refused(how):
    with pytest.raises(ArgumentError, match=f"ExponentialMovingAverage\\({next(iter(how))}="):
        ExponentialMovingAverage(**how)
