"""The state that a step changes (`HeadsState`) and the input that it reads (`StepInput`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class HeadsState(NamedTuple):
    """Everything that changes during training: leaves `[H, ...]` for all heads, or `[...]` for one under the head axis.

    Attributes:
      trainable: the parameters.
      state: the other arrays of the models, such as batch statistics and dropout keys.
      opt_state: the state of the optimisers.
      callbacks: the state of callbacks with a second tier, by callback key.
      epoch: accumulators of the values that are logged on_epoch, by name.
      live: bool[H], False once a head is frozen.
    """

    trainable: Any
    state: Any
    opt_state: Any
    callbacks: dict[str, Any]
    epoch: dict[str, Any]
    live: jax.Array


class HeadInputs(NamedTuple):
    """What distinguishes heads from each other and never changes.

    Attributes:
      ids: int32[H], the ids of the heads.
      per_head: the `PerHead` values, `[H, ...]`, by dotted name.
    """

    ids: Any
    per_head: dict[str, Any]


class DeviceRows(NamedTuple):
    """Rows of a dataset on the device.

    Attributes:
      columns: pytree of arrays: all rows, `[N, ...]`, or the U rows that were fetched, `[U, ...]`.
      numbers: None if the columns hold all rows; otherwise int32[U], the base row at each place.
    """

    columns: Any
    numbers: Any = None


class StepInput(NamedTuple):
    """Everything that one step reads besides the head's own state, for one head or, under the head axis, for several.

    Attributes:
      inputs: the head's id and `PerHead` values.
      key: PRNG key: of the run where it enters `HeadProgram.train` and `find_fault`, which fold the head and the step
        into it; of this head and batch in `evaluate` and `predict`.
      data: the rows on the device.
      rows: int32[B], places in `data`; for `train` and `find_fault` int32[A, B], a line for each micro-batch. None in
        the arguments of a program, which draws them itself.
      mask: bool, shaped like `rows`, True for live slots.
      step: int32 scalar, the number of updates done so far.
    """

    inputs: HeadInputs
    key: Any
    data: DeviceRows
    rows: Any
    mask: Any
    step: Any


def select(condition: jax.Array, new: Any, old: Any) -> Any:
    """Picks `new` where the condition holds and `old`, bit for bit, elsewhere; dtypes are those of `old`.

    Leaves may have more axes than the condition, which applies to the leading ones.
    """

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        # A step may widen an array, such as bfloat16 state that is updated in float32; the carry must keep its dtype.
        a = a if a.dtype == b.dtype else a.astype(b.dtype)
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b)

    return jax.tree.map(pick, new, old)
