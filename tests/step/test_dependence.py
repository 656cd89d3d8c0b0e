"""Which results of a traced function depend on which arguments, or are one of them; read off the functions."""

import jax
import jax.numpy as jnp
import pytest

from hydrax.step.dependence import dependent, passed_on

A, B = jnp.ones(3), jnp.zeros(3)


CASES = {
    "directly": (lambda a, b: (a, b, a + b, b, 1.0), [0, 1, None, 1, None]),
    "jit": (lambda a, b: jax.jit(lambda a, b: (b, a * 2, a))(a, b), [1, None, 0]),
    "checkpoint around jit": (
        lambda a, b: jax.checkpoint(lambda a, b: (b, jnp.sin(a), jax.jit(lambda c: (c, c + 1))(a)[0]))(a, b),
        [1, None, 0],
    ),
    "a carry and stacked rows": (
        lambda a, b: jax.lax.scan(lambda c, row: ((c[0], c[1] + 1), (row, row * 2)), (a, b), a),
        [0, None, 0, None],
    ),
    "carries that change places": (
        lambda a, b: jax.lax.scan(lambda c, row: ((c[1], c[0]), row), (a, b), b),
        [None, None, 1],
    ),
    "a carry that is the last row": (lambda a, b: jax.lax.scan(lambda c, row: (row, c), b[0], a), [None, None]),
    "fori_loop": (lambda a, b: jax.lax.fori_loop(0, 3, lambda i, c: (c[0], c[1] + c[0]), (a, b)), [0, None]),
    "while_loop": (
        lambda a, b: jax.lax.while_loop(lambda c: c[1].sum() < 3, lambda c: (c[0], c[1] + c[0]), (a, b)),
        [0, None],
    ),
    "branches": (lambda a, b: jax.lax.cond(a.sum() > 0, lambda a, b: (a, b), lambda a, b: (a, a), a, b), [0, None]),
    "custom derivative": (lambda a, b: (jax.nn.relu(a), jax.jit(jax.nn.relu)(b), a), [None, None, 0]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_result_that_is_an_argument_as_it_came_in_is_known(case):
    function, expected = CASES[case]
    assert passed_on(jax.make_jaxpr(function)(A, B)) == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, b: (a + b, b * 2, 1.0), [True, False, False]),
        (lambda a, b: jax.jit(lambda a, b: (a.sum(), jnp.sin(b), b))(a, b), [True, False, False]),
        (lambda a, b: jax.checkpoint(lambda a, b: (jax.nn.relu(b), a * b))(a, b), [False, True]),
        (lambda a, b: jax.jit(lambda b: jnp.where(b > 0, b, 0.0))(b) + a, [True]),
        (lambda a, b: jax.lax.fori_loop(0, 3, lambda i, c: (c[0], c[1] + 1), (a, b)), [True, True]),  # a loop: any
    ],
)
def test_results_that_depend_on_the_first_argument_are_known(function, expected):
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(A, B)
    assert jax.tree.leaves(dependent(traced, (True, False), shapes)) == expected
