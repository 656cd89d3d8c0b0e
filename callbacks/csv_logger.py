"""Writes what a run logs as a table, one line for each head and metric."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from hydrax import Callback, Event
from hydrax.errors import ArgumentError
from hydrax.files import csv_text, encoded

COLUMNS = ("step", "head", "metric", "value")


class CSVLogger(Callback):
    """Writes `metrics.csv` into `trainer.log_dir`: step, head (its id), metric, value; nothing where that is None.

    The module's hyper-parameters go into `hparams.yaml` beside it.

    Training metrics are written at every step that `trainer.log_every_n_steps` divides, the others whenever they come;
    values that are NaN, of heads in quarantine or without a value yet, are left out. A file that cannot be written
    never stops a fit: what does not get there is counted, the logger "hydrax" says so once, and what comes later is
    tried again.

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

    def on_train_steps_end(self, event: Event) -> None:
        for row in np.flatnonzero(event.steps % event.trainer.log_every_n_steps == 0):
            self._write(int(event.steps[row]), {name: values[row] for name, values in event.metrics.items()})

    def on_validation_end(self, event: Event) -> None:
        self._write(event.step, event.metrics)

    def on_train_epoch_end(self, event: Event) -> None:
        self._write(event.step, event.metrics)

    def teardown(self, event: Event) -> None:
        self._end()

    def _write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        if self._path is None:
            return  # nothing is to be written, or this is no fit
        lines = [
            (step, head, name, str(value))  # the fewest digits that are still this number
            for name, values in metrics.items()
            for head, value in zip(self._ids.tolist(), values, strict=True)
            if not np.isnan(value)
        ]
        if not self._append(lines):
            self.num_dropped += len(lines)

    def _append(self, lines: Iterable[tuple[int | str, ...]]) -> bool:
        """Whether all lines are in the file now; else none of them is.

        It is opened each time: it may be gone, or its disk may have had no room before.
        """
        assert self._path is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                # A disk that fills up takes the first half of a line.
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
                "Values are dropped: CSVLogger, %s. Got %r, expected a file that takes them. Fix: make room there, or "
                "give Trainer another default_root_dir; the run goes on without them.",
                self._path,
                error,
            )
