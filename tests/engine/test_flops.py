"""StepCost: floating-point operations counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from hydrax.engine.flops import StepCost, count_flops

X, W, IMAGE = jnp.ones((5, 3)), jnp.ones((3, 7)), jnp.ones((2, 8, 8, 3))


def convolution(kernel, **how):
    return lambda x: jax.lax.conv_general_dilated(
        x, jnp.ones(kernel), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **how
    )


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (lambda x: x + x, (X,), 15),
        (lambda x: jnp.exp(x), (X,), 15),
        (lambda x: x.T.reshape(15)[::2], (X,), 0),
        (lambda x: x.sum(), (X,), 15),
        (lambda x, w: x @ w, (X, W), 2 * 5 * 3 * 7),
        (lambda x, y: jnp.einsum("bij,bkj->bik", x, y), (jnp.ones((4, 2, 3)), jnp.ones((4, 6, 3))), 2 * 4 * 2 * 6 * 3),
        (convolution((3, 3, 3, 4)), (IMAGE,), 2 * (2 * 8 * 8 * 4) * (3 * 3 * 3)),
        (convolution((3, 3, 1, 6), feature_group_count=3), (IMAGE,), 2 * (2 * 8 * 8 * 6) * (3 * 3 * 1)),
        (lambda x: jax.lax.scan(lambda c, _: (c + x, None), x, None, length=9)[0], (X,), 9 * 15),
        (lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x + x * x, lambda x: x, x), (X,), 30),
        (jax.jit(lambda x: x * x), (X,), 15),
        (lambda x: jnp.arange(15) + 1, (X,), 0),
    ],
    ids=[
        "add",
        "exp",
        "moves",
        "sum",
        "product",
        "batched",
        "convolution",
        "groups",
        "scan",
        "cond",
        "jit",
        "integers",
    ],
)
def test_operations_are_counted_as_by_hand(function, arguments, expected):
    assert count_flops(jax.make_jaxpr(function)(*arguments).jaxpr) == expected


def test_work_of_many_heads_is_that_of_one_times_their_number():
    assert StepCost(3.0, 5.0).times(4) == StepCost(12.0, 20.0)
