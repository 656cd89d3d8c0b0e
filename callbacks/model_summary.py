"""A table of one head's parameters, before training starts."""

from __future__ import annotations

import logging
import math
from typing import Any

import jax

from hydrax import Callback, Event
from hydrax.errors import ArgumentError


class ModelSummary(Callback):
    """Says, once a fit starts, which parameters a head has, and what all heads take in memory.

    Args:
      max_lines: most arrays that the table names, 1 or more; the total counts all.

    Raises:
      ArgumentError: `max_lines` is out of its range.

    Attributes:
      text: what it said last; "" before.
    """

    def __init__(self, max_lines: int = 20) -> None:
        if isinstance(max_lines, bool) or not isinstance(max_lines, int) or max_lines < 1:
            raise ArgumentError(
                f"Count out of range: ModelSummary(max_lines=...). Got {max_lines!r}, expected an int of 1 or more. "
                "Fix: leave it out for 20, or pass Trainer(enable_model_summary=False) for no table."
            )
        self.max_lines, self.text = max_lines, ""

    def on_fit_start(self, event: Event) -> None:
        self.text = self._summary(event.trainer.head_shapes, event.trainer.num_heads)
        logging.getLogger("hydrax").info("%s", self.text)

    def _summary(self, shapes: Any, num_heads: int) -> str:
        named = {
            jax.tree_util.keystr(path, simple=True, separator="/") or "array": leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(shapes.trainable)
        }
        table = _table(named, self.max_lines)
        count = sum(math.prod(leaf.shape) for leaf in named.values())
        sizes = [_num_bytes(tree) for tree in (shapes.trainable, shapes.state, shapes.opt_state)]
        return (
            f"Parameters of one head:\n{table}\n{num_heads:,} heads: {num_heads * count:,} parameters; "
            f"{_megabytes(num_heads * sum(sizes))} for parameters, model state and optimiser."
        )


def _table(leaves: dict[str, Any], max_lines: int) -> str:
    """Names, shapes, dtypes and sizes. clu.parameter_overview has such a table, but imports Flax: half a second."""
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
