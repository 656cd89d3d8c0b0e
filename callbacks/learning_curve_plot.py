"""Draws the learning curve at the end of a fit."""

from __future__ import annotations

from pathlib import Path

from hydrax import Callback, Event
from hydrax.errors import ArgumentError
from hydrax.files import csv_text, warn_if_unwritable, write_bytes, write_text
from hydrax.loggers import CURVE_COLUMNS, can_draw, curve_of, learning_curve, to_png
from hydrax.results import column_of


class LearningCurvePlot(Callback):
    """Draws a metric against slice length at the end of a fit.

    Two files are written into `trainer.log_dir`: `learning_curve_<metric>.csv`, with one line per slice length (number
    of heads, mean, standard deviation, minimum, quantiles, maximum), and, if matplotlib is installed, the figure
    `learning_curve_<metric>.png`. Quarantined heads are left out. If `trainer.log_dir` is None, nothing is written.

    Args:
      metric: name of the metric, whose last logged value is drawn. Default: `val_loss`, or `train_loss` in a fit
        without validation.

    Raises:
      ArgumentError: `metric` is not a string, or no metric of that name was logged.
    """

    def __init__(self, metric: str | None = None) -> None:
        if metric is not None and (not isinstance(metric, str) or not metric):
            raise _error(metric, "the name of a metric")
        self.metric = metric

    def setup(self, event: Event) -> None:
        # Names of validation metrics are known before training, those of training metrics only after its first step.
        if event.stage == "fit" and self.metric is not None and self.metric.startswith("val_"):
            if self.metric not in event.trainer.validation_metrics:
                names = ", ".join(sorted(event.trainer.validation_metrics)) or "none, as this fit has no validation"
                raise _error(self.metric, f"one of the validation metrics: {names}")

    def on_fit_end(self, event: Event) -> None:
        known, folder = event.trainer.callback_metrics, event.trainer.log_dir
        metric = self.metric or ("val_loss" if "val_loss" in known else "train_loss")
        if metric not in known:
            raise _error(metric, f"one of the logged metrics: {', '.join(sorted(known))}")
        if folder is None:
            return
        lengths = column_of(event.trainer.head_settings(), "length")
        table = csv_text([CURVE_COLUMNS, *curve_of(lengths, known[metric]).tolist()])
        path = Path(folder) / f"learning_curve_{metric.replace('/', '_')}"
        with warn_if_unwritable("The learning curve", path, "read the numbers in result.table()"):
            write_text(path.with_name(path.name + ".csv"), table)
            if can_draw():
                picture = to_png(learning_curve(lengths, known[metric], metric))
                write_bytes(path.with_name(path.name + ".png"), picture)


def _error(metric: object, expected: str) -> ArgumentError:
    return ArgumentError(
        f"Unknown metric: LearningCurvePlot(metric=...). Got {metric!r}, expected {expected}. Fix: pass the name of a "
        "metric that the module logs, or leave it out for val_loss."
    )
