"""Logs the learning rate of each head from inside the compiled program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from hydrax import Callback, StepInfo
from hydrax.errors import ArgumentError


class LearningRateMonitor(Callback):
    """Logs `learning_rate`, the learning rate of each head's update, as a training metric.

    An optax optimiser does not expose its learning rate unless `optax.inject_hyperparams` made it. For all others,
    `source` says where the learning rate comes from.

    Args:
      source: one of

        - None, the default: the learning rate that `optax.inject_hyperparams` keeps in the optimiser's state;
        - a string: the name of a hyper-parameter of the module;
        - a pure function `(step, hparams) -> rate` of one head, such as the schedule that `configure_optimizers` passes
          to optax. `hparams` holds the module's hyper-parameters, with this head's own value for each `PerHead`.

    Raises:
      ArgumentError: `source` is none of these, or (before anything compiles) no learning rate was found there.
    """

    def __init__(self, source: str | Callable[[Any, Any], Any] | None = None) -> None:
        if source is not None and not isinstance(source, str) and not callable(source):
            raise _error(source, "None, the name of a hyper-parameter, or a function (step, hparams) -> rate")
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
        # inject_hyperparams keeps the state of a schedule under the same name as its rate; only the rate is an array.
        found = optax.tree.get_all_with_path(info.opt_state, "learning_rate", lambda _, value: hasattr(value, "dtype"))
        if len(found) != 1:
            raise _error(None, f"an optimiser state with one learning rate, not {len(found)}")
        return found[0][1]


def _error(source: Any, expected: str) -> ArgumentError:
    return ArgumentError(
        f"No learning rate found: LearningRateMonitor(source=...). Got {source!r}, expected {expected}. Fix: pass the "
        'name of a hyper-parameter, such as "lr"; pass the schedule as a function of (step, hparams); or make the '
        "optimiser with optax.inject_hyperparams(optax.adamw)(learning_rate=...)."
    )
