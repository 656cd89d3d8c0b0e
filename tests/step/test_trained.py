"""Which arrays of a model are trained, and what becomes of the others; parity with loops in the model's library."""

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
from hydrax.step.model import split
from hydrax.trees import named_leaves

X = np.random.default_rng(0).normal(5, 2, size=(24, 3)).astype(np.float32)
Y = X[:, 0] - 2 * X[:, 1]
BATCH, STEPS, RATE, BOUND = 8, 9, 0.05, 0.3
SLICES = hx.Slices.prefix([8, 16, 24], 24)


def fit(module, steps=STEPS, **settings):
    data = ArrayDataModule({"x": X, "y": Y}, slices=SLICES, batch_size=BATCH)
    return hx.Trainer(max_steps=steps, **QUIET, **settings).fit(module, data), data


def batches(data, head):
    return [data.index_dataset(0)[step]["rows"][head] for step in range(STEPS)]


class Base(hx.HydraModule):
    def configure_optimizers(self):
        return optax.sgd(RATE)


# ---- the state of an Equinox model


class Normed(eqx.Module):
    norm: eqx.nn.BatchNorm
    out: eqx.nn.Linear

    def __init__(self, key):
        self.norm, self.out = eqx.nn.BatchNorm(3, "batch", mode="ema"), eqx.nn.Linear(3, 1, key=key)

    def __call__(self, x, state):
        x, state = self.norm(x, state)
        return self.out(x)[0], state


def normed_loss(model, state, x, y):
    found, state = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
    return (found - y) ** 2, state


class EquinoxNormed(Base):
    def configure_model(self, key):
        return eqx.nn.make_with_state(Normed)(jax.random.key(1))

    def training_step(self, model, batch, ctx):
        model, state = model
        loss, state = normed_loss(model, state, batch["x"], batch["y"])
        return {"loss": loss, "model": (model, state)}


def equinox_alone(rows):
    model, state = eqx.nn.make_with_state(Normed)(jax.random.key(1))
    optimizer = optax.sgd(RATE)
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def update(model, state, opt_state, x, y):
        def mean_loss(model):
            loss, moved = normed_loss(model, state, x, y)
            return loss.mean(), moved

        gradients, moved = eqx.filter_grad(mean_loss, has_aux=True)(model)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return eqx.apply_updates(model, updates), moved, opt_state

    for one in rows:
        model, state, opt_state = update(model, state, opt_state, X[one], Y[one])
    return model, state


def test_a_stateful_equinox_model_trains_as_in_a_loop_of_its_own_library():
    result, data = fit(EquinoxNormed())
    for head in range(len(SLICES)):
        expected, found = equinox_alone(batches(data, head)), result.heads[head]
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        arrays = zip(*(jax.tree.leaves(eqx.filter(model, eqx.is_array)) for model in (found, expected)), strict=True)
        assert all(np.allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-5, atol=1e-5) for a, b in arrays)
    trained = named_leaves(result.heads.trainable).keys()
    assert trained == {"0.norm.weight", "0.norm.bias", "0.out.weight", "0.out.bias"}


# ---- frozen parts


class TwoLayers(nnx.Module):
    def __init__(self, rngs):
        self.encoder, self.out = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)
        self.calls = nnx.Param(jnp.zeros(()))

    def __call__(self, x):
        return self.out(nnx.tanh(self.encoder(x)))[:, 0]


class Frozen(Base):
    def configure_model(self, key):
        return TwoLayers(nnx.Rngs(0))

    def is_trained(self, name, leaf):
        return name.startswith("out.")

    def training_step(self, model, batch, ctx):
        model.calls[...] += 1
        return (model(batch["x"]) - batch["y"]) ** 2


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", "float32"), ("bf16-true", "bfloat16"), ("64-true", "float64")]
)
def test_what_is_frozen_is_stored_in_the_precision_of_the_rest_and_stays_bit_for_bit(precision, dtype):
    one, many = (fit(Frozen(), steps, precision=precision)[0].heads for steps in (1, STEPS))
    frozen, still = (heads.state["encoder"]["kernel"] for heads in (many, one))
    assert {str(frozen.dtype), str(many.trainable["out"]["kernel"].dtype)} == {dtype}
    np.testing.assert_array_equal(np.asarray(frozen, np.float64), np.asarray(still, np.float64))


