"""A thread that writes what training hands over, so that training never waits for a disk or a service."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable

CLOSE_SECS = 30.0
"""Longest time that the end of a fit waits for a disk or a service that does not answer."""


class BackgroundWriter:
    """Makes calls one after another in a background thread; adding one never waits.

    A call that raises, or that is added while too many others wait, is dropped, counted and reported.

    Args:
      name: name of the thread.
      max_waiting: number of calls that may wait.
      report: called for every drop with a phrase that says what went wrong, from any thread.
      on_idle: called in the thread whenever no other call has come for `idle_secs`; None for nothing.
      idle_secs: see `on_idle`.

    Attributes:
      num_dropped: number of calls that were dropped so far.
    """

    def __init__(
        self,
        name: str,
        max_waiting: int,
        report: Callable[[str], None],
        on_idle: Callable[[], None] | None = None,
        idle_secs: float | None = None,
    ) -> None:
        self.num_dropped = 0
        self._max_waiting, self._report, self._on_idle, self._idle_secs = max_waiting, report, on_idle, idle_secs
        self._counting = threading.Lock()  # calls are dropped both by the thread and by those who add them
        self._calls: queue.Queue[tuple[Callable[[], None], bool]] = queue.Queue(max_waiting)  # (call, is it the last)
        # A daemon, because a service that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, call: Callable[[], None]) -> None:
        """Queues a call; drops it if `max_waiting` calls are waiting already."""
        try:
            self._calls.put_nowait((call, False))
        except queue.Full:
            self.drop(1, f"a backlog of {self._max_waiting:,} logs")

    def wake(self) -> None:
        """Schedules a call of `on_idle` right after the calls that are waiting now."""
        if self._on_idle is not None:
            with contextlib.suppress(queue.Full):  # the thread is busy enough
                self._calls.put_nowait((self._on_idle, False))

    def drop(self, count: int, trouble: str) -> None:
        """Counts and reports calls as dropped; for a call that finds out that earlier ones were lost."""
        with self._counting:
            self.num_dropped += count
        self._report(trouble)

    def close(self, last: Callable[[], None]) -> None:
        """Makes a last call after all others, and waits for it, but no longer than `CLOSE_SECS`."""
        end = time.monotonic() + CLOSE_SECS
        try:
            self._calls.put((last, True), timeout=CLOSE_SECS)
        except queue.Full:
            self.drop(1, f"a backlog of {self._max_waiting:,} logs")
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            self.drop(self._calls.qsize(), f"no answer within {CLOSE_SECS:g} s")

    def _run(self) -> None:
        is_last = False
        while not is_last:
            call = self._on_idle
            with contextlib.suppress(queue.Empty):
                call, is_last = self._calls.get(timeout=self._idle_secs)
            try:
                if call is not None:
                    call()
            except Exception as error:  # whatever a service raises, training must go on
                self.drop(1, repr(error)[:300])
