"""Logs the norm of each head's gradient from inside the compiled program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optax

from hydrax import Callback, StepInfo
from hydrax.arguments import require


class GradientNormMonitor(Callback):
    """Logs `grad_norm`, the 2-norm of each head's gradient after clipping, as a training metric.

    If `gradient_clip_val` clips, it also logs `grad_norm_before_clipping`.

    Args:
      by_group: whether to log `grad_norm/<group>` as well, for each outermost part of the model, such as a layer.
        Default: False.

    Raises:
      ArgumentError: `by_group` is not a bool.
    """

    def __init__(self, by_group: bool = False) -> None:
        is_bool, where = isinstance(by_group, bool), "GradientNormMonitor(by_group=...)"
        require(is_bool, where, by_group, "True or False", "leave it out for False")
        self.by_group = by_group

    def metrics(self, state: Any, info: StepInfo) -> Mapping[str, Any]:
        found = {"grad_norm": optax.tree.norm(info.gradients)}
        if info.unclipped is not info.gradients:
            found["grad_norm_before_clipping"] = optax.tree.norm(info.unclipped)
        if self.by_group and isinstance(info.gradients, Mapping):
            found |= {f"grad_norm/{name}": optax.tree.norm(part) for name, part in info.gradients.items()}
        return found
