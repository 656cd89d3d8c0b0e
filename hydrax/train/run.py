"""Run: a fit that runs or has run, complete from the moment it exists."""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hydrax.data import DataModule
from hydrax.engine import Fault, is_out_of_memory
from hydrax.loop import (
    Callback,
    Dispatcher,
    FitLoop,
    Interrupted,
    Interrupts,
    RunState,
    Timed,
    keys,
    not_timed,
    snapshot_name,
)
from hydrax.results import Heads, Ledger, head_settings
from hydrax.train import resume
from hydrax.train.fit import PlannedFit


class Run:
    """A fit, its state, and the loop that trains it; everything that can be read from it or saved at any moment.

    Attributes:
      planned: the fit as it is placed on the devices.
      loop: trains it, and updates its state.
      callbacks: the callbacks that take part, by key.
    """

    def __init__(
        self,
        planned: PlannedFit,
        state: RunState,
        emit: Dispatcher,
        interrupts: Interrupts,
        timed: Timed = not_timed,
    ) -> None:
        """Prepares a run; `train` runs it.

        Args:
          planned: the fit, ready to start.
          state: where to start.
          emit: calls the callbacks.
          interrupts: the signals that end the fit early.
          timed: measures the parts of the fit.
        """
        self.planned, self.callbacks = planned, keys(emit.callbacks)
        self._interrupts = interrupts
        self.loop = FitLoop(
            planned,
            state,
            emit,
            validate=None if planned.validation is None else functools.partial(planned.validate, interrupts),
            on_nonfinite=planned.spec.settings.on_nonfinite,
            interrupts=interrupts,
            timed=timed,
        )

    @property
    def state(self) -> RunState:
        """The state of the run."""
        return self.loop.state

    def train(self) -> bool:
        """Trains to the end of the fit; returns False if the devices ran out of memory first."""
        try:
            self._check_validation()
            self.loop.run()
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # The state was donated and is gone, so nothing can be repeated here: the caller starts a new run.
            return False
        return True

    def _check_validation(self) -> None:
        """Runs some validation batches before the first step, so that an error there shows at once."""
        settings = self.planned.spec.settings
        limit = settings.num_sanity_val_steps
        if self.planned.validation is None or limit == 0 or self.state.step:
            return
        if settings.fast_dev_run or settings.barebones:
            return
        with contextlib.suppress(Interrupted):  # the loop then ends before its first step
            self.planned.validate(self._interrupts, self.state, None if limit == -1 else limit)

    # What callbacks and users read.

    @property
    def heads(self) -> Heads:
        """The heads as they are now."""
        return self._heads(self.state.models(self.planned.engine))

    @property
    def opt_state(self) -> Any:
        """What `TrainerView.opt_state` describes."""
        return self.planned.engine.gather(tuple(block.opt_state for block in self.state.heads))

    def snapshots_of(self, callback: Callback, slot: int = 0) -> Heads | None:
        """Returns what `TrainerView.snapshots_of` describes."""
        kept = self.state.snapshots.get(snapshot_name(self._key(callback), slot))
        return None if kept is None else self._heads(kept)

    def callback_state(self, callback: Callback) -> Any:
        """Returns what `TrainerView.callback_state` describes."""
        key = self._key(callback)
        return self.planned.engine.read(tuple(block.callbacks[key] for block in self.state.heads))

    @property
    def head_shapes(self) -> Any:
        """What `TrainerView.head_shapes` describes."""
        shapes = self.planned.engine.state_shapes()
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), shapes)

    @property
    def progress_bar_names(self) -> set[str]:
        """Names of the metrics that were logged with `prog_bar=True`."""
        entries = [item for stage in self.planned.logged.values() for item in stage.items()]
        # A name appears with a suffix if it is logged by step and by epoch; which one the loop uses does not matter
        # here.
        sets = self.planned.validation.suffixes if self.planned.validation else ()
        suffixes = ("", "_step", "_epoch", *sets)
        return {name + suffix for name, entry in entries if entry.prog_bar for suffix in suffixes}

    @property
    def quarantined(self) -> dict[int, Fault]:
        """What `TrainerView.quarantined` describes."""
        return {self.planned.ids[place]: fault for place, fault in self.state.faults.items()}

    @functools.cached_property
    def head_settings(self) -> Ledger:
        """What `TrainerView.head_settings` describes."""
        return head_settings(self.planned.spec.slices, self.planned.spec.module)

    def ledger(self, scores: np.ndarray | None, more: Mapping[str, np.ndarray] | None) -> Ledger:
        """Returns what `TrainerView.ledger` describes, with these scores, float[H]."""
        state = self.state
        lost = {place: f"{fault.leaf} at step {fault.step}" for place, fault in state.faults.items()}
        return self.head_settings.with_outcome(
            score=scores,
            live=state.live,
            finite=self.planned.engine.finite(tuple(block.trainable for block in state.heads)),
            lost=self.loop.lost,
            reasons={**state.reasons, **lost},
            origins=state.origins,
            more=more,
        )

    @property
    def end_message(self) -> str:
        """Why the fit stopped, in a sentence or two."""
        state, settings = self.state, self.planned.spec.settings
        if self._interrupts.signal is not None:
            # Without a checkpoint there is nothing to resume.
            saved = any(getattr(callback, "last_model_path", None) for callback in self.callbacks.values())
            hint = '; fit(..., ckpt_path="last") resumes from the checkpoint' if saved else ", and nothing was saved"
            return f"interrupted at step {state.step}{hint}."
        if self._interrupts.came:
            return f"a callback asked for the end at step {state.step}."
        num_lost, ended = len(state.faults), "all heads have stopped."
        if state.live.any():
            ended = f"{settings.end(self.planned.schedule.max_steps)} reached."
        elif num_lost:
            ended = f"no head is left: {len(state.live) - num_lost} stopped, {num_lost} lost to NaN or infinity."
        # Reasons end with their step; without it, heads that stopped for the same reason are counted together.
        why = collections.Counter(
            reason.partition(" (step")[0] for place, reason in state.reasons.items() if place not in state.faults
        )
        lines = [f" {count} stopped: {reason}." for reason, count in why.most_common(5)]
        lost = f" {num_lost} lost to NaN or infinity." if num_lost and state.live.any() else ""
        return ended + "".join(lines) + lost

    # What is saved.

    def save(self, path: Path, datamodule: DataModule, keep: int | None) -> Path:
        """Writes a checkpoint from which a resumed fit continues; returns its folder."""
        planned = self.planned
        return resume.save(
            path,
            self.state,
            engine=planned.engine,
            plan=planned.plan,
            callbacks=self.callbacks,
            datamodule=datamodule,
            fingerprint=planned.fingerprint,
            meta={"ids": planned.ids, "hparams": planned.spec.module.hparams.to_json()},
            keep=keep,
        )

    def _key(self, callback: Callback) -> str:
        return next(key for key, known in self.callbacks.items() if known is callback)

    def _heads(self, blocks: Any) -> Heads:
        engine, spec = self.planned.engine, self.planned.spec
        assert engine.structure is not None
        # In new buffers: the caller may keep the heads while training donates its own.
        trainable, state = engine.gather(blocks)
        return Heads(trainable, state, engine.structure, spec.slices.ids, spec.module.hparams, spec.module)
