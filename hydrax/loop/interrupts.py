"""Interrupts: signals end a fit cleanly, at the next superstep and with everything saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """A signal asked for the end of the fit."""


class Interrupts:
    """Records Ctrl-C and SIGTERM while it is entered, so that loops can check for them; a second Ctrl-C raises at once.

    Handlers that the user has installed are left alone. Outside the main thread Python allows no handlers.

    Attributes:
      signal: the number of the last signal received, or None.
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
                # Only Python's own handlers are replaced: a scheduler or notebook may rely on its handler.
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
        """Raises Interrupted if a signal or a callback asked for the end."""
        if self.came:
            raise Interrupted

    @contextlib.contextmanager
    def cutting(self) -> Iterator[None]:
        """Lets a signal raise Interrupted inside a wait that may be long and loses nothing when it is cut short."""
        self._may_cut = True
        try:
            self.check()  # the signal may have come just before the flag was set
            yield
        finally:
            self._may_cut = False

    @property
    def exit_status(self) -> int | None:
        """The exit status that the signal asks for; None if the process continues."""
        return 128 + signal.SIGTERM if self.signal == signal.SIGTERM else None

    def _note(self, number: int, _: FrameType | None) -> None:
        # An error in the middle of a dispatch would lose the donated state, so the first signal is only noted.
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if self._may_cut:
            raise Interrupted
