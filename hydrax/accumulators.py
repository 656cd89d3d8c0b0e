"""What is logged, as it is brought together over steps and batches: means in the making, and metrics that merge."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hydrax.module import is_metric


class Mean(NamedTuple):
    """A mean in the making: the weighted total and the weight, both scalars."""

    total: jax.Array
    weight: jax.Array

    def merge(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    def compute(self) -> jax.Array:
        return self.total / self.weight


def accumulator_of(value: Any, mask: jax.Array) -> Any:
    """One step's or batch's value, weighed by its live slots."""
    weight = mask.sum().astype(jnp.float32)
    # A sum and not `value * weight`: XLA would fuse that product with the total it is added to, for some places of a
    # chunk and not for others. A batch without a live slot adds nothing, not even NaN.
    return value if is_metric(value) else Mean(jnp.where(mask, value, 0).sum(), weight)


def empty_accumulator(accumulator: Any) -> Any:
    """The accumulator that holds nothing yet, in the shapes and dtypes that merging keeps; takes arrays or shapes."""
    if isinstance(accumulator, Mean):
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), accumulator)
    empty = type(accumulator).empty()
    return jax.tree.map(lambda e, s: jnp.broadcast_to(jnp.asarray(e, s.dtype), s.shape), empty, accumulator)
