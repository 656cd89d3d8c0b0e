"""Stops a fit after a given time, and measures how long its stages take."""

from __future__ import annotations

import contextlib
import datetime
import logging
import re
import time
from collections.abc import Mapping
from typing import Any

from hydrax import Callback, Event
from hydrax.arguments import require
from hydrax.errors import ArgumentError

STAGES = ("train", "validate", "test", "predict")
_FORM = re.compile(r"(\d+):(\d\d):(\d\d):(\d\d)")


class Timer(Callback):
    """Measures the training time of a fit, and stops the fit after `duration`.

    The time is checked between supersteps. A fit that is stopped saves its last checkpoint and returns its result as
    usual, and no head is marked as stopped. A resumed fit continues to count from its checkpoint, so pass a longer
    `duration` to train on. Changes of the machine's clock have no effect.

    >>> Timer("00:12:00:00").time_remaining(), Timer({"minutes": 1.5}).time_remaining(), Timer().time_remaining()
    (43200.0, 90.0, None)

    Args:
      duration: the longest training time: a string "DD:HH:MM:SS", a `datetime.timedelta`, or a dict of its arguments.
        If None, the default, the fit is not stopped.

    Raises:
      ArgumentError: `duration` is none of these, or is not above 0.
    """

    def __init__(self, duration: str | datetime.timedelta | Mapping[str, float] | None = None) -> None:
        self.duration_secs = None if duration is None else _seconds(duration)
        self._secs = dict.fromkeys(STAGES, 0.0)
        self._since: dict[str, float] = {}

    def time_elapsed(self, stage: str = "train") -> float:
        """Returns the seconds spent so far in a stage.

        Args:
          stage: "train", the default, which includes validation during the fit; "validate", "test" or "predict".

        Raises:
          ArgumentError: `stage` is unknown.
        """
        choices, fix = f"one of {', '.join(STAGES)}", "leave it out for training"
        require(stage in STAGES, "Timer.time_elapsed(stage=...)", stage, choices, fix)
        running = time.monotonic() - self._since[stage] if stage in self._since else 0.0
        return self._secs[stage] + running

    def time_remaining(self) -> float | None:
        """Returns the seconds of training left, at least 0; None without a duration."""
        return None if self.duration_secs is None else max(0.0, self.duration_secs - self.time_elapsed())

    def on_train_start(self, event: Event) -> None:
        if event.step == 0:  # a resumed fit continues from load_state_dict
            self._secs["train"] = 0.0
        self._start("train")
        self._check(event)

    def on_train_steps_end(self, event: Event) -> None:
        self._check(event)

    def on_validation_start(self, event: Event) -> None:
        self._start("validate")

    def on_validation_end(self, event: Event) -> None:
        self._stop("validate")
        if event.stage == "fit":
            self._check(event)

    def on_test_start(self, event: Event) -> None:
        self._start("test")

    def on_test_end(self, event: Event) -> None:
        self._stop("test")

    def on_predict_start(self, event: Event) -> None:
        self._start("predict")

    def on_predict_end(self, event: Event) -> None:
        self._stop("predict")

    def on_train_end(self, event: Event) -> None:
        self._stop("train")

    def teardown(self, event: Event) -> None:
        for stage in STAGES:
            self._stop(stage)

    def state_dict(self) -> dict[str, Any]:
        return {"train_secs": self.time_elapsed()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._secs["train"] = float(state["train_secs"])

    def _start(self, stage: str) -> None:
        self._since[stage] = time.monotonic()

    def _stop(self, stage: str) -> None:
        if stage in self._since:
            self._secs[stage] += time.monotonic() - self._since.pop(stage)

    def _check(self, event: Event) -> None:
        if self.time_remaining() == 0.0 and not event.trainer.should_stop:
            event.trainer.should_stop = True
            logging.getLogger("hydrax").info(
                "Timer: stopping at step %d, after %.0f s of training.", event.step, self.time_elapsed()
            )


def _seconds(duration: Any) -> float:
    found: datetime.timedelta | None = None
    with contextlib.suppress(TypeError, ValueError, OverflowError):  # of timedelta: unknown names, NaN, too many days
        if isinstance(duration, str) and (match := _FORM.fullmatch(duration)):
            days, hours, minutes, seconds = map(int, match.groups())
            found = datetime.timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        elif isinstance(duration, datetime.timedelta):
            found = duration
        elif isinstance(duration, Mapping):
            found = datetime.timedelta(**duration)
    if found is None or found <= datetime.timedelta(0):
        raise ArgumentError(
            f"Invalid duration: max_time, Timer(duration=...). Got {duration!r}, expected a time above 0 as "
            '"DD:HH:MM:SS", a timedelta or a dict such as {"hours": 2}. Fix: pass for example "00:02:00:00".'
        )
    return found.total_seconds()
