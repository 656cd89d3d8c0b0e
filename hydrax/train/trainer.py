"""Trainer: takes the arguments, lays out the run, and hands over to the loop."""

from __future__ import annotations

import collections
import contextlib
import datetime
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Never

from hydrax import checkpoint
from hydrax.checkpoint import folders
from hydrax.data import DataModule
from hydrax.engine import PlanReport
from hydrax.loop import Callback, FitLoop, Interrupts, check_callbacks, keys
from hydrax.results import FitResult
from hydrax.train import resume, tune
from hydrax.train.evaluator import Evaluator, check_types
from hydrax.train.fit import Checked, Training, check_training
from hydrax.train.fitting import first_plan
from hydrax.train.module import HydraModule
from hydrax.train.run_folder import check_root
from hydrax.train.settings import Settings, check_switches, refuse_unknown


class Trainer(Evaluator):
    """Trains, validates, tests and predicts with all heads of a module at once. Keyword arguments only.

    Args:
      max_steps: optimiser updates of every head; this or `max_epochs` must be given, the nearer one ends the fit.
      max_epochs: epochs; one epoch is the steps in which the longest slice makes one pass.
      min_steps: before so many no callback stops a head or ends the fit; what one asks for is forgotten.
      min_epochs: the same, in epochs.
      limit_train_batches: how much of the training set an epoch walks; int = batches, float = fraction.
      limit_val_batches: how much of the validation set to sampling.
      limit_test_batches: how much of the test set to sampling.
      limit_predict_batches: how much of the predict set to sampling.
      overfit_batches: every head learns from its own first batches alone, over and over and in their order, and as many
        are validated with; int = batches, float = fraction, 0: off.
      num_sanity_val_steps: validation batches that are tried before training starts, and leave no trace; -1: all.
        A resumed fit, `fast_dev_run` and `barebones` try none.
      fast_dev_run: True or n: n batches of each loop, no checkpoints, no logger.
      val_check_interval: validate every n batches (int) or fraction of an epoch (float).
      check_val_every_n_epoch: validate in every n-th epoch only; None counts `val_check_interval` across epochs.
      log_every_n_steps: steps between logs; the epoch's length where that is shorter.
      accumulate_grad_batches: batches of one update; the update takes the mean gradient of those with live slots.
      gradient_clip_val: bound of each head's own gradient, or None.
      gradient_clip_algorithm: "norm" or "value".
      precision: "32-true", "bf16-mixed", "bf16-true" or "64-true".
      matmul_precision: how JAX multiplies float32, such as "highest"; None: by its own rule, which on a GPU is TF32,
        three digits.
      seed: of everything random: a head's key is fold_in(fold_in(key(seed), head id), step).
      sampling: "own", each head its own rows in a step; or "shared", all heads the same rows, of which each learns from
        those in its slice. What a head learns differs; for many small heads whose slices hold most rows it is faster.
        The batch then holds rows of other heads, which `ctx.mask` marks: a model that mixes rows sees them.
      budget: "steps", all heads as many steps; or "passes", each head stops after max_epochs passes over its slice.
      devices: how many devices, a list of JAX devices, or "auto": all of JAX's default backend; a CPU counts once for
        each core. A head's bits do not depend on it.
      lowering: "fast" runs convolutions, pooling and skinny products in Hydrax's own form, "plain" in XLA's; "auto" is
        chosen for the machine. A head's bits depend on it.
      device_memory: bytes that a fit may take on each device, or "auto": nearly all that is free. Heads whose state
        does not fit wait on disk, below `default_root_dir`, and take turns.
      deterministic: whether the plan follows from shapes and the kind of machine alone, not from timing.
      chunk: heads that run together, or "auto"; a head's bits depend on it, and on nothing else beside it.
      steps_per_call: most steps of one dispatch, or "auto".
      on_nonfinite: what becomes of a head whose loss, parameters, optimiser or model state turns NaN or infinite:
        "quarantine", it stays as it was before that step, leaves all means, and the others go on; "raise"; or "ignore".
      profiler: "simple" says at a fit's end where its time went; "jax" writes a trace of one superstep too, into
        `log_dir`; or None.
      callbacks: one or a list, added to the defaults.
      logger: write TensorBoard events.
      enable_checkpointing: write checkpoints.
      enable_progress_bar: show progress.
      enable_model_summary: say what one head's parameters are before training.
      max_time: ends the fit, and saves, after so long: "DD:HH:MM:SS", a timedelta, or a dict such as {"hours": 2}. A
        resumed fit goes on counting.
      default_root_dir: a run writes into `<root>/hydrax_logs/version_<n>/`.
      barebones: nothing but the training: no logger, checkpoints, bar or messages.

    Raises:
      ArgumentError: an argument is unknown or has a value it cannot have.
    """

    def __init__(
        self,
        *,
        max_steps: int | None = None,
        max_epochs: int | None = None,
        min_steps: int | None = None,
        min_epochs: int | None = None,
        limit_train_batches: int | float = 1.0,
        limit_val_batches: int | float = 1.0,
        limit_test_batches: int | float = 1.0,
        limit_predict_batches: int | float = 1.0,
        overfit_batches: int | float = 0,
        num_sanity_val_steps: int = 2,
        fast_dev_run: bool | int = False,
        val_check_interval: int | float = 1.0,
        check_val_every_n_epoch: int | None = 1,
        log_every_n_steps: int = 50,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str = "norm",
        precision: str = "32-true",
        matmul_precision: str | None = None,
        seed: int = 0,
        sampling: str = "own",
        budget: str = "steps",
        devices: int | str | Sequence[Any] = "auto",
        lowering: str = "auto",
        device_memory: int | str = "auto",
        deterministic: bool = False,
        chunk: int | str = "auto",
        steps_per_call: int | str = "auto",
        on_nonfinite: str = "quarantine",
        profiler: str | None = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        logger: bool = True,
        enable_checkpointing: bool = True,
        enable_progress_bar: bool = True,
        enable_model_summary: bool = True,
        max_time: str | datetime.timedelta | Mapping[str, float] | None = None,
        default_root_dir: str | Path = ".",
        barebones: bool = False,
        **unknown: Never,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "unknown", "__class__")}
        refuse_unknown(unknown, list(given))
        switches = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        own = (*switches, "callbacks", "max_time", "default_root_dir")
        settings = Settings(**{name: value for name, value in given.items() if name not in own})
        check_switches(**{name: given[name] for name in switches})
        quiet = barebones or bool(fast_dev_run)
        self._wants = {"ProgressBar": enable_progress_bar and not barebones}
        self._wants |= {
            "TensorBoardLogger": logger and not quiet,
            "ModelCheckpoint": enable_checkpointing and not quiet,
            "ModelSummary": enable_model_summary and not quiet,
        }
        root = check_root(default_root_dir)
        timers = [] if max_time is None else [_plug_ins().Timer(max_time)]
        super().__init__(settings, check_callbacks(callbacks) + timers, None if quiet else root, root)

    # What a user calls.

    def fit(self, module: HydraModule, datamodule: DataModule, ckpt_path: str | Path | None = None) -> FitResult:
        """Trains all heads.

        Args:
          module: what one head is.
          datamodule: the data and the slices.
          ckpt_path: goes on from a checkpoint: a folder, "last" (the newest under the root; an error where there is
            none) or "auto" ("last" if there is one, else from the start).

        Returns:
          The trained heads, their metrics and their ledger.

        Raises:
          HydraxError: something does not fit; said before anything compiles.
          SystemExit: SIGTERM came; all is saved, and the status is 143.

        Ctrl-C ends the fit after the steps at hand, saves, and comes back with `result.interrupted`; another one raises
        KeyboardInterrupt at once.
        """
        check_types(module, datamodule)
        self.module, self.datamodule = module, datamodule
        self._loop = self._training = self._laid_out = self._log_dir = None
        self._evaluated, self._scalars = {}, {}
        checkpoint_path = self._find_sound_checkpoint(ckpt_path)
        with self._stage(module, datamodule, "fit"), contextlib.ExitStack() as opened:
            self._add_defaults()
            checked = self._check(module, datamodule, checkpoint_path)
            opened.callback(checked.close)
            opened.callback(self._close)
            self._lay_out(checked, checkpoint_path)
            self.log_every_n_steps = checked.schedule.log_every
            with self._hooks("fit") as emit, self._profiled() as timed:
                self._interrupts = opened.enter_context(Interrupts())
                with timed("plan and compile"):
                    training = self._settle()
                where = self.log_dir if self._wants["TensorBoardLogger"] or self._wants["ModelCheckpoint"] else None
                precise = self._settings.matmul_precision
                more = f", matmul_precision={precise}" if precise else ""
                self._say(f"{len(training.slices)} heads, {training.plan}{more}, log_dir={where}")
                self._loop = self._make_loop(training, emit, checkpoint_path, timed=timed)
                if checkpoint_path is not None:
                    emit("on_load_checkpoint")
                emit("on_fit_start")
                while not self._run_through():
                    self._cut(checked, emit, timed)
                self._loop.tell("on_fit_end")
        self._say(f"`Trainer.fit` stopped: {self._reason(training, self._loop)}")
        if self._interrupts.exit_status is not None:
            sys.exit(self._interrupts.exit_status)
        return FitResult(
            self.heads,
            self.metrics,
            self._loop.state.live,
            self._loop.state.step,
            self._log_dir,
            self.ledger(),
            self._running()[1].plan,
            self.interrupted,
        )

    def plan(
        self,
        module: HydraModule | None = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | Path | None = None,
    ) -> PlanReport:
        """How a fit is laid out, what that was chosen from, what it takes, and the machine's limit.

        Args:
          module: with `datamodule`, plans a fit of these as `fit` would, and trains nothing: it compiles, and for a
            long fit times some plans. None: the present fit, or the last one.
          datamodule: the data and the slices.
          ckpt_path: the checkpoint that the fit would go on from, as in `fit`.

        Returns:
          The report; print it.

        Raises:
          HydraxError: as `fit`; or there was no fit, and none is given.
        """
        if module is None and datamodule is None:
            return super().plan()
        module, datamodule = check_types(module, datamodule)
        checkpoint_path = self._find_sound_checkpoint(ckpt_path)
        with self._stage(module, datamodule, "fit"):
            checked = self._check(module, datamodule, checkpoint_path)
            with contextlib.closing(checked):
                settled = tune.choose_plan(checked, first_plan(checked, checkpoint_path), tune.plan_folder())
                with contextlib.closing(settled.engine), contextlib.closing(settled.feed):
                    return tune.report(checked, settled)

    # What stands behind it.

    def _check(self, module: HydraModule, datamodule: DataModule, checkpoint_path: Path | None) -> Checked:
        if checkpoint_path is not None:
            resume.load_data_state(checkpoint_path, datamodule)
        return check_training(self._settings, module, datamodule, keys(self._heard()), self._root)

    def _find_sound_checkpoint(self, ckpt_path: str | Path | None) -> Path | None:
        found = self._find_checkpoint(ckpt_path)
        return None if found is None else folders.first_sound(found, checkpoint.check)

    def _reason(self, training: Training, loop: FitLoop) -> str:
        if self.interrupted:
            return f'interrupted at step {loop.state.step}; fit(..., ckpt_path="last") goes on from a checkpoint.'
        if self.should_stop:
            return f"a callback asked for the end at step {loop.state.step}."
        state = loop.state
        num_lost, ended = len(state.faults), "the stop of all heads reached."
        if loop.state.live.any():
            ended = f"{self._settings.end(training.schedule.max_steps)} reached."
        elif num_lost:
            ended = f"no head is left: {len(loop.state.live) - num_lost} stopped, {num_lost} lost to NaN or infinity."
        why = collections.Counter(
            reason.partition(" (step")[0]
            for place, reason in loop.state.reasons.items()
            if place not in loop.state.faults
        )
        lines = [f" {count} stopped: {reason}." for reason, count in why.most_common(5)]
        return (
            ended
            + "".join(lines)
            + (f" {num_lost} lost to NaN or infinity." if num_lost and loop.state.live.any() else "")
        )

    def _add_defaults(self) -> None:
        for name in (name for name, wanted in self._wants.items() if wanted):
            kind = getattr(_plug_ins(), name)
            if not any(isinstance(callback, kind) for callback in self.callbacks):
                self.callbacks.append(kind())


def _plug_ins() -> Any:
    """The callbacks that come with Hydrax; the core knows no other plug-in, and these late."""
    from hydrax import callbacks

    return callbacks
