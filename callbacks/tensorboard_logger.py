"""Writes what a run logs for TensorBoard: one run for all heads, their spread instead of a line for each."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrax import Callback, Event
from hydrax.spread import count_not_finite, finite, spread

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter
    from tensorboardX.proto.summary_pb2 import HistogramProto, Summary

NUM_BINS = 30
FLUSH_SECS = 5
MAX_QUEUE = 10_000
"""Logs that may wait for the disk, some kilobytes each: room for all the rows that one long superstep brings."""

_file_numbers = itertools.count()


class TensorBoardLogger(Callback):
    """Writes the spread over heads of every metric into `trainer.log_dir`; writes nothing where that is None.

    Training metrics are written at every step that `trainer.log_every_n_steps` divides, the others whenever they come.

    | tag | what |
    |---|---|
    | `<metric>/mean`, `/min`, `/q10`, `/median`, `/q90`, `/max` | over all heads, live or not, whose value is finite |
    | `<metric>/heads` | histogram over the same heads; validation metrics only |
    | `heads/live` | heads that still learn |
    | `heads/not_finite` | heads with a NaN or an infinity in one of the metrics written together |
    | `heads/steps_per_sec` | head-steps per second since training metrics were last written, evaluation included |

    A margin chart of each metric (min, median, max) stands under "Custom Scalars" from the end of the first epoch on.
    TensorBoard takes one layout a run, so a metric that first comes later gets no chart.

    A disk that is full or cannot be written never stops or delays a fit: logs are then dropped and counted, and the
    logger "hydrax" says so once.

    Attributes:
      num_dropped: logs that could not be written.
    """

    def __init__(self) -> None:
        self.num_dropped = 0
        self._writer: _Writer | None = None
        self._metric_names: dict[str, None] = {}  # a set that keeps the order
        self._counted_from: tuple[float, int] | None = None

    def on_train_start(self, event: Event) -> None:
        self._close()
        self._metric_names = {}
        self._counted_from = None
        if event.trainer.log_dir is not None:
            # A run that was cut off may have logged beyond the step it resumes from. What it logged at that step stays:
            # it is not logged again.
            self._writer = _Writer(event.trainer.log_dir, purge_step=event.step + 1 if event.step > 0 else None)

    def on_train_steps_end(self, event: Event) -> None:
        if self._counted_from is None and event.steps.size:
            # Counted from here and not from the start, so that the speed leaves compilation out.
            self._counted_from = time.monotonic(), int(event.steps[-1])
        due = np.flatnonzero(event.steps % event.trainer.log_every_n_steps == 0)
        if due.size == 0:
            return
        rate = self._head_steps_per_sec(event)
        for row in due:
            metrics = {name: values[row] for name, values in event.metrics.items()}
            self._log(event, metrics, int(event.steps[row]), rate=rate)

    def on_validation_end(self, event: Event) -> None:
        self._log(event, event.metrics, event.step, histograms=True)
        if event.stage != "fit":
            self._close()  # nothing else ends an evaluation outside a fit

    def on_train_epoch_end(self, event: Event) -> None:
        self._log(event, event.metrics, event.step)
        self._chart()

    def on_test_end(self, event: Event) -> None:
        self._log(event, event.metrics, event.step)
        self._close()

    def on_exception(self, event: Event) -> None:
        self._close()

    def teardown(self, event: Event) -> None:
        self._close()

    def _head_steps_per_sec(self, event: Event) -> float | None:
        assert self._counted_from is not None
        now, step = time.monotonic(), int(event.steps[-1])
        secs, steps = now - self._counted_from[0], step - self._counted_from[1]
        if steps <= 0 or secs <= 0:
            return None
        self._counted_from = now, step
        return int(np.count_nonzero(event.live)) * steps / secs

    def _log(
        self,
        event: Event,
        metrics: Mapping[str, np.ndarray],
        step: int,
        *,
        rate: float | None = None,
        histograms: bool = False,
    ) -> None:
        if not metrics or event.trainer.log_dir is None:
            return
        self._metric_names |= dict.fromkeys(metrics)
        if self._writer is None:
            self._writer = _Writer(event.trainer.log_dir)  # validate or test, without a fit
        if not self._writer.is_ready():
            self.num_dropped += 1
            return
        summary = _summary(metrics, histograms)
        summary.value.add(tag="heads/live", simple_value=np.count_nonzero(event.live))
        if rate is not None:
            summary.value.add(tag="heads/steps_per_sec", simple_value=rate)
        self._writer.add(summary, step)

    def _chart(self) -> None:
        if self._writer is not None and self._metric_names:
            self._writer.add_charts(list(self._metric_names))

    def _close(self) -> None:
        if self._writer is not None:
            self._chart()
            self._writer.close()
            self._writer = None


class _Writer:
    """tensorboardX's SummaryWriter, except that it never makes its caller wait and never raises for the disk's sake.

    SummaryWriter hands over to a thread by a bounded queue. A write error ends the thread, without a word; soon after,
    each of its methods waits for room in the queue for ever, and so does the interpreter's exit. Hence `is_ready`, and
    hence the use of its private parts: it has no public way to ask.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self._folder = folder
        self._warned = False
        self._charted = False
        self._writer: SummaryWriter | None = None
        # The file's name has the second it was begun in and else only this. Readers sort by name: hence the zeros.
        suffix = f".{os.getpid()}.{next(_file_numbers):04d}"
        try:
            self._writer = _summary_writer()(
                str(folder), purge_step=purge_step, max_queue=MAX_QUEUE, flush_secs=FLUSH_SECS, filename_suffix=suffix
            )
            # Else the interpreter's exit waits until a dead thread has read all that is queued. Nothing is lost by it:
            # close, which tensorboardX itself calls at exit, waits for a live one.
            self._events._event_queue.cancel_join_thread()
        except OSError as error:
            self._give_up(repr(error))

    def is_ready(self) -> bool:
        """Whether the next write will be taken at once. False for good once the thread has died."""
        if self._writer is None:
            return False
        if not self._events._worker.is_alive():
            self._give_up("a writer thread that has died of an error")
            return False
        # Nobody else fills the queue, so it will still have room when the caller writes.
        if self._events._event_queue.full():
            self._warn(f"a disk that is {MAX_QUEUE:,} logs behind")
            return False
        return True

    def add(self, summary: Summary, step: int) -> None:
        assert self._writer is not None
        # One Summary with many values: `add_scalar` for each of them would cost ten times as much.
        self._writer.file_writer.add_summary(summary, step)

    def add_charts(self, metric_names: list[str]) -> None:
        """Adds a margin chart for each metric, once; a second call does nothing."""
        if self._charted or not self.is_ready():
            return
        assert self._writer is not None
        self._charted = True
        # A margin chart takes [value, lower, upper].
        charts = {name: ["Margin", [f"{name}/{word}" for word in ("median", "min", "max")]] for name in metric_names}
        self._writer.add_custom_scalars({"heads": charts})

    def close(self) -> None:
        if self._writer is None:
            return
        try:
            if self.is_ready():
                self._writer.close()
        except OSError as error:
            self._give_up(repr(error))

    @property
    def _events(self) -> Any:
        assert self._writer is not None
        return self._writer.file_writer.event_writer

    def _give_up(self, reason: str) -> None:
        self._warn(reason)
        if self._writer is None:
            return
        events, self._writer = self._events, None
        # tensorboardX closes its writers at exit; this one it would find open, and fail on.
        events._closed = True
        if events._worker.is_alive():
            events._worker.stop()
        with contextlib.suppress(OSError, ValueError):
            events._ev_writer._py_recordio_writer.close()

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            logging.getLogger("hydrax").warning(
                "Logs for TensorBoard are dropped: TensorBoardLogger, folder %s. Got %s, expected a folder that takes "
                "them. Fix: make room there, or give Trainer another default_root_dir; the run goes on without them.",
                self._folder,
                reason,
            )


