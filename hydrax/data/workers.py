"""Worker processes that read the rows of a source, each with a copy of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, BrokenExecutor, Future, ProcessPoolExecutor, wait
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle  # takes lambdas, and what a script or notebook defines
import jax
import numpy as np

from hydrax.data.access import SourceRows
from hydrax.errors import DataError

Part = tuple[list[np.ndarray], list[list[int]]]  # arrays [U, ...], one a column, and their rows that are not finite


class RowProcesses:
    """Starts the processes and waits until each has read row 0.

    Args:
      source: random access; sent to each process once.
      stage: names the dataset in errors.
      wide: keep 64-bit columns.
      count: processes.

    Raises:
      DataError: the source cannot be sent, or no process starts.
    """

    def __init__(self, source: Any, stage: str, wide: bool, count: int) -> None:
        self._name = f"{stage} dataset"
        context = multiprocessing.get_context("spawn")  # a fork of a process in which JAX runs may hang
        leash, self._leash = context.Pipe(duplex=False)
        # Row that each process is at, for the error that says where one died; -1: none.
        self._at = context.RawArray("q", [-1] * count)
        start = (leash, self._pickled(source), stage, wide, self._at, context.Barrier(count))
        self._pool = ProcessPoolExecutor(count, context, _start, start)
        try:
            for ready in wait([self._pool.submit(_get_ready) for _ in range(count)], return_when=FIRST_EXCEPTION).done:
                ready.result()
        except BrokenExecutor as error:
            self.close()
            raise DataError(
                f"Processes that read rows cannot start: {self._name}. Got one that ended before it read row 0 (its "
                "last words stand above), expected processes that import the script anew and wait. Fix: put what "
                'starts the run under `if __name__ == "__main__":`, or set read_processes=0.'
            ) from error
        except Exception as error:
            self.close()
            raise self._unsendable(error) from error

    def submit(self, rows: np.ndarray, check: Sequence[bool]) -> Future[Part]:
        """Has rows int[U] read; the result is theirs."""
        return self._pool.submit(_read, rows, check)

    def rows_at_death(self) -> list[int]:
        """Rows that processes were at when one of them died, and all others were ended."""
        return sorted({row for row in self._at if row >= 0})

    def close(self) -> None:
        """Ends the processes, also in the middle of a row."""
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
            f"A source cannot be sent to processes: {self._name}. Got {type(error).__name__}: {error!s:.80}, expected "
            "one that pickle takes apart and puts together. Fix: open files when the first row is read, or set "
            "read_processes=0."
        )


class _Worker:
    """What a process knows."""

    def __init__(self, pickled: bytes, stage: str, wide: bool, at: Any, all_ready: Any) -> None:
        self._pickled, self._stage, self._wide = pickled, stage, wide
        self._at, self._all_ready = at, all_ready

    def get_ready(self) -> None:
        # Not in the initializer, whose exceptions never reach the parent.
        self.rows = SourceRows(cloudpickle.loads(self._pickled), self._stage, self._wide)
        # No process is left half started, to be killed by Ctrl-C; and each gets a number of its own.
        self._place = self._all_ready.wait()

    def is_at(self, row: int) -> None:
        self._at[self._place] = row


_worker: _Worker  # set where this process is one that reads


def _start(leash: Connection, *known: Any) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the parent still wants its rows
    jax.config.update("jax_platforms", "cpu")  # the parent has the accelerator's memory
    threading.Thread(target=_end_with_parent, args=(leash,), daemon=True).start()
    _worker = _Worker(*known)


def _end_with_parent(leash: Connection) -> None:
    """Nothing is ever sent: poll returns when the parent has let go or is gone, be it by SIGKILL."""
    leash.poll(None)
    os._exit(0)


def _get_ready() -> None:
    _worker.get_ready()


def _read(rows: np.ndarray, check: Sequence[bool]) -> Part:
    out = [np.empty((len(rows), *column.shape), column.dtype) for column in _worker.rows.columns]
    try:
        return out, _worker.rows.fill(rows, out, check, at=_worker.is_at)
    finally:
        _worker.is_at(-1)
