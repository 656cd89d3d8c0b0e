"""Each replaced operation and its gradients equal those of plain JAX, for every way of asking for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax
from lowering_under_test import FAST, assert_close, normal

from hydrax.step.lowering.lowering import lower

TWO = ("NHWC", "HWIO", "NHWC")


def both(fun, x, kernel):
    """Value and gradients of two heads, of one head, and of two that share their rows: lowered; and plain."""
    gradient = jax.value_and_grad(lambda *args: jnp.sum(jnp.cos(fun(*args))), argnums=(0, 1))
    rows, kernels = jnp.stack([x, x + 1]), jnp.stack([kernel, -kernel])
    fast, plain = lower(gradient, FAST), jax.jit(gradient)

    @jax.jit
    def found():
        alone, shared = jax.vmap(fast)(rows[:1], kernels[:1]), jax.vmap(fast, (None, 0))(x, kernels)
        return jax.vmap(fast)(rows, kernels), alone, shared

    first, second, shared = plain(x, kernel), plain(x + 1, -kernel), plain(x, -kernel)
    stack = lambda *heads: jax.tree.map(lambda *leaves: np.stack(leaves), *heads)  # noqa: E731
    return found(), (stack(first, second), stack(first), stack(first, shared))


CONVOLUTIONS = {
    "same": dict(padding="SAME"),
    "valid": dict(padding="VALID"),
    "uneven padding": dict(padding=((2, 0), (0, 3))),
    "negative padding": dict(padding=((-1, 2), (1, -2))),
    "stride": dict(window_strides=(2, 1), padding="SAME"),
    "stride that leaves a rest": dict(window_strides=(3, 2), padding="VALID"),
    "dilated kernel": dict(rhs_dilation=(2, 1), padding="SAME"),
    "dilated kernel and stride": dict(rhs_dilation=(1, 2), window_strides=(2, 2), padding=((1, 1), (2, 2))),
    "transposed": dict(lhs_dilation=(2, 2), padding=((1, 2), (2, 1))),
    "transposed with stride": dict(lhs_dilation=(1, 3), window_strides=(2, 1), padding=((1, 1), (0, 2))),
    "groups": dict(feature_group_count=2, padding="SAME"),
    "groups and stride": dict(feature_group_count=4, window_strides=(2, 2), padding="VALID"),
    "depthwise": dict(feature_group_count=12, padding="SAME"),
    "depthwise and stride": dict(feature_group_count=12, window_strides=(2, 1), padding="SAME"),
    "precise": dict(padding="SAME", precision="highest"),
    "wide result": dict(padding="SAME", preferred_element_type=jnp.float32),
}


# Two options at once; each is tried without the other too.
LONGER = {"dilated kernel and stride", "transposed with stride", "groups and stride", "depthwise and stride"}


def cases(table, longer):
    """Parameters by name, some of them for the longer form of a test."""
    return [pytest.param(value, id=n, marks=[pytest.mark.slow] * (n in longer)) for n, value in table.items()]


@pytest.mark.parametrize("channels", [pytest.param(3, marks=pytest.mark.slow), 12])
@pytest.mark.parametrize("options", cases(CONVOLUTIONS, LONGER))
def test_a_convolution_and_its_gradients_are_those_of_lax(options, channels):
    groups = options.get("feature_group_count", 1)
    channels = channels * groups // 3 if groups in (2, 4) else max(channels, groups)
    fun = lambda x, k: lax.conv_general_dilated(x, k, **{"window_strides": (1, 1), "dimension_numbers": TWO, **options})  # noqa: E731
    assert_close(*both(fun, normal(0, 2, 7, 6, channels), normal(1, 3, 2, channels // groups, 24)))


@pytest.mark.parametrize("layout", [("NCHW", "OIHW", "NCHW"), ("NCHW", "HWIO", "NHWC"), ("HWNC", "OHWI", "NCHW")])
def test_any_layout_of_a_convolution_will_do(layout):
    sizes = dict(N=2, C=9, H=6, W=7)
    kernel = dict(H=3, W=2, I=9, O=5)
    fun = lambda x, k: lax.conv_general_dilated(x, k, (1, 2), "SAME", dimension_numbers=layout)  # noqa: E731
    x, k = normal(0, *(sizes[n] for n in layout[0])), normal(1, *(kernel[n] for n in layout[1]))
    assert_close(*both(fun, x, k))


@pytest.mark.parametrize(
    ("dims", "channels"),
    [(1, 2), pytest.param(1, 9, marks=pytest.mark.slow), pytest.param(3, 2, marks=pytest.mark.slow), (3, 9)],
)
def test_a_convolution_of_other_rank_is_that_of_lax(dims, channels):
    layout = {1: ("NWC", "WIO", "NWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}[dims]
    fun = lambda x, k: lax.conv_general_dilated(x, k, (2,) * dims, "SAME", dimension_numbers=layout)  # noqa: E731
    assert_close(*both(fun, normal(0, 2, *(5,) * dims, channels), normal(1, *(3,) * dims, channels, 4)))


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.bfloat16, 2e-2), (jnp.float16, 2e-3)])
def test_a_convolution_in_half_precision_keeps_its_dtype(dtype, rtol):
    fun = lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=TWO)  # noqa: E731
    x, k = normal(0, 2, 6, 6, 9).astype(dtype), (normal(1, 3, 3, 9, 4) / 9).astype(dtype)
    gradient = jax.vjp
    run = lambda f: jax.jit(lambda x, k, g: (f(x, k), *gradient(f, x, k)[1](g)))  # noqa: E731
    g = normal(2, 2, 6, 6, 4).astype(dtype)
    found = jax.jit(lower(lambda x, k, g: (fun(x, k), *gradient(fun, x, k)[1](g)), FAST))(x, k, g)
    assert_close(found, run(fun)(x, k, g), rtol=rtol)


def test_a_convolution_in_double_precision_keeps_its_digits():
    with jax.enable_x64(True):
        fun = lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=TWO)  # noqa: E731
        rng = np.random.default_rng(0)
        assert_close(
            *both(fun, jnp.asarray(rng.normal(size=(2, 5, 5, 9))), jnp.asarray(rng.normal(size=(3, 3, 9, 4)))), 1e-13
        )


POOLS = {
    "tiles": ((2, 2), (2, 2), "VALID"),
    "tiles that leave a rest": ((3, 2), (3, 2), "VALID"),
    "padded tiles": ((2, 3), (2, 3), "SAME"),
    "overlapping": ((3, 3), (2, 2), "SAME"),
    "overlapping, every place": ((3, 2), (1, 1), "VALID"),
    "with gaps": ((2, 2), (3, 3), "VALID"),
    "uneven padding": ((3, 3), (2, 1), ((2, 0), (0, 1))),
    "too large for slices": ((6, 6), (1, 1), "VALID"),
}


# The pool with ties to tell apart meets all windows, the other some.
AVERAGED = {"tiles that leave a rest", "padded tiles", "overlapping"}
POOLINGS = [
    pytest.param(pool, window, id=f"{pool.__name__}-{name}", marks=[] if name in quick else pytest.mark.slow)
    for pool, quick in ((linen.max_pool, {*POOLS}), (linen.avg_pool, AVERAGED))
    for name, window in POOLS.items()
]


@pytest.mark.parametrize(("pool", "window"), POOLINGS)
def test_pooling_and_its_gradient_are_those_of_lax(window, pool):
    # Half of the numbers are zeros: most windows have ties, and the first maximum must win all.
    x = jnp.maximum(normal(0, 2, 8, 7, 3), 0)
    assert_close(*both(lambda x, scale: pool(jnp.maximum(x, 0) * scale, *window), x, jnp.float32(0.7)))


def test_the_first_of_equal_maxima_gets_the_whole_gradient():
    x = jnp.zeros((1, 2, 4, 1)).at[0, 1, 3, 0].set(1)
    gradient = lower(jax.grad(lambda x: (linen.max_pool(x, (2, 2), (2, 2)) * 5).sum()), FAST)(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[5, 0, 0, 0], [0, 0, 0, 5]])


SPECS = [
    "bk,kn->bn",
    "btk,kn->btn",
    "bqhd,bkhd->bhqk",
    "bhqk,bkhd->bqhd",
    "kb,kn->bn",
    "nk,bk->nb",
    "kn,kb->nb",
    "nk,kp->np",
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_product_and_its_gradients_are_those_of_lax(spec):
    sizes = dict(b=2, t=3, q=5, k=4, h=3, d=6, n=7, p=9)
    first, second = spec.split("->")[0].split(",")
    x, y = normal(0, *(sizes[n] for n in first)), normal(1, *(sizes[n] for n in second))
    assert_close(*both(lambda x, y: jnp.einsum(spec, x, y), x, y))


@pytest.mark.parametrize("shape", [(300, 4), (8, 40, 3), (4, 9, 9, 5), (3, 5)])
def test_a_sum_over_rows_is_that_of_numpy(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = jax.vmap(lower(lambda x: x.sum(tuple(range(x.ndim - 1))), FAST))(jnp.stack([x, -x]))
    expected = x.astype(np.float64).sum(tuple(range(x.ndim - 1)))
    np.testing.assert_allclose(found, np.stack([expected, -expected]), rtol=0, atol=1e-4)
