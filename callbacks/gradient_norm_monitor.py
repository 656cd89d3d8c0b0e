"""The norm of each head's gradient, logged from inside the compiled program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optax

from hydrax import Callback, StepInfo
from hydrax.errors import ArgumentError


class GradientNormMonitor(Callback):
    """Logs `grad_norm`, the 2-norm of each head's gradient after clipping, as the other metrics of its steps.

    Args:
      by_group: whether to log `grad_norm/<group>` too, for each of the model's outermost parts.

    Raises:
      ArgumentError: `by_group` is no bool.
    """

    def __init__(self, by_group: bool = False) -> None:
        if not isinstance(by_group, bool):
            raise ArgumentError(
                f"An argument has no meaning: GradientNormMonitor(by_group=...). Got {by_group!r}, expected True or "
                "False. Fix: leave it out for False."
            )
        self.by_group = by_group

    def metrics(self, state: Any, info: StepInfo) -> Mapping[str, Any]:
        found = {"grad_norm": optax.tree.norm(info.gradients)}
        if self.by_group and isinstance(info.gradients, Mapping):
            found |= {f"grad_norm/{name}": optax.tree.norm(part) for name, part in info.gradients.items()}
        return found
