"""LearningRateMonitor: each head's own rate, from the optimiser's state, a hyper-parameter or a schedule."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, run

import hydrax as hx
from hydrax.callbacks import LearningRateMonitor
from hydrax.errors import ArgumentError

SLICES = hx.Slices.prefix([40, 17, 9], NUM_ROWS)
RATES = [0.1, 0.02, 0.003]
STEPS = 6


def decay(step, peak):
    return peak * 0.5 ** (step / 2)


class Injected(PlainClassifier):
    def configure_optimizers(self):
        schedule = lambda step: decay(step, self.hparams.lr)  # noqa: E731
        return optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.adam)(learning_rate=schedule))


class Scheduled(PlainClassifier):
    def configure_optimizers(self):
        return optax.adam(lambda step: decay(step, self.hparams.lr))


CASES = {
    "the optimiser's state": (Injected, None, 1),
    "a hyper-parameter": (PlainClassifier, "lr", 0),
    "a schedule": (Scheduled, lambda step, hparams: decay(step, hparams.lr), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_each_head_has_its_own_rate_at_each_step(case):
    module, source, decays = CASES[case]
    logged = run(
        module(lr=hx.PerHead(RATES)), data_of(SLICES), callbacks=[LearningRateMonitor(source)], max_steps=STEPS
    )
    expected = [[rate * 0.5 ** (decays * step / 2) for step in range(STEPS)] for rate in RATES]
    np.testing.assert_allclose(logged.arrays["step.learning_rate"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("source", "refusal"),
    [
        (None, "expected an optimiser state with one learning rate, not 0"),
        ("rate", "Got 'rate', expected one of the hyper-parameters: kind, lr"),
    ],
)
def test_where_there_is_no_rate_the_error_says_what_to_do(source, refusal):
    with pytest.raises(hx.HydraxError, match=refusal):
        run(PlainClassifier(), data_of(SLICES), callbacks=[LearningRateMonitor(source)], max_steps=1)


def test_a_source_of_another_kind_is_refused():
    with pytest.raises(ArgumentError, match=r"LearningRateMonitor\(source=\.\.\.\)\. Got 0\.1"):
        LearningRateMonitor(0.1)


def test_a_schedule_may_use_arrays():
    monitor = LearningRateMonitor(lambda step, hparams: jnp.where(step < 3, 1.0, 0.0))
    logged = run(PlainClassifier(), data_of(SLICES), callbacks=[monitor], max_steps=STEPS).arrays
    np.testing.assert_array_equal(logged["step.learning_rate"], [[1, 1, 1, 0, 0, 0]] * 3)
