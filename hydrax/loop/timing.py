"""Measures a fit: a table of its parts, a trace of one superstep, and the duration of a step."""

from __future__ import annotations

import collections
import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import jax

from hydrax.loop.callback import TrainerView

Timed = Callable[[str], AbstractContextManager[object]]

SUPERSTEP = "superstep"
_TIMED_STEPS = 10
_TRACED = 2  # the superstep that is traced, counted from 0: the first ones warm up
_log = logging.getLogger("hydrax")


def not_timed(name: str) -> AbstractContextManager[object]:
    """Measures nothing: the default in place of `Profiler.measure`."""
    return contextlib.nullcontext()


class Profiler:
    """Measures the parts of a fit by name; parts must not be nested.

    Args:
      trace_to: folder for a trace of one superstep and the reading of its metrics; None makes no trace.
    """

    def __init__(self, trace_to: Path | None = None) -> None:
        self._trace_to = trace_to
        self._secs: dict[str, float] = collections.defaultdict(float)
        self._calls: collections.Counter[str] = collections.Counter()
        self._started = time.perf_counter()
        self._tracing = False

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to the part of this name."""
        if name == SUPERSTEP:
            self._trace()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._secs[name] += time.perf_counter() - start
            self._calls[name] += 1

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            _log.info(
                "A trace of one superstep is in %s; open it with TensorBoard's profile plug-in or Perfetto.",
                self._trace_to,
            )

    def table(self) -> str:
        """Formats seconds, share, calls and ms per call of each part; "other" is the rest since the start."""
        total = time.perf_counter() - self._started
        parts = dict(sorted(self._secs.items(), key=lambda part: -part[1]))
        parts["other"] = max(0.0, total - sum(parts.values()))
        width = max(map(len, parts))
        lines = [f"{'part':{width}}  seconds  share   calls  ms a call"]
        for name, secs in parts.items():
            calls = self._calls[name]
            each = f"{1e3 * secs / calls:10.3f}" if calls else f"{'-':>10}"
            lines.append(f"{name:{width}}  {secs:7.2f}  {secs / total:5.1%}  {calls or '-':>6} {each}")
        return "\n".join([*lines, f"{'all':{width}}  {total:7.2f}"])

    def _trace(self) -> None:
        self.close()  # at the start of the next superstep, so that the trace includes the reading of metrics
        if self._trace_to is not None and self._calls[SUPERSTEP] == _TRACED:
            jax.profiler.start_trace(self._trace_to)
            self._tracing = True


@contextlib.contextmanager
def profiled(kind: str | None, trainer: TrainerView, say: Callable[[str], None]) -> Iterator[Timed]:
    """Yields the function that measures the parts of a fit, and reports them at the end.

    Args:
      kind: the Trainer's argument `profiler`; None measures nothing.
      trainer: has the folder for a trace.
      say: prints the report.
    """
    if kind is None:
        yield not_timed
        return
    folder = trainer.log_dir if kind == "jax" else None
    profiler = Profiler(folder and folder / "profile")
    with contextlib.closing(profiler):
        yield profiler.measure
    say(f"Where the time went:\n{profiler.table()}")


class StepClock:
    """Times the steps of a fit as their metrics are read, by a monotonic clock.

    Args:
      step: updates done before the first step; the first one compiles and does not count.
    """

    def __init__(self, step: int) -> None:
        self._first, self._started = step + 1, 0.0
        self._read_at: float | None = None
        self._steps, self._secs = 0, 0.0

    @property
    def step_secs(self) -> float | None:
        """Seconds of a step of all heads; None until two supersteps have followed each other without a pause."""
        return self._secs / self._steps if self._steps else None

    def read(self, steps: int) -> None:
        """Records that the metrics of a superstep have been read."""
        now = time.perf_counter()
        # Dispatches return at once, so the time between two readings is the time of a superstep on the device.
        if self._read_at is not None:
            self._steps, self._secs = self._steps + steps, self._secs + now - self._read_at
        self._read_at = now

    def pause(self) -> None:
        """Leaves out the time until the next superstep, because something else runs in between."""
        self._read_at = None

    def warn_of_cost(self, end: int) -> None:
        """Warns once what returning to the host after every step costs; `end` updates are done."""
        if end == self._first:
            self._started = time.perf_counter()
        if end == self._first + _TIMED_STEPS:
            milliseconds = (time.perf_counter() - self._started) / _TIMED_STEPS * 1e3
            warnings.warn(
                f"A callback overrides on_train_batch_end, so every step returns to the host: {milliseconds:.1f} ms a "
                "step here. Fix: override on_train_steps_end, which receives many steps at once.",
                stacklevel=2,
            )
