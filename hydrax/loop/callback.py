"""The host tier of callbacks: the hooks, the events they receive, and the `Control` they may return."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hydrax.arguments import check_init_calls, checked_calls, no_attribute
from hydrax.data import DataModule
from hydrax.engine import Fault, PlanReport
from hydrax.lightning import CALLBACK_ATTRIBUTES
from hydrax.results import Heads, Ledger
from hydrax.step import HeadModule, StepCallback

if TYPE_CHECKING:
    from pathlib import Path


class TrainerView(Protocol):
    """The part of the Trainer that a callback may use: the present run, or the last one. The Trainer implements it.

    Attributes:
      callbacks: the user's callbacks, and the defaults once a fit has started.
      log_every_n_steps: steps between logs.
      module: what one head is; None before a stage.
      datamodule: the data; None before a stage.
    """

    callbacks: list[Callback]
    log_every_n_steps: int
    datamodule: DataModule | None

    @property
    def module(self) -> HeadModule | None:
        """The module of the present or last stage."""

    @property
    def log_dir(self) -> Path | None:
        """The run's folder, made when a fit first asks for it; None if nothing is written."""

    @property
    def num_heads(self) -> int:
        """H, the number of heads."""

    @property
    def global_step(self) -> int:
        """Optimiser updates dispatched so far."""

    @property
    def current_epoch(self) -> int:
        """Epochs finished so far."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser updates of the present epoch."""

    @property
    def slots_per_step(self) -> int:
        """Slots of one head's update, those of all micro-batches, padding included."""

    @property
    def estimated_stepping_batches(self) -> int:
        """Optimiser updates of the whole fit."""

    @property
    def metrics(self) -> Mapping[str, np.ndarray]:
        """The latest value of everything logged, float[H] by name."""

    @property
    def callback_metrics(self) -> Mapping[str, np.ndarray]:
        """The same as `metrics`, under the name that Lightning gives it."""
        return self.metrics

    @property
    def progress_bar_metrics(self) -> Mapping[str, np.ndarray]:
        """Those of `metrics` that were logged with `prog_bar=True`."""

    @property
    def validation_metrics(self) -> frozenset[str]:
        """Names that validation logs during the fit; empty if there is no validation."""

    @property
    def training_metrics(self) -> frozenset[str]:
        """Names that training logs during the fit and whose means over an epoch a callback can ask for."""

    @property
    def validated(self) -> np.ndarray:
        """bool[H], the heads that have validation rows; a metric of the others is NaN without being a fault."""

    @property
    def scalars(self) -> Mapping[str, float]:
        """The latest numbers of the run as a whole, by name: what callbacks passed to `log_scalars`."""

    def log_scalars(self, values: Mapping[str, float]) -> None:
        """Logs numbers of the run as a whole, such as its speed; loggers write them with their next values.

        Values of heads are logged by the step (`self.log`) or by a callback's second tier.

        Args:
          values: numbers by name.
        """

    @property
    def heads(self) -> Heads:
        """The heads as they are now, with the parameters to evaluate (`HydraModule.evaluation_parameters`)."""

    @property
    def opt_state(self) -> Any:
        """The state of the optimisers as it is now, leaves `[H, ...]`; also after the fit."""

    @property
    def head_shapes(self) -> Any:
        """One head's `trainable`, `state` and `opt_state`, as shapes."""

    def snapshots_of(self, callback: Callback, slot: int = 0) -> Heads | None:
        """Returns the heads that a callback's `Control.snapshot` kept, or None if it kept none.

        Args:
          callback: the callback that asked for the snapshot.
          slot: the row of `Control.snapshot`, if that had several.
        """

    def callback_state(self, callback: Callback) -> Any:
        """Returns the state of a callback's second tier, NumPy leaves `[H, ...]`.

        Args:
          callback: the callback whose state to read.
        """

    @property
    def checkpoint_callback(self) -> Any:
        """The first callback that saves checkpoints, or None."""

    @property
    def logger(self) -> Any:
        """The first of `loggers`, or None: the TensorBoardLogger, unless another logger comes before it."""

    @property
    def loggers(self) -> list[Any]:
        """The callbacks that write to a service with an interface of its own, which is their attribute `experiment`."""

    @property
    def run_id(self) -> str:
        """The run's own random name, which its checkpoints carry and a resumed run keeps."""

    @property
    def interrupted(self) -> bool:
        """Whether a signal has asked for the end of the fit."""

    @property
    def should_stop(self) -> bool:
        """Whether the fit ends at the next superstep; a callback may set it, and a resumed fit continues from there.

        Before `min_steps` and `min_epochs` it stays False.
        """

    @should_stop.setter
    def should_stop(self, value: bool) -> None: ...

    @property
    def quarantined(self) -> Mapping[int, Fault]:
        """When and by what heads became NaN or infinite, by head id."""

    def head_settings(self) -> Ledger:
        """Lists what distinguishes each head: head, recipe, seed, length, axes of its slices, `PerHead` values."""

    def ledger(
        self,
        monitor: str | None = None,
        scores: np.ndarray | None = None,
        more: Mapping[str, np.ndarray] | None = None,
    ) -> Ledger:
        """`head_settings`, and what became of each head: score, status, reason.

        Args:
          monitor: the metric whose latest value is the score if no scores are passed; None means `val_loss`.
          scores: float[H].
          more: further columns [H] by name, placed after the score.
        """

    def save_ledger(
        self,
        path: str | Path,
        monitor: str | None = None,
        scores: np.ndarray | None = None,
        more: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Writes the ledger as CSV, whole or not at all.

        Args:
          path: the file.
          monitor, scores, more: as in `ledger`.
        """

    def save_hparams(self) -> None:
        """Writes the module's hyper-parameters, if it has any, to `<log_dir>/hparams.yaml`, as loggers do.

        If the file cannot be written, a warning says so and the run continues.
        """

    def save_checkpoint(self, path: str | Path, keep: int | None = None) -> Path:
        """Writes the run as it is now to `<path>/<step>/`, and returns that folder.

        During a fit, call it from a hook that sees the heads as they are: `next_due`, validation, an epoch's end.

        Args:
          path: folder of the checkpoints.
          keep: how many of the newest to keep; None keeps all.
        """

    def plan(self) -> PlanReport:
        """Reports the plan of the run, the plans it was chosen from, and how close it comes to the machine's limit.

        The first call measures the limit, which takes a second or two.
        """


@dataclasses.dataclass(frozen=True)
class Event:
    """What a hook receives: one moment of a run. Arrays are NumPy and read-only.

    Attributes:
      trainer: the run's Trainer; `TrainerView` lists what a callback may use of it.
      stage: "fit", "validate", "test" or "predict".
      step: optimiser updates done so far; in `on_train_steps_end` those of its own last row, even if the next superstep
        runs already.
      epoch: epochs finished so far; inside an epoch, its number.
      metrics: float32[K, H] by name in `on_train_steps_end`, one row for each step of the superstep;
        float32[H] by name in `on_train_batch_end`, `on_validation_end`, `on_test_end` and `on_train_epoch_end`; empty
        elsewhere.
      steps: int64[K], the number of updates done after each row of `metrics`; empty elsewhere.
      live: bool[H], heads that still learn: False for heads that are stopped or have made all their passes.
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

    def epoch_mean(self, name: str) -> np.ndarray:
        """Returns the mean of a training metric over the epoch, float32[H], in `on_train_epoch_end`.

        Args:
          name: the metric, with or without the suffix `_epoch`.
        """
        name = name.removesuffix("_epoch")
        return self.metrics[f"{name}_epoch" if f"{name}_epoch" in self.metrics else name]


@checked_calls
@dataclasses.dataclass(frozen=True)
class Control:
    """What a hook of training or validation may return; the other hooks' return values are ignored.

    A `Control` is carried out in this order: `snapshot`, `stop`, `restore`.

    Attributes:
      stop: bool[H], True freezes the head bit for bit from here on; the fit ends once all heads are stopped.
      snapshot: bool[H], True keeps the head's present model as its snapshot (`trainer.snapshots_of(callback)`) until
        this callback asks for the next one; or bool[slots, H], one row for each of several snapshots of a head.
      restore: bool[H], True restores the head's model from its snapshot in slot 0, and with it the head's metrics of
        that time: what is reported belongs to the present model.
      reason: why heads stop: one string, or H of them, for the ledger and the closing message of the fit.

    >>> stop_odd_heads = Control(stop=np.array([False, True, False, True]), reason="odd")
    >>> stop_odd_heads.stop.sum()
    np.int64(2)
    """

    stop: np.ndarray | None = None
    snapshot: np.ndarray | None = None
    restore: np.ndarray | None = None
    reason: str | Sequence[str] = ""


class Callback(StepCallback):
    """Base of all callbacks. Override the hooks you need; each hook of the first tier receives one `Event`.

    The first tier runs on the host between supersteps and may return a `Control`. The second tier (`init`, `on_step`,
    `metrics`) runs inside the compiled program, for one head, and must be pure; its state is trained, frozen and
    checkpointed with the head.
    """

    if not TYPE_CHECKING:  # a type checker must go on to report unknown attributes

        def __getattr__(self, name: str) -> None:
            no_attribute(type(self).__name__, name, CALLBACK_ATTRIBUTES)

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        check_init_calls(cls)

    def setup(self, event: Event) -> Control | None:
        """Called first in each stage: the place to check arguments."""

    def on_fit_start(self, event: Event) -> Control | None:
        """Called before a fit's first step, once everything is compiled and the state of a resumed fit is restored."""

    def on_train_start(self, event: Event) -> Control | None:
        """Called right after `on_fit_start`."""

    def on_train_epoch_start(self, event: Event) -> Control | None:
        """Called before the first step of an epoch, and before the first step of a resumed fit."""

    def on_train_steps_end(self, event: Event) -> Control | None:
        """Called with the K steps of a superstep at once, one superstep late unless `next_due` named its last step."""

    def on_train_batch_end(self, event: Event) -> Control | None:
        """Called after every single step. Overriding it makes each step return to the host (K = 1), which is slow."""

    def on_validation_start(self, event: Event) -> Control | None:
        """Called before a validation, in a fit or by `Trainer.validate`."""

    def on_validation_end(self, event: Event) -> Control | None:
        """Called after a validation; the event's metrics are its means, float32[H] by name."""

    def on_train_epoch_end(self, event: Event) -> Control | None:
        """Called after an epoch's last step and its validation; the event's metrics are means over the epoch."""

    def on_train_end(self, event: Event) -> Control | None:
        """Called after a fit's last step, validation and epoch."""

    def on_fit_end(self, event: Event) -> Control | None:
        """Called right after `on_train_end`."""

    def on_test_start(self, event: Event) -> Control | None:
        """Called before `Trainer.test` runs the test set."""

    def on_test_end(self, event: Event) -> Control | None:
        """Called after the test set; the event's metrics are its means, float32[H] by name."""

    def on_predict_start(self, event: Event) -> Control | None:
        """Called before `Trainer.predict` or `Trainer.predict_held_out` runs its set."""

    def on_predict_end(self, event: Event) -> Control | None:
        """Called after the predictions are made."""

    def on_exception(self, event: Event) -> Control | None:
        """Called when an error, `event.error`, ends a stage; `teardown` follows."""

    def on_save_checkpoint(self, event: Event) -> Control | None:
        """Called before a checkpoint is written, and before `state_dict`."""

    def on_load_checkpoint(self, event: Event) -> Control | None:
        """Called once the state of a resumed fit is restored, after `load_state_dict`."""

    def teardown(self, event: Event) -> Control | None:
        """Called last in each stage, also in one that an error ended."""

    def next_due(self, step: int) -> int | None:
        """Returns the next step count after `step` at which this callback must see the heads as they then are, or None.

        The superstep ends there, and `on_train_steps_end` is called before the next one starts.

        Args:
          step: optimiser updates done so far.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Returns what must survive a resume: NumPy arrays, numbers, bools, strings or None, by name."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Args:
          state: the values by name, as the checkpoint holds them.
        """

    @property
    def epoch_means(self) -> tuple[str, ...]:
        """Training metrics whose means over each epoch this callback needs, even if they are logged by step only."""
        return ()

    @property
    def needs_every_epoch(self) -> bool:
        """Whether the hooks of epochs must be called for each epoch even if nothing is averaged over epochs.

        A superstep then ends with each epoch, which costs time if epochs are short.
        """
        return True

    @property
    def is_checkpoint(self) -> bool:
        """True for callbacks that save: they are called after the others for every event."""
        return False


def overrides(callback: Callback, hook: str) -> bool:
    """Whether a callback's class defines `hook` itself."""
    # By class: the loop decides once which hooks to call, so one that is set on an instance later has no effect.
    return getattr(type(callback), hook) is not getattr(Callback, hook)
