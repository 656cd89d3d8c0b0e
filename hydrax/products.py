"""Matrix products that add up rows, as gradients of weights do, with the smaller operand first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def _product(lhs: jax.Array, rhs: jax.Array, *, dimension_numbers: Any, precision: Any, **params: Any) -> Any:
    """The rule for `dot_general`.

    XLA's CPU compiler copies the first operand into the transposed order, and computes it anew in that order where it
    can: of a wide layer's gradient that costs more than the product (9 % of a transformer's step for each gelu).
    """
    (contracted, others), (batch, _) = dimension_numbers
    leading = tuple(contracted) == tuple(others) == tuple(range(len(contracted)))
    if batch or not leading or lhs.size <= rhs.size or isinstance(precision, tuple) or lhs.dtype != rhs.dtype:
        return NotImplemented
    if params.pop("out_sharding", None) is not None or not jnp.issubdtype(lhs.dtype, jnp.floating):
        return NotImplemented
    y = lax.dot_general(rhs, lhs, ((others, contracted), ((), ())), precision=precision, **params)
    free = rhs.ndim - len(others)
    return jnp.transpose(y, (*range(free, y.ndim), *range(free)))


RULES: Mapping[str, Callable[..., Any]] = {"dot_general": _product}
