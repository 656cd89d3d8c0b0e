"""What a step logs, and how logged values are merged over steps and batches."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import get_opaque_trace_state

from hydrax.errors import ModuleError


@dataclasses.dataclass(frozen=True)
class Logged:
    """One logged value (a scalar, `[B]` values, a `clu.metrics.Metric` or a `WholeSet`) and where it is reported.

    `per_slot` tells whether it was `[B]` values, so that Hydrax leaves out the padding.
    """

    value: Any
    prog_bar: bool
    on_step: bool
    on_epoch: bool
    per_slot: bool = False


@jax.tree_util.register_pytree_node_class
class WholeSet:
    """A metric that is no mean over batches, such as F1 or AUC: computed on the host from all rows of a set.

    Log it in `validation_step` or `test_step`. Hydrax gathers the arrays over the set, leaves out padding, and calls
    the function once for each head. The result is a metric like any other: it can be monitored.

        self.log("val_f1", hx.WholeSet(sklearn.metrics.f1_score, batch["label"], logits.argmax(-1)))

    A head without rows, or with a NaN or infinity in one of its arrays, has NaN.

    Args:
      function: a function of NumPy arrays `[rows, ...]` that returns a number.
      arrays: its arguments for one batch, `[B, ...]` each, one entry for each slot.
    """

    def __init__(self, function: Callable[..., Any], *arrays: Any) -> None:
        self.function, self.arrays = function, arrays

    def tree_flatten(self) -> tuple[tuple[Any, ...], Callable[..., Any]]:
        """Splits the metric into arrays and function, for JAX, to which it is a pytree."""
        return self.arrays, self.function

    @classmethod
    def tree_unflatten(cls, function: Callable[..., Any], arrays: tuple[Any, ...]) -> WholeSet:
        """Rebuilds the metric from what `tree_flatten` returned, for JAX.

        Args:
          function: the function.
          arrays: the arrays.
        """
        return cls(function, *arrays)


class Recorder:
    """Records what one traced call of a step logs.

    Attributes:
      stage: "training", "validation" or "test".
      where: name of the traced method, for error messages.
      logged: the recorded values by name.
    """

    def __init__(self, stage: str, where: str | None = None) -> None:
        self.stage, self.where = stage, where or f"{stage}_step"
        self.logged: dict[str, Logged] = {}
        # A value logged inside the user's own scan, vmap, jit or grad belongs to another trace and would leak out
        # of it; comparing traces finds that at the call, with the user's line on the stack.
        self._trace = get_opaque_trace_state(convention="flax")

    def add(
        self,
        name: str,
        value: Any,
        prog_bar: bool,
        on_step: bool | None,
        on_epoch: bool | None,
        per_slot: bool | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ModuleError(
                f"A logged value has no name: self.log in {self.where}. Got {name!r}, expected a string such as "
                '"train_accuracy". Fix: pass the name first, then the value.'
            )
        if name in self.logged:
            again = ", or pass log=False to the second head.gradient" if self.where == "update" else ""
            raise ModuleError(
                f"A name is logged twice in one step: self.log({name!r}) in {self.where}. Got a second value, "
                f"expected one value for each name and step. Fix: log it under another name{again}."
            )
        if get_opaque_trace_state(convention="flax") != self._trace:
            raise ModuleError(
                f"A value is logged inside an inner jax transformation: self.log({name!r}) in {self.where}. Got a "
                "call inside a scan, vmap, jit or grad of your own, expected one directly in the step. Fix: return the "
                "value from the inner function and log it after the call."
            )
        train = self.stage == "training"
        self.logged[name] = Logged(
            value,
            prog_bar=bool(prog_bar),
            on_step=train if on_step is None else bool(on_step),
            on_epoch=(not train) if on_epoch is None else bool(on_epoch),
            per_slot=(getattr(value, "ndim", 0) == 1 or is_whole(value)) if per_slot is None else per_slot,
        )


class Mean(NamedTuple):
    """A running mean: the weighted total and the weight, both scalars."""

    total: jax.Array
    weight: jax.Array

    def merge(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    def compute(self) -> jax.Array:
        # Of nothing it is 0, which the host replaces by NaN: 0 / 0 on the device would end a run with jax_debug_nans.
        return self.total / jnp.maximum(self.weight, 1)


def accumulator_of(value: Any, mask: jax.Array) -> Any:
    """Makes the accumulator of one step's or batch's value; a mean is weighted by the live slots."""
    weight = mask.sum().astype(jnp.float32)
    # A sum, not `value * weight`: XLA fuses that product into the addition that follows for some places of a chunk and
    # not for others, so a head's bits would depend on its place. A batch without a live slot also adds 0, not NaN * 0.
    return value if is_metric(value) else Mean(jnp.where(mask, value, 0).sum(), weight)


def empty_accumulator(accumulator: Any) -> Any:
    """An empty accumulator with the shapes and dtypes of this one, which may be arrays or shapes."""
    if isinstance(accumulator, Mean):
        # NumPy's, as those of JAX would come from a program of their own.
        return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), accumulator)
    empty = type(accumulator).empty()
    return jax.tree.map(lambda e, s: jnp.broadcast_to(jnp.asarray(e, s.dtype), s.shape), empty, accumulator)


def masked_mean(value: jax.Array, mask: jax.Array) -> jax.Array:
    """Averages `[B]` values over the live slots, in float32 or wider; 0 if no slot is live. Scalars pass through."""
    value = value.astype(jnp.promote_types(value.dtype, np.float32))
    if value.ndim == 0:
        return value
    # `where`, not a product: a NaN in a padding slot times 0 would still be NaN.
    return jnp.where(mask, value, 0).sum() / jnp.maximum(mask.sum(), 1)


def is_whole(value: Any) -> bool:
    """Whether a logged value is a metric over a whole set, which the host computes."""
    return isinstance(value, WholeSet)


def is_metric(value: Any) -> bool:
    """Whether a logged value is a `clu.metrics.Metric`, which merges itself."""
    # clu.metrics imports Flax, a third of a second. A value can be a metric only if it is imported already.
    metrics: Any = sys.modules.get("clu.metrics")
    return metrics is not None and isinstance(value, metrics.Metric)
