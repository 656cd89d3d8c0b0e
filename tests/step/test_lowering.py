"""What a lowered program computes is what the plain one computes, through every kind of control flow and model."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from lowering_under_test import FAST, assert_close, normal

from hydrax.step.lowering.lowering import Lowering, lower


def gradient_of(fun):
    """The value and all gradients of a weighted sum of what `fun` gives."""
    return jax.value_and_grad(lambda *args: jnp.sum(jnp.cos(fun(*args))), argnums=(0, 1))


def conv(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def scanned(x, kernel):
    return lax.scan(lambda x, k: (jnp.tanh(conv(x, k)), x.sum()), x, jnp.stack([kernel, 2 * kernel]))[0]


def branched(x, kernel):
    return lax.cond(x.sum() > 0, lambda x: conv(x, kernel), lambda x: conv(x, -kernel), x)


def rematerialised(x, kernel):
    return jax.checkpoint(
        lambda x: linen.max_pool(jnp.tanh(conv(jnp.tanh(conv(x, kernel)), kernel)), (2, 2), padding="SAME")
    )(x)


def rematerialised_in_scan(x, kernel):
    return lax.scan(jax.checkpoint(lambda x, k: (jnp.tanh(conv(x, k)), None)), x, jnp.stack([kernel] * 3))[0]


def counted(x, kernel):
    return x + lax.stop_gradient(
        lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, conv(c[1], kernel)), (0, x))[1]
    )


def jitted(x, kernel):
    return jax.jit(lambda x: jax.nn.relu(conv(x, kernel)))(x)


@jax.custom_vjp
def doubling(x, kernel):
    """Its gradient is twice the true one."""
    return conv(x, kernel)


doubling.defvjp(lambda x, k: (conv(x, k), (x, k)), lambda r, g: tuple(2 * d for d in jax.vjp(conv, *r)[1](g)))


@jax.custom_jvp
def halving(x, kernel):
    """Its derivative is half the true one."""
    return conv(x, kernel)


@halving.defjvp
def _(primals, tangents):
    out, tangent = jax.jvp(conv, primals, tangents)
    return out, tangent / 2


FLOWS = [scanned, branched, rematerialised, rematerialised_in_scan, counted, jitted, doubling, halving]


def convolutions_in(text):
    return [line for line in text.splitlines() if "convolution(" in line]


@pytest.mark.parametrize("width", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("flow", FLOWS)
def test_control_flow_and_custom_gradients_are_kept(flow, width):
    x, kernel = normal(0, width, 2, 5, 5, 9), normal(1, width, 3, 3, 9, 9) / 9
    fast, plain = jax.jit(jax.vmap(lower(gradient_of(flow), FAST))), jax.jit(gradient_of(flow))
    heads = [plain(*head) for head in zip(x, kernel, strict=True)]
    assert_close(fast(x, kernel), jax.tree.map(lambda *leaves: np.stack(leaves), *heads))


@pytest.mark.cpu
@pytest.mark.parametrize("flow", [scanned, branched, rematerialised, jitted])
def test_no_grouped_convolution_is_left_under_the_head_axis(flow):
    x, kernel = normal(0, 2, 2, 5, 5, 9), normal(1, 2, 3, 3, 9, 9)
    text = jax.jit(jax.vmap(lower(gradient_of(flow), FAST))).lower(x, kernel).compile().as_text()
    assert convolutions_in(text)
    assert "feature_group_count" not in text and "batch_group_count" not in text


def test_the_plain_program_has_grouped_convolutions():
    x, kernel = normal(0, 2, 2, 5, 5, 9), normal(1, 2, 3, 3, 9, 9)
    assert "feature_group_count" in jax.jit(jax.vmap(gradient_of(conv))).lower(x, kernel).compile().as_text()


@pytest.mark.cpu
def test_a_gradient_that_nobody_asks_for_is_not_computed():
    x, kernel = normal(0, 2, 8, 5, 5, 9), normal(1, 2, 3, 3, 9, 9)
    loss = lambda kernel, x: jnp.cos(conv(x, kernel)).sum()  # noqa: E731
    text = jax.jit(jax.vmap(lower(jax.grad(loss), FAST), (0, 0))).lower(kernel, x).compile().as_text()
    # One forward and one for the kernel, of each of two heads.
    assert len(convolutions_in(text)) == 4


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.second = nnx.Conv(8, 8, (3, 3), strides=2, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norm(self.first(x))), (2, 2), (2, 2))
        x = nnx.avg_pool(nnx.relu(self.second(x)), (2, 2), (1, 1), "SAME")
        return self.out(self.drop(x.mean((1, 2))))


def nnx_loss():
    graphdef, params, rest = nnx.split(NnxNet(nnx.Rngs(0)), nnx.Param, ...)

    def loss(params, x):
        model = nnx.merge(graphdef, params, nnx.to_pure_dict(rest))
        total = jnp.square(model(x)).sum()
        return total, {"state": nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), "none": None}

    return loss, nnx.to_pure_dict(params)


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.max_pool(linen.relu(linen.Conv(8, (3, 3))(x)), (3, 3), (2, 2), "SAME")
        x = linen.relu(linen.Conv(8, (3, 3), feature_group_count=8)(x))
        x = linen.ConvTranspose(4, (2, 2), strides=(2, 2))(x)
        return linen.Dense(4)(x.reshape(x.shape[0], -1))


def linen_loss():
    model = LinenNet()
    variables = model.init(jax.random.key(0), normal(0, 3, 8, 8, 3))
    return lambda params, x: (jnp.square(model.apply(params, x)).sum(), {}), variables


def equinox_loss():
    keys = jax.random.split(jax.random.key(0), 2)
    first, second = eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0]), eqx.nn.Conv2d(8, 4, 3, groups=2, key=keys[1])
    pool = eqx.nn.MaxPool2d(2, 2)

    def loss(params, x):
        net = lambda row: params[1](pool(jax.nn.relu(params[0](row))))  # noqa: E731
        return jnp.square(jax.vmap(net)(x.transpose(0, 3, 1, 2))).sum(), {}

    return loss, (first, second)


@pytest.mark.parametrize("make", [nnx_loss, linen_loss, equinox_loss])
def test_unmodified_models_learn_the_same(make):
    loss, params = make()
    rows = normal(3, 2, 3, 8, 8, 3)
    heads = jax.tree.map(lambda a: jnp.stack([a, a * 0.5]) if jnp.issubdtype(a.dtype, jnp.floating) else a, params)
    plain = jax.value_and_grad(loss, has_aux=True)
    found, expected = (jax.jit(jax.vmap(f))(heads, rows) for f in (lower(plain, FAST), plain))
    # A bias before batch normalisation has a gradient of rounding errors alone.
    assert_close(found, expected, rtol=1e-4, smallest=0.1)


def test_random_numbers_are_the_same():
    draw = lambda key, x: (jax.random.split(key), jax.random.bernoulli(key, 0.5, x.shape) * x)  # noqa: E731
    key, x = jax.random.key(3), normal(0, 5, 4)
    found, expected = lower(draw, FAST)(key, x), draw(key, x)
    np.testing.assert_array_equal(jax.random.key_data(found[0]), jax.random.key_data(expected[0]))
    np.testing.assert_array_equal(found[1], expected[1])


def test_an_error_of_the_function_comes_through_as_it_is():
    mistake = ValueError("the user's own words")

    def fails(x):
        raise mistake

    with pytest.raises(ValueError) as caught:
        lower(fails, FAST)(normal(0, 2))
    assert caught.value is mistake


def test_a_function_without_arguments_may_hold_mapped_arrays():
    run = lambda x: lower(lambda: {"sum": x.sum(), "same": (x, None)}, FAST)()  # noqa: E731
    found = jax.vmap(run)(jnp.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(found["sum"], [3, 12])
    assert found["same"][1] is None


def test_a_plain_lowering_leaves_the_function_alone():
    assert lower(conv, Lowering()) is conv


@pytest.mark.parametrize(
    ("lowering", "text"),
    [(Lowering(), "plain"), (Lowering(convolutions=True, pooling=True), "convolutions+pooling")],
)
def test_a_lowering_is_printed_by_what_it_replaces(lowering, text):
    assert str(lowering) == text


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_other_backends_keep_the_forms_of_xla(backend):
    assert Lowering.auto(backend) == Lowering()
