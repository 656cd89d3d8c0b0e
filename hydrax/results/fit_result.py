"""FitResult, the return value of a fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hydrax.arguments import checked_calls, is_choice
from hydrax.engine import Plan
from hydrax.errors import ArgumentError
from hydrax.files import as_path
from hydrax.notebook import table_box
from hydrax.results.heads import Heads
from hydrax.results.ledger import Ledger, write_csv

_SEEDS = ("seed", "slice_seed")  # columns of the ledger


class Best(NamedTuple):
    """The best head.

    Attributes:
      place: its index, as in `result.heads[place]` and `result.metrics[name][place]`.
      score: its metric.
      settings: its row of the ledger: id, slice, seed, axes, `PerHead` values.
      model: the model, as `configure_model` built it.
    """

    place: int
    score: float
    settings: dict[str, Any]
    model: Any


@checked_calls
@dataclasses.dataclass(frozen=True)
class FitResult:
    """The return value of a fit.

    Attributes:
      heads: the trained heads.
      metrics: the latest value of everything logged, float[H] by name.
      live: bool[H], False for heads that a callback stopped.
      step: optimiser updates done.
      log_dir: the run's folder, or None if nothing was written.
      ledger: one row per head: head, recipe, seed, length, score, status, reason, axes of its slices, `PerHead` values.
        It reads like a list of dicts; `ledger.columns` are the same as NumPy arrays [H] by name.
      plan: how the fit was executed; its chunk and lowering shaped the heads' bits.
      interrupted: whether Ctrl-C ended the fit, which then raised KeyboardInterrupt; this is `trainer.result`. If the
        run was saved, `ckpt_path="last"` resumes it.
    """

    heads: Heads
    metrics: Mapping[str, np.ndarray]
    live: np.ndarray
    step: int
    log_dir: Path | None
    ledger: Ledger
    plan: Plan | None = None
    interrupted: bool = False

    def best(self, monitor: str = "val_loss", mode: str = "min") -> Best:
        """Finds the head whose last logged value of a metric is best; ties go to the first.

        Args:
          monitor: the metric.
          mode: "min" if a lower value is better, else "max".

        Raises:
          ArgumentError: no metric of that name was logged, or no head has a finite value.
        """
        if not is_choice(monitor, self.metrics) or not is_choice(mode, ("min", "max")):
            raise ArgumentError(
                f"There is no best head: FitResult.best({monitor!r}, {mode!r}). Expected one of "
                f'{", ".join(sorted(self.metrics))}, and "min" or "max". Fix: name a metric that was logged.'
            )
        values = np.where(np.isfinite(self.metrics[monitor]), self.metrics[monitor], np.nan)
        if np.isnan(values).all():
            raise ArgumentError(
                f"There is no best head: FitResult.best({monitor!r}). Got no head with a finite value, expected one. "
                "Fix: see the status and reason of each head in result.ledger."
            )
        place = int(np.nanargmin(values) if mode == "min" else np.nanargmax(values))
        return Best(place, float(values[place]), self.ledger[place], self.heads[place])

    def table(self, metrics: Mapping[str, np.ndarray] | None = None) -> Any:
        """Builds a tidy table with one row per head: the ledger's columns, then the last value of everything logged.

        Args:
          metrics: further columns [H] by name, such as the return value of `trainer.test()`.

        Returns:
          A `pandas.DataFrame` if pandas is installed, else a dict of NumPy arrays [H]; `table["lr"]` works on both. A
          number that a head does not have is NaN. If no slice was drawn at random, there is no column `seed`.

        Raises:
          ArgumentError: a column is not [H].
        """
        # Slices without random draws have no seed, and a column of NaN would look like a mistake.
        columns = {name: c for name, c in self.ledger.arrays().items() if name not in _SEEDS or not _is_all_nan(c)}
        for name, value in {**self.metrics, **(metrics or {})}.items():
            self._check_column(f"metrics[{name!r}]", value)
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
          scores: float[H], replaces the column `score`; None keeps it.
        """
        file, ledger = as_path("FitResult.save_ledger(path=)", path), self.ledger
        if scores is not None:
            own = np.asarray(scores) * np.float32(1)  # whole numbers become floats; float64 keeps its digits
            self._check_column("scores", own)
            ledger = Ledger({**ledger.columns, "score": own})
        write_csv(file, ledger)
        return file

    def _check_column(self, what: str, value: Any) -> None:
        if np.shape(value) != (len(self.ledger),):
            raise ArgumentError(
                f"A column does not fit the table: {what}. Got shape {list(np.shape(value))}, expected "
                f"[{len(self.ledger)}], one value for each head. Fix: pass what test() of these heads gave."
            )

    def _repr_html_(self) -> str:
        rows = []
        for name, values in self.metrics.items():
            known = values[np.isfinite(values)].astype(np.float64)
            shown = (np.median(known), known.mean(), known.min(), known.max()) if known.size else [np.nan] * 4
            rows.append([name, *(f"{number:.4g}" for number in shown), f"{known.size:,}"])
        live = int(np.count_nonzero(self.live))
        title = f"{len(self.heads):,} heads after {self.step:,} steps, {live:,} of them live"
        return table_box(title, ("metric", "median", "mean", "min", "max", "heads"), rows)

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name}={_median(value):.4g}" for name, value in self.metrics.items())
        return f"FitResult({self.heads!r}, step={self.step}, median over heads: {metrics})"


def _is_all_nan(column: np.ndarray) -> bool:
    return column.dtype.kind == "f" and bool(np.isnan(column).all())


def _median(values: np.ndarray) -> float:
    """Computes the median over the heads that have a value."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else np.nan
