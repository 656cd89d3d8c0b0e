"""Logs a table of one head's parameters before training starts."""

from __future__ import annotations

import logging
import math
from typing import Any

import jax

from hydrax import Callback, Event
from hydrax.arguments import is_int, require
from hydrax.trees import named_leaves


class ModelSummary(Callback):
    """Logs the parameters of one head and the memory that all heads take, when a fit starts.

    Args:
      max_lines: number of arrays that the table lists, 1 or more; the total counts all of them. Default: 20.

    Raises:
      ArgumentError: `max_lines` is out of range.

    Attributes:
      text: the last table; empty before the first fit.
    """

    def __init__(self, max_lines: int = 20) -> None:
        fix = "leave it out for 20, or pass Trainer(enable_model_summary=False) for no table"
        require(is_int(max_lines, least=1), "ModelSummary(max_lines=...)", max_lines, "an int of 1 or more", fix)
        self.max_lines, self.text = max_lines, ""

    def on_fit_start(self, event: Event) -> None:
        self.text = self._summary(event.trainer.head_shapes, event.trainer.num_heads)
        logging.getLogger("hydrax").info("%s", self.text)

    def _summary(self, shapes: Any, num_heads: int) -> str:
        named = {name or "array": leaf for name, leaf in named_leaves(shapes.trainable).items()}
        table = _table(named, self.max_lines)
        count = sum(math.prod(leaf.shape) for leaf in named.values())
        sizes = [_num_bytes(tree) for tree in (shapes.trainable, shapes.state, shapes.opt_state)]
        return (
            f"Parameters of one head:\n{table}\n{num_heads:,} heads: {num_heads * count:,} parameters; "
            f"{_megabytes(num_heads * sum(sizes))} for parameters, model state and optimiser state."
        )


def _table(leaves: dict[str, Any], max_lines: int) -> str:
    """Formats names, shapes, dtypes and sizes. clu.parameter_overview does too, but takes half a second to import."""
    rows = [
        (name, str(list(leaf.shape)), str(leaf.dtype), f"{math.prod(leaf.shape):,}") for name, leaf in leaves.items()
    ]
    left = len(rows) - max_lines
    shown = [("name", "shape", "dtype", "size"), *rows[:max_lines]]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
    total = sum(math.prod(leaf.shape) for leaf in leaves.values())
    return "\n".join([*lines, *([f"... and {left} more arrays"] if left > 0 else []), f"{total:,} parameters"])


def _num_bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
