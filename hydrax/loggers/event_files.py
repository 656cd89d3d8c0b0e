"""TensorBoard's event files, written in the background."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydrax.loggers.background import BackgroundWriter
from hydrax.loggers.summaries import Numbers, to_summary

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

FLUSH_SECS = 5.0
RETRY_SECS = 10.0
"""Time between a write that failed and the next attempt; logs that come in between are dropped."""
MAX_WAITING = 10_000
"""Logs that may wait for the disk, some kilobytes each: room for all the rows that one long superstep brings."""

_file_numbers = itertools.count()


class EventFiles:
    """Writes the event files of a run, and of runs in folders below it, in a background thread.

    tensorboardX encodes the records. Its own writer thread dies silently of a write error, and from then on blocks
    whoever logs. This one reports the error, drops and counts logs, and begins a new file once the disk accepts writes
    again.

    Args:
      folder: folder of the run; the thread makes it if it is missing.
      on_trouble: called for every drop with a phrase that says what went wrong, from any thread.
      purge_step: readers forget what older files of a folder hold from this step on; None keeps all of it.
    """

    def __init__(self, folder: Path, on_trouble: Callable[[str], None], purge_step: int | None = None) -> None:
        # Times are measured from here, because charts over time break if the clock is set back during a run.
        self._began_at = time.time() - time.monotonic()
        self._folder, self._purge_step = folder, purge_step
        self._make_record_writer = _record_writer()
        # From here on the thread's alone.
        self._files: dict[str, tuple[Path, Any]] = {}  # by run
        self._purged: set[str] = set()
        self._unflushed = 0
        self._flush_at = self._retry_at = 0.0
        self._trouble = ""
        self._thread = BackgroundWriter(
            "TensorBoard event files", MAX_WAITING, on_trouble, self._flush_if_due, FLUSH_SECS
        )

    @property
    def num_dropped(self) -> int:
        """Logs that were not written, or not in all runs."""
        return self._thread.num_dropped

    def add(self, logs: Mapping[str, Summary | Numbers], step: int) -> None:
        """Queues one log.

        Args:
          logs: what to log, by run: "" is the run itself, others are folders below it.
          step: number of updates done.
        """
        wall_time = self._began_at + time.monotonic()
        self._thread.add(lambda: self._log(wall_time, step, logs))

    def flush_soon(self) -> None:
        """Requests that everything logged so far be written to disk soon; does not wait."""
        self._flush_at = 0.0
        self._thread.wake()

    def close(self) -> None:
        """Waits until everything is on disk, or until `background.CLOSE_SECS` have passed."""
        self._thread.close(self._finish)

    # Everything below runs in the thread.

    def _log(self, wall_time: float, step: int, logs: Mapping[str, Summary | Numbers]) -> None:
        from tensorboardX.proto.event_pb2 import Event

        if time.monotonic() < self._retry_at:
            self._thread.drop(1, self._trouble)
            return
        events = {}
        for run, log in logs.items():
            summary = to_summary(log) if isinstance(log, dict) else log
            events[run] = Event(wall_time=wall_time, step=step, summary=summary)
        self._unflushed += 1
        with self._giving_up():
            for run, event in events.items():
                self._write(run, event)
        self._flush_if_due()

    def _flush_if_due(self) -> None:
        if self._unflushed and time.monotonic() >= self._flush_at:
            with self._giving_up():
                self._flush()

    def _finish(self) -> None:
        with self._giving_up():
            self._flush()
        self._close_files()

    def _write(self, run: str, event: Event) -> None:
        if run not in self._files:
            self._begin(run)
        self._files[run][1].write(event.SerializeToString())

    def _begin(self, run: str) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = self._folder / run
        folder.mkdir(parents=True, exist_ok=True)
        # Readers sort the files of a folder by name: hence the time first, and the zeros.
        host = f"{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        path = folder / f"events.out.tfevents.{host}.{next(_file_numbers):04d}"
        self._files[run] = path, self._make_record_writer(str(path))
        self._write(run, Event(wall_time=self._began_at + time.monotonic(), file_version="brain.Event:2"))
        if self._purge_step is not None and run not in self._purged:
            self._purged.add(run)  # a later file of this run must not purge what this one holds
            self._write(run, Event(step=self._purge_step, session_log=SessionLog(status=SessionLog.START)))

    def _flush(self) -> None:
        for path, file in self._files.values():
            file.flush()
            if not path.exists():  # writes to a deleted file succeed and are lost
                raise FileNotFoundError(f"{path.parent} is gone")
        self._unflushed = 0
        self._flush_at = time.monotonic() + FLUSH_SECS

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Drops all logs that are not known to be on disk when a write fails, and pauses for `RETRY_SECS`."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: a path that the locale cannot encode, a closed file
            lost, self._unflushed = self._unflushed, 0
            self._trouble, self._retry_at = repr(error), time.monotonic() + RETRY_SECS
            self._close_files()
            self._thread.drop(lost, self._trouble)

    def _close_files(self) -> None:
        for _, file in self._files.values():
            with contextlib.suppress(OSError, ValueError):
                file.close()
        self._files = {}


def summary_writer(write: Callable[[Summary, int | None], None]) -> Any:
    """Makes a `tensorboardX.SummaryWriter` that hands its summaries on, with their steps, instead of writing a file."""
    with _without_torch():
        from tensorboardX import SummaryWriter

    def add_scalars(main_tag: str, tag_scalar_dict: Mapping[str, float], *args: Any, **when: Any) -> None:
        for tag, number in tag_scalar_dict.items():
            writer.add_scalar(f"{main_tag}/{tag}", number, *args, **when)

    # A file of its own could take the name of another one of the same second, and its thread dies of a full disk.
    writer = SummaryWriter(".", write_to_disk=False)
    file = writer.file_writer
    file.add_summary = lambda summary, global_step=None, walltime=None: write(summary, global_step)
    writer._get_file_writer = lambda: file
    writer.add_scalars = add_scalars  # the original opens a file for each series
    return writer


def _record_writer() -> Callable[[str], Any]:
    """Imports tensorboardX's record writer when the first one is needed."""
    with _without_torch():
        from tensorboardX.record_writer import RecordWriter
    writer: Callable[[str], Any] = RecordWriter
    return writer


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Keeps tensorboardX from importing PyTorch.

    It does so where it is installed, only to name a type in annotations: two seconds and 200 MB. It has no option
    against that, so the import is blocked in Python's own way, by None in `sys.modules`.
    """
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            del sys.modules["torch"]
