"""Logs a run to a CSV file, one line per head and metric."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from hydrax import Callback, Event
from hydrax.arguments import require
from hydrax.files import csv_text, encoded
from hydrax.loggers import of_live_heads

COLUMNS = ("step", "head", "metric", "value")


class CSVLogger(Callback):
    """Logs metrics to `metrics.csv` in `trainer.log_dir`, with the columns step, head (its id), metric and value.

    The module's hyper-parameters are saved beside it, in `hparams.yaml`. If `trainer.log_dir` is None, nothing is
    written.

    Training metrics are logged at every step that `trainer.log_every_n_steps` divides, for the heads that still learn;
    all others whenever they are computed. NaN values are left out: those of quarantined heads and of heads without a
    value yet. A file that cannot
    be written never stops a fit. The values are dropped and counted, the logger "hydrax" warns once, and later values
    are tried again.

    Args:
      filename: name of the table; default: `metrics.csv`.

    Raises:
      ArgumentError: `filename` is neither a string nor a path.

    Attributes:
      num_dropped: number of values that could not be written.
    """

    def __init__(self, filename: str | os.PathLike[str] = "metrics.csv") -> None:
        is_name = isinstance(filename, str | os.PathLike)
        require(is_name, "CSVLogger(filename=...)", filename, "a file name", 'leave it out for "metrics.csv"')
        self.filename = filename
        self.num_dropped = 0
        self._ids = np.zeros(0, np.int64)
        self._end()

    def _end(self) -> None:
        self._path: Path | None = None
        self._whole_bytes, self._warned = 0, False

    def on_train_start(self, event: Event) -> None:
        self._end()
        if event.trainer.log_dir is None:
            return
        self._ids = np.asarray(event.trainer.heads.ids)
        self._path = Path(event.trainer.log_dir) / self.filename
        self._append([])
        event.trainer.save_hparams()

    @property
    def needs_every_epoch(self) -> bool:
        return False  # means over an epoch, if there are any, end a superstep with each epoch by themselves

    def on_train_steps_end(self, event: Event) -> None:
        for row in np.flatnonzero(event.steps % event.trainer.log_every_n_steps == 0):
            self._write(int(event.steps[row]), of_live_heads(event, row))

    def on_validation_end(self, event: Event) -> None:
        self._write(event.step, event.metrics)

    def on_train_epoch_end(self, event: Event) -> None:
        self._write(event.step, event.metrics)

    def teardown(self, event: Event) -> None:
        self._end()

    def _write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        if self._path is None:
            return  # the run has no log folder, or this is an evaluation outside a fit
        lines = [
            (step, head, name, str(value))  # NumPy's str has the fewest digits that still give this number
            for name, values in metrics.items()
            for head, value in zip(self._ids.tolist(), values, strict=True)
            if not np.isnan(value)
        ]
        if not self._append(lines):
            self.num_dropped += len(lines)

    def _append(self, lines: Iterable[tuple[int | str, ...]]) -> bool:
        """Appends all lines or none of them, and returns whether it did.

        The file is opened anew each time, as someone may have deleted it, or the disk may have been full before.
        """
        assert self._path is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                # A disk that fills up may have taken half of the last lines; they were counted as dropped.
                whole = file.truncate(min(file.tell(), self._whole_bytes))
                text = encoded(csv_text(lines if whole else [COLUMNS, *lines]))
                file.write(text)
        except (OSError, UnicodeError) as error:  # an ASCII locale cannot encode every file name
            self._warn(error)
            return False
        self._whole_bytes = whole + len(text)
        return True

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logging.getLogger("hydrax").warning(
                "Values were dropped: CSVLogger, %s. Got %r, expected a writable file with free space. Fix: free some "
                "space there, or pass another default_root_dir to Trainer; the run continues without these values.",
                self._path,
                error,
            )
