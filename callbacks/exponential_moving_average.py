"""Averages of each head's parameters, made inside the compiled program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from hydrax import Callback, Heads, StepInfo, TrainerView
from hydrax.errors import ArgumentError


class ExponentialMovingAverage(Callback):
    """Keeps `decay * average + (1 - decay) * parameters` of each head, from its start values on.

    It is part of a head: frozen, taken back, saved and resumed with it. `heads(trainer)` gives the averaged models.

    Args:
      decay: weight of what was, 0 < decay < 1.
      start_step: updates done before averaging begins; until then the average is the parameters.

    Raises:
      ArgumentError: an argument is out of its range.
    """

    def __init__(self, decay: float = 0.999, start_step: int = 0) -> None:
        if isinstance(decay, bool) or not isinstance(decay, float) or not 0 < decay < 1:
            raise _error("decay", decay, "a float, 0 < decay < 1", "0.999 averages some 1,000 steps")
        if isinstance(start_step, bool) or not isinstance(start_step, int) or start_step < 0:
            raise _error("start_step", start_step, "an int of 0 or more", "leave it out for 0")
        self.decay, self.start_step = decay, start_step

    def init(self, head: Any) -> Any:
        return {"average": jax.tree.map(jnp.asarray, head)}

    def on_step(self, state: Any, info: StepInfo) -> Any:
        decay = jnp.where(info.step < self.start_step, 0.0, self.decay)

        def average(old: jax.Array, new: jax.Array) -> jax.Array:
            return (decay * old + (1 - decay) * new).astype(old.dtype)

        return {"average": jax.tree.map(average, state["average"], info.trainable)}

    def heads(self, trainer: TrainerView) -> Heads:
        """The heads with averaged parameters; their other state (batch statistics) is that of their last step."""
        now: Heads = trainer.heads
        return now.with_trainable(jax.tree.map(jnp.asarray, trainer.callback_state(self)["average"]))


def _error(name: str, value: Any, expected: str, fix: str) -> ArgumentError:
    return ArgumentError(
        f"An argument has no meaning: ExponentialMovingAverage({name}=...). Got {value!r}, expected {expected}. "
        f"Fix: {fix}."
    )
