"""The part of a callback that runs inside the compiled program, for one head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax


class StepInfo(NamedTuple):
    """What a callback's `on_step` sees of one head's update, inside the compiled program.

    Attributes:
      trainable: the parameters after the update.
      gradients: gradients after clipping, shaped like `trainable`.
      updates: what the optimiser added to the parameters.
      loss: the mean loss over live slots, a scalar.
      step: updates done before this one, int32 scalar.
      opt_state: the optimiser's state after the update.
      hparams: the module's hyper-parameters; each `PerHead` is this head's own value, a traced scalar.
    """

    trainable: Any
    gradients: Any
    updates: Any
    loss: jax.Array
    step: jax.Array
    opt_state: Any = None
    hparams: Any = None


class StepCallback:
    """The second tier of a callback: pure functions of one head, whose state is trained and saved with the head."""

    def init(self, head: Any) -> Any:
        """Tier two: this callback's state for one head, a pytree of arrays, from the head's fresh parameters."""
        return ()

    def on_step(self, state: Any, info: StepInfo) -> Any:
        """Tier two: the state after one update of one head.

        Args:
          state: before it, as `init` or this gave it.
          info: what is known of the update.
        """
        return state

    def metrics(self, state: Any, info: StepInfo) -> Mapping[str, Any]:
        """Tier two: scalars of one head's update by name; logged as the step's own are.

        Args:
          state: after the update.
          info: what is known of it.
        """
        return {}


def has_second_tier(callback: StepCallback) -> bool:
    """Whether a callback takes part in the compiled program."""
    kind = type(callback)
    return kind.on_step is not StepCallback.on_step or kind.metrics is not StepCallback.metrics
