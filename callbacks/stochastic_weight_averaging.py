"""Averages the parameters of each head over the last part of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hydrax import Callback, Heads, StepInfo, TrainerView
from hydrax.arguments import is_int, require


class StochasticWeightAveraging(Callback):
    """Keeps the plain mean of each head's parameters, from a step on.

    The mean belongs to its head: it is frozen, rolled back, saved and resumed together with it. Batch statistics are
    those of the trained parameters: prefer layer norm, or a small learning rate at the end.

    Args:
      start_step: number of updates before the first that counts; until then the mean equals the parameters.
      every_n_steps: number of updates between two that count. Default: 1.
      evaluate: whether the mean takes the place of the trained parameters outside training, as in
        `ExponentialMovingAverage`. Default: True.

    Raises:
      ArgumentError: an argument is out of range.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018.
    """

    def __init__(self, start_step: int, every_n_steps: int = 1, evaluate: bool = True) -> None:
        name = type(self).__name__
        whole, fix = is_int(start_step, least=0), "average over the last quarter of training"
        require(whole, f"{name}(start_step=...)", start_step, "an int of 0 or more", fix)
        whole = is_int(every_n_steps, least=1)
        require(whole, f"{name}(every_n_steps=...)", every_n_steps, "an int of 1 or more", "leave it out for 1")
        is_bool = isinstance(evaluate, bool)
        require(is_bool, f"{name}(evaluate=...)", evaluate, "True or False", "leave it out for True")
        self.start_step, self.every_n_steps, self.evaluate = int(start_step), int(every_n_steps), evaluate

    @staticmethod
    def schedule(lr: Any, swa_lr: Any, start_step: int, annealing_steps: int) -> Callable[[Any], Any]:
        """Makes the learning rates that belong to it, for `configure_optimizers`: `optax.sgd(schedule(...))`.

        Args:
          lr: the learning rate before `start_step`, a number or an optax schedule.
          swa_lr: the constant learning rate while models are averaged.
          start_step: as in the callback.
          annealing_steps: steps from `start_step` on in which the rate moves from `lr` to `swa_lr`, along a cosine.
        """
        before = lr if callable(lr) else lambda step: lr

        def rate(step: Any) -> Any:
            done = jnp.clip((step - start_step) / max(annealing_steps, 1), 0, 1)
            begin = before(start_step)
            after = begin + (swa_lr - begin) * (1 - jnp.cos(jnp.pi * done)) / 2
            return jnp.where(step < start_step, before(step), after)

        return rate

    def init(self, head: Any) -> Any:
        return {"average": jax.tree.map(jnp.asarray, head), "count": jnp.zeros((), jnp.int32)}

    def on_step(self, state: Any, info: StepInfo) -> Any:
        since = info.step - self.start_step
        counts = (since >= 0) & (since % self.every_n_steps == 0)
        count = state["count"] + counts
        weight = jnp.where(counts, 1 / jnp.maximum(count, 1), jnp.where(since < 0, 1.0, 0.0))

        def average(old: jax.Array, new: jax.Array) -> jax.Array:
            return (old + weight * (new - old)).astype(old.dtype)

        return {"average": jax.tree.map(average, state["average"], info.trainable), "count": count}

    def evaluation_parameters(self, parameters: Any, state: Any) -> Any:
        return state["average"]

    def heads(self, trainer: TrainerView) -> Heads:
        """Returns the heads with averaged parameters; all other state, such as batch statistics, is as last trained."""
        now: Heads = trainer.heads
        return now.with_trainable(jax.tree.map(jnp.asarray, trainer.callback_state(self)["average"]))
