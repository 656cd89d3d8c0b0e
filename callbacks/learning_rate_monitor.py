"""The learning rate of each head, logged from inside the compiled program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from hydrax import Callback, StepInfo
from hydrax.errors import ArgumentError


class LearningRateMonitor(Callback):
    """Logs `learning_rate`, that of each head's update, as the other metrics of its steps.

    An optax optimiser keeps its learning rate to itself, unless `optax.inject_hyperparams` made it; else say where it
    comes from.

    Args:
      source: None, what `inject_hyperparams` keeps in the optimiser's state; a text, the name of a hyper-parameter; or
        a function `(step, hparams) -> rate`, pure, of one head: the schedule that `configure_optimizers` gives to
        optax. `hparams` are the module's, each `PerHead` with this head's own value.

    Raises:
      ArgumentError: the source is none of these, or, before anything compiles, there is no learning rate there.
    """

    def __init__(self, source: str | Callable[[Any, Any], Any] | None = None) -> None:
        if source is not None and not isinstance(source, str) and not callable(source):
            raise _error(source, "None, a name or a function (step, hparams) -> rate")
        self.source = source

    def metrics(self, state: Any, info: StepInfo) -> Mapping[str, Any]:
        return {"learning_rate": jnp.asarray(self._find(info), jnp.float32)}

    def _find(self, info: StepInfo) -> Any:
        if callable(self.source):
            return self.source(info.step, info.hparams)
        if self.source is not None:
            if self.source not in info.hparams:
                raise _error(self.source, f"one of the hyper-parameters: {', '.join(info.hparams) or 'there are none'}")
            return info.hparams[self.source]
        # Beside the rate of a schedule stands the schedule's own state, under the same name.
        found = optax.tree.get_all_with_path(info.opt_state, "learning_rate", lambda _, value: hasattr(value, "dtype"))
        if len(found) != 1:
            raise _error(None, f"one learning rate in the optimiser's state, where there are {len(found)}")
        return found[0][1]


def _error(source: Any, expected: str) -> ArgumentError:
    return ArgumentError(
        f"There is no learning rate: LearningRateMonitor(source=...). Got {source!r}, expected {expected}. Fix: name a "
        'hyper-parameter, such as "lr"; pass the schedule as a function of (step, hparams); or make the optimiser with '
        "optax.inject_hyperparams(optax.adamw)(learning_rate=...)."
    )
