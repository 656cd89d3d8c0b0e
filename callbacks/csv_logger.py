"""Writes what a run logs as a table, one line for each head and metric."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import numpy as np

from hydrax import Callback, Event
from hydrax.errors import ArgumentError

COLUMNS = ("step", "head", "metric", "value")


class CSVLogger(Callback):
    """Writes `metrics.csv` into `trainer.log_dir`: step, head (its id), metric, value; nothing where that is None.

    Training metrics are written at every step that `trainer.log_every_n_steps` divides, the others whenever they come;
    values that are NaN, of heads in quarantine or without a value yet, are left out. A file that cannot be written
    never stops a fit: what does not get there is counted, and the logger "hydrax" says so once.

    Args:
      filename: of the table.

    Raises:
      ArgumentError: the filename is none.

    Attributes:
      num_dropped: values that could not be written.
    """

    def __init__(self, filename: str | os.PathLike[str] = "metrics.csv") -> None:
        if not isinstance(filename, str | os.PathLike):
            raise ArgumentError(
                f"A file has no such name: CSVLogger(filename=...). Got {filename!r}, expected a name or path. Fix: "
                'leave it out for "metrics.csv".'
            )
        self.filename = filename
        self.num_dropped = 0
        self._file: TextIO | None = None
        self._ids = np.zeros(0, np.int64)

    def on_train_start(self, event: Event) -> None:
        self._close()
        self._ids = np.zeros(0, np.int64)
        if event.trainer.log_dir is None:
            return
        self._ids = np.asarray(event.trainer.heads.ids)
        path = Path(event.trainer.log_dir) / self.filename
        try:
            self._file = path.open("w", newline="")
            csv.writer(self._file).writerow(COLUMNS)
        except OSError as error:
            self._give_up(path, error)

    def on_train_steps_end(self, event: Event) -> None:
        for row in np.flatnonzero(event.steps % event.trainer.log_every_n_steps == 0):
            self._write(int(event.steps[row]), {name: values[row] for name, values in event.metrics.items()})

    def on_validation_end(self, event: Event) -> None:
        self._write(event.step, event.metrics)

    def on_train_epoch_end(self, event: Event) -> None:
        self._write(event.step, event.metrics)

    def teardown(self, event: Event) -> None:
        self._close()

    def _write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        if not self._ids.size:
            return  # nothing is to be written, or this is no fit
        lines = [
            (step, head, name, str(value))  # the fewest digits that are still this number
            for name, values in metrics.items()
            for head, value in zip(self._ids.tolist(), values, strict=True)
            if not np.isnan(value)
        ]
        if self._file is None:
            self.num_dropped += len(lines)
            return
        try:
            csv.writer(self._file).writerows(lines)
            self._file.flush()
        except OSError as error:
            self.num_dropped += len(lines)
            self._give_up(Path(self._file.name), error)

    def _give_up(self, path: Path, error: OSError) -> None:
        logging.getLogger("hydrax").warning(
            "Values are dropped: CSVLogger, %s. Got %r, expected a file that takes them. Fix: make room there, or give "
            "Trainer another default_root_dir; the run goes on without them.",
            path,
            error,
        )
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError:  # what was left in its buffer
                self.num_dropped += 1
            self._file = None
