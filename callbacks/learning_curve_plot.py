"""The learning curve, as a picture and a table, at the end of a fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hydrax import Callback, Event
from hydrax.errors import ArgumentError
from hydrax.files import csv_text, warn_if_unwritable, write_bytes, write_text
from hydrax.loggers import CURVE_COLUMNS, can_draw, curve_of, learning_curve, to_png


class LearningCurvePlot(Callback):
    """Draws a metric against slice length when a fit ends, into `trainer.log_dir`; nothing where that is None.

    `learning_curve_<metric>.csv` has a line for each length: heads, mean, standard deviation, minimum, quantiles and
    maximum. Heads in quarantine are in none. `learning_curve_<metric>.png` is drawn where matplotlib is installed.

    Args:
      metric: what to draw, as it is last logged; None: `val_loss`, or `train_loss` in a fit without validation.

    Raises:
      ArgumentError: the metric is no text, or nothing of that name was logged.
    """

    def __init__(self, metric: str | None = None) -> None:
        if metric is not None and (not isinstance(metric, str) or not metric):
            raise _error(metric, "the name of a metric")
        self.metric = metric

    def setup(self, event: Event) -> None:
        # What training logs is known by its first step; what validation logs now.
        if event.stage == "fit" and self.metric is not None and self.metric.startswith("val_"):
            if self.metric not in event.trainer.validation_metrics:
                names = ", ".join(sorted(event.trainer.validation_metrics)) or "none, as this fit has no validation"
                raise _error(self.metric, f"one of what validation logs: {names}")

    def on_fit_end(self, event: Event) -> None:
        known, folder = event.trainer.callback_metrics, event.trainer.log_dir
        metric = self.metric or ("val_loss" if "val_loss" in known else "train_loss")
        if metric not in known:
            raise _error(metric, f"one of what was logged: {', '.join(sorted(known))}")
        if folder is None:
            return
        lengths = np.array([head["length"] for head in event.trainer.head_settings()])
        table = csv_text([CURVE_COLUMNS, *curve_of(lengths, known[metric]).tolist()])
        path = Path(folder) / f"learning_curve_{metric.replace('/', '_')}"
        with warn_if_unwritable("The learning curve", path, "read the numbers in result.table()"):
            write_text(path.with_name(path.name + ".csv"), table)
            if can_draw():
                picture = to_png(learning_curve(lengths, known[metric], metric))
                write_bytes(path.with_name(path.name + ".png"), picture)


def _error(metric: object, expected: str) -> ArgumentError:
    return ArgumentError(
        f"There is no such metric: LearningCurvePlot(metric=...). Got {metric!r}, expected {expected}. Fix: name one "
        "that the module logs, or leave it out for val_loss."
    )
