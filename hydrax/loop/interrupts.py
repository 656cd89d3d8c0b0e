"""Signals that end a fit in good order: at the next superstep, with all saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """A signal has asked for the end."""


class Interrupts:
    """Notes Ctrl-C and SIGTERM while it is entered, for loops to ask; a Ctrl-C after that raises at once.

    Handlers that a user has set stay theirs, and outside the main thread Python lets nobody set any.

    Attributes:
      signal: the number of the signal that came last, or None.
      asked: whether a callback asked for the end.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.asked = False
        self._may_cut = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if signal.getsignal(number) == default:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @property
    def came(self) -> bool:
        """Whether a signal or a callback asked for the end."""
        return self.asked or self.signal is not None

    def check(self) -> None:
        """Raises Interrupted where a signal asked for the end."""
        if self.came:
            raise Interrupted

    @contextlib.contextmanager
    def cutting(self) -> Iterator[None]:
        """For what may wait for long and loses nothing when it is cut off: a signal raises Interrupted there."""
        self._may_cut = True
        try:
            self.check()
            yield
        finally:
            self._may_cut = False

    @property
    def exit_status(self) -> int | None:
        """What the process must exit with; None where it goes on."""
        return 128 + signal.SIGTERM if self.signal == signal.SIGTERM else None

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if self._may_cut:
            raise Interrupted
