"""Taking models apart and putting them together; and each kind of model trains as its own library's loop trains it."""

import dataclasses
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from heads_under_test import TinyNet

import hydrax as hx
from hydrax.datamodules import ArrayDataModule
from hydrax.step.model import split
from hydrax.trees import named_leaves

X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)

# ---- one model of each kind, always the same


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        # No bias: before a BatchNorm its gradient is zero but for rounding, which Adam would blow up.
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(3, use_bias=False)(x))
        return nn.Dense(2)(nn.relu(x))


class LinenMlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(3)(x)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Affine:
    kernel: jax.Array
    bias: jax.Array
    calls: jax.Array

    def __call__(self, x):
        return x @ self.kernel + self.bias[None]


def nnx_net(key):
    return TinyNet(nnx.Rngs(key))


def bridged(key):
    return nnx.bridge.lazy_init(nnx.bridge.ToNNX(LinenMlp(), rngs=nnx.Rngs(key)), X[:1])


def linen_variables(key):
    return LinenNet().init(key, X[:1])


def equinox_mlp(key):
    return eqx.nn.MLP(4, 2, width_size=3, depth=1, key=key)


def plain_dict(key):
    return {"kernel": jax.random.normal(key, (4, 2)), "bias": jnp.zeros(2), "name": "affine"}


def affine(key):
    return Affine(jax.random.normal(key, (4, 2)), jnp.zeros(2), jnp.zeros((), jnp.int32))


KINDS = [nnx_net, bridged, linen_variables, equinox_mlp, plain_dict, affine]

# ---- apart and together


@pytest.mark.parametrize("make", KINDS)
def test_a_model_comes_back_as_it_was(make):
    model = make(jax.random.key(0))
    trainable, state, structure = split(model)
    again = split(structure.merge(trainable, state))
    assert named_leaves(again[:2]).keys() == named_leaves((trainable, state)).keys()
    assert all(a is b for a, b in zip(jax.tree.leaves(again[:2]), jax.tree.leaves((trainable, state)), strict=True))
    assert type(structure.merge(trainable, state)) is type(model)


@pytest.mark.parametrize("make", KINDS)
def test_the_structure_is_the_same_for_every_head_and_can_key_a_cache(make):
    first, second = split(make(jax.random.key(0))).structure, split(make(jax.random.key(1))).structure
    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.parametrize(
    ("make", "trainable", "state"),
    [
        (
            nnx_net,
            {"hidden.bias", "hidden.kernel", "norm.bias", "norm.scale", "out.bias", "out.kernel"},
            {"norm.mean", "norm.var", "dropout.rngs.count", "dropout.rngs.key"},
        ),
        (
            linen_variables,
            {
                "BatchNorm_0.bias",
                "BatchNorm_0.scale",
                "Dense_0.kernel",
                "Dense_1.bias",
                "Dense_1.kernel",
            },
            {"batch_stats.BatchNorm_0.mean", "batch_stats.BatchNorm_0.var"},
        ),
        (
            equinox_mlp,
            {"layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"},
            set(),
        ),
        (plain_dict, {"kernel", "bias"}, set()),
        (affine, {"kernel", "bias"}, {"calls"}),
    ],
)
def test_gradients_are_taken_for_the_parameters_and_nothing_else(make, trainable, state):
    parts = split(make(jax.random.key(0)))
    assert named_leaves(parts.trainable).keys() == trainable
    assert named_leaves(parts.state).keys() == state


def test_functions_among_the_leaves_stay_functions():
    model = equinox_mlp(jax.random.key(0))
    trainable, state, structure = split(model)
    assert structure.merge(trainable, state).activation is model.activation


def test_new_arrays_make_a_new_model():
    trainable, state, structure = split(equinox_mlp(jax.random.key(0)))
    zero = structure.merge(jax.tree.map(jnp.zeros_like, trainable), state)
    np.testing.assert_array_equal(zero(X[0]), [0.0, 0.0])


def test_the_mode_switches_dropout_and_batch_statistics():
    trainable, state, structure = split(nnx_net(jax.random.key(0)))
    model = structure.merge(trainable, state)
    structure.set_mode(model, train=False)
    still, again = model(X), model(X)
    structure.set_mode(model, train=True)
    np.testing.assert_array_equal(still, again)
    assert not np.array_equal(model(X), model(X))


def test_the_state_after_a_call_is_read_back():
    trainable, state, structure = split(nnx_net(jax.random.key(0)))
    model = structure.merge(trainable, state)
    structure.set_mode(model, train=True)
    model(X)
    moved = structure.read_state(model)
    hidden = X @ np.asarray(trainable["hidden"]["kernel"]) + np.asarray(trainable["hidden"]["bias"])
    np.testing.assert_allclose(moved["norm"]["mean"], 0.01 * hidden.mean(0), rtol=1e-5, atol=1e-7)
    assert moved["dropout"]["rngs"]["count"] == state["dropout"]["rngs"]["count"] + 1