class FrozenByOptax(Frozen):
    """The same by optax alone: the gradient of what is frozen is computed and dropped."""

    is_trained = hx.HydraModule.is_trained

    def configure_optimizers(self):
        labels = {"encoder": "frozen", "calls": "frozen", "out": "trained"}
        return optax.partition({"trained": optax.sgd(RATE), "frozen": optax.set_to_zero()}, labels)

    def training_step(self, model, batch, ctx):
        return (model(batch["x"]) - batch["y"]) ** 2


def frozen_alone(rows):
    graphdef, trained, rest = nnx.split(TwoLayers(nnx.Rngs(0)), nnx.PathContains("out"), ...)
    optimizer = optax.chain(optax.clip_by_global_norm(BOUND), optax.sgd(RATE))
    opt_state = optimizer.init(trained)

    @jax.jit
    def update(trained, opt_state, x, y):
        loss = lambda trained: ((nnx.merge(graphdef, trained, rest)(x) - y) ** 2).mean()  # noqa: E731
        updates, opt_state = optimizer.update(jax.grad(loss)(trained), opt_state)
        return optax.apply_updates(trained, updates), opt_state

    for one in rows:
        trained, opt_state = update(trained, opt_state, X[one], Y[one])
    return nnx.to_pure_dict(trained)["out"], nnx.to_pure_dict(rest)["encoder"]


@pytest.fixture(scope="module", params=[Frozen, FrozenByOptax])
def frozen(request):
    return (request.param, *fit(request.param(), gradient_clip_val=BOUND))


def test_a_frozen_part_stays_and_does_not_count_for_clipping(frozen):
    _, result, data = frozen
    for head in range(len(SLICES)):
        out, encoder = frozen_alone(batches(data, head))
        model = nnx.to_pure_dict(nnx.state(result.heads[head], nnx.Param))
        jax.tree.map(np.testing.assert_array_equal, model["encoder"], encoder)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), model["out"], out)


def test_what_is_not_trained_keeps_what_a_step_gives_it(frozen):
    module, result, _ = frozen
    calls = [nnx.state(head)["calls"][...] for head in result.heads]
    np.testing.assert_array_equal(calls, [STEPS if module is Frozen else 0] * len(SLICES))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x)))


@pytest.mark.parametrize(
    ("make", "asked"),
    [
        (lambda: TwoLayers(nnx.Rngs(0)), {"calls", "encoder.bias", "encoder.kernel", "out.bias", "out.kernel"}),
        (
            lambda: LinenNet().init(jax.random.key(0), X),
            {f"{layer}.{leaf}" for layer in ("Dense_0", "Dense_1") for leaf in ("bias", "kernel")}
            | {"BatchNorm_0.bias", "BatchNorm_0.scale"},
        ),
        (
            lambda: eqx.nn.make_with_state(Normed)(jax.random.key(0)),
            {"0.norm.weight", "0.norm.bias", "0.out.weight", "0.out.bias"},
        ),
        (
            lambda: {"a": [jnp.zeros(2), jnp.zeros(1, jnp.complex64)], "n": jnp.arange(3), "flag": True},
            {"a.0", "a.1"},
        ),
    ],
    ids=["nnx", "linen", "equinox", "dict"],
)
def test_the_hook_is_asked_for_each_parameter_by_the_name_that_exports_use(make, asked):
    names = []
    model = make()
    trainable, state, structure = split(model, lambda name, leaf: names.append(name) or not name.endswith("bias"))
    assert set(names) == asked
    assert named_leaves(trainable).keys() == {name for name in asked if not name.endswith("bias")}
    again = structure.merge(trainable, state)
    assert named_leaves(structure.read_trainable(again)).keys() == named_leaves(trainable).keys()
    assert named_leaves(structure.read_state(again)).keys() == named_leaves(state).keys()
    # Freezing changes no name, so that weights of heads trained without it fit.
    assert {*named_leaves(trainable), *named_leaves(state)} == {
        name for part in split(model)[:2] for name in named_leaves(part)
    }
    assert len(jax.tree.leaves((trainable, state))) == len(jax.tree.leaves(split(model)[:2]))
    assert hash(structure) == hash(split(make(), lambda name, leaf: not name.endswith("bias")).structure)


# ---- what cannot be kept is refused