def _summary_writer() -> type[SummaryWriter]:
    """tensorboardX's writer, imported when the first one is needed, and without PyTorch.

    It takes no more from PyTorch than the name of a type, for annotations, and for that imports it where it is
    installed: two seconds and 200 MB.
    """
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way to say that it cannot be imported
    try:
        from tensorboardX import SummaryWriter
    finally:
        if absent:
            del sys.modules["torch"]
    return SummaryWriter  # type: ignore[no-any-return]


def _summary(metrics: Mapping[str, np.ndarray], histograms: bool) -> Summary:
    """The spread of each metric, float[H], over its finite heads; nothing of a metric that has none."""
    from tensorboardX.proto.summary_pb2 import Summary

    summary = Summary()
    for name, values in metrics.items():
        for word, number in spread(values).items():
            summary.value.add(tag=f"{name}/{word}", simple_value=number)
        if histograms and (numbers := finite(values)).size:
            summary.value.add(tag=f"{name}/heads", histo=_histogram(numbers))
    summary.value.add(tag="heads/not_finite", simple_value=count_not_finite(metrics))
    return summary


def _histogram(numbers: np.ndarray) -> HistogramProto:
    from tensorboardX.proto.summary_pb2 import HistogramProto

    counts, edges = np.histogram(numbers, NUM_BINS)
    return HistogramProto(
        min=numbers.min(),
        max=numbers.max(),
        num=numbers.size,
        sum=numbers.sum(),
        sum_squares=numbers @ numbers,
        # TensorBoard wants the right edge of each bin, and takes the first one to begin at -infinity: so an empty one.
        bucket_limit=edges.tolist(),
        bucket=[0, *counts.tolist()],
    )
