"""What a step logs, and how it is merged over steps and batches: weighted means, and metrics that merge themselves."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import get_opaque_trace_state

from hydrax.errors import ModuleError


@dataclasses.dataclass(frozen=True)
class Logged:
    """One value that a step logged: a scalar, `[B]` values, or a `clu.metrics.Metric`."""

    value: Any
    prog_bar: bool
    on_step: bool
    on_epoch: bool


class Recorder:
    """Takes down what one traced call of a step logs.

    Attributes:
      stage: "training", "validation" or "test".
      where: the method that is called, for messages.
      logged: by name.
    """

    def __init__(self, stage: str, where: str | None = None) -> None:
        self.stage, self.where = stage, where or f"{stage}_step"
        self.logged: dict[str, Logged] = {}
        self._trace = get_opaque_trace_state(convention="flax")

    def add(self, name: str, value: Any, prog_bar: bool, on_step: bool | None, on_epoch: bool | None) -> None:
        if not isinstance(name, str) or not name:
            raise ModuleError(
                f"A logged value has no name: self.log in {self.where}. Got {name!r}, expected a word such as "
                '"train_accuracy". Fix: give the name first, then the value.'
            )
        if name in self.logged:
            again = ", or ask for the second gradient with log=False" if self.where == "update" else ""
            raise ModuleError(
                f"A name is logged twice in one step: self.log({name!r}) in {self.where}. Got a second value, "
                f"expected one value a name and step. Fix: log it under another name{again}."
            )
        if get_opaque_trace_state(convention="flax") != self._trace:
            raise ModuleError(
                f"A value is logged inside an inner jax transformation: self.log({name!r}) in {self.where}. Got a "
                "call inside your own scan, vmap, jit or grad, expected one at the step's own level. Fix: return the "
                "value from the inner function and log it after the call."
            )
        train = self.stage == "training"
        self.logged[name] = Logged(
            value,
            prog_bar=bool(prog_bar),
            on_step=train if on_step is None else bool(on_step),
            on_epoch=(not train) if on_epoch is None else bool(on_epoch),
        )


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


def masked_mean(value: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `[B]` values over live slots, float32 or wider; 0 where no slot is live. A scalar passes through."""
    value = value.astype(jnp.promote_types(value.dtype, np.float32))
    if value.ndim == 0:
        return value
    # `where` and not a product: what a padding slot holds, NaN included, must not reach the mean.
    return jnp.where(mask, value, 0).sum() / jnp.maximum(mask.sum(), 1)


def is_metric(value: Any) -> bool:
    """Whether a logged value is a `clu.metrics.Metric`, which merges itself."""
    # It imports Flax; a metric can only come from where it is imported already.
    metrics: Any = sys.modules.get("clu.metrics")
    return metrics is not None and isinstance(value, metrics.Metric)