class ChangesInPlace(Frozen):
    def training_step(self, model, batch, ctx):
        model.out.kernel[...] = jnp.clip(model.out.kernel[...], -0.1, 0.1)
        return (model(batch["x"]) - batch["y"]) ** 2


class ReturnsAnother(EquinoxNormed):
    def training_step(self, model, batch, ctx):
        found = super().training_step(model, batch, ctx)
        model, state = found["model"]
        return {**found, "model": (eqx.tree_at(lambda m: m.out.bias, model, model.out.bias + 1), state)}


class ReturnsLess(EquinoxNormed):
    def training_step(self, model, batch, ctx):
        return super().training_step(model, batch, ctx)["loss"]


class ReturnsSwapped(EquinoxNormed):
    def training_step(self, model, batch, ctx):
        found = super().training_step(model, batch, ctx)
        return {**found, "model": found["model"][::-1]}


class Plain(Base):
    def __init__(self, model, is_trained=None):
        self.model, self.answer = model, is_trained

    def configure_model(self, key):
        return self.model

    def is_trained(self, name, leaf):
        return True if self.answer is None else self.answer(leaf)

    def training_step(self, model, batch, ctx):
        return (batch["x"] @ model["w"] - batch["y"]) ** 2


class OnlyVariables(Frozen):
    def configure_model(self, key):
        model = TwoLayers(nnx.Rngs(0))
        model.encoder = model.out = model.calls = None
        model.scale = nnx.BatchStat(jnp.ones(3))
        return model


class BatchNormed(Frozen):
    """A step that runs the model through a transformation of nnx, which returns other tracers for all its arrays."""

    def __init__(self, through=lambda call: call, change=0.0):
        self.through, self.change = through, change

    def configure_model(self, key):
        return nnx.Sequential(
            nnx.Linear(3, 4, rngs=(rngs := nnx.Rngs(key))), nnx.BatchNorm(4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)
        )

    def is_trained(self, name, leaf):
        return True

    def training_step(self, model, batch, ctx):
        @self.through
        def call(model, x):
            if self.change:
                model.layers[0].bias[...] += self.change
            return model(x)[:, 0]

        return (call(model, batch["x"]) - batch["y"]) ** 2


@pytest.mark.parametrize("through", [nnx.jit, nnx.remat, lambda call: nnx.jit(nnx.remat(call))])
def test_a_model_that_goes_through_a_transformation_of_nnx_trains_as_it_does_without(through):
    result, plain = (fit(BatchNormed(way))[0].heads for way in (through, lambda call: call))
    for name, leaf in named_leaves((plain.trainable, plain.state)).items():
        np.testing.assert_array_equal(named_leaves((result.trainable, result.state))[name], leaf)


W = jnp.zeros(3)
REFUSED = [
    (lambda: BatchNormed(nnx.jit, 0.1), "A step changes a parameter: training_step, layers.0.bias"),
    (ChangesInPlace, "A step changes a parameter: training_step, out.kernel"),
    (ReturnsAnother, "A step changes a parameter: training_step, 0.out.bias"),
    (ReturnsLess, "A step does not return the state of its model: training_step"),
    (ReturnsSwapped, "A step changes the structure of a model"),
    (lambda: Plain({"w": W, "b": 0.0}), r"A parameter is a Python number: configure_model, \['b'\].*jnp.array\(0.0\)"),
    (lambda: Plain({"w": W, "b": [(1,)]}), r"A parameter is a Python number.*\['b'\]\[0\]\[0\].*jnp.array\(1.0\)"),
    (lambda: Plain({"params": {"w": W, "b": 2j}}), r"A parameter is a Python number.*\['b'\]"),
    (lambda: Plain({"w": W}, lambda leaf: None), "is_trained returned no bool"),
    (lambda: Plain({"w": W}, lambda leaf: bool(leaf.sum())), "Python control flow .*: Plain.is_trained"),
    (lambda: Plain({"w": W}, lambda leaf: False), "nothing to train: Plain.configure_model. Got False from is_trained"),
    (OnlyVariables, "nothing to train: OnlyVariables.configure_model. Got variables of type BatchStat.*nnx.Param"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_would_be_lost_is_refused_before_anything_compiles(make, message):
    with pytest.raises(hx.HydraxError, match=message):
        fit(make())
