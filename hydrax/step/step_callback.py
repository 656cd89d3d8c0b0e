"""The second tier of a callback: pure functions of one head that run inside the compiled program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax


class StepInfo(NamedTuple):
    """What `on_step` and `metrics` of a callback see of one head's update.

    Attributes:
      trainable: the parameters after the update.
      gradients: the gradients after clipping, shaped like `trainable`.
      updates: what the optimiser added to the parameters.
      loss: the mean loss over the live slots, a scalar.
      step: int32 scalar, the number of updates done before this one.
      opt_state: the state of the optimiser after the update.
      hparams: the hyper-parameters of the module; each `PerHead` is this head's value, a traced scalar.
      unclipped: the gradients before clipping; the same object as `gradients` if nothing clips.
    """

    trainable: Any
    gradients: Any
    updates: Any
    loss: jax.Array
    step: jax.Array
    opt_state: Any = None
    hparams: Any = None
    unclipped: Any = None


class StepCallback:
    """The second tier of a callback; its state is carried along and saved with each head.

    The methods are traced into the training program, so they must be pure, and they cost nothing on the host.

    Attributes:
      evaluate: whether `evaluation_parameters` is called.
    """

    evaluate: bool = True

    def init(self, head: Any) -> Any:
        """Second tier: creates the callback's state of one head.

        Args:
          head: the parameters of the head before its first step.

        Returns:
          A pytree of arrays; shapes and dtypes must stay the same from step to step.
        """
        return ()

    def on_step(self, state: Any, info: StepInfo) -> Any:
        """Second tier: computes the state after one update of one head.

        Args:
          state: the state before the update, as `init` or the last `on_step` returned it.
          info: the update.
        """
        return state

    def metrics(self, state: Any, info: StepInfo) -> Mapping[str, Any]:
        """Second tier: returns scalars to log for one update of one head, by name.

        Args:
          state: the state after the update.
          info: the update.
        """
        return {}

    def evaluation_parameters(self, parameters: Any, state: Any) -> Any:
        """Second tier: returns the parameters of one head to evaluate in place of those that are trained.

        Called after `HydraModule.evaluation_parameters`, which describes where they are used, unless the attribute
        `evaluate` is False.

        Args:
          parameters: the parameters that would be evaluated otherwise.
          state: the state of the callback.
        """
        return parameters


def has_second_tier(callback: StepCallback) -> bool:
    """Whether a callback has anything to run inside the compiled program."""
    kind = type(callback)
    names = ("on_step", "metrics", "evaluation_parameters")
    return any(getattr(kind, name) is not getattr(StepCallback, name) for name in names)


def evaluates_others(callback: StepCallback) -> bool:
    """Whether a callback may replace the parameters to evaluate."""
    return callback.evaluate and type(callback).evaluation_parameters is not StepCallback.evaluation_parameters
