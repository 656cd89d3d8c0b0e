"""Trainer: what a user calls. It checks the arguments, makes a `Run` for each fit, and evaluates heads."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hydrax import checkpoint
from hydrax.arguments import checked_call, is_choice
from hydrax.data import DataModule
from hydrax.engine import NO_CHOICE, Blocks, Engine, PlanReport
from hydrax.errors import ArgumentError
from hydrax.files import as_path
from hydrax.loop import (
    Callback,
    Dispatcher,
    Event,
    Interrupts,
    RunState,
    Timed,
    check_callbacks,
    keys,
    profiled,
    raise_first,
)
from hydrax.results import FitResult, Heads, HeldOut, check_reduction, held_out, stacked
from hydrax.train import resume, tune
from hydrax.train.console import opening_line, say, show
from hydrax.train.evaluation import Evaluations, assemble_evaluation, table
from hydrax.train.fit import FitSpec, PlannedFit, check_fit
from hydrax.train.lifecycle import check_types, open_hooks, open_stage
from hydrax.train.module import HydraModule
from hydrax.train.run import Run
from hydrax.train.run_folder import check_root, drop_unused, find_checkpoint
from hydrax.train.run_view import RunView, no_run
from hydrax.train.settings import Settings, check_switches

_log = logging.getLogger("hydrax")


class Trainer(RunView):
    """Trains, validates, tests and predicts with all heads of a module at once. All arguments are keywords.

    Args:
      max_steps: optimiser updates of every head. Give this or `max_epochs`; training stops at whichever is reached
        first.
      max_epochs: epochs; one epoch is the steps in which the longest slice makes one pass.
      min_steps: no callback can stop a head or end the fit before this step; earlier requests are dropped.
      min_epochs: the same, in epochs.
      limit_train_batches: how much of the training set an epoch covers; int = batches, float = fraction.
      limit_val_batches: how much of the validation set to use.
      limit_test_batches: how much of the test set to use.
      limit_predict_batches: how much of the predict set to use.
      overfit_batches: every head trains on its own first batches only, again and again in the same order, and validates
        with as many; int = batches, float = fraction, 0 = off.
      num_sanity_val_steps: validation batches to run before training starts, without a trace in logs or callbacks; -1
        runs all. A resumed fit, `fast_dev_run` and `barebones` run none.
      fast_dev_run: True or n: n batches of each loop, without checkpoints or loggers.
      val_check_interval: validate every n batches (int) or every fraction of an epoch (float).
      check_val_every_n_epoch: validate only in every n-th epoch; None counts `val_check_interval` across epochs.
      log_every_n_steps: steps between logs; an epoch's length if that is shorter and gives at most 100 logs in a fit.
      accumulate_grad_batches: batches of one update; the update takes the mean gradient of those with live slots. A
        dict gives the number from each epoch on: {0: 8, 4: 1} takes 8 batches in epochs 0 to 3, and then 1.
      gradient_clip_val: bound for each head's own gradient; None does not clip.
      gradient_clip_algorithm: "norm" or "value".
      precision: "32-true", "bf16-mixed", "bf16-true" or "64-true".
      matmul_precision: how JAX multiplies float32, such as "highest"; None leaves it to JAX, which uses TF32 (three
        digits) on a GPU.
      seed: seed of everything random; a head's key is fold_in(fold_in(key(seed), head id), step).
      sampling: "own": each head has its own rows in a step; "shared": all heads have the same rows, and each learns
        from those in its slice. The choice changes what a head learns; "shared" is faster for many small heads whose
        slices hold most rows. The batch then contains rows of other heads, which `ctx.mask` marks: a model that mixes
        rows sees them.
      budget: "steps": all heads take equally many steps; "passes": each head stops after max_epochs passes over its own
        slice.
      devices: how many devices, a list of JAX devices, or "auto": all of JAX's default backend; a CPU counts once for
        each core. A head's bits do not depend on it.
      lowering: "fast" runs convolutions, pooling and narrow products in Hydrax's own form, "plain" in XLA's; "auto"
        chooses for the machine. A head's bits depend on it.
      device_memory: bytes that a fit may take on each device, or "auto": nearly all that is free. Heads whose state
        does not fit wait on disk, below `default_root_dir`, and take turns.
      deterministic: whether the plan follows from shapes and the kind of machine alone, not from timing.
      chunk: heads that run together, or "auto". A head's bits depend on it, and on nothing else that is trained beside
        the head.
      steps_per_call: the most steps of one dispatch, or "auto".
      on_nonfinite: what happens to a head whose loss, parameters, optimiser state or model state becomes NaN or
        infinite. "quarantine": it keeps its state from before that step, leaves all means, and the other heads
        continue; "raise": an error; "ignore": nothing.
      profiler: "simple" prints where the time went when the fit ends; "jax" also writes a trace of one superstep to
        `log_dir`; None does neither.
      callbacks: one or a list, added to the defaults.
      logger: write TensorBoard events.
      enable_checkpointing: write checkpoints.
      enable_progress_bar: show progress.
      enable_model_summary: print one head's parameters before training.
      max_time: ends the fit, and saves, after this time: "DD:HH:MM:SS", a timedelta, or a dict such as {"hours": 2}. A
        resumed fit continues to count.
      default_root_dir: a run writes to `<root>/hydrax_logs/version_<n>/`.
      detect_anomaly: check each step for NaN, divisions by zero and indices outside an array, and raise an error that
        names the head, the row and your line. The results are the same, but every step is made twice and one head after
        the other.
      barebones: nothing but the training: no logger, checkpoints, progress bar or messages.

    Raises:
      ArgumentError: an argument is unknown or has an invalid value.
    """

    @checked_call
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
        accumulate_grad_batches: int | Mapping[int, int] = 1,
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
        detect_anomaly: bool = False,
        barebones: bool = False,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        switches = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        own = (*switches, "callbacks", "max_time", "default_root_dir")
        settings = Settings(**{name: value for name, value in given.items() if name not in own})
        check_switches(**{name: given[name] for name in switches})
        quiet = barebones or bool(fast_dev_run)
        self._root = check_root(default_root_dir)
        super().__init__(log_root=None if quiet else self._root)
        self._wants = {
            "ProgressBar": enable_progress_bar and not barebones,
            "TensorBoardLogger": logger and not quiet,
            "ModelCheckpoint": enable_checkpointing and not quiet,
            "ModelSummary": enable_model_summary and not quiet,
        }
        self.callbacks = check_callbacks(callbacks) + ([] if max_time is None else [_plug_ins().Timer(max_time)])
        self.log_every_n_steps = log_every_n_steps
        self.datamodule: DataModule | None = None
        self._settings = settings
        self._has_result = False  # whether the last fit ended in order

    # Fit.

    @checked_call
    def fit(
        self,
        module: HydraModule,
        datamodule: DataModule,
        ckpt_path: str | Path | None = None,
        init_from: Heads | str | Path | Any | None = None,
    ) -> FitResult:
        """Trains all heads.

        Args:
          module: what one head is.
          datamodule: the data and the slices.
          ckpt_path: the checkpoint to resume from: a folder, "last" (the newest below the root; an error if there is
            none) or "auto" ("last" if there is one, otherwise a fresh start).
          init_from: the weights to begin with, for fine-tuning: `Heads`, the path of saved heads or of a checkpoint
            ("last" and "best" as above), or one model as `configure_model` returns it. One head or model starts all
            heads; otherwise there must be one for each slice, matched by id if the ids are the same, else by position.
            Optimiser, PRNG keys and step are fresh. With `ckpt_path="auto"` it counts only for a fresh start.

        Returns:
          The trained heads, their metrics and their ledger.

        Raises:
          HydraxError: something does not fit; raised before anything compiles.
          KeyboardInterrupt: Ctrl-C ended the fit after the steps in flight; everything is saved, and `trainer.result`
            is what the fit would have returned. A second Ctrl-C raises at once.
          SystemExit: SIGTERM arrived; everything is saved, and the status is 143.
        """
        check_types(module, datamodule)
        self._module, self.datamodule = module, datamodule
        self._planned = self._run = self._log_dir = None
        self._has_result = False
        self._evaluated, self._scalars = {}, {}
        checkpoint_path, init_from = self._find_beginning(ckpt_path, init_from)
        with open_stage(self._settings, module, datamodule, "fit"), contextlib.ExitStack() as opened:
            self._is_fitting = True
            opened.callback(self._drop_unused_folder)
            opened.callback(setattr, self, "_is_fitting", False)
            self._add_defaults()
            opened.callback(self._close)
            spec = self._check(module, datamodule, checkpoint_path, init_from)
            opened.callback(spec.close)  # runs first, so that no feed waits for rows that are being read
            self._planned = _first_plan(spec, checkpoint_path)
            self.log_every_n_steps = spec.schedule.log_every
            with self._hooks("fit") as emit, profiled(self._settings.profiler, self, self._say) as timed:
                self._interrupts = opened.enter_context(Interrupts())
                with timed("plan and compile"):
                    # One after the other: whatever fails, the fit that exists by then is the one that gets closed.
                    self._planned = tune.choose_plan(self._planned, tune.plan_folder(), lambda: self.interrupted)
                    self._planned = self._planned.ready()
                self._announce(self._planned)
                self._run = self._start(self._planned, checkpoint_path, emit, timed)
                if checkpoint_path is not None:
                    emit("on_load_checkpoint")
                emit("on_fit_start")
                # Each turn takes a smaller plan, so the loop ends: at the latest with a MemoryLimitError.
                while not self._run.train():
                    self._run = self._start_smaller(spec, checkpoint_path, emit, timed)
                self._run.loop.tell("on_fit_end")
        self._has_result = True
        self._say(f"`Trainer.fit` stopped: {self._run.end_message}")
        if self._interrupts.exit_status is not None:
            sys.exit(self._interrupts.exit_status)
        if self.interrupted:
            raise KeyboardInterrupt  # after the teardown, as Lightning does: a script must not go on to its next fit
        return self.result

    @property
    def result(self) -> FitResult:
        """The result of the last fit, also of one that Ctrl-C ended and that has therefore returned nothing.

        Raises:
          ArgumentError: there was no fit, or it ended with an error.
        """
        if self._run is None or not self._has_result:
            raise no_run()
        state, plan = self._run.state, self._run.planned.plan
        how = self._log_dir, self.ledger(), plan, self.interrupted
        return FitResult(self.heads, dict(self.metrics), state.live, state.step, *how)

    @checked_call
    def plan(
        self,
        module: HydraModule | None = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | Path | None = None,
    ) -> PlanReport:
        """Reports the plan of a fit, the plans it was chosen from, the memory it needs, and the machine's limit.

        Args:
          module: with `datamodule`, plans a fit of these as `fit` would, and trains nothing: it compiles, and times
            some plans if the fit is long. None describes the present fit, or the last one.
          datamodule: the data and the slices.
          ckpt_path: the checkpoint that the fit would resume from, as in `fit`.

        Returns:
          The report; print it.

        Raises:
          HydraxError: as `fit`; or there was no fit, and none is given.
        """
        if module is None and datamodule is None:
            if self._planned is None:
                raise no_run()
            return self._planned.report(None if self._run is None else self._run.loop.step_secs)
        module, datamodule = check_types(module, datamodule)
        checkpoint_path = self._find_sound_checkpoint(ckpt_path)
        with open_stage(self._settings, module, datamodule, "fit"):
            spec = self._check(module, datamodule, checkpoint_path)
            with contextlib.closing(spec):
                first = _first_plan(spec, checkpoint_path)
                with contextlib.closing(tune.choose_plan(first, tune.plan_folder())) as planned:
                    return planned.report()

    # Validate, test, predict.

    @checked_call
    def validate(
        self,
        module: HydraModule | None = None,
        datamodule: DataModule | None = None,
        heads: Heads | None = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
    ) -> dict[str, np.ndarray]:
        """Runs `validation_step` over the validation set; arguments and result as `test`."""
        return self._evaluate("val", module, datamodule, heads, ckpt_path, verbose)

    @checked_call
    def test(
        self,
        module: HydraModule | None = None,
        datamodule: DataModule | None = None,
        heads: Heads | None = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
    ) -> dict[str, np.ndarray]:
        """Runs `test_step` over the test set with all heads.

        Args:
          module: what one head is; None takes that of the last fit.
          datamodule: the data; None takes that of the last fit.
          heads: the heads; None takes those of the last fit.
          ckpt_path: reads the heads from a checkpoint instead.
          verbose: whether to print mean, spread and the heads at both ends of each metric.

        Returns:
          The mean over the set of everything logged, float[H] by name.

        Raises:
          ArgumentError: there are no heads: no fit before, and none given; or an argument has the wrong type.
          CheckpointError: there is no checkpoint at `ckpt_path`, or it is damaged.
          HydraxError: the dataset is missing, or something else does not fit; raised before anything compiles.
        """
        return self._evaluate("test", module, datamodule, heads, ckpt_path, verbose)

    @checked_call
    def predict(
        self,
        module: HydraModule | None = None,
        datamodule: DataModule | None = None,
        heads: Heads | None = None,
        ckpt_path: str | Path | None = None,
        reduce: str | None = None,
    ) -> Any:
        """Runs `predict_step` over the predict set with all heads, batch by batch; arguments as `test`.

        Args:
          reduce: None; "mean", the mean over heads of what `predict_step` returns; or "mean_probability", the mean over
            heads of the probabilities whose logits it returns: the ensemble of classifiers. Logits `[B, classes]` go
            through a softmax, logits `[B]` or `[B, 1]` through a sigmoid.

        Returns:
          NumPy arrays `[H, rows, ...]`, or `[rows, ...]` with a reduction.

        Raises:
          ArgumentError: there is no such reduction; or as `test`.
        """
        check_reduction(reduce, "Trainer.predict")
        module, datamodule, heads = self._subject(module, datamodule, heads, ckpt_path)
        with open_stage(self._settings, module, datamodule, "predict"):
            with self._evaluation(module, datamodule, "predict", heads) as (engine, evaluation, given, emit):
                emit("on_predict_start")
                found = stacked(evaluation.sets[0].predict(engine, given, self.global_step), reduce)
                emit("on_predict_end")
        return found

    @checked_call
    def predict_held_out(
        self,
        module: HydraModule | None = None,
        datamodule: DataModule | None = None,
        heads: Heads | None = None,
        ckpt_path: str | Path | None = None,
    ) -> HeldOut:
        """Runs `predict_step` over the training rows that each head did not learn from; arguments as `test`.

        Heads find their slices by id, so heads picked out of a fit do too.

        Returns:
          The predictions out of fold or out of bag, with their heads and rows: `per_head()`, `per_row()`, `mask`.
        """
        module, datamodule, heads = self._subject(module, datamodule, heads, ckpt_path)
        with open_stage(self._settings, module, datamodule, "predict", data_stage="fit"):
            with self._evaluation(module, datamodule, "held_out", heads) as (engine, evaluation, given, emit):
                emit("on_predict_start")
                [rows] = evaluation.sets
                found = held_out(rows.predict(engine, given, self.global_step), len(heads), rows.data.num_rows)
                emit("on_predict_end")
        return found

    @checked_call
    def save_checkpoint(self, path: str | Path, keep: int | None = None) -> Path:
        run = self._running()
        assert self.datamodule is not None  # a run has one
        _, failures = self._dispatcher("fit").hear("on_save_checkpoint")
        saved = run.save(as_path("Trainer.save_checkpoint(path=)", path), self.datamodule, keep)
        raise_first(failures)  # an error in a callback must not prevent the save
        return saved

    # A fit, step by step.

    def _check(
        self, module: HydraModule, datamodule: DataModule, checkpoint_path: Path | None, init_from: Any = None
    ) -> FitSpec:
        if checkpoint_path is not None:
            resume.load_data_state(checkpoint_path, datamodule)
        return check_fit(self._settings, module, datamodule, keys(self._participants()), self._root, init_from)

    def _find_beginning(self, ckpt_path: Any, init_from: Any) -> tuple[Path | None, Any]:
        """Finds the checkpoint to resume from or, if there is none, the weights to begin with, if any."""
        if init_from is not None and not is_choice(ckpt_path, (None, "auto")):
            raise ArgumentError(
                f"A fit cannot do both: Trainer.fit(init_from=, ckpt_path={str(ckpt_path)!r}). Got weights to begin "
                "with and a run to resume, expected one of them. Fix: leave init_from out; the run being resumed began "
                'with it. ckpt_path="auto" takes init_from where there is no run to resume.'
            )
        found = self._find_sound_checkpoint(ckpt_path)
        if found is None and isinstance(init_from, str) and init_from in ("last", "best"):
            init_from = self._find_checkpoint(init_from)
        if found is None:
            return None, init_from
        return found.absolute(), None  # a restart after memory ran out reads it again

    def _announce(self, planned: PlannedFit) -> None:
        """Logs in one line what starts; the plan itself is for `Trainer.plan`, `hydrax plan` and the debug log."""
        writes = self._wants["TensorBoardLogger"] or self._wants["ModelCheckpoint"]
        plan, folder = planned.plan, self.log_dir if writes else None
        self._say(opening_line(len(planned.ids), plan.backend, plan.devices, self._settings.matmul_precision, folder))
        if plan.shortened is not None:
            asked = self._settings.steps_per_call
            self._say(f"steps_per_call={asked} is lowered to {plan.steps_per_call}: {plan.shortened}")
        _log.debug("Plan: %s", plan)

    def _start(
        self,
        planned: PlannedFit,
        checkpoint_path: Path | None,
        emit: Dispatcher,
        timed: Timed,
        marks: Mapping[str, Any] | None = None,
    ) -> Run:
        """Makes the run, fresh or from a checkpoint; `marks` replace entries of the fingerprint expected there."""
        # The first superstep donates the fresh heads, so only the run's state keeps them.
        engine, start, planned = planned.engine, planned.start, dataclasses.replace(planned, start=None)
        if checkpoint_path is None:
            state = RunState.fresh(engine, start or engine.init())
            state.origins = [] if planned.spec.start is None else planned.spec.start.origins
        else:
            fingerprint = {**planned.fingerprint, **(marks or {})}
            state = resume.load(checkpoint_path, engine=engine, callbacks=keys(emit.callbacks), fingerprint=fingerprint)
        self._planned = planned
        return Run(planned, state, emit, self._interrupts, timed)

    def _start_smaller(self, spec: FitSpec, checkpoint_path: Path | None, emit: Dispatcher, timed: Timed) -> Run:
        """Makes a run with a smaller plan after memory ran out, from this fit's newest checkpoint or from its start."""
        run, last = self._running(), getattr(self.checkpoint_callback, "last_model_path", None) or checkpoint_path
        _log.warning("Out of memory after step %d; the fit restarts from %s.", run.state.step, last or "the start")
        plan = run.planned.plan
        # Whatever the old engine and feeds hold on the devices, or are about to send there, must be gone before the
        # smaller plan is sized.
        run.planned.close()
        self._planned = self._run = None
        del run
        gc.collect()  # reference cycles, as a traceback may form, would keep the old arrays
        self._planned = planned = tune.replan(spec, plan).ready()  # so that it is closed if it cannot start
        if last is None:
            return self._start(planned, None, emit, timed)
        assert self.datamodule is not None
        resume.load_data_state(step := Path(last), self.datamodule)
        # Memory may have run out twice since that checkpoint, so its chunk need not be the last plan's.
        return self._start(planned, step, emit, timed, {"chunk": resume.read_choice(step).chunk})

    def _drop_unused_folder(self) -> None:
        if self._run is None and self._log_dir is not None:
            drop_unused(self._log_dir)

    def _close(self) -> None:
        if self._planned is not None:
            self._planned.close()

    # Evaluation, step by step.

    def _evaluate(
        self, stage: str, module: Any, datamodule: Any, heads: Any, ckpt_path: Any, verbose: bool
    ) -> dict[str, np.ndarray]:
        module, datamodule, heads = self._subject(module, datamodule, heads, ckpt_path)
        verb, hook = {"val": ("validate", "validation"), "test": ("test", "test")}[stage]
        with open_stage(self._settings, module, datamodule, verb):
            with self._evaluation(module, datamodule, stage, heads) as (engine, evaluation, given, emit):
                emit(f"on_{hook}_start")
                found = evaluation.run(engine, given, self.global_step)
                emit(f"on_{hook}_end", metrics=found)
        self._evaluated |= found  # `trainer.metrics` shows them beside those of the fit
        if verbose and not self._settings.barebones:
            show(table(found, heads.ids))
        return found

    @contextlib.contextmanager
    def _evaluation(
        self, module: HydraModule, datamodule: DataModule, stage: str, heads: Heads
    ) -> Iterator[tuple[Engine, Evaluations, Blocks, Dispatcher]]:
        """Yields the engine, the rows and the heads of an evaluation, inside the callbacks' setup and teardown."""
        planned = self._planned if module is self.module else None
        fitted = None if planned is None else planned.spec.slices.ids
        choice = NO_CHOICE if planned is None else planned.plan.choice
        how = self._settings, module, datamodule, stage, heads, fitted, choice
        engine, evaluation, given = assemble_evaluation(*how)
        verb = {"val": "validate", "test": "test"}.get(stage, "predict")
        with contextlib.closing(engine), contextlib.closing(evaluation):
            with self._hooks(verb, live=np.ones(len(heads), bool)) as emit:
                yield engine, evaluation, given, emit

    def _subject(
        self, module: Any, datamodule: Any, heads: Any, ckpt_path: Any
    ) -> tuple[HydraModule, DataModule, Heads]:
        """Finds what to evaluate: the arguments, or else what the last fit used and left."""
        if heads is None and ckpt_path is None and self._run is None:
            raise ArgumentError(
                "No heads to evaluate: Trainer. Got no fit before, no heads and no ckpt_path, expected one of these. "
                "Fix: fit first, or pass heads=Heads.load(path, module)."
            )
        module = self.module if module is None else module
        module, datamodule = check_types(module, self.datamodule if datamodule is None else datamodule)
        if ckpt_path is not None:
            heads = Heads.load(self._find_checkpoint(ckpt_path) or ckpt_path, module)
        if not isinstance(heads, Heads | None):
            raise ArgumentError(
                f"An argument has the wrong type: heads. Got {type(heads).__name__}, expected hydrax.Heads. Fix: pass "
                "result.heads, or Heads.load(path, module)."
            )
        return module, datamodule, self.heads if heads is None else heads

    # Shared by all stages.

    def _participants(self) -> list[Callback]:
        """Lists the callbacks that take part: `fast_dev_run` saves nothing."""
        return [c for c in self.callbacks if not (c.is_checkpoint and self._settings.fast_dev_run)]

    @contextlib.contextmanager
    def _hooks(self, stage: str, **fixed: Any) -> Iterator[Dispatcher]:
        check_callbacks(self.callbacks)  # the user may have added some to the list
        emit = self._dispatcher(stage, **fixed)
        with open_hooks(emit):
            yield emit

    def _dispatcher(self, stage: str, **fixed: Any) -> Dispatcher:
        return Dispatcher(self._participants(), lambda **fields: self._event(stage, **fixed, **fields))

    def _event(self, stage: str, **fields: Any) -> Event:
        fields = {"step": self.global_step, "epoch": self.current_epoch, **fields}
        live = np.ones(self.num_heads, bool) if self._run is None else self._run.loop.training(fields["step"])
        return Event(self, stage, **{"live": live, **fields})

    def _find_sound_checkpoint(self, ckpt_path: str | Path | None) -> Path | None:
        found = self._find_checkpoint(ckpt_path)
        return None if found is None else checkpoint.first_sound(found, checkpoint.check)

    def _find_checkpoint(self, ckpt_path: str | Path | None) -> Path | None:
        return find_checkpoint(ckpt_path, self._root, self.checkpoint_callback)

    def _add_defaults(self) -> None:
        for name in (name for name, wanted in self._wants.items() if wanted):
            kind = getattr(_plug_ins(), name)
            if not any(isinstance(callback, kind) for callback in self.callbacks):
                self.callbacks.append(kind())

    def _say(self, line: str) -> None:
        if not self._settings.barebones:
            say(line)


def _first_plan(spec: FitSpec, checkpoint_path: Path | None) -> PlannedFit:
    """Places a fit, fresh or resumed, by the plan that is known before anything compiles."""
    choice = NO_CHOICE if checkpoint_path is None else resume.read_choice(checkpoint_path)
    return tune.first_plan(spec, choice, tune.plan_folder(), resumed=checkpoint_path is not None)


def _plug_ins() -> Any:
    """Imports the callbacks that come with Hydrax, the only plug-ins that the core knows, when they are needed."""
    from hydrax import callbacks

    return callbacks
