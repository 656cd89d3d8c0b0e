"""Parameters to evaluate that are not those that are trained: used wherever a model is scored, kept or returned.

Each step moves the parameter by minus its learning rate, so expectations are made by hand or by a loop in plain optax.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads_under_test import QUIET

import hydrax as hx
from hydrax.callbacks import EarlyStopping, ExponentialMovingAverage, ModelCheckpoint, StochasticWeightAveraging
from hydrax.datamodules import ArrayDataModule

ROWS = {"x": np.arange(8, dtype=np.float32)}
RATES, TARGET, DECAY = np.array([0.1, 0.25]), -0.6, 0.5


def data():
    return ArrayDataModule(ROWS, val=ROWS, slices=hx.Slices.full(2, 8), batch_size=8)


class Slope(hx.HydraModule):
    def __init__(self, lr):
        self.save_hyperparameters()

    def configure_model(self, key):
        return {"w": jnp.zeros(())}

    def configure_optimizers(self):
        return optax.sgd(self.hparams.lr)

    def training_step(self, model, batch, ctx):
        return model["w"] + 0 * batch["x"]

    def validation_step(self, model, batch, ctx):
        return (model["w"] - TARGET) ** 2 + 0 * batch["x"]


def averages(num_steps):
    """Weights `[steps, heads]` and their moving averages."""
    weights = -RATES * np.arange(1, num_steps + 1)[:, None]
    mean, found = np.zeros(2), []
    for w in weights:
        mean = DECAY * mean + (1 - DECAY) * w
        found.append(mean)
    return weights, np.array(found)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged")
    stop = EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    average = ExponentialMovingAverage(DECAY, evaluate=True)
    trainer = hx.Trainer(
        max_steps=20,
        callbacks=[average, stop, ModelCheckpoint(dirpath=folder, monitor="val_loss")],
        **{**QUIET, "enable_checkpointing": True},
    )
    return folder, trainer, trainer.fit(Slope(hx.PerHead(RATES)), data())


BEST = averages(20)[1][((averages(20)[1] - TARGET) ** 2).argmin(axis=0), [0, 1]]


def test_an_average_is_validated_stops_heads_and_is_what_is_restored_and_returned(averaged):
    _, trainer, result = averaged
    np.testing.assert_allclose(result.heads.trainable["w"], BEST, rtol=1e-5)
    np.testing.assert_allclose(result.metrics["val_loss"], (BEST - TARGET) ** 2, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(
        trainer.validate(datamodule=data())["val_loss"], (BEST - TARGET) ** 2, rtol=1e-4, atol=1e-9
    )
    assert not result.live.any()


def test_heads_that_never_stop_are_returned_as_their_best_average_too(tmp_path):
    stop = EarlyStopping("val_loss", patience=99, restore_best_weights=True)
    average = ExponentialMovingAverage(DECAY, evaluate=True)
    trainer = hx.Trainer(max_steps=20, callbacks=[average, stop], default_root_dir=tmp_path, **QUIET)
    result = trainer.fit(Slope(hx.PerHead(RATES)), data())
    assert result.live.all()
    np.testing.assert_allclose(result.heads.trainable["w"], BEST, rtol=1e-5)
    found = trainer.validate(verbose=False)["val_loss"]
    np.testing.assert_allclose(result.metrics["val_loss"], (BEST - TARGET) ** 2, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found, (BEST - TARGET) ** 2, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", ["best", "last"])
def test_a_checkpoint_gives_the_averages_without_the_callback(averaged, kind, tmp_path):
    folder = averaged[0] / kind
    np.testing.assert_allclose(hx.Heads.load(folder, Slope(1.0)).trainable["w"], BEST, rtol=1e-5)
    with np.load(hx.export_heads(folder, tmp_path / "heads.npz")) as arrays:
        np.testing.assert_allclose(arrays["w"], BEST, rtol=1e-5)


class ScheduleFree(Slope):
    def configure_model(self, key):
        return {"w": jnp.ones(())}

    def configure_optimizers(self):
        return optax.contrib.schedule_free_sgd(self.hparams.lr, b1=0.9)

    def evaluation_parameters(self, parameters, opt_state):
        return optax.contrib.schedule_free_eval_params(opt_state, parameters)

    def training_step(self, model, batch, ctx):
        return model["w"] ** 2 + 0 * batch["x"]


def schedule_free_alone(lr, num_steps):
    optimizer, p = optax.contrib.schedule_free_sgd(lr, b1=0.9), {"w": jnp.ones(())}
    state = optimizer.init(p)
    for _ in range(num_steps):
        updates, state = optimizer.update(jax.grad(lambda p: p["w"] ** 2)(p), state, p)
        p = optax.apply_updates(p, updates)
    return optax.contrib.schedule_free_eval_params(state, p)["w"], p["w"], state


def test_a_module_says_which_parameters_its_optimiser_means_and_a_resumed_run_trains_the_others(tmp_path):
    how = {**QUIET, "enable_checkpointing": True, "default_root_dir": tmp_path}
    module = ScheduleFree(hx.PerHead(RATES))
    hx.Trainer(max_steps=4, **how).fit(module, data())
    trainer = hx.Trainer(max_steps=9, **how)
    result = trainer.fit(module, data(), ckpt_path="last")
    expected = [schedule_free_alone(lr, 9) for lr in RATES]
    evaluated = np.array([one[0] for one in expected])
    assert np.abs(evaluated - [one[1] for one in expected]).min() > 1e-3  # the two do differ
    np.testing.assert_allclose(result.heads.trainable["w"], evaluated, rtol=1e-4)
    np.testing.assert_allclose(result.metrics["val_loss"], (evaluated - TARGET) ** 2, rtol=1e-4)
    np.testing.assert_allclose(trainer.opt_state.z["w"], [one[2].z["w"] for one in expected], rtol=1e-5)


class OfAnotherShape(Slope):
    def evaluation_parameters(self, parameters, opt_state):
        return {"w": jnp.zeros(3)}


def test_parameters_to_evaluate_of_another_form_are_refused():
    with pytest.raises(hx.ModuleError, match=r"changes the form of an array: evaluation_parameters\['w'\]"):
        hx.Trainer(max_steps=1, **QUIET).fit(OfAnotherShape(0.1), data())


def test_the_mean_over_the_end_of_training_has_its_schedule_and_is_returned():
    rate = StochasticWeightAveraging.schedule(0.1, 0.02, start_step=4, annealing_steps=3)
    rates = [0.1] * 4 + [0.02 + 0.08 * (1 + np.cos(np.pi * min(t, 3) / 3)) / 2 for t in range(6)]
    np.testing.assert_allclose([float(rate(step)) for step in range(10)], rates, rtol=1e-5)

    class Annealed(Slope):
        def configure_optimizers(self):
            return optax.sgd(StochasticWeightAveraging.schedule(self.hparams.lr, 0.02, 4, 3))

    swa = StochasticWeightAveraging(start_step=4, every_n_steps=2)
    result = hx.Trainer(max_steps=10, callbacks=swa, **QUIET).fit(Annealed(hx.PerHead([0.1, 0.1])), data())
    weights = -np.cumsum(rates)
    np.testing.assert_allclose(result.heads.trainable["w"], [weights[4::2].mean()] * 2, rtol=1e-5)
