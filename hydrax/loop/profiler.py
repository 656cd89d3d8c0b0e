"""Where the time of a fit goes: a table, or a trace of one superstep."""

from __future__ import annotations

import collections
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import jax

Timed = Callable[[str], AbstractContextManager[object]]

SUPERSTEP = "superstep"
_TRACED = 2  # the superstep that is traced, counted from 0: the first ones warm up
_log = logging.getLogger("hydrax")


def not_timed(name: str) -> AbstractContextManager[object]:
    """What measures nothing."""
    return contextlib.nullcontext()


class Profiler:
    """Measures the parts of a fit by name; parts must not lie within each other.

    Args:
      trace_to: folder for a trace of one superstep, its metrics' reading included; None: the table alone.
    """

    def __init__(self, trace_to: Path | None = None) -> None:
        self._trace_to = trace_to
        self._secs: dict[str, float] = collections.defaultdict(float)
        self._calls: collections.Counter[str] = collections.Counter()
        self._started = time.perf_counter()
        self._tracing = False

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time inside to that of a part."""
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
                "A trace of one superstep lies in %s; TensorBoard's profile plug-in and Perfetto open it.",
                self._trace_to,
            )

    def table(self) -> str:
        """Seconds, share, calls and ms a call of each part; "other" is what is left of the time since the start."""
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
        self.close()
        if self._trace_to is not None and self._calls[SUPERSTEP] == _TRACED:
            jax.profiler.start_trace(self._trace_to)
            self._tracing = True
