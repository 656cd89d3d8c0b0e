"""How long steps take, and what it costs to return to the host after each."""

from __future__ import annotations

import time
import warnings

_TIMED_STEPS = 10


class StepClock:
    """Times the steps of a fit as they are read, by a clock that nobody sets.

    Args:
      step: updates done before the first; the one after it compiles and does not count.
    """

    def __init__(self, step: int) -> None:
        self._first, self._started = step + 1, 0.0
        self._read_at: float | None = None
        self._steps, self._secs = 0, 0.0

    @property
    def step_secs(self) -> float | None:
        """Seconds of a step of all heads, where several supersteps came one after the other."""
        return self._secs / self._steps if self._steps else None

    def read(self, steps: int) -> None:
        """Notes that a superstep was read."""
        now = time.perf_counter()
        if self._read_at is not None:
            self._steps, self._secs = self._steps + steps, self._secs + now - self._read_at
        self._read_at = now

    def pause(self) -> None:
        """Something else comes before the next superstep."""
        self._read_at = None

    def warn_of_cost(self, end: int) -> None:
        """Says once what returning to the host after every step costs; `end` updates are done."""
        if end == self._first:
            self._started = time.perf_counter()
        if end == self._first + _TIMED_STEPS:
            milliseconds = (time.perf_counter() - self._started) / _TIMED_STEPS * 1e3
            warnings.warn(
                f"A callback overrides on_train_batch_end, so every step returns to the host: {milliseconds:.1f} ms a "
                "step here. Fix: override on_train_steps_end, which hears many steps at once.",
                stacklevel=2,
            )
