"""Context: what a step receives besides the model and the batch."""

from __future__ import annotations

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a step of one head may need besides the model and the batch. It is read-only.

    Attributes:
      key: PRNG key of this head and step. For more than one draw, split it or fold a number into it.
      mask: bool[B], True for live slots, False for padding.
      rows: int32[B], the row of the base dataset in each slot. A padding slot repeats a row of the head's own slice.
      step: int32 scalar, the number of optimiser updates done so far.
      head: int32 scalar, the id of the head.
      train: a Python bool, True in `training_step` and `update`.
    """

    key: jax.Array
    mask: jax.Array
    rows: jax.Array
    step: jax.Array
    head: jax.Array
    train: bool = dataclasses.field(metadata={"static": True})
