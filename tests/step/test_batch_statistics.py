"""Batch normalisation where slots are padding: its statistics are those of the live rows, or the fit is refused."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from heads_under_test import QUIET

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

NUM_ROWS, SLOTS, STEPS, RATE = 24, 8, 7, 0.1
LENGTHS = [5, 24, 3, 8]
RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(20.0, 30.0, (NUM_ROWS, 4)))
Y = np.float32(RNG.normal(size=NUM_ROWS))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.out = nnx.BatchNorm(4, momentum=0.9, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(self.norm(x))[:, 0]


class Regressor(hx.HydraModule):
    def configure_model(self, key):
        return Net(nnx.Rngs(key))

    def configure_optimizers(self):
        return optax.sgd(RATE)

    def training_step(self, model, batch, ctx):
        return (model(batch["x"]) - batch["y"]) ** 2


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(1)(nn.BatchNorm(momentum=0.9, use_running_average=not train)(x))[:, 0]


class LinenRegressor(Regressor):
    def configure_model(self, key):
        return LinenNet().init(key, X[:2], True)

    def training_step(self, model, batch, ctx):
        found, changed = LinenNet().apply(model, batch["x"], True, mutable=["batch_stats"])
        return {"loss": (found - batch["y"]) ** 2, "model": {**model, **changed}}


def fit(module, lengths=LENGTHS, callbacks=(), **how):
    given = {name: how.pop(name) for name in ("batch_size", "small_slices") if name in how}
    data = ArrayDataModule(
        {"x": X, "y": Y}, slices=hx.Slices.prefix(lengths, NUM_ROWS), **{"batch_size": SLOTS, **given}
    )
    trainer = hx.Trainer(**{"max_steps": STEPS, **QUIET, **how}, callbacks=[*callbacks])
    return trainer.fit(module, data)


class FirstModels(hx.Callback):
    def on_train_start(self, event):
        self.heads = event.trainer.heads


def solo(model, rows, steps=STEPS):
    """Trains a model on these rows in a plain flax and optax loop, all of them in each step."""
    model.train()
    optimizer = nnx.Optimizer(model, optax.sgd(RATE), wrt=nnx.Param)
    for _ in range(steps):
        gradients = nnx.grad(lambda m: ((m(jnp.asarray(X[rows])) - Y[rows]) ** 2).mean())(model)
        optimizer.update(model, gradients)
    return model


def arrays(model):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}


@pytest.fixture(scope="module")
def short():
    """Heads whose slices are shorter than a batch, beside others; the models before and after."""
    first = FirstModels()
    return first, fit(Regressor(), callbacks=[first]).heads


@pytest.mark.parametrize("head", [0, 2, 3])
def test_batch_norm_on_a_slice_shorter_than_a_batch_learns_as_a_plain_loop_on_its_rows(short, head):
    first, heads = short
    expected = nnx.to_pure_dict(nnx.state(solo(first.heads[head], np.arange(LENGTHS[head]))))
    found = nnx.to_pure_dict(nnx.state(heads[head]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), found, expected)


def test_the_statistics_after_one_step_are_those_of_the_live_rows():
    heads = fit(Regressor(), max_steps=1).heads
    rows = X[:5].astype(np.float64)
    np.testing.assert_allclose(heads[0].norm.mean[...], 0.1 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(heads[0].norm.var[...], 0.9 + 0.1 * rows.var(0), rtol=1e-5)


def test_a_head_with_full_batches_has_the_same_bits_beside_short_slices_as_without_them(short):
    alone = fit(Regressor(), [8, 24, 8, 8]).heads
    found, expected = (arrays((heads[[1]].trainable, heads[[1]].state)) for heads in (short[1], alone))
    assert [name for name in expected if not np.array_equal(found[name], expected[name])] == []


def test_linen_batch_norm_has_the_statistics_of_the_live_rows():
    state = fit(LinenRegressor(), max_steps=1).heads.state["batch_stats"]["BatchNorm_0"]
    rows = X[:3].astype(np.float64)
    np.testing.assert_allclose(state["mean"][2], 0.1 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state["var"][2], 0.9 + 0.1 * rows.var(0), rtol=1e-5)


class Bridged(Regressor):
    def configure_model(self, key):
        return nnx.bridge.lazy_init(nnx.bridge.ToNNX(LinenNet(), rngs=nnx.Rngs(key)), X[:2], True)

    def training_step(self, model, batch, ctx):
        return (model(batch["x"], True, mutable=["batch_stats"]) - batch["y"]) ** 2


class Subclassed(Regressor):
    def configure_model(self, key):
        net = Net(nnx.Rngs(key))
        net.norm = type("Mine", (nnx.BatchNorm,), {})(4, momentum=0.9, rngs=nnx.Rngs(key))
        return net


class OwnUpdate(Regressor):
    def update(self, head, batch, ctx):
        _, gradients, head = head.gradient(self.training_step, batch, ctx)
        return head.apply(gradients)


VARIANTS = {
    "through the bridge": (Bridged, {}),
    "a class derived from it": (Subclassed, {}),
    "in an update": (OwnUpdate, {}),
    "accumulated": (Regressor, {"accumulate_grad_batches": 3}),  # one is live: an epoch is one batch
    "a number of passes": (Regressor, {"budget": "passes", "max_epochs": 1}),
}


@pytest.mark.parametrize(("module", "how"), VARIANTS.values(), ids=VARIANTS)
def test_the_mean_of_the_live_rows_is_found_by(module, how):
    heads = fit(module(), [5, 5], **{"max_steps": 1, **how}).heads
    found = [leaf for name, leaf in arrays(heads.state).items() if "mean" in name][0][0]
    np.testing.assert_allclose(found, 0.1 * X[:5].mean(0), rtol=1e-5)


class Own(nnx.Module):
    """Statistics that Hydrax does not know."""

    def __init__(self, rngs):
        self.seen, self.out = nnx.BatchStat(jnp.zeros(4)), nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        self.seen[...] = x.mean(0)
        return self.out(x - self.seen[...][None])[:, 0]


class LinenOwn(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        seen = self.variable("batch_stats", "mean", jnp.zeros, 4)
        seen.value = x.mean(0)
        return nn.Dense(1)(x - seen.value[None])[:, 0]


class LinenOwnRegressor(LinenRegressor):
    def configure_model(self, key):
        return LinenOwn().init(key, X[:2], True)

    def training_step(self, model, batch, ctx):
        found, changed = LinenOwn().apply(model, batch["x"], True, mutable=["batch_stats"])
        return {"loss": (found - batch["y"]) ** 2, "model": {**model, **changed}}


class EquinoxNet(eqx.Module):
    norm: eqx.nn.BatchNorm
    out: eqx.nn.Linear

    def __init__(self, key):
        self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="batch")
        self.out = eqx.nn.Linear(4, 1, key=key)


class Flat(Net):
    def __call__(self, x):
        return self.out(self.norm(jnp.stack([x, -x]))[0])[:, 0]


def of(configure):
    return type("Other", (Regressor,), {"configure_model": lambda self, key: configure(key)})()


UNMASKABLE = {
    "a module of the user's own": (lambda: of(lambda key: Own(nnx.Rngs(key))), "Own. Got a layer that takes no mask"),
    "a Linen module of the user's own": (LinenOwnRegressor, "LinenOwn. Got statistics of its own"),
    "Equinox": (lambda: of(lambda key: eqx.nn.make_with_state(EquinoxNet)(key)), "eqx.nn.BatchNorm. Got a layer"),
    "slots on another axis": (
        lambda: of(lambda key: Flat(nnx.Rngs(key))),
        r"BatchNorm. Got an input of shape \[2, 8, 4\]",
    ),
}


@pytest.mark.parametrize(("module", "message"), UNMASKABLE.values(), ids=UNMASKABLE)
def test_batch_statistics_that_cannot_leave_out_padding_are_refused(module, message):
    with pytest.raises(hx.ModuleError, match=f"Batch statistics would count padding: {message}.*for 8 slots"):
        fit(module())


WAYS_OUT = {
    "wrapped": {"small_slices": "wrap"},
    "batches no larger than the shortest slice": {"batch_size": 3},
}


@pytest.mark.parametrize("how", WAYS_OUT.values(), ids=WAYS_OUT)
def test_the_ways_out_that_the_refusal_names_work(how):
    assert fit(UNMASKABLE["a module of the user's own"][0](), max_steps=1, **how).live.all()
