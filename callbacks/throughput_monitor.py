"""How fast a fit runs, in numbers that loggers write."""

from __future__ import annotations

import collections
import time

import numpy as np

from hydrax import Callback, Event
from hydrax.errors import ArgumentError


class ThroughputMonitor(Callback):
    """Gives loggers the speed of the steps of late, evaluation and callbacks included.

    `throughput/steps_per_sec`, `throughput/head_steps_per_sec` (steps times heads that learn) and
    `throughput/slots_per_sec` (head-steps times slots of a batch, padding included). Compilation is left out: it counts
    from the end of the first superstep on.

    Args:
      window_secs: over how long, more than 0; a longer superstep counts whole.

    Raises:
      ArgumentError: `window_secs` is out of its range.
    """

    def __init__(self, window_secs: float = 10.0) -> None:
        is_number = isinstance(window_secs, int | float) and not isinstance(window_secs, bool)
        if not is_number or not window_secs > 0:
            raise ArgumentError(
                f"Time out of range: ThroughputMonitor(window_secs=...). Got {window_secs!r}, expected more than 0. "
                "Fix: leave it out for 10."
            )
        self.window_secs = window_secs
        self._marks: collections.deque[tuple[float, int, int]] = collections.deque()

    def on_train_start(self, event: Event) -> None:
        self._marks.clear()

    def on_train_steps_end(self, event: Event) -> None:
        """Marks are (time, steps, head-steps), counted from the first one."""
        now, marks = time.monotonic(), self._marks
        steps, head_steps = marks[-1][1:] if marks else (0, 0)
        marks.append((now, steps + len(event.steps), head_steps + len(event.steps) * int(np.count_nonzero(event.live))))
        while len(marks) > 2 and now - marks[1][0] >= self.window_secs:
            marks.popleft()
        secs = now - marks[0][0]
        if secs <= 0:
            return
        per_step = event.trainer.slots_per_step
        head_steps = marks[-1][2] - marks[0][2]
        rates = {"steps": marks[-1][1] - marks[0][1], "head_steps": head_steps, "slots": head_steps * per_step}
        event.trainer.log_scalars({f"throughput/{name}_per_sec": count / secs for name, count in rates.items()})
