"""Reports the speed of a fit to its loggers."""

from __future__ import annotations

import collections
import time

import numpy as np

from hydrax import Callback, Event
from hydrax.arguments import is_number, require


class ThroughputMonitor(Callback):
    """Measures the speed of the most recent steps, and gives it to the loggers of the run.

    It measures `throughput/steps_per_sec`, `throughput/head_steps_per_sec` (steps times heads that still learn) and
    `throughput/slots_per_sec` (head-steps times slots of a batch, padding included). Time spent on evaluation and
    callbacks counts. Measuring starts after the first superstep, which leaves compile time out.

    Args:
      window_secs: length of the window in seconds, above 0; a superstep that takes longer counts as a whole.
        Default: 10.

    Raises:
      ArgumentError: `window_secs` is out of range.
    """

    def __init__(self, window_secs: float = 10.0) -> None:
        positive, where = is_number(window_secs) and window_secs > 0, "ThroughputMonitor(window_secs=...)"
        require(positive, where, window_secs, "a number of seconds above 0", "leave it out for 10")
        self.window_secs = window_secs
        self._marks: collections.deque[tuple[float, int, int]] = collections.deque()

    def on_train_start(self, event: Event) -> None:
        self._marks.clear()

    def on_train_steps_end(self, event: Event) -> None:
        # Marks are (time, steps, head-steps), counted from the first one.
        now, marks = time.monotonic(), self._marks
        steps, head_steps = marks[-1][1:] if marks else (0, 0)
        marks.append((now, steps + len(event.steps), head_steps + len(event.steps) * int(np.count_nonzero(event.live))))
        while len(marks) > 2 and now - marks[1][0] >= self.window_secs:
            marks.popleft()  # keeps one mark outside the window, from which the window is measured
        secs = now - marks[0][0]
        if secs <= 0:
            return
        per_step = event.trainer.slots_per_step
        head_steps = marks[-1][2] - marks[0][2]
        rates = {"steps": marks[-1][1] - marks[0][1], "head_steps": head_steps, "slots": head_steps * per_step}
        event.trainer.log_scalars({f"throughput/{name}_per_sec": count / secs for name, count in rates.items()})
