"""What loggers of services have in common: one run for all heads, written by a thread that nobody waits for."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hydrax.errors import ArgumentError
from hydrax.loggers.plots import can_draw, learning_curve
from hydrax.loggers.quantiles import count_not_finite, spreads
from hydrax.loop import Callback, Event

MOST_WAITING = 1_000  # logs that wait for a service; what comes while so many do is dropped
CLOSE_SECS = 30.0
OPEN_SECS = 10.0  # A checkpoint waits for the run's id, once.
MOST_FIGURES = 4
_log = logging.getLogger("hydrax")


class RemoteLogger(Callback):
    """Base of loggers that hand a run to a service; a subclass says how, in the methods that end in `_run`.

    For every metric it writes `<metric>/mean`, `/min`, `/q10`, `/median`, `/q90`, `/max` over the heads whose value is
    finite; `heads/live`, `heads/not_finite`; and what callbacks gave to `trainer.log_scalars`. Training metrics at
    every step that `trainer.log_every_n_steps` divides, the others whenever they come; of validation metrics the values
    of all heads too. At the end of a fit the ledger as a table, and learning curves where there are three lengths.

    The service is called from a thread of its own. What it refuses, or is too slow for, is dropped and counted, said
    once by the logger "hydrax", and never stops or delays training; at the end it has `CLOSE_SECS` to finish.

    Attributes:
      run_id: the service's name for the run; None before it has one.
      num_dropped: logs that could not be written.
    """

    def __init__(self) -> None:
        self.run_id: str | None = None
        self.num_dropped = 0
        self._worker: _Worker | None = None
        self._warned = False
        self._opened = threading.Event()

    # What a subclass says, called in the thread.

    def open_run(self, folder: str, hparams: Mapping[str, Any], first_step: int) -> str:
        """Starts the run, or goes on with `run_id`.

        Args:
          folder: the run's folder, for what the service keeps on disk.
          hparams: the module's hyper-parameters by name; a value may be a `PerHead`.
          first_step: updates done so far.

        Returns:
          The service's name for the run.
        """
        raise NotImplementedError

    def write_run(self, step: int, numbers: Mapping[str, float], heads: Mapping[str, np.ndarray]) -> None:
        """Writes what was logged at a step.

        Args:
          step: updates done.
          numbers: by name.
          heads: values of all heads, float[H] by metric.
        """
        raise NotImplementedError

    def finish_run(self, step: int, table: list[dict[str, Any]], figures: Mapping[str, Any], failed: bool) -> None:
        """Ends the run.

        Args:
          step: updates done.
          table: the ledger, one dict a head; may be empty.
          figures: matplotlib's, by name; may be empty.
          failed: whether an error ended the fit.
        """
        raise NotImplementedError

    # What it hears.

    def on_train_start(self, event: Event) -> None:
        self._close(event)
        if event.step == 0:
            self.run_id = None
        self._warned = False
        self._open(event)

    def on_train_steps_end(self, event: Event) -> None:
        for row in np.flatnonzero(event.steps % event.trainer.log_every_n_steps == 0):
            self._write(event, {name: values[row] for name, values in event.metrics.items()}, int(event.steps[row]))

    def on_validation_end(self, event: Event) -> None:
        self._evaluated(event)

    def on_test_end(self, event: Event) -> None:
        self._evaluated(event)

    def on_train_epoch_end(self, event: Event) -> None:
        self._write(event, event.metrics, event.step)

    def on_fit_end(self, event: Event) -> None:
        if self._worker is None:
            return
        known, lengths = event.trainer.callback_metrics, np.array([h["length"] for h in event.trainer.head_settings()])
        names = sorted(event.trainer.validation_metrics & set(known))[:MOST_FIGURES]
        draws = can_draw() and len(np.unique(lengths)) > 2
        figures = {
            f"learning_curve/{name}": learning_curve(lengths, known[name], name) for name in (names if draws else [])
        }
        self._close(event, event.trainer.ledger(), figures)

    def on_exception(self, event: Event) -> None:
        self._close(event, failed=True)

    def teardown(self, event: Event) -> None:
        self._close(event)

    def state_dict(self) -> dict[str, Any]:
        if self._worker is not None:
            self._opened.wait(OPEN_SECS)
            self._opened.set()
        return {"run_id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.run_id = state["run_id"]

    def _evaluated(self, event: Event) -> None:
        if self._worker is None:
            self._open(event)  # validate or test, without a fit
        self._write(event, event.metrics, event.step, dict(event.metrics))
        if event.stage != "fit":
            self._close(event)

    def _open(self, event: Event) -> None:
        if event.trainer.log_dir is None:
            return
        folder, hparams = str(event.trainer.log_dir), dict(event.trainer.module.hparams if event.trainer.module else {})
        first = event.step

        def start() -> None:
            try:
                self.run_id = self.open_run(folder, hparams, first)
            finally:
                self._opened.set()

        self._opened.clear()
        self._worker = _Worker(self._report)
        self._worker.add(start)

    def _write(
        self,
        event: Event,
        metrics: Mapping[str, np.ndarray],
        step: int,
        heads: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        if self._worker is None or not metrics:
            return
        numbers = {
            f"{name}/{word}": number for name, spread in spreads(metrics).items() for word, number in spread.items()
        }
        numbers |= {"heads/live": int(np.count_nonzero(event.live)), "heads/not_finite": count_not_finite(metrics)}
        numbers |= event.trainer.scalars
        self._worker.add(lambda: self.write_run(step, numbers, heads or {}))

    def _close(
        self,
        event: Event,
        table: list[dict[str, Any]] | None = None,
        figures: Mapping[str, Any] | None = None,
        failed: bool = False,
    ) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.add(lambda: self.finish_run(event.step, table or [], figures or {}, failed))
            worker.close(CLOSE_SECS)
            self.num_dropped += worker.num_dropped

    def _report(self, trouble: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "Logs are dropped: %s. Got %s, expected a service that takes them. Fix: see what it says; the run "
                "goes on without them.",
                type(self).__name__,
                trouble,
            )


class _Worker:
    """A thread that makes calls one after the other; whoever adds one never waits."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.num_dropped = 0
        self._report = report
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WAITING)
        # A daemon: a service that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="hydrax-logger", daemon=True)
        self._thread.start()

    def add(self, call: Callable[[], None]) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._drop(f"no answer to {MOST_WAITING} logs")

    def close(self, secs: float) -> None:
        """Waits for the calls that were added, but not for ever."""
        ends = time.monotonic() + secs
        try:
            self._calls.put(None, timeout=secs)
        except queue.Full:
            pass
        self._thread.join(max(0.0, ends - time.monotonic()))
        if self._thread.is_alive():
            self.num_dropped += self._calls.qsize()
            self._report(f"no answer in {secs:.0f} s")

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:
                self._drop(repr(error)[:300])

    def _drop(self, trouble: str) -> None:
        self.num_dropped += 1
        self._report(trouble)


def missing_package(kind: str, package: str, extra: str) -> ArgumentError:
    """The error of a logger whose package is not installed."""
    return ArgumentError(
        f"A package is missing: {kind}. Got no {package}, expected it to be installed. Fix: "
        f"pip install 'hydrax-heads[{extra}]'."
    )