def test_the_intermediates_of_a_call_are_no_state():
    class Watched(TinyNet):
        def __call__(self, x):
            self.seen = nnx.Intermediate(x)
            return super().__call__(x)

    trainable, state, structure = split(Watched(nnx.Rngs(0)))
    model = structure.merge(trainable, state)
    model(X)
    assert jax.tree.structure(structure.read_state(model)) == jax.tree.structure(state)


# ---- training, against a loop written with the library itself

STEPS, HEADS, SLOTS = 3, 2, 4
OPTIMIZER = optax.adam(0.05)


def cross_entropy(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


class Fitted(hx.HydraModule):
    """Every head starts from the same model, so that a loop of one's own can start there too."""

    def __init__(self, make: Any, step: Any) -> None:
        self.make, self.step = make, step

    def configure_model(self, key):
        return self.make(jax.random.key(0))

    def configure_optimizers(self):
        return OPTIMIZER

    def training_step(self, model, batch, ctx):
        return self.step(model, *batch)


def call(model, x, y):
    return cross_entropy(model(x), y)


def call_rows(model, x, y):
    return cross_entropy(jax.vmap(model)(x), y)


def apply_dict(model, x, y):
    return cross_entropy(x @ model["kernel"] + model["bias"][None], y)


def apply_linen(variables, x, y):
    logits, moved = LinenNet().apply(variables, x, train=True, mutable=["batch_stats"])
    return {"loss": cross_entropy(logits, y), "model": {**variables, **moved}}


def solo(params, loss, batches):
    """The loop of one model; `loss(params, extra, x, y) -> (loss, extra)`."""
    opt_state, extra = OPTIMIZER.init(params), loss.start

    @jax.jit
    def update(params, opt_state, extra, x, y):
        gradients, extra = jax.grad(loss.step, has_aux=True)(params, extra, x, y)
        updates, opt_state = OPTIMIZER.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, extra

    for rows in batches:
        params, opt_state, extra = update(params, opt_state, extra, X[rows], Y[rows])
    return params, extra


@dataclasses.dataclass
class Loss:
    step: Any
    start: Any = None


def equinox_alone(batches):
    params, rest = eqx.partition(equinox_mlp(jax.random.key(0)), eqx.is_inexact_array)
    step = lambda params, extra, x, y: (call_rows(eqx.combine(params, rest), x, y).mean(), extra)  # noqa: E731
    return solo(params, Loss(step), batches)


def linen_alone(batches):
    variables = linen_variables(jax.random.key(0))

    def step(params, stats, x, y):
        logits, moved = LinenNet().apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        return cross_entropy(logits, y).mean(), moved["batch_stats"]

    return solo(variables["params"], Loss(step, variables["batch_stats"]), batches)


def bridged_alone(batches):
    params = nnx.to_pure_dict(nnx.state(bridged(jax.random.key(0)), nnx.Param))
    step = lambda params, extra, x, y: (  # noqa: E731
        cross_entropy(LinenMlp().apply({"params": params}, x), y).mean(),
        extra,
    )
    return solo(params, Loss(step), batches)


def dict_alone(batches):
    params = {name: value for name, value in plain_dict(jax.random.key(0)).items() if name != "name"}
    return solo(params, Loss(lambda params, extra, x, y: (apply_dict(params, x, y).mean(), extra)), batches)


@pytest.mark.parametrize(
    ("make", "step", "alone", "moving"),
    [
        pytest.param(equinox_mlp, call_rows, equinox_alone, lambda state: None, id="equinox"),
        pytest.param(
            linen_variables, apply_linen, linen_alone, lambda state: state["batch_stats"], id="linen variables"
        ),
        pytest.param(bridged, call, bridged_alone, lambda state: None, id="linen through nnx"),
        pytest.param(plain_dict, apply_dict, dict_alone, lambda state: None, id="dict"),
    ],
)
def test_a_model_trains_as_in_a_loop_of_its_own_library(make, step, alone, moving):
    data = ArrayDataModule((X, Y), slices=hx.Slices.full(HEADS, len(X)), batch_size=SLOTS)
    heads = hx.Trainer(max_steps=STEPS, barebones=True).fit(Fitted(make, step), data).heads
    rows = np.stack([data.index_dataset(0)[t]["rows"] for t in range(STEPS)])
    solo_runs = [jax.tree.leaves(alone(rows[:, head])) for head in range(HEADS)]
    expected = [np.stack(leaves) for leaves in zip(*solo_runs, strict=True)]
    found = [np.asarray(leaf) for leaf in jax.tree.leaves((heads.trainable, moving(heads.state)))]
    np.testing.assert_equal([leaf.shape for leaf in found], [leaf.shape for leaf in expected])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


def test_a_trained_head_is_a_model_of_the_users_own_kind():
    data = ArrayDataModule((X, Y), slices=hx.Slices.full(HEADS, len(X)), batch_size=SLOTS)
    head = hx.Trainer(max_steps=1, barebones=True).fit(Fitted(affine, call), data).heads[1]
    assert isinstance(head, Affine)
    np.testing.assert_allclose(head(X), X @ np.asarray(head.kernel) + np.asarray(head.bias), rtol=1e-5, atol=1e-6)
