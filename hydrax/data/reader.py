"""RowReader: chosen rows of a dataset that stays on the host, checked and in the dtypes the device will hold."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np

from hydrax.data.access import ArrayRows, SourceRows, is_source
from hydrax.data.bad_row import BadRow
from hydrax.data.columns import aligned_zeros
from hydrax.data.workers import Part, RowProcesses
from hydrax.errors import DataError

__all__ = ["RowReader", "is_source"]

_DIGEST_ROWS = 16

Owners = Callable[[int], str]


def _no_owners(row: int) -> str:
    return ""


class RowReader:
    """Reads rows that a superstep needs; nothing else of the dataset is touched.

    Threads copy rows out of arrays. The items of a source are read by threads, several at a time, or by processes.

    Args:
      dataset: pytree of arrays or memory maps with the same leading N; or a source (see `is_source`) whose items are
        pytrees of arrays and numbers, all of the structure, shapes and dtypes of item 0. Where a source has
        `__getitems__(list)`, threads ask it for many rows at once. Arrays that are not NumPy's (jax, torch, HDF5) are
        made NumPy's as a whole: what does not fit in memory needs a memory map or a source.
      stage: "train", "val", ...: names the dataset in errors.
      threads: threads that read.
      processes: processes that read a source; 0: none, the threads read.
      check_finite: what NaN or Inf in a row leads to: "warn" (once a column), "raise" or "off".
      wide: keep 64-bit columns (precision "64-true").

    Attributes:
      num_rows: N.
      shapes: pytree of `jax.ShapeDtypeStruct` [N, ...], the dtypes as the device will hold them.
      row_bytes: bytes of one row on the device.

    Raises:
      DataError: there is no row, row 0 cannot be read, columns differ in length or have a dtype that no device holds, a
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
        self._warned = [not column.is_inexact or check_finite == "off" for column in self._columns]
        self._closing: Future[Any] = Future()
        self._close_once = threading.Lock()
        self._processes = RowProcesses(dataset, stage, wide, processes) if from_source and processes else None
        self._threads = ThreadPoolExecutor(threads, "hydrax-rows")

    def read(self, rows: np.ndarray, owners: Owners = _no_owners, size: int | None = None) -> Any:
        """Reads rows into fresh buffers, which may go to the device without a copy.

        Args:
          rows: int[U], 0 <= row < N.
          owners: whose a row is, for errors, such as "wanted by heads 3, 7 and 12 more".
          size: leading length of the result, U or more; None: U.

        Returns:
          The dataset's structure with arrays [size, ...]; zeros beyond U.

        Raises:
          DataError: a row cannot be read or differs from row 0, a process died, a file was cut short, or the reader was
            closed.
        """
        rows = np.asarray(rows)
        out = [aligned_zeros((len(rows) if size is None else size, *c.shape), c.dtype) for c in self._columns]
        bad: list[list[int]] = [[] for _ in self._columns]
        check = [not warned for warned in self._warned]
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
            raise DataError(error.message(_said(owners, error.row))) from error.__cause__
        except (CancelledError, RuntimeError) as error:
            if not (self._closing.done() or isinstance(error, BrokenExecutor)):
                raise
            raise self._stopped(owners) from error
        finally:
            for _, job in jobs:
                job.cancel()
        self._report(bad, owners)
        return self._tree(out)

    def digest(self) -> str:
        """A digest of N, structure, dtypes and rows.

        Of columns in memory it takes every row. Of memory maps and sources it takes at most 16, spread evenly, since to
        read them all could take minutes: a change of other rows is not seen.
        """
        columns = [(column.name, column.shape, str(column.dtype)) for column in self._columns]
        content = hashlib.sha256(repr((self.num_rows, str(self._rows.structure), columns)).encode())
        spread = np.linspace(0, self.num_rows - 1, min(_DIGEST_ROWS, self.num_rows)).astype(np.int64)
        for column in jax.tree.leaves(self.read(spread)):
            content.update(column.tobytes())
        for part in self._rows.in_memory():
            content.update(part.tobytes())
        return content.hexdigest()

    def close(self) -> None:
        """Ends threads and processes, and any read under way with an error. May be called again."""
        with self._close_once:
            if self._closing.done():
                return
            self._closing.set_result(None)
            self._threads.shutdown(wait=False, cancel_futures=True)
            if self._processes is not None:
                self._processes.close()

    def _submit(self, rows: np.ndarray, places: Sequence[np.ndarray], check: list[bool]) -> Future[Part]:
        if self._processes is not None:
            return self._processes.submit(rows, check)
        return self._threads.submit(lambda: (list(places), self._rows.fill(rows, places, check)))

    def _result(self, job: Future[Part]) -> Part:
        # A source that never answers must not keep close() waiting for the thread that waits here.
        wait([job, self._closing], return_when=FIRST_COMPLETED)
        if self._closing.done():
            raise CancelledError
        return job.result()

    def _collect(self, places: Sequence[np.ndarray], part: Part, bad: list[list[int]]) -> None:
        values, found = part
        for place, read, rows, more in zip(places, values, bad, found, strict=True):
            if read is not place:
                place[...] = read
            rows += more

    def _report(self, bad: Sequence[Sequence[int]], owners: Owners) -> None:
        """Warns or raises for the rows of each column that are not finite."""
        for at, (column, rows) in enumerate(zip(self._columns, bad, strict=True)):
            if not rows:
                continue
            raises = self._check_finite == "raise"
            where = f"{column.name}, row {rows[0]}{_said(owners, rows[0])}" if raises else column.name
            message = (
                f"A column holds NaN or Inf: {where}. Got {len(rows)} such rows among those read by now (first: "
                f"{', '.join(map(str, rows[:5]))}), expected finite numbers. Fix: clean them, or set "
                'check_finite="off" on the data module.'
            )
            if raises:
                raise DataError(message)
            self._warned[at] = True
            warnings.warn(message, stacklevel=3)

    def _stopped(self, owners: Owners) -> DataError:
        if self._closing.done():
            return DataError(
                f"Rows are read from a closed reader: {self._name}. Got a read that close() ended or that came after "
                "it, expected none. Fix: end the run before its reader is closed."
            )
        assert self._processes is not None
        rows = self._processes.rows_at_death()
        where = " or ".join(f"row {row}{_said(owners, row)}" for row in rows) or "between two rows"
        return DataError(
            f"A process that reads rows died: {self._name}, {where}. Got a process killed by a signal, by the lack of "
            "memory or by an exit, expected one that lives as long as the run. Fix: set read_processes=0 to see what "
            "the row does, or start fewer processes."
        )

    def _tree(self, leaves: Sequence[Any]) -> Any:
        return jax.tree.unflatten(self._rows.structure, leaves)


def _said(owners: Owners, row: int) -> str:
    said = owners(row)
    return f", {said}" if said else ""
