"""Worker processes that read the rows of a source; each has its own copy of the source."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, BrokenExecutor, Future, ProcessPoolExecutor, wait
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle  # pickles lambdas, and what a script or notebook defines
import jax
import numpy as np

from hydrax.data.access import SourceRows
from hydrax.errors import DataError

Part = tuple[list[np.ndarray], list[list[int]]]  # one array [U, ...] per column, and its rows that are not finite


class RowProcesses:
    """Starts the processes and waits until each has read row 0.

    Args:
      source: the random-access source; it is sent to each process once.
      stage: names the dataset in errors.
      wide: keep 64-bit columns.
      count: number of processes.

    Raises:
      DataError: the source cannot be sent, or a process does not start.
    """

    def __init__(self, source: Any, stage: str, wide: bool, count: int) -> None:
        self._name = f"{stage} dataset"
        context = multiprocessing.get_context("spawn")  # a forked copy of a process with JAX's threads may hang
        # Held open by this process alone: when it closes, by whatever cause, the workers end too.
        leash, self._leash = context.Pipe(duplex=False)
        # The row that each process is reading, or -1; it says where a process died.
        self._current = context.RawArray("q", [-1] * count)
        start = (leash, self._pickled(source), stage, wide, self._current, context.Barrier(count))
        self._pool = ProcessPoolExecutor(count, context, _start, start)
        try:
            for ready in wait([self._pool.submit(_get_ready) for _ in range(count)], return_when=FIRST_EXCEPTION).done:
                ready.result()
        except BrokenExecutor as error:
            self.close()
            raise DataError(
                f"Reader processes cannot start: {self._name}. Got a process that ended before it read row 0 (see its "
                "output above), expected processes that import the main script again and wait. Fix: start the run "
                'under `if __name__ == "__main__":`, or set read_processes=0.'
            ) from error
        except Exception as error:
            self.close()
            raise self._unsendable(error) from error

    def submit(self, rows: np.ndarray, check: Sequence[bool]) -> Future[Part]:
        """Starts to read rows int[U]."""
        return self._pool.submit(_read, rows, check)

    def rows_at_death(self) -> list[int]:
        """Returns the rows that were being read when a process died; the pool then ends all the others."""
        return sorted({row for row in self._current if row >= 0})

    def close(self) -> None:
        """Ends the processes, even while they read a row."""
        self._leash.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _pickled(self, source: Any) -> bytes:
        try:
            pickled: bytes = cloudpickle.dumps(source)
            return pickled
        except Exception as error:
            raise self._unsendable(error) from error

    def _unsendable(self, error: Exception) -> DataError:
        return DataError(
            f"A source cannot be sent to reader processes: {self._name}. Got {type(error).__name__}: {error!s:.80}, "
            "expected a source that can be pickled. Fix: open files when the first row is read, or set "
            "read_processes=0."
        )


class _Worker:
    """State of one worker process."""

    def __init__(self, pickled: bytes, stage: str, wide: bool, current: Any, all_ready: Any) -> None:
        self._pickled, self._stage, self._wide = pickled, stage, wide
        self._current, self._all_ready = current, all_ready

    def get_ready(self) -> None:
        # This cannot be done in the pool's initializer: its exceptions never reach the parent.
        self.rows = SourceRows(cloudpickle.loads(self._pickled), self._stage, self._wide)
        # All processes wait here, so that Ctrl-C finds none half started; the barrier also gives each its number.
        self._number = self._all_ready.wait()

    def reads(self, row: int) -> None:
        self._current[self._number] = row


_worker: _Worker  # exists in worker processes only


def _start(leash: Connection, *state: Any) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, but the parent still needs its rows
    jax.config.update("jax_platforms", "cpu")  # the accelerator's memory belongs to the parent
    threading.Thread(target=_end_with_parent, args=(leash,), daemon=True).start()
    _worker = _Worker(*state)


def _end_with_parent(leash: Connection) -> None:
    """Ends this process when the parent closes its end of the pipe or dies, even by SIGKILL; nothing is ever sent."""
    leash.poll(None)
    os._exit(0)  # at once: the main thread may be inside a read that never ends


def _get_ready() -> None:
    _worker.get_ready()


def _read(rows: np.ndarray, check: Sequence[bool]) -> Part:
    out = [np.empty((len(rows), *column.shape), column.dtype) for column in _worker.rows.columns]
    try:
        return out, _worker.rows.fill(rows, out, check, before_row=_worker.reads)
    finally:
        _worker.reads(-1)
