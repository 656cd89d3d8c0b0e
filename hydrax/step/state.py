"""HeadsState: everything that changes while heads train, stacked on axis 0."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class HeadsState(NamedTuple):
    """The state of all heads, every leaf `[H, ...]`; under the head axis, the state of one.

    Attributes:
      trainable: parameters.
      state: the models' other arrays: batch statistics, dropout keys.
      opt_state: the optimisers' state.
      callbacks: state of callbacks' second tier, by callback key.
      epoch: accumulators of what is logged on_epoch, by name.
      live: bool[H], False once a head is frozen.
    """

    trainable: Any
    state: Any
    opt_state: Any
    callbacks: dict[str, Any]
    epoch: dict[str, Any]
    live: jax.Array


class HeadInputs(NamedTuple):
    """What tells one head from another and never changes.

    Attributes:
      ids: int32[H].
      per_head: the `PerHead` values `[H, ...]`, by dotted name.
    """

    ids: Any
    per_head: dict[str, Any]


class DeviceRows(NamedTuple):
    """Rows of a dataset on the device.

    Attributes:
      columns: pytree of arrays, [N, ...] or, of some rows only, [U, ...].
      numbers: None where row i stands at place i; else int32[U], the base row at each place.
    """

    columns: Any
    numbers: Any = None


class StepInput(NamedTuple):
    """What a function of one head reads besides the head itself.

    Attributes:
      inputs: the head's id and `PerHead` values.
      key: PRNG key. Of the run in `HeadProgram.train` and `find_fault`, which fold the head and the step into it;
        of this head and batch in `evaluate` and `predict`.
      data: the rows on the device.
      rows: int32[B], places in `data`; in `train` and `find_fault` int32[A, B], one batch for each micro-batch.
      mask: bool, shaped like `rows`: the live slots. In training a micro-batch without any does not count.
      step: int32 scalar, updates done before.
    """

    inputs: HeadInputs
    key: Any
    data: DeviceRows
    rows: Any
    mask: Any
    step: Any


def select(condition: jax.Array, new: Any, old: Any) -> Any:
    """`new` where the condition holds, else `old` bit for bit, in `old`'s dtypes; leaves may have more axes than it."""

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        a = a if a.dtype == b.dtype else a.astype(b.dtype)
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b)

    return jax.tree.map(pick, new, old)
