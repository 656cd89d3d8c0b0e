"""Optimisers that ask for more than gradients: their own random numbers, the loss, a line search, a schedule per head.

The expectations are loops in plain optax over one model.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from heads_under_test import QUIET

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 3)).astype(np.float32)
Y = (X @ np.array([1, -2, 0.5], np.float32) + 0.1 * RNG.normal(size=24)).astype(np.float32)
BATCH, STEPS = 8, 6
SLICES = hx.Slices.window([0, 8, 16], [8, 8, 8], 24)  # a batch is a whole slice


class Line(hx.HydraModule):
    def __init__(self, make, lr=0.1):
        self.make = make
        self.save_hyperparameters(ignore=["make"])

    def configure_model(self, key):
        return {"w": jnp.zeros(3)}

    def configure_optimizers(self):
        return self.make(self.hparams.lr)

    def training_step(self, model, batch, ctx):
        return (batch["x"] @ model["w"] - batch["y"]) ** 2


def fit(module, steps=STEPS, batch_size=BATCH, **settings):
    data = ArrayDataModule({"x": X, "y": Y}, slices=SLICES, batch_size=batch_size)
    return hx.Trainer(max_steps=steps, **{**QUIET, **settings}).fit(module, data)


def alone(make, rates):
    """One model for each learning rate; a step has the whole slice, so the order of its rows plays no part."""

    @jax.jit
    def update(p, state, lr, x, y):
        loss = lambda p: ((x @ p["w"] - y) ** 2).mean()  # noqa: E731
        value, g = jax.value_and_grad(loss)(p)
        updates, state = make(lr).update(g, state, p, value=value, grad=g, value_fn=loss)
        return optax.apply_updates(p, updates), state

    for head, lr in enumerate(rates):
        rows, p = slice(8 * head, 8 * head + 8), {"w": jnp.zeros(3)}
        state = make(lr).init(p)
        for _ in range(STEPS):
            p, state = update(p, state, lr, X[rows], Y[rows])
        yield p["w"]


def plateau(lr):
    return optax.chain(optax.sgd(lr), optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.2))


def hidden(lr):
    """A wrapper with the type of an optimiser that takes gradients only, around one that takes the loss."""
    inner = optax.polyak_sgd()
    return optax.GradientTransformation(inner.init, lambda g, s, p=None, **extra: inner.update(g, s, p, **extra))


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        pytest.param(lambda lr: optax.lbfgs(), {}, id="L-BFGS"),
        pytest.param(
            lambda lr: optax.lbfgs(),
            {"accumulate_grad_batches": 2, "batch_size": 4},
            id="accumulated",
            marks=pytest.mark.slow,
        ),
        pytest.param(plateau, {}, id="reduce_on_plateau"),
        pytest.param(hidden, {}, id="hidden polyak_sgd"),
    ],
)
def test_the_ordinary_update_gives_an_optimiser_what_it_asks_for(make, settings):
    found = fit(Line(make, hx.PerHead([0.1, 0.4, 0.9])), **settings).heads.trainable["w"]
    plain = (lambda lr: optax.polyak_sgd()) if make is hidden else make
    np.testing.assert_allclose(found, list(alone(plain, [0.1, 0.4, 0.9])), rtol=2e-4, atol=2e-5)


# ---- random numbers


class Noise(Line):
    """No gradient: the parameters are what the optimiser adds to them."""

    def configure_model(self, key):
        return {"w": jnp.zeros(500)}

    def configure_optimizers(self, key):
        return noisy(key)

    def training_step(self, model, batch, ctx):
        return batch["y"] + 0 * model["w"].sum()


def noisy(key):
    return optax.noisy_sgd(1.0, eta=1.0, gamma=0.0, key=key)


def noise_alone(head):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), head), np.uint32(2**32 - 3))
    p, state, update = jnp.zeros(500), noisy(key).init(jnp.zeros(500)), jax.jit(noisy(key).update)
    for _ in range(STEPS):
        updates, state = update(jnp.zeros(500), state, p)
        p = p + updates
    return p


def test_a_head_has_noise_of_its_own_that_a_resumed_run_continues(tmp_path):
    how = {"default_root_dir": tmp_path, "enable_checkpointing": True}
    fit(Noise(None), steps=STEPS // 2, **how)
    data = ArrayDataModule({"x": X, "y": Y}, slices=SLICES, batch_size=BATCH)
    result = hx.Trainer(max_steps=STEPS, **{**QUIET, **how}).fit(Noise(None), data, ckpt_path="last")
    found = np.asarray(result.heads.trainable["w"])
    np.testing.assert_allclose(found, [noise_alone(head) for head in range(3)], rtol=1e-5, atol=1e-5)
    assert np.abs(np.corrcoef(found) - np.eye(3)).max() < 0.2


# ---- a schedule for each head


def warm_up(peak):
    return optax.warmup_cosine_decay_schedule(0.0, peak, 5, 20)


class Slope(Line):
    """The gradient is 1 in each step, so the parameters are minus the sum of the learning rates."""

    def configure_model(self, key):
        return {"w": jnp.zeros(())}

    def training_step(self, model, batch, ctx):
        return model["w"] + 0 * batch["y"]


def test_the_peak_of_a_warm_up_may_differ_between_heads():
    peaks = [0.1, 1.0, 0.3]
    found = fit(Slope(lambda lr: optax.sgd(warm_up(lr)), hx.PerHead(peaks)), steps=12).heads.trainable["w"]
    expected = [-sum(float(warm_up(peak)(step)) for step in range(12)) for peak in peaks]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# ---- what cannot work is explained by the method that is to blame


def broken_update(lr):
    return optax.GradientTransformation(lambda p: (), lambda g, s, p: g["no such entry"])


class WithDropout(Line):
    def configure_model(self, key):
        return nnx.Linear(3, 1, rngs=nnx.Rngs(key))

    def training_step(self, model, batch, ctx):
        dropout = nnx.Dropout(self.hparams.lr, rngs=nnx.Rngs(0))
        return dropout(model(batch["x"]))[:, 0]


class WithNumPy(Line):
    def training_step(self, model, batch, ctx):
        return np.square(model["w"].sum() * batch["y"])


class TwoArguments(Line):
    def configure_optimizers(self, lr, key):
        return optax.sgd(lr)


RATES = hx.PerHead([0.0, 0.1, 0.2])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Line(broken_update), "A method failed .* Line.configure_optimizers .*KeyError"),
        (
            Line(lambda lr: optax.sgd(warm_up(lr)), RATES),
            "optax needs the value .*: Line.configure_optimizers. Got warmup_cosine_decay_schedule .*a peak of 1.0",
        ),
        (Line(lambda lr: optax.sgd(lr if lr > 0 else 1.0), RATES), "Python control flow .*: Line.configure_optimizers"),
        (WithDropout(None, RATES), "flax needs the value .*: WithDropout.training_step. Got Dropout.*bernoulli"),
        (WithNumPy(None), "Python needs the value .*: WithNumPy.training_step"),
        (Line(lambda lr: optax.noisy_sgd(lr, key=0)), "the same random numbers in all heads: Line.*rng_key.*self, key"),
        (TwoArguments(None), "configure_optimizers has the wrong signature: TwoArguments. Got the arguments lr, key"),
        (Line(lambda lr: None), "configure_optimizers returned no optimiser"),
    ],
)
def test_an_error_of_an_optimiser_names_configure_optimizers_and_one_of_a_library_the_library(module, message):
    with pytest.raises(hx.HydraxError, match=message):
        fit(module)


def test_the_way_round_that_the_message_names_works():
    make = lambda lr: optax.sgd(lambda step: lr * warm_up(1.0)(step))  # noqa: E731
    found = fit(Slope(make, RATES), steps=7).heads.trainable["w"]
    np.testing.assert_allclose(found, [-lr * sum(map(warm_up(1.0), range(7))) for lr in RATES.values], rtol=1e-5)
