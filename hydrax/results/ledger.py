"""The ledger: one row per head, with its settings and its outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hydrax.files import table_text, write_text
from hydrax.slices import LEDGER_COLUMNS, Slices
from hydrax.step import HeadModule, per_head_values


def head_settings(slices: Slices, module: HeadModule) -> list[dict[str, Any]]:
    """Lists the settings of each head: head, recipe, seed, length, axes of its slices, `PerHead` values.

    If the slices have an axis `seed`, that is the head's seed, and the seed of its slice is in `slice_seed`. An axis
    and a `PerHead` with the same name and equal values share a column; otherwise each name is prefixed with its origin,
    as in `axis.lr` and `hparams.lr`. A `PerHead` named like one of the ledger's own columns is prefixed too.

    Returns:
      One dict per head. `head` is its id; `seed`, unless it is an axis, is the seed of its slice, or None if the rows
      of the slice depend on no seed.
    """
    return _rows(_own(slices) | _chosen(slices, module))


def ledger(
    slices: Slices,
    module: HeadModule,
    *,
    score: np.ndarray | None,
    live: np.ndarray,
    finite: np.ndarray,
    lost: np.ndarray,
    reasons: Mapping[int, str],
    origins: Sequence[str] = (),
    more: Mapping[str, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """Lists the settings of each head, as `head_settings` does, and its outcome: score, status, reason.

    Args:
      slices: the heads' slices.
      module: the module, for its `PerHead` values.
      score: float[H], or None if there is no score yet.
      live: bool[H], False for heads that a callback stopped.
      finite: bool[H], False for heads with a parameter that is NaN or infinite.
      lost: bool[H], True for heads in quarantine.
      reasons: why heads no longer learn, by place.
      origins: for each head where its first weights were from, for a column `init_from`; empty if they were fresh.
      more: further columns [H] by name, placed after the score.

    Returns:
      `status` is "ok", "stopped", "quarantined" or "not finite".
    """
    became: dict[str, Sequence[Any]] = {
        "score": [None] * len(slices) if score is None else _plain(score),
        **{name: _plain(np.asarray(column)) for name, column in (more or {}).items()},
        "status": np.select([lost, ~finite, live], ["quarantined", "not finite", "ok"], "stopped").tolist(),
        "reason": [reasons.get(place, "") for place in range(len(slices))],
        **({"init_from": origins} if origins else {}),
    }
    return _rows(_own(slices) | became | _chosen(slices, module))


def _own(slices: Slices) -> dict[str, Sequence[Any]]:
    of_slices = _slice_seeds(slices)
    return {
        "head": slices.ids.tolist(),
        "recipe": slices.recipes(),
        "seed": slices.axes["seed"].tolist() if "seed" in slices.axes else of_slices,
        "length": slices.lengths.tolist(),
    }


def _chosen(slices: Slices, module: HeadModule) -> dict[str, Sequence[Any]]:
    values = {f"axis.{name}": column for name, column in slices.axes.items() if name != "seed"} | {
        name if "." in name else f"module.{name}": per_head.values for name, per_head in per_head_values(module).items()
    }
    return {
        **({"slice_seed": _slice_seeds(slices)} if "seed" in slices.axes else {}),
        **{name: column.tolist() if column.ndim == 1 else list(column) for name, column in _named(values).items()},
    }


def _slice_seeds(slices: Slices) -> list[int | None]:
    return [None if seed < 0 else seed for seed in slices.seeds.tolist()]


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _named(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops the origin from the names of columns, unless columns of the same bare name differ."""
    bare = {name: name.partition(".")[2] for name in values}
    named = {}
    for name, column in values.items():
        others = [values[other] for other in values if bare[other] == bare[name] and other != name]
        equal = all(np.array_equal(column, other) for other in others)
        named[bare[name] if equal and bare[name] not in (*LEDGER_COLUMNS, "seed") else name] = column
    return named


def _plain(column: np.ndarray) -> Sequence[Any]:
    return column.tolist() if column.dtype.kind in "iub" else [shortest(value) for value in column]


def shortest(score: np.floating) -> float:
    """Rounds a score to the fewest digits that still identify it in its float type, which keeps tables readable."""
    return float(str(score))


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a ledger; a reader sees the old file or the whole new one."""
    write_text(path, table_text(rows), sync=True)
