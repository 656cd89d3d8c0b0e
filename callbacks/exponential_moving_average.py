"""Averages the parameters of each head inside the compiled program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from hydrax import Callback, Heads, StepInfo, TrainerView
from hydrax.arguments import is_int, is_number, require


class ExponentialMovingAverage(Callback):
    """Keeps an exponential moving average of each head's parameters, from their initial values on.

    Each update sets `average = decay * average + (1 - decay) * parameters`. The average belongs to its head: it is
    frozen, rolled back, saved and resumed together with it. `heads(trainer)` returns the averaged models.

    Args:
      decay: weight of the old average, 0 < decay < 1; default: 0.999.
      start_step: number of updates before averaging begins; until then the average equals the parameters. Default: 0.
      evaluate: whether the averaged parameters take the place of the trained ones outside training: in validation and
        its monitors, among the best models, in `result.heads` and in what readers of checkpoints get. A resumed run
        continues with the trained ones. Default: False.

    Raises:
      ArgumentError: an argument is out of range.
    """

    def __init__(self, decay: float = 0.999, start_step: int = 0, evaluate: bool = False) -> None:
        name, fix = type(self).__name__, "0.999 averages over about 1,000 steps"
        require(is_number(decay) and 0 < decay < 1, f"{name}(decay=...)", decay, "a float, 0 < decay < 1", fix)
        whole = is_int(start_step, least=0)
        require(whole, f"{name}(start_step=...)", start_step, "an int of 0 or more", "leave it out for 0")
        is_bool = isinstance(evaluate, bool)
        require(is_bool, f"{name}(evaluate=...)", evaluate, "True or False", "leave it out for False")
        self.decay, self.start_step, self.evaluate = float(decay), int(start_step), evaluate

    def init(self, head: Any) -> Any:
        return {"average": jax.tree.map(jnp.asarray, head)}

    def on_step(self, state: Any, info: StepInfo) -> Any:
        decay = jnp.where(info.step < self.start_step, 0.0, self.decay)

        def average(old: jax.Array, new: jax.Array) -> jax.Array:
            return (decay * old + (1 - decay) * new).astype(old.dtype)

        return {"average": jax.tree.map(average, state["average"], info.trainable)}

    def evaluation_parameters(self, parameters: Any, state: Any) -> Any:
        return state["average"]

    def heads(self, trainer: TrainerView) -> Heads:
        """Returns the heads with averaged parameters; all other state, such as batch statistics, is as last trained."""
        now: Heads = trainer.heads
        return now.with_trainable(jax.tree.map(jnp.asarray, trainer.callback_state(self)["average"]))
