"""RunView: what a callback, and a user after a fit, may read of the Trainer's run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from hydrax.data import DataModule
from hydrax.engine import Fault, PlanReport, heads_of
from hydrax.errors import ArgumentError
from hydrax.files import warn_if_unwritable, write_text
from hydrax.loop import Callback, FitLoop, Interrupts, keys, snapshot_name
from hydrax.results import Heads, head_settings, ledger, write_csv
from hydrax.train.fit import Checked, Training
from hydrax.train.module import HydraModule
from hydrax.train.run_folder import make_run_folder
from hydrax.train.tune import Settled, report

_log = logging.getLogger("hydrax")


class RunView:
    """The present run, or the last one; `callback.TrainerView` is the part of it that callbacks may use.

    Attributes:
      module: what one head is.
      datamodule: the data.
      callbacks: the user's, and the defaults once a fit has started.
      log_every_n_steps: steps between logs.
    """

    def __init__(self, callbacks: list[Callback], log_every_n_steps: int, log_root: Path | None) -> None:
        self.module: HydraModule | None = None
        self.datamodule: DataModule | None = None
        self.callbacks = callbacks
        self._log_root = log_root
        self._log_dir: Path | None = None
        self._fitting = False
        self.log_every_n_steps = log_every_n_steps
        self._training: Training | None = None
        self._laid_out: tuple[Checked, Settled] | None = None
        self._loop: FitLoop | None = None
        self._interrupts = Interrupts()
        self._evaluated: dict[str, np.ndarray] = {}  # what validate and test found after the fit
        self._scalars: dict[str, float] = {}

    @property
    def log_dir(self) -> Path | None:
        """The run's folder, made when a fit first asks for it; None where nothing is written."""
        if self._log_dir is None and self._log_root is not None and self._fitting:
            try:
                self._log_dir = make_run_folder(self._log_root)
            except OSError as error:  # training is worth more than its log
                _log.warning(
                    "Nothing is written: default_root_dir=%s. Got %r, expected a folder that takes it. Fix: "
                    "pass another.",
                    self._log_root,
                    error,
                )
                self._log_root = None
        return self._log_dir

    @property
    def num_heads(self) -> int:
        """H, the number of heads."""
        return 0 if self._training is None else len(self._training.slices)

    @property
    def global_step(self) -> int:
        """Optimiser updates dispatched."""
        return 0 if self._loop is None else self._loop.state.step

    @property
    def current_epoch(self) -> int:
        """Epochs finished."""
        return 0 if self._training is None else self._training.schedule.epoch(self.global_step)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser updates of an epoch."""
        return self._running()[1].schedule.steps_per_epoch

    @property
    def slots_per_step(self) -> int:
        """Slots of one head's update, of all its micro-batches, padding included."""
        assert self._laid_out is not None
        checked = self._laid_out[0]
        return checked.settings.accumulate_grad_batches * checked.sampling.batch_size

    @property
    def estimated_stepping_batches(self) -> int:
        """Optimiser updates of the whole fit."""
        return self._running()[1].schedule.max_steps

    def plan(self) -> PlanReport:
        """How the run is laid out, what that was chosen from, and how near it comes to the machine's limit.

        Measures the limit when it is first asked for, which takes a second or two.
        """
        if self._laid_out is None:
            raise _no_run()
        return report(*self._laid_out, None if self._loop is None else self._loop.step_secs)

    @property
    def metrics(self) -> Mapping[str, np.ndarray]:
        """The latest value of everything logged, float[H] by name."""
        return MappingProxyType({} if self._loop is None else {**self._loop.state.metrics, **self._evaluated})

    callback_metrics = metrics

    @property
    def progress_bar_metrics(self) -> Mapping[str, np.ndarray]:
        """Those of `callback_metrics` that were logged for the progress bar."""
        entries = [item for stage in self._running()[1].logged.values() for item in stage.items()]
        names = {name + suffix for name, entry in entries if entry.prog_bar for suffix in ("", "_step", "_epoch")}
        return {name: value for name, value in self.callback_metrics.items() if name in names}

    @property
    def heads(self) -> Heads:
        """The heads as they now are."""
        loop, training = self._running()
        return self._as_heads(*training.engine.gather(heads_of(loop.state.heads)))

    @property
    def validation_metrics(self) -> frozenset[str]:
        """Names that validation logs during the fit; empty where there is none."""
        training = self._training
        return frozenset(training.logged["validation"] if training and training.validation else ())

    @property
    def scalars(self) -> Mapping[str, float]:
        """The latest numbers of the run as a whole, by name: what callbacks gave to `log_scalars`."""
        return MappingProxyType(self._scalars)

    def log_scalars(self, values: Mapping[str, float]) -> None:
        """Logs numbers of the run as a whole, such as its speed: loggers write them with the next thing they write.

        What belongs to heads is logged by the step (`self.log`) or by a callback's second tier.
        """
        self._scalars |= {name: float(value) for name, value in values.items()}

    @property
    def head_shapes(self) -> Any:
        """One head's `trainable`, `state` and `opt_state`, as shapes."""
        shapes = self._running()[1].engine.state_shapes()
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), shapes)

    def snapshots_of(self, callback: Callback, slot: int = 0) -> Heads | None:
        """The heads that a callback's `Control.snapshot` kept in a slot, or None where it kept none.

        Args:
          callback: whose.
          slot: the line of `Control.snapshot`, where that had several.
        """
        loop, training = self._running()
        kept = loop.state.snapshots.get(snapshot_name(self._key(callback), slot))
        return None if kept is None else self._as_heads(*training.engine.gather(kept))

    @property
    def checkpoint_callback(self) -> Any:
        """The first callback that saves, or None."""
        return next((callback for callback in self.callbacks if callback.is_checkpoint), None)

    @property
    def interrupted(self) -> bool:
        """Whether a signal has asked for the fit's end."""
        return self._interrupts.signal is not None

    @property
    def should_stop(self) -> bool:
        """Whether the fit ends at the next superstep; a callback may set it, and a resumed fit goes on from there.

        Before `min_steps` and `min_epochs` it stays False.
        """
        return self._interrupts.came

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        loop, training = self._running()
        self._interrupts.asked = bool(value) and loop.state.step >= training.schedule.min_steps

    @property
    def quarantined(self) -> Mapping[int, Fault]:
        """Of heads that became NaN or infinite, when and by what, by head id."""
        loop, training = self._running()
        return MappingProxyType({int(training.slices.ids[place]): fault for place, fault in loop.state.faults.items()})

    def callback_state(self, callback: Callback) -> Any:
        """State of a callback's second tier, NumPy leaves `[H, ...]`."""
        loop, training = self._running()
        return training.engine.read(tuple(block.callbacks[self._key(callback)] for block in loop.state.heads))

    def head_settings(self) -> list[dict[str, Any]]:
        """What makes each head this head: head, recipe, seed, length, axes of its slices, `PerHead` values."""
        assert self.module is not None
        return head_settings(self._running()[1].slices, self.module)

    def ledger(
        self,
        monitor: str | None = None,
        scores: np.ndarray | None = None,
        more: Mapping[str, np.ndarray] | None = None,
    ) -> list[dict[str, Any]]:
        """`head_settings`, and what became of each head: score, status, reason.

        Args:
          monitor: the metric whose latest value is the score where no scores are given; None: `val_loss`.
          scores: float[H].
          more: further columns [H] by name; they stand behind the score.
        """
        loop, training = self._running()
        finite = training.engine.finite(tuple(block.trainable for block in loop.state.heads))
        scores = self.callback_metrics.get(monitor or "val_loss") if scores is None else scores
        assert self.module is not None
        return ledger(
            training.slices,
            self.module,
            score=scores,
            live=loop.state.live,
            finite=finite,
            lost=loop.lost,
            reasons=self._reasons(loop),
            more=more,
        )

    def _reasons(self, loop: FitLoop) -> dict[int, str]:
        lost = {head: f"{fault.leaf} at step {fault.step}" for head, fault in loop.state.faults.items()}
        return {**loop.state.reasons, **lost}

    def save_ledger(
        self,
        path: str | Path,
        monitor: str | None = None,
        scores: np.ndarray | None = None,
        more: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Writes the ledger as CSV, whole or not at all; arguments as `ledger`."""
        write_csv(Path(path), self.ledger(monitor, scores, more))

    def save_hparams(self) -> None:
        """Writes the module's hyper-parameters into `<log_dir>/hparams.yaml`, where there are any, as loggers do.

        Where they cannot be written, that is said, and the run goes on.
        """
        if self.log_dir is None or not self.module or not self.module.hparams:
            return
        path = self.log_dir / "hparams.yaml"
        with warn_if_unwritable("The file of hyper-parameters", path, "pass another default_root_dir to Trainer"):
            write_text(path, self.module.hparams.to_yaml())

    def _key(self, callback: Callback) -> str:
        return next(key for key, known in keys(self.callbacks).items() if known is callback)

    def _as_heads(self, trainable: Any, state: Any) -> Heads:
        training = self._running()[1]
        assert training.engine.structure is not None
        assert self.module is not None
        return Heads(trainable, state, training.engine.structure, training.slices.ids, self.module.hparams)

    def _running(self) -> tuple[FitLoop, Training]:
        if self._loop is None or self._training is None:
            raise _no_run()
        return self._loop, self._training


def _no_run() -> ArgumentError:
    return ArgumentError(
        "There is no run: Trainer. Got a request for its state before any fit, expected one after. Fix: call fit first."
    )
