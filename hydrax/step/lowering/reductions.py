"""Sums over all axes but the last, as in gradients of biases and scales and in batch statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def _sum(x: jax.Array, *, axes: Sequence[int], **others: Any) -> Any:
    """The rule for `reduce_sum`: a product with ones. XLA's CPU backend sums column by column, 3 times slower."""
    rows = math.prod(x.shape[:-1])
    leading = tuple(axes) == tuple(range(x.ndim - 1))
    if others.get("out_sharding") is not None or x.dtype != jnp.float32 or not leading or rows < 256:
        return NotImplemented
    ones = jnp.ones((1, rows), x.dtype)
    return lax.dot(ones, x.reshape(rows, x.shape[-1]), precision=lax.Precision.HIGHEST).reshape(x.shape[-1])


RULES: Mapping[str, Callable[..., Any]] = {"reduce_sum": _sum}
