"""The ledger: one row for each head, with all that makes it this head and what became of it."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hydrax.module import HydraModule, per_head_values
from hydrax.slices import Slices

_COLUMNS = ("head", "recipe", "seed", "length", "score", "status")


def ledger(
    slices: Slices, module: HydraModule, *, score: np.ndarray | None, live: np.ndarray, finite: np.ndarray
) -> list[dict[str, Any]]:
    """One dict a head: head, recipe, seed, length, score, status, the axes of its slices, and the `PerHead` values.

    An axis or hyper-parameter of one of the first names has `axis.` or `hparams.` before it; but an axis `seed` is the
    head's seed, and that of its slice is then `slice_seed`.

    Args:
      slices: the heads' slices.
      module: the module, for its `PerHead` values.
      score: float[H], or None for no score yet.
      live: bool[H], False where a callback stopped the head.
      finite: bool[H], False where a parameter is NaN or Inf.

    Returns:
      `seed` is that of the slice, None where its rows depend on none, unless it is an axis; `status` is "ok", "stopped"
      or "not finite".
    """
    per_head = {
        name if short in _COLUMNS else short: value
        for name, value in per_head_values(module).items()
        for short in [name.removeprefix("hparams.")]
    }
    axes = {f"axis.{name}" if name in _COLUMNS else name: values.tolist() for name, values in slices.axes.items()}
    seeds = axes.pop("axis.seed", None)
    return [
        {
            "head": int(slices.ids[h]),
            "recipe": slices.recipe(h),
            "seed": _seed(slices, h) if seeds is None else seeds[h],
            "length": int(slices.lengths[h]),
            "score": None if score is None else shortest(score[h]),
            "status": "not finite" if not finite[h] else "ok" if live[h] else "stopped",
            **({} if seeds is None else {"slice_seed": _seed(slices, h)}),
            **{name: values[h] for name, values in axes.items()},
            **{name: value[h] for name, value in per_head.items()},
        }
        for h in range(len(slices))
    ]


def _seed(slices: Slices, head: int) -> int | None:
    return None if slices.seeds[head] < 0 else int(slices.seeds[head])


def shortest(score: np.floating) -> float:
    """The number with the fewest digits that is still this float32 (or wider): a table of them can be read."""
    return float(str(score))


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a ledger; a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draft.replace(path)
