"""FitResult: what a fit gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hydrax.errors import ArgumentError
from hydrax.heads import Heads
from hydrax.ledger import shortest, write_csv
from hydrax.plan import Plan


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a fit gives back.

    Attributes:
      heads: the trained heads.
      metrics: the latest value of everything logged, float[H] by name.
      live: bool[H], False for heads that a callback stopped.
      step: optimiser updates done.
      log_dir: the run's folder, or None where nothing was written.
      ledger: one dict a head: head, recipe, seed, length, score, status, reason, axes of its slices, `PerHead` values.
      plan: how the fit was executed; its chunk and lowering shaped the heads' bits.
      interrupted: whether Ctrl-C ended the fit, which `ckpt_path="last"` goes on with.
    """

    heads: Heads
    metrics: Mapping[str, np.ndarray]
    live: np.ndarray
    step: int
    log_dir: Path | None
    ledger: list[dict[str, Any]]
    plan: Plan | None = None
    interrupted: bool = False

    def table(self, metrics: Mapping[str, np.ndarray] | None = None) -> Any:
        """A tidy table with one row a head: the ledger's columns, then everything logged, as it was last.

        Args:
          metrics: more columns [H] by name, such as what `trainer.test()` gave.

        Returns:
          A `pandas.DataFrame` where pandas is installed, else a dict of NumPy arrays [H]; `table["lr"]` works on both.
          What a head does not have is NaN among numbers.
        """
        columns = {name: _column([row[name] for row in self.ledger]) for name in self.ledger[0]}
        for name, value in {**self.metrics, **(metrics or {})}.items():
            if np.shape(value) != (len(self.ledger),):
                raise ArgumentError(
                    f"A column does not fit the table: metrics[{name!r}]. Got shape {list(np.shape(value))}, expected "
                    f"[{len(self.ledger)}], one value for each head. Fix: pass what test() of these heads gave."
                )
            columns.setdefault(name, np.asarray(value))
        try:
            import pandas
        except ImportError:
            return columns
        return pandas.DataFrame(columns)

    def save_ledger(self, path: str | Path, scores: np.ndarray | None = None) -> Path:
        """Writes the ledger as CSV.

        Args:
          path: the file.
          scores: float[H], what to put under `score`; None keeps what is there.
        """
        rows = self.ledger
        if scores is not None:
            rows = [{**row, "score": shortest(s)} for row, s in zip(rows, np.asarray(scores), strict=True)]
        write_csv(Path(path), rows)
        return Path(path)

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name}={_median(value):.4g}" for name, value in self.metrics.items())
        return f"FitResult({self.heads!r}, step={self.step}, median over heads: {metrics})"


def _median(values: np.ndarray) -> float:
    """Over the heads that have a value."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else np.nan


def _column(values: list[Any]) -> np.ndarray:
    """Values of one column; None among numbers is NaN, and a `PerHead` of arrays a column of objects."""
    column = np.array([np.nan if value is None else value for value in values])
    if column.ndim == 1:
        return column
    objects = np.empty(len(values), object)
    objects[:] = list(column)
    return objects
