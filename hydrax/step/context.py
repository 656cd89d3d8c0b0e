"""Context: what a step gets besides the model and the batch, for one head."""

from __future__ import annotations

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a step may need besides model and batch, for one head; nothing in it changes under the step.

    Attributes:
      key: PRNG key of this head and step.
      mask: bool[B], True for live slots, False for padding.
      rows: int32[B], base-dataset row in each slot; a padding slot repeats a row of the head's own slice.
      step: int32 scalar, optimiser updates done before this one.
      head: int32 scalar, the head's id.
      train: True in `training_step`; a Python bool.
    """

    key: jax.Array
    mask: jax.Array
    rows: jax.Array
    step: jax.Array
    head: jax.Array
    train: bool = dataclasses.field(metadata={"static": True})
