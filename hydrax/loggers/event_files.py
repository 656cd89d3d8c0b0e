"""TensorBoard's event files, written so that nobody ever waits for them."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydrax.loggers.summaries import Numbers, to_summary

if TYPE_CHECKING:
    from tensorboardX.proto.summary_pb2 import Summary

FLUSH_SECS = 5.0
RETRY_SECS = 10.0
"""Time between a write that failed and the next that is tried; what comes in between is dropped."""
CLOSE_SECS = 30.0
"""Longest time to wait, at the end, for a disk that does not answer."""
MAX_QUEUE = 10_000
"""Logs that may wait for the disk, some kilobytes each: room for all the rows that one long superstep brings."""

_file_numbers = itertools.count()


class EventFiles:
    """The event files of a run, and of runs in folders below it; a thread of their own writes them.

    tensorboardX makes the files. Its own thread dies of a write error without a word, and then whoever logs waits for
    it for ever. This one reports the error, drops and counts, and begins a new file once the disk takes one again.

    Args:
      folder: of the run; made, by the thread, if it is not there.
      on_trouble: called with what went wrong, from any thread, each time that something could not be written.
      purge_step: readers forget what older files of a folder hold from this step on; None: nothing.
    """

    def __init__(self, folder: Path, on_trouble: Callable[[str], None], purge_step: int | None = None) -> None:
        # Charts over time go wrong where time does, as when the machine's clock is set back in the middle of a run.
        self._began_at = time.time() - time.monotonic()
        self._folder, self._on_trouble, self._purge_step = folder, on_trouble, purge_step
        self._make_file = _events_writer()
        self._queue: queue.Queue[Any] = queue.Queue(MAX_QUEUE)
        self._files: dict[str, Any] = {}  # by run; the thread's alone, as are the next four
        self._purged: set[str] = set()
        self._unflushed = 0
        self._flush_at = self._retry_at = 0.0
        self._num_refused = self._num_failed = 0
        self._thread = threading.Thread(target=self._write_all, name="TensorBoard event files", daemon=True)
        self._thread.start()

    @property
    def num_dropped(self) -> int:
        """Logs that were not written, or not in all runs."""
        return self._num_refused + self._num_failed

    def add(self, logs: Mapping[str, Summary | Numbers], step: int) -> None:
        """Hands one log over.

        Args:
          logs: by run: "" is the run itself, others are folders below it.
          step: updates done.
        """
        try:
            self._queue.put_nowait((self._began_at + time.monotonic(), step, logs))
        except queue.Full:
            self._num_refused += 1
            self._on_trouble(f"a disk that is {MAX_QUEUE:,} logs behind")

    def flush_soon(self) -> None:
        """Asks for what was handed over to be on disk soon; does not wait."""
        self._flush_at = 0.0
        with contextlib.suppress(queue.Full):  # the thread is busy enough
            self._queue.put_nowait(())

    def close(self) -> None:
        """Returns once all is on disk, or after `CLOSE_SECS`."""
        end = time.monotonic() + CLOSE_SECS
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=CLOSE_SECS)
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            self._num_refused += self._queue.qsize()
            self._on_trouble(f"a disk that does not answer for {CLOSE_SECS:.0f} s")

    def _write_all(self) -> None:
        while True:
            wait = None if not self._unflushed else max(0.0, self._flush_at - time.monotonic())
            log: Any = ()
            with contextlib.suppress(queue.Empty):
                log = self._queue.get(timeout=wait)
            try:
                if log and time.monotonic() < self._retry_at:
                    self._num_failed += 1
                elif log:
                    self._unflushed += 1
                    self._write(*log)
                if log is None or time.monotonic() >= self._flush_at:
                    self._flush()
            except OSError as error:
                self._give_up(error)
            if log is None:
                self._close_files()
                return

    def _write(self, wall_time: float, step: int, logs: Mapping[str, Summary | Numbers]) -> None:
        from tensorboardX.proto.event_pb2 import Event

        for run, log in logs.items():
            if run not in self._files:
                self._files[run] = self._begin(run)
            summary = to_summary(log) if isinstance(log, dict) else log
            self._files[run].write_event(Event(wall_time=wall_time, step=step, summary=summary))

    def _begin(self, run: str) -> Any:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = self._folder / run
        folder.mkdir(parents=True, exist_ok=True)
        # The file's name has the second it was begun in and else only this. Readers sort by name: hence the zeros.
        file = self._make_file(str(folder / "events"), f".{os.getpid()}.{next(_file_numbers):04d}")
        if self._purge_step is not None and run not in self._purged:
            self._purged.add(run)  # a later file of this run must not purge what this one holds
            file.write_event(Event(step=self._purge_step, session_log=SessionLog(status=SessionLog.START)))
        return file

    def _flush(self) -> None:
        for run, file in self._files.items():
            file.flush()
            if not Path(file._file_name).exists():  # a file that was deleted takes all that is written
                raise FileNotFoundError(f"{self._folder / run} is gone")
        self._unflushed = 0
        self._flush_at = time.monotonic() + FLUSH_SECS

    def _give_up(self, error: OSError) -> None:
        self._num_failed += self._unflushed
        self._unflushed = 0
        self._retry_at = time.monotonic() + RETRY_SECS
        self._close_files()
        self._on_trouble(repr(error))

    def _close_files(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError, ValueError):
                file.close()
            # What `close` leaves open where its flush fails; the garbage collector would try it again, and complain.
            with contextlib.suppress(OSError, ValueError):
                file._py_recordio_writer.close()
        self._files = {}


def _events_writer() -> Callable[[str, str], Any]:
    """tensorboardX's maker of event files, imported when the first one is needed, and without PyTorch.

    It takes no more from PyTorch than the name of a type, for annotations, and for that imports it where it is
    installed: two seconds and 200 MB.
    """
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way to say that it cannot be imported
    try:
        from tensorboardX.event_file_writer import EventsWriter
    finally:
        if absent:
            del sys.modules["torch"]
    writer: Callable[[str, str], Any] = EventsWriter
    return writer
