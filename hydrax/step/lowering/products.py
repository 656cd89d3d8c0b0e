"""Matrix products in forms that XLA computes fast on a CPU: those with few columns, and those that sum over rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_NARROW = 4  # Up to 4 columns are faster one by one (784 x 2: 3 us instead of 10); 8 are slower.


def _product(lhs: jax.Array, rhs: jax.Array, *, dimension_numbers: Any, precision: Any, **params: Any) -> Any:
    """The rule for `dot_general`."""
    (contracted, others), (batch, _) = dimension_numbers
    alike = lhs.dtype == rhs.dtype and jnp.issubdtype(lhs.dtype, jnp.floating) and not isinstance(precision, tuple)
    if batch or not alike or params.get("out_sharding") is not None:
        return NotImplemented

    def dot(x: jax.Array, y: jax.Array, over_x: Any, over_y: Any) -> jax.Array:
        return lax.dot_general(x, y, ((over_x, over_y), ((), ())), precision=precision, **params)

    if lhs.ndim == rhs.ndim == 2 and len(contracted) == 1:
        return _narrow(dot, lhs, rhs, contracted[0], others[0])
    return _of_rows(dot, lhs, rhs, contracted, others)


def _narrow(dot: Callable[..., jax.Array], lhs: jax.Array, rhs: jax.Array, over_lhs: int, over_rhs: int) -> Any:
    """Multiplies two matrices vector by vector if one of the three sizes is small."""
    rows, inner, columns = lhs.shape[1 - over_lhs], lhs.shape[over_lhs], rhs.shape[1 - over_rhs]
    if 1 < inner <= _NARROW and over_rhs == 1:
        # XLA is slow if the second operand is transposed; stacking its columns stores it in order.
        return dot(lhs, jnp.stack(_vectors(rhs, 0)), (over_lhs,), (0,))
    if 1 < columns <= _NARROW and columns < rows:
        return jnp.stack([dot(lhs, y, (over_lhs,), (0,)) for y in _vectors(rhs, over_rhs)], axis=1)
    if 1 < rows <= _NARROW and rows < columns:
        return jnp.stack([dot(x, rhs, (0,), (over_rhs,)) for x in _vectors(lhs, over_lhs)])
    return _of_rows(dot, lhs, rhs, (over_lhs,), (over_rhs,))


def _of_rows(dot: Callable[..., jax.Array], lhs: jax.Array, rhs: jax.Array, over_lhs: Any, over_rhs: Any) -> Any:
    """Computes a gradient of weights: a sum over rows, which JAX computes transposed and transposes afterwards.

    XLA copies the first operand into transposed order, or computes it a second time in that order. For the gradient of
    a wide layer that costs more than the product itself (9 % of a transformer's step for each gelu), so the smaller
    operand goes first. The exception is a result larger than both operands: the optimiser would read it in the wrong
    order three times (16 % of a step of 784-128-10), so there the order of the weights decides.
    """
    if not tuple(over_lhs) == tuple(over_rhs) == tuple(range(len(over_lhs))):
        return NotImplemented
    result = lhs.size * rhs.size // math.prod(lhs.shape[: len(over_lhs)]) ** 2
    if lhs.size <= rhs.size and result <= 2 * rhs.size:
        return NotImplemented
    y = dot(rhs, lhs, over_rhs, over_lhs)
    free = rhs.ndim - len(over_rhs)
    return jnp.transpose(y, (*range(free, y.ndim), *range(free)))


def _vectors(matrix: jax.Array, axis: int) -> list[jax.Array]:
    """Splits a matrix into its columns (axis 0) or its rows (axis 1)."""
    return [lax.index_in_dim(matrix, k, 1 - axis, keepdims=False) for k in range(matrix.shape[1 - axis])]


RULES: Mapping[str, Callable[..., Any]] = {"dot_general": _product}
