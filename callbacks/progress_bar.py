"""Shows the progress of a fit as a bar, or as plain lines if stderr is not a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Mapping
from typing import TextIO

import numpy as np
from tqdm import TqdmWarning
from tqdm.asyncio import tqdm_asyncio

from hydrax import Callback, Event
from hydrax.arguments import is_number, require

with warnings.catch_warnings():
    # In a notebook without ipywidgets tqdm warns that they are missing; plain lines are good enough.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

MAX_REFRESH_PER_SECOND = 10.0
LINE_SECS = 5.0
"""Shortest time between two plain lines, so that the log of a batch job stays readable."""
RATE_SECS = 1.0
"""Shortest time over which head-steps are counted, so that the rate does not flicker."""


class ProgressBar(Callback):
    """Shows the progress of a fit: steps, time left, metrics, live heads and speed.

    A progress-bar metric is shown as its median over the heads, followed by its minimum and maximum:
    `val_loss=0.31 (0.2 to 0.9)`. Heads whose metric is NaN are left out and counted as `nan=`. The speed is in
    head-steps per second, which is steps per second times live heads. If stderr is neither a terminal nor a notebook,
    plain lines are printed instead: the first, the last, and at most one every 5 seconds in between.

    Args:
      refresh_per_second: how often the bar is redrawn, 0 < refresh_per_second <= 10. Steps in between cost two
        comparisons each. Default: 10.

    Raises:
      ArgumentError: `refresh_per_second` is out of range.
    """

    def __init__(self, refresh_per_second: float = MAX_REFRESH_PER_SECOND) -> None:
        in_range = is_number(refresh_per_second) and 0 < refresh_per_second <= MAX_REFRESH_PER_SECOND
        where, expected = "ProgressBar(refresh_per_second=...)", f"0 < refresh_per_second <= {MAX_REFRESH_PER_SECOND:g}"
        require(in_range, where, refresh_per_second, expected, "leave it out for the highest rate")
        self.refresh_per_second = refresh_per_second
        self._display: _Bar | _Lines | None = None
        self._next_refresh_secs = 0.0
        self._rate: float | None = None
        self._counted_from: tuple[float, int] | None = None

    def on_train_start(self, event: Event) -> None:
        self._close()
        total, refresh_secs = event.trainer.estimated_stepping_batches, 1.0 / self.refresh_per_second
        if sys.stderr is None:  # in a service or a windowed program there may be none
            return
        display = _Bar if _in_notebook() or _is_terminal(sys.stderr) else _Lines
        self._display = display(event.step, total, refresh_secs)
        self._rate = self._counted_from = None
        self._refresh(event, time.monotonic())

    def on_train_steps_end(self, event: Event) -> None:
        now = time.monotonic()
        if self._counted_from is None:
            # Counting starts after the first superstep, so that the speed leaves compile time out.
            self._counted_from = now, event.step
        if now >= self._next_refresh_secs:
            self._refresh(event, now)

    def on_validation_end(self, event: Event) -> None:
        now = time.monotonic()
        if now >= self._next_refresh_secs:
            self._refresh(event, now)

    def on_train_end(self, event: Event) -> None:
        self._refresh(event, time.monotonic())
        self._close()

    def on_exception(self, event: Event) -> None:
        self._close()

    def teardown(self, event: Event) -> None:
        self._close()

    def _refresh(self, event: Event, now: float) -> None:
        if self._display is None:
            return
        num_live = int(np.count_nonzero(event.live))
        self._count(event.step, num_live, now)
        self._display.show(
            event.step, _postfix(event.trainer.progress_bar_metrics, num_live, event.live.size, self._rate)
        )
        self._next_refresh_secs = now + self._display.refresh_secs

    def _count(self, step: int, num_live: int, now: float) -> None:
        if self._counted_from is None:
            return
        secs, steps = now - self._counted_from[0], step - self._counted_from[1]
        if steps > 0 and secs > (RATE_SECS if self._rate is not None else 0.0):
            self._rate, self._counted_from = num_live * steps / secs, (now, step)

    def _close(self) -> None:
        display, self._display = self._display, None
        if display is not None:
            display.close()


class _Bar:
    """Draws tqdm's bar, only when `show` is called."""

    def __init__(self, step: int, total: int, refresh_secs: float) -> None:
        self.refresh_secs = refresh_secs
        # Without intervals of its own, as tqdm would skip some of the refreshes.
        self._bar = tqdm(
            desc="fit",
            unit="step",
            initial=step,
            total=total,
            file=sys.stderr,
            mininterval=0,
            miniters=1,
            dynamic_ncols=True,
        )

    def show(self, step: int, postfix: str) -> None:
        self._bar.set_postfix_str(postfix, refresh=False)
        if not self._bar.update(step - self._bar.n):
            self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """Prints tqdm's numbers as plain lines."""

    def __init__(self, step: int, total: int, refresh_secs: float) -> None:
        self.refresh_secs = max(LINE_SECS, refresh_secs)
        self._initial, self._total = step, total
        self._started_secs = time.monotonic()
        self._stream: TextIO = sys.stderr

    def show(self, step: int, postfix: str) -> None:
        line = tqdm.format_meter(
            step,
            self._total,
            time.monotonic() - self._started_secs,
            ncols=0,
            prefix="fit",
            unit="step",
            postfix=postfix,
            initial=self._initial,
        )
        # A stream that can no longer be written to must not end the fit; tqdm's bar takes the same care.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Does nothing, as nothing is held open."""


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, OSError, ValueError):  # closed, or an object that can do no more than write
        return False


def _in_notebook() -> bool:
    # In a notebook tqdm.auto exports a subclass of the notebook's bar, elsewhere the class of tqdm.asyncio itself.
    return tqdm is not tqdm_asyncio


def _postfix(metrics: Mapping[str, np.ndarray], num_live: int, num_heads: int, rate: float | None) -> str:
    parts = [_metric_text(name, values) for name, values in metrics.items()]
    parts.append(f"live={num_live}/{num_heads}")
    if rate is not None:
        parts.append(f"{tqdm.format_sizeof(rate)} head-steps/s")
    return ", ".join(parts)


def _metric_text(name: str, values: np.ndarray) -> str:
    numbers = np.sort(values)[: values.size - np.count_nonzero(np.isnan(values))]  # NaN sorts to the end
    text = name
    if numbers.size:
        # The median of -inf and inf is NaN, which is shown as it is.
        with np.errstate(invalid="ignore"):
            text += f"={np.median(numbers):.3g} ({numbers[0]:.3g} to {numbers[-1]:.3g})"
    if numbers.size < values.size:
        text += f" nan={values.size - numbers.size}"
    return text
