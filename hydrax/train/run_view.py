"""RunView: what callbacks and users read of a Trainer's present run, or of its last one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrax.arguments import no_attribute, require
from hydrax.engine import Fault
from hydrax.errors import ArgumentError
from hydrax.files import as_path, stamp_of, warn_if_unwritable, write_text
from hydrax.lightning import TRAINER_ATTRIBUTES
from hydrax.loop import Callback, Interrupts, TrainerView
from hydrax.results import Heads, Ledger, write_csv
from hydrax.slices import LEDGER_COLUMNS
from hydrax.train.fit import PlannedFit
from hydrax.train.module import HydraModule
from hydrax.train.run import Run
from hydrax.train.run_folder import make_run_folder

_log = logging.getLogger("hydrax")


class RunView(TrainerView):
    """The part of the Trainer that only reads its run; `TrainerView` says what each member is.

    Args:
      log_root: the folder that runs write to; None writes nothing.
    """

    def __init__(self, log_root: Path | None) -> None:
        self._module: HydraModule | None = None
        self._log_root = log_root
        self._log_dir: Path | None = None
        self._is_fitting = False
        self._interrupts = Interrupts()
        self._planned: PlannedFit | None = None  # the present or last fit, from its checks on
        self._run: Run | None = None  # the same fit, from its first step on
        self._evaluated: dict[str, np.ndarray] = {}  # what validate and test found after the fit
        self._scalars: dict[str, float] = {}
        self._saved_ledger: tuple[Any, Ledger | None] = (
            None,
            None,
        )  # the last that was saved, and the stamp of its file

    if not TYPE_CHECKING:  # a type checker must go on to report unknown attributes

        def __getattr__(self, name: str) -> None:
            no_attribute(type(self).__name__, name, TRAINER_ATTRIBUTES, dir(type(self)))

    @property
    def module(self) -> HydraModule | None:
        return self._module

    @property
    def log_dir(self) -> Path | None:
        if self._log_dir is None and self._log_root is not None and self._is_fitting:
            try:
                self._log_dir = make_run_folder(self._log_root)
            except OSError as error:  # training is worth more than its log
                _log.warning(
                    "Nothing is written: default_root_dir=%s. Got %r, expected a folder that can be written. Fix: pass "
                    "another one.",
                    self._log_root,
                    error,
                )
                self._log_root = None
        return self._log_dir

    @property
    def num_heads(self) -> int:
        return 0 if self._planned is None else len(self._planned.ids)

    @property
    def global_step(self) -> int:
        return 0 if self._run is None else self._run.state.step

    @property
    def current_epoch(self) -> int:
        return 0 if self._planned is None else self._planned.schedule.epoch(self.global_step)

    @property
    def steps_per_epoch(self) -> int:
        return self._running().planned.schedule.steps_in(self.current_epoch)

    @property
    def slots_per_step(self) -> int:
        if self._planned is None:
            raise no_run()
        return self._planned.slots_per_step  # known before the first step: callbacks ask in `setup`

    @property
    def estimated_stepping_batches(self) -> int:
        return self._running().planned.schedule.max_steps

    @property
    def metrics(self) -> Mapping[str, np.ndarray]:
        return MappingProxyType({} if self._run is None else {**self._run.state.metrics, **self._evaluated})

    @property
    def progress_bar_metrics(self) -> Mapping[str, np.ndarray]:
        names = self._running().progress_bar_names
        return {name: value for name, value in self.metrics.items() if name in names}

    @property
    def validation_metrics(self) -> frozenset[str]:
        planned = self._planned
        if planned is None or planned.spec.validation is None:
            return frozenset()
        return frozenset(
            name + suffix for name in planned.logged["validation"] for suffix in planned.spec.validation.suffixes
        )

    @property
    def validated(self) -> np.ndarray:
        found = None if self._planned is None else self._planned.spec.validation
        return np.zeros(self.num_heads, bool) if found is None else found.heads_with_rows(self.num_heads)

    @property
    def training_metrics(self) -> frozenset[str]:
        names = () if self._planned is None else self._planned.spec.traced.names
        # A name that is logged by step and by epoch is also known with its suffix.
        return frozenset((*names, *(f"{name}_epoch" for name in names)))

    @property
    def scalars(self) -> Mapping[str, float]:
        return MappingProxyType(self._scalars)

    def log_scalars(self, values: Mapping[str, float]) -> None:
        self._scalars |= {name: float(value) for name, value in values.items()}

    @property
    def heads(self) -> Heads:
        return self._running().heads

    @property
    def opt_state(self) -> Any:
        return self._running().opt_state

    @property
    def head_shapes(self) -> Any:
        return self._running().head_shapes

    def snapshots_of(self, callback: Callback, slot: int = 0) -> Heads | None:
        return self._running().snapshots_of(callback, slot)

    def callback_state(self, callback: Callback) -> Any:
        return self._running().callback_state(callback)

    @property
    def checkpoint_callback(self) -> Any:
        return next((callback for callback in self.callbacks if callback.is_checkpoint), None)

    @property
    def logger(self) -> Any:
        return next(iter(self.loggers), None)

    @property
    def loggers(self) -> list[Any]:
        return [callback for callback in self.callbacks if hasattr(type(callback), "experiment")]

    @property
    def run_id(self) -> str:
        return self._running().state.run_id

    @property
    def interrupted(self) -> bool:
        return self._interrupts.signal is not None

    @property
    def should_stop(self) -> bool:
        return self._interrupts.came

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        run = self._running()
        self._interrupts.asked = bool(value) and run.state.step >= run.planned.schedule.min_steps

    @property
    def quarantined(self) -> Mapping[int, Fault]:
        return MappingProxyType(self._running().quarantined)

    def head_settings(self) -> Ledger:
        return self._running().head_settings

    def ledger(
        self,
        monitor: str | None = None,
        scores: np.ndarray | None = None,
        more: Mapping[str, np.ndarray] | None = None,
    ) -> Ledger:
        if scores is None:
            known = sorted({*self.metrics, *self.validation_metrics, *self.training_metrics})
            where = "Trainer.ledger(monitor=...)"
            require(monitor is None or monitor in known, where, monitor, f"one of {', '.join(known)}", "name a metric")
            scores = self.metrics.get(monitor or "val_loss")
        return self._running().ledger(scores, more)

    def save_ledger(
        self,
        path: str | Path,
        monitor: str | None = None,
        scores: np.ndarray | None = None,
        more: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        # With all metrics, so that heads can be sorted by any of them.
        taken = (*LEDGER_COLUMNS, *(more or {}))
        metrics = {name: value for name, value in self.metrics.items() if name not in taken}
        file, found = (
            as_path("Trainer.save_ledger(path=)", path),
            self.ledger(monitor, scores, {**(more or {}), **metrics}),
        )
        # ModelCheckpoint saves it at the end of training, and once more at the end of the fit, when mostly nothing has
        # changed since: a million lines take seconds.
        if self._saved_ledger != (stamp_of(file), found):
            write_csv(file, found)
            self._saved_ledger = stamp_of(file), found

    def save_hparams(self) -> None:
        if self.log_dir is None or not self.module or not self.module.hparams:
            return
        path = self.log_dir / "hparams.yaml"
        with warn_if_unwritable("The file of hyper-parameters", path, "pass another default_root_dir to Trainer"):
            write_text(path, self.module.hparams.to_yaml())

    def _running(self) -> Run:
        if self._run is None:
            raise no_run()
        return self._run


def no_run() -> ArgumentError:
    """Returns the error for a request that needs a run."""
    return ArgumentError(
        "There is no run: Trainer. Got a request for its state before any fit, expected one after. Fix: call fit first."
    )
