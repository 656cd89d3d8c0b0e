"""The base class of loggers that write to a remote service, one run for all heads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hydrax.errors import ArgumentError
from hydrax.loggers.background import BackgroundWriter
from hydrax.loggers.plots import can_draw, learning_curve
from hydrax.loggers.quantiles import count_not_finite, of_live_heads, spread
from hydrax.loop import Callback, Event
from hydrax.results import column_of

MAX_WAITING = 1_000
"""Logs that may wait for a service."""
OPEN_SECS = 10.0
"""Longest time that the first checkpoint waits for the run's id."""
MAX_FIGURES = 4
"""Learning curves drawn at the end of a fit."""
_log = logging.getLogger("hydrax")


class RemoteLogger(Callback):
    """Base class of loggers that write to a remote service; subclasses implement `open_run`, `write_run`, `finish_run`.

    It writes:

    - `<metric>/mean`, `/min`, `/q10`, `/median`, `/q90`, `/max` over the heads whose value is finite: training metrics
      at every step that `trainer.log_every_n_steps` divides, all others whenever they are computed;
    - the values of all heads, for validation and test metrics;
    - `heads/live` and `heads/not_finite`, and the numbers that callbacks pass to `trainer.log_scalars`;
    - at the end of a fit the ledger as a table, and learning curves if the slices have three or more lengths.

    A thread of its own calls the service, so the service never stops or delays training. A log that the service refuses
    or is too slow for is dropped and counted, and the logger "hydrax" warns once. The end of a fit waits up to 30 s for
    the service.

    Attributes:
      run_id: the service's name for the run; None until it has one.
      num_dropped: number of logs that could not be written.
    """

    def __init__(self) -> None:
        self.run_id: str | None = None
        self.num_dropped = 0
        self._writer: BackgroundWriter | None = None
        self._warned = False
        self._opened = threading.Event()

    # A subclass implements these three; the thread calls them.

    def open_run(self, folder: str, hparams: Mapping[str, Any], first_step: int) -> str:
        """Starts the run, or continues the run `run_id` if that is not None.

        Args:
          folder: the run's folder, for files that the service keeps on disk.
          hparams: hyper-parameters of the module by name; a value may be a `PerHead`.
          first_step: number of updates done so far.

        Returns:
          The service's name for the run.
        """
        raise NotImplementedError

    def write_run(self, step: int, numbers: Mapping[str, float], heads: Mapping[str, np.ndarray]) -> None:
        """Writes the logs of one step.

        Args:
          step: number of updates done.
          numbers: scalars by name.
          heads: float[H], the values of all heads, by metric.
        """
        raise NotImplementedError

    def finish_run(
        self, step: int, table: Sequence[Mapping[str, Any]], figures: Mapping[str, Any], failed: bool
    ) -> None:
        """Ends the run.

        Args:
          step: number of updates done.
          table: the ledger, one dict per head; may be empty.
          figures: figures of matplotlib, by name; may be empty.
          failed: whether an error ended the fit.
        """
        raise NotImplementedError

    @property
    def needs_every_epoch(self) -> bool:
        return False  # means over an epoch, if there are any, end a superstep with each epoch by themselves

    # Hooks.

    def on_train_start(self, event: Event) -> None:
        self._close(event)
        if event.step == 0:
            self.run_id = None
        self._warned = False
        self._open(event)

    def on_train_steps_end(self, event: Event) -> None:
        for row in np.flatnonzero(event.steps % event.trainer.log_every_n_steps == 0):
            self._write(event, of_live_heads(event, row), int(event.steps[row]))

    def on_validation_end(self, event: Event) -> None:
        self._evaluated(event)

    def on_test_end(self, event: Event) -> None:
        self._evaluated(event)

    def on_train_epoch_end(self, event: Event) -> None:
        self._write(event, event.metrics, event.step)

    def on_fit_end(self, event: Event) -> None:
        if self._writer is None:
            return
        metrics, figures = event.trainer.callback_metrics, {}
        lengths = column_of(event.trainer.head_settings(), "length")
        if can_draw() and len(np.unique(lengths)) > 2:
            for name in sorted(event.trainer.validation_metrics & set(metrics))[:MAX_FIGURES]:
                figures[f"learning_curve/{name}"] = learning_curve(lengths, metrics[name], name)
        self._close(event, event.trainer.ledger(), figures)

    def on_exception(self, event: Event) -> None:
        self._close(event, failed=True)

    def teardown(self, event: Event) -> None:
        self._close(event)

    def state_dict(self) -> dict[str, Any]:
        if self._writer is not None:
            self._opened.wait(OPEN_SECS)
            self._opened.set()  # later checkpoints do not wait again for a service that does not answer
        return {"run_id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.run_id = state["run_id"]

    def _evaluated(self, event: Event) -> None:
        if self._writer is None:
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
        self._writer = BackgroundWriter(f"hydrax {type(self).__name__}", MAX_WAITING, self._report)
        self._writer.add(start)

    def _write(
        self,
        event: Event,
        metrics: Mapping[str, np.ndarray],
        step: int,
        heads: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        if self._writer is None or not metrics:
            return
        numbers: dict[str, float] = spread(metrics)
        numbers |= {"heads/live": int(np.count_nonzero(event.live)), "heads/not_finite": count_not_finite(metrics)}
        numbers |= event.trainer.scalars
        self._writer.add(lambda: self.write_run(step, numbers, heads or {}))

    def _close(
        self,
        event: Event,
        table: Sequence[Mapping[str, Any]] = (),
        figures: Mapping[str, Any] | None = None,
        failed: bool = False,
    ) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close(lambda: self.finish_run(event.step, table or [], figures or {}, failed))
            self.num_dropped += writer.num_dropped

    def _report(self, trouble: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "Logs were dropped: %s. Got %s, expected a service that accepts them. Fix: check the service and the "
                "network; the run continues without these logs.",
                type(self).__name__,
                trouble,
            )


def missing_package(kind: str, package: str, extra: str) -> ArgumentError:
    """Makes the error of a logger whose package is not installed."""
    return ArgumentError(
        f"Missing package: {kind}. Got no {package}, expected it to be installed. Fix: "
        f"pip install 'hydrax-heads[{extra}]'."
    )
