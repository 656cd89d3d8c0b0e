"""What a callback hears, and the little it may say back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hydrax.data import DataModule
from hydrax.engine import Fault, PlanReport
from hydrax.results import Heads
from hydrax.step import HeadModule, StepCallback

if TYPE_CHECKING:
    from pathlib import Path


class TrainerView(Protocol):
    """What a callback may use of the Trainer, which says what each is."""

    datamodule: DataModule | None
    log_every_n_steps: int

    @property
    def module(self) -> HeadModule | None: ...

    @property
    def log_dir(self) -> Path | None: ...

    @property
    def num_heads(self) -> int: ...

    @property
    def global_step(self) -> int: ...

    @property
    def current_epoch(self) -> int: ...

    @property
    def estimated_stepping_batches(self) -> int: ...

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def slots_per_step(self) -> int: ...

    @property
    def callback_metrics(self) -> Mapping[str, np.ndarray]: ...

    @property
    def progress_bar_metrics(self) -> Mapping[str, np.ndarray]: ...

    @property
    def validation_metrics(self) -> frozenset[str]: ...

    @property
    def scalars(self) -> Mapping[str, float]: ...

    def log_scalars(self, values: Mapping[str, float]) -> None: ...

    @property
    def heads(self) -> Heads: ...

    @property
    def head_shapes(self) -> Any: ...

    def snapshots_of(self, callback: Callback, slot: int = 0) -> Heads | None: ...

    def plan(self) -> PlanReport: ...

    @property
    def interrupted(self) -> bool: ...

    should_stop: bool

    @property
    def quarantined(self) -> Mapping[int, Fault]: ...

    def callback_state(self, callback: Callback) -> Any: ...

    def head_settings(self) -> list[dict[str, Any]]: ...

    def ledger(
        self,
        monitor: str | None = None,
        scores: np.ndarray | None = None,
        more: Mapping[str, np.ndarray] | None = None,
    ) -> list[dict[str, Any]]: ...

    def save_ledger(
        self,
        path: str | Path,
        monitor: str | None = None,
        scores: np.ndarray | None = None,
        more: Mapping[str, np.ndarray] | None = None,
    ) -> None: ...

    def save_hparams(self) -> None: ...

    def save_checkpoint(self, path: str | Path, keep: int | None = None) -> Path: ...


@dataclasses.dataclass(frozen=True)
class Event:
    """What a hook gets: one moment of a run. Arrays are NumPy and read-only.

    Attributes:
      trainer: the run's Trainer; `TrainerView` lists what a callback may use of it.
      stage: "fit", "validate", "test" or "predict".
      step: optimiser updates done so far; in `on_train_steps_end` those of its own last row, whatever runs by then.
      epoch: epochs finished so far; inside an epoch, its number.
      metrics: float32[K, H] by name in `on_train_steps_end`, one row for each step of the superstep;
        float32[H] by name in `on_train_batch_end`, `on_validation_end`, `on_test_end` and `on_train_epoch_end`; empty
        elsewhere.
      steps: int64[K], the number of updates done after each row of `metrics`; empty elsewhere.
      live: bool[H], heads that still learn: False for those stopped, and for those through their passes.
      error: the exception, in `on_exception` only.
    """

    trainer: TrainerView
    stage: str
    step: int
    epoch: int
    metrics: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    steps: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    live: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    error: BaseException | None = None


@dataclasses.dataclass(frozen=True)
class Control:
    """What a hook of training or validation may answer; other hooks' answers change nothing.

    Attributes:
      stop: bool[H], True freezes the head bit for bit from here on; a fit whose heads are all stopped ends.
      snapshot: bool[H], True keeps this head's present model as its snapshot (`trainer.snapshots_of(callback)`), until
        this callback asks for the next one; or bool[slots, H], for several snapshots of a head, a row for each slot.
      restore: bool[H], True gives a head the model of its snapshot (in slot 0) back; before it stops, after it is kept.
      reason: why heads stop: one text, or H of them; it stands in the ledger, and in what a fit says at its end.
    """

    stop: np.ndarray | None = None
    snapshot: np.ndarray | None = None
    restore: np.ndarray | None = None
    reason: str | Sequence[str] = ""


class Callback(StepCallback):
    """Base of all callbacks. Override the hooks you need; every hook of the first tier gets one `Event`.

    Tier one runs on the host between supersteps and may return a `Control`. Tier two (`init`, `on_step`, `metrics`)
    runs inside the compiled program, for one head, and must be pure; its state is trained, frozen and checkpointed with
    the head.
    """

    def setup(self, event: Event) -> Control | None:
        """The first of each stage: the place to check arguments."""

    def on_fit_start(self, event: Event) -> Control | None:
        """Before a fit's first step, once all is compiled; a resumed fit's state is there."""

    def on_train_start(self, event: Event) -> Control | None:
        """As `on_fit_start`, and behind it."""

    def on_train_epoch_start(self, event: Event) -> Control | None:
        """Before an epoch's first step, and before that of a resumed fit."""

    def on_train_steps_end(self, event: Event) -> Control | None:
        """Hears the K steps of one superstep at once, one superstep late unless `next_due` named its last step."""

    def on_train_batch_end(self, event: Event) -> Control | None:
        """Hears every single step. Overriding it makes each step return to the host (K = 1), which is slow."""

    def on_validation_start(self, event: Event) -> Control | None:
        """Before a validation, in a fit or by `Trainer.validate`."""

    def on_validation_end(self, event: Event) -> Control | None:
        """After a validation; the event's metrics are its means, float32[H] by name."""

    def on_train_epoch_end(self, event: Event) -> Control | None:
        """After an epoch's last step and its validation; the event's metrics are means over the epoch."""

    def on_train_end(self, event: Event) -> Control | None:
        """After a fit's last step, validation and epoch."""

    def on_fit_end(self, event: Event) -> Control | None:
        """As `on_train_end`, and behind it."""

    def on_test_start(self, event: Event) -> Control | None:
        """Before `Trainer.test` walks the test set."""

    def on_test_end(self, event: Event) -> Control | None:
        """After it; the event's metrics are its means, float32[H] by name."""

    def on_predict_start(self, event: Event) -> Control | None:
        """Before `Trainer.predict` or `Trainer.predict_held_out` walks its set."""

    def on_predict_end(self, event: Event) -> Control | None:
        """After it."""

    def on_exception(self, event: Event) -> Control | None:
        """Once an error ends a stage, `event.error`; `teardown` follows."""

    def on_save_checkpoint(self, event: Event) -> Control | None:
        """Before a checkpoint is written, and before `state_dict` is asked for."""

    def on_load_checkpoint(self, event: Event) -> Control | None:
        """After a resumed fit has its state back, and after `load_state_dict`."""

    def teardown(self, event: Event) -> Control | None:
        """The last of each stage, also of one that an error ended."""

    def next_due(self, step: int) -> int | None:
        """The next step count after `step` at which this callback must see the heads exactly as they then are, or None.

        The superstep ends there, and `on_train_steps_end` is heard before the next one starts.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume: names to NumPy arrays, numbers, bools, strings or None."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""

    @property
    def is_checkpoint(self) -> bool:
        """True for callbacks that save: they hear every event after the others."""
        return False


def overrides(callback: Callback, hook: str) -> bool:
    """Whether a callback's class defines `hook` itself."""
    return getattr(type(callback), hook) is not getattr(Callback, hook)
