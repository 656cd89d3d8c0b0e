"""Settles a fit's plan, runs its loop, and goes on with a smaller plan where memory ends on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from hydrax.engine import NO_CHOICE, heads_of, is_out_of_memory
from hydrax.loop import Dispatcher, FitLoop, Interrupted, Profiler, RunState, Timed, keys, not_timed
from hydrax.train import resume, tune
from hydrax.train.fit import Checked, Training
from hydrax.train.stages import Stages

_log = logging.getLogger("hydrax")


class Fitting(Stages):
    """The part of the Trainer that takes a fit from its checks to its end."""

    def _lay_out(self, checked: Checked, checkpoint_path: Path | None) -> None:
        """The fit by the plan that stands before anything compiles."""
        self._take(checked, first_plan(checked, checkpoint_path))

    def _settle(self) -> Training:
        """The fit by the plan that is kept to; compiles."""
        assert self._laid_out is not None
        checked, first = self._laid_out
        settled = tune.choose_plan(checked, first, tune.plan_folder(), lambda: self.interrupted)
        if settled.engine is not first.engine:
            return self._take(checked, settled)
        self._laid_out = checked, settled
        assert self._training is not None
        self._training = dataclasses.replace(self._training, plan=settled.plan)
        return self._training

    def _close(self) -> None:
        """Ends what reads rows."""
        if self._training is not None:
            self._training.close()

    def _take(self, checked: Checked, settled: tune.Settled) -> Training:
        """The fit by its plan."""
        self._laid_out = checked, settled
        self._training = checked.training(settled.plan, settled.engine, settled.feed)
        return self._training

    def _run_through(self) -> bool:
        """Whether the loop ran to its end; not where memory ended first."""
        assert self._loop is not None
        try:
            self._try_validation()
            self._loop.run()
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _try_validation(self) -> None:
        """Some batches of validation before the first step: what is wrong there shows at once."""
        (loop, training), settings = self._running(), self._settings
        validation, limit = training.validation, settings.num_sanity_val_steps
        if validation is None or loop.state.step or limit == 0 or settings.fast_dev_run or settings.barebones:
            return
        with contextlib.suppress(Interrupted):  # the loop then ends before its first step
            heads = heads_of(loop.state.heads)
            validation.run(training.engine, heads, 0, self._interrupts.check, None if limit == -1 else limit)

    @contextlib.contextmanager
    def _profiled(self) -> Iterator[Timed]:
        """What measures the parts of a fit, and tells of them at its end; nothing, unless the user asked for it."""
        kind = self._settings.profiler
        if kind is None:
            yield not_timed
            return
        profiler = Profiler(self.log_dir / "profile" if kind == "jax" and self.log_dir else None)
        with contextlib.closing(profiler):
            yield profiler.measure
        self._say(f"Where the time went:\n{profiler.table()}")

    def _cut(self, checked: Checked, emit: Dispatcher, timed: Timed) -> None:
        """Goes on with a smaller plan, from the newest checkpoint of this run or else from the start."""
        (loop, training), last = self._running(), getattr(self.checkpoint_callback, "last_model_path", None)
        _log.warning("Out of memory after step %d; the run goes on from %s.", loop.state.step, last or "the start")
        marks, plan = {"chunk": training.plan.chunk}, training.plan
        self._loop = self._training = self._laid_out = None
        del loop, training  # what they hold on the device is gone, or must go
        training = self._take(checked, tune.replan(checked, plan))
        if last:
            resume.load_data_state(Path(last), checked.sampling.datamodule)
        self._loop = self._make_loop(training, emit, Path(last) if last else None, marks, timed)

    def _make_loop(
        self,
        training: Training,
        emit: Dispatcher,
        checkpoint_path: Path | None,
        marks: Mapping[str, Any] | None = None,
        timed: Timed = not_timed,
    ) -> FitLoop:
        """The loop; `marks` are what the checkpoint has otherwise than this run."""
        engine, validation, interrupts = training.engine, training.validation, self._interrupts
        if checkpoint_path is None:
            assert self._laid_out is not None
            checked, settled = self._laid_out
            start = RunState.fresh(engine, settled.start or engine.init())
            self._laid_out = checked, settled._replace(start=None)  # the first superstep gives it away
        else:
            start = resume.load(
                checkpoint_path,
                engine=engine,
                callbacks=keys(emit.callbacks),
                fingerprint={**training.fingerprint(), **(marks or {})},
            )
        return FitLoop(
            training,
            start,
            emit,
            validate=None
            if validation is None
            else lambda state: validation.run(engine, heads_of(state.heads), state.step, interrupts.check),
            on_nonfinite=self._settings.on_nonfinite,
            interrupts=interrupts,
            timed=timed,
        )


def first_plan(checked: Checked, checkpoint_path: Path | None) -> tune.Settled:
    """A fit, fresh or from a checkpoint, by the plan that stands before anything compiles."""
    if checkpoint_path is None:
        return tune.lay_out(checked, NO_CHOICE, tune.plan_folder())
    return tune.lay_out(checked, resume.read_choice(checkpoint_path), tune.plan_folder(), resumed=True)
