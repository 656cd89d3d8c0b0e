"""RowReader: reads selected rows of a dataset that stays on the host, and checks and converts them."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np

from hydrax.data.access import ArrayRows, SourceRows, is_source
from hydrax.data.columns import BadRow, aligned_zeros, report_not_finite
from hydrax.data.workers import Part, RowProcesses
from hydrax.errors import DataError

_DIGEST_ROWS = 16  # Most rows of a memory map or source that a digest reads.

Owners = Callable[[int], str]


class RowReader:
    """Reads the rows that a superstep needs, and nothing else of the dataset.

    Threads copy rows out of arrays. The items of a source are read by threads, several at a time, or by processes.

    Args:
      dataset: pytree of arrays or memory maps with the same leading length N; or a source (see `is_source`) whose items
        are pytrees of arrays and numbers, all with the structure, shapes and dtypes of item 0. If a source has
        `__getitems__(list)`, threads ask it for many rows at once. Arrays of other libraries (jax, torch, HDF5) are
        converted to NumPy as a whole: data that does not fit in memory needs a memory map or a source.
      stage: "train", "val", ...: names the dataset in errors.
      threads: number of threads that read.
      processes: number of processes that read a source; with 0, the threads read it.
      check_finite: reaction to NaN or Inf in a row: "warn" (once per column), "raise" or "off".
      wide: keep 64-bit columns (precision "64-true").

    Attributes:
      num_rows: N.
      shapes: pytree of `jax.ShapeDtypeStruct` [N, ...] with the dtypes of the device.
      row_bytes: bytes of one row on the device.

    Raises:
      DataError: there are no rows, row 0 cannot be read, columns differ in length or have an unsupported dtype, a
        mapped file was cut short, or processes cannot start.
    """

    def __init__(
        self,
        dataset: Any,
        stage: str,
        *,
        threads: int = 4,
        processes: int = 0,
        check_finite: str = "warn",
        wide: bool = False,
    ) -> None:
        from_source = is_source(dataset)
        self._name, self._check_finite = f"{stage} dataset", check_finite
        try:
            self._rows = SourceRows(dataset, stage, wide) if from_source else ArrayRows(dataset, stage, wide)
        except BadRow as bad:
            raise DataError(str(bad)) from bad.__cause__
        self._columns = self._rows.columns
        self.num_rows: int = self._rows.num_rows
        self.row_bytes: int = sum(column.row_bytes for column in self._columns)
        self.shapes: Any = self._tree(
            [jax.ShapeDtypeStruct((self.num_rows, *column.shape), column.dtype) for column in self._columns]
        )
        # True for columns that need no check: they cannot hold NaN, the user turned it off, or was warned already.
        self._warned = [not column.is_inexact or check_finite == "off" for column in self._columns]
        # A future and not an event, so that one `wait` covers both a job and the end.
        self._closing: Future[Any] = Future()
        self._close_once = threading.Lock()
        self._processes = RowProcesses(dataset, stage, wide, processes) if from_source and processes else None
        self._threads = ThreadPoolExecutor(threads, "hydrax-rows")

    def read(self, rows: np.ndarray, owners: Owners = lambda row: "", size: int | None = None) -> Any:
        """Reads rows into new buffers, which JAX may adopt without a copy.

        Args:
          rows: int[U], 0 <= row < N.
          owners: says for errors who needs a row, such as "wanted by heads 3, 7 and 12 more".
          size: leading length of the result, at least U; None means U.

        Returns:
          The dataset's structure with arrays [size, ...]; zeros beyond U.

        Raises:
          DataError: a row cannot be read or differs from row 0, a process died, a file was cut short, or the reader was
            closed.
        """
        rows = np.asarray(rows)
        # Always new: JAX on a CPU adopts these buffers, and the previous superstep may still read its own.
        out = [aligned_zeros((len(rows) if size is None else size, *c.shape), c.dtype) for c in self._columns]
        bad: list[list[int]] = [[] for _ in self._columns]
        check = [not warned for warned in self._warned]
        # Parts are collected in order, so the row that an error names does not depend on which thread was faster.
        jobs: deque[tuple[list[np.ndarray], Future[Part]]] = deque()
        try:
            for start in range(0, len(rows), self._rows.part_rows):
                part = rows[start : start + self._rows.part_rows]
                places = [values[start : start + len(part)] for values in out]
                jobs.append((places, self._submit(part, places, check)))
            while jobs:
                places, job = jobs.popleft()
                self._collect(places, self._result(job), bad)
        except BadRow as error:
            raise DataError(error.message(_wanted(owners, error.row))) from error.__cause__
        except (CancelledError, RuntimeError) as error:  # RuntimeError: submitted to a pool that is shut down or broken
            if not (self._closing.done() or isinstance(error, BrokenExecutor)):
                raise
            raise self._stopped(owners) from error
        finally:
            for _, job in jobs:
                job.cancel()
        self._report(bad, owners)
        return self._tree(out)

    def digest(self) -> str:
        """Returns a digest of N, structure, dtypes and rows.

        It covers every row of columns in memory. Of memory maps and sources it covers at most 16 rows, spread evenly,
        because reading them all could take minutes: a change in other rows goes unnoticed.
        """
        columns = [(column.name, column.shape, str(column.dtype)) for column in self._columns]
        # Names and dtypes first, since the bytes of two columns could be those of one.
        content = hashlib.sha256(repr((self.num_rows, str(self._rows.structure), columns)).encode())
        spread = np.linspace(0, self.num_rows - 1, min(_DIGEST_ROWS, self.num_rows)).astype(np.int64)
        for column in jax.tree.leaves(self.read(spread)):
            content.update(column.tobytes())
        for part in self._rows.in_memory():
            content.update(part.tobytes())
        return content.hexdigest()

    def close(self) -> None:
        """Ends threads and processes; a read in progress raises an error. May be called again."""
        with self._close_once:
            if self._closing.done():
                return
            self._closing.set_result(None)
            self._threads.shutdown(wait=False, cancel_futures=True)
            if self._processes is not None:
                self._processes.close()

    def _submit(self, rows: np.ndarray, places: Sequence[np.ndarray], check: list[bool]) -> Future[Part]:
        # A process returns its rows by pickle, which costs a copy; threads write into the buffer itself.
        if self._processes is not None:
            return self._processes.submit(rows, check)
        return self._threads.submit(lambda: (list(places), self._rows.fill(rows, places, check)))

    def _result(self, job: Future[Part]) -> Part:
        # A source that never answers must not block close(), which would wait for the thread that waits here.
        wait([job, self._closing], return_when=FIRST_COMPLETED)
        if self._closing.done():
            raise CancelledError
        return job.result()

    def _collect(self, places: Sequence[np.ndarray], part: Part, bad: list[list[int]]) -> None:
        values, found = part
        for place, read, rows, more in zip(places, values, bad, found, strict=True):
            if read is not place:  # rows from another process; threads fill the place itself
                place[...] = read
            rows += more

    def _report(self, bad: Sequence[list[int]], owners: Owners) -> None:
        """Warns of the rows of each column that are not finite, or raises."""
        raises = self._check_finite == "raise"
        for number, (column, rows) in enumerate(zip(self._columns, bad, strict=True)):
            if rows:
                self._warned[number] = not raises
                where = f"{column.name}, row {rows[0]}{_wanted(owners, rows[0])}" if raises else column.name
                report_not_finite(where, rows, raises, among=" among those read so far")

    def _stopped(self, owners: Owners) -> DataError:
        if self._closing.done():
            return DataError(
                f"The row reader is closed: {self._name}. Got a read that was in progress at close() or began after "
                "it, expected none. Fix: end the run before closing its reader."
            )
        assert self._processes is not None
        rows = self._processes.rows_at_death()
        where = " or ".join(f"row {row}{_wanted(owners, row)}" for row in rows) or "between two rows"
        return DataError(
            f"A reader process died: {self._name}, {where}. Got a process that was killed by a signal, ran out of "
            "memory or exited, expected it to live as long as the run. Fix: set read_processes=0 to see what the row "
            "does, or start fewer processes."
        )

    def _tree(self, leaves: Sequence[Any]) -> Any:
        return jax.tree.unflatten(self._rows.structure, leaves)


def _wanted(owners: Owners, row: int) -> str:
    wanted = owners(row)
    return f", {wanted}" if wanted else ""
