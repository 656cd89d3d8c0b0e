"""What surrounds a stage (fit, validate, test, predict): setup and teardown, hooks, messages, the run's checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hydrax.data import DataModule
from hydrax.engine import compile_cache
from hydrax.loop import Callback, Dispatcher, Event, keys, raise_first
from hydrax.step import set_frozen
from hydrax.train import resume
from hydrax.train.console import say
from hydrax.train.module import HydraModule
from hydrax.train.run_view import RunView
from hydrax.train.settings import Settings


class Stages(RunView):
    """Opens and closes the stages of a run."""

    def __init__(self, settings: Settings, callbacks: list[Callback], log_root: Path | None) -> None:
        super().__init__(callbacks, settings.log_every_n_steps, log_root)
        self._settings = settings

    def save_checkpoint(self, path: str | Path, keep: int | None = None) -> Path:
        """Writes the run as it now is to `<path>/<step>/`.

        In a fit, call it from a hook that hears the heads as they are: `next_due`, validation, an epoch's end.

        Args:
          path: folder of the checkpoints.
          keep: how many of the newest to keep; None keeps all.
        """
        loop, training = self._running()
        assert self.datamodule is not None
        emit = self._dispatcher("fit")
        _, failures = emit.hear("on_save_checkpoint")
        saved = resume.save(
            Path(path),
            loop.state,
            plan=training.plan,
            engine=training.engine,
            callbacks=keys(emit.callbacks),
            datamodule=self.datamodule,
            fingerprint=training.fingerprint(),
            meta={
                "ids": training.slices.ids.tolist(),
                "hparams": {} if self.module is None else self.module.hparams.to_json(),
            },
            keep=keep,
        )
        raise_first(failures)  # not before: what a callback has to say of a save keeps nobody from it
        return saved

    @contextlib.contextmanager
    def _stage(
        self, module: HydraModule, datamodule: DataModule, stage: str, data_stage: str | None = None
    ) -> Iterator[None]:
        """Calls the users' own setup and teardown around a stage, and freezes the module inside it.

        Args:
          data_stage: the stage whose data is walked, where it is another.
        """
        compile_cache.enable()  # before anything compiles
        with contextlib.ExitStack() as stack:
            if self._settings.precision == "64-true":
                stack.enter_context(jax.enable_x64(True))
            if self._settings.matmul_precision is not None:
                stack.enter_context(jax.default_matmul_precision(self._settings.matmul_precision))
            datamodule.prepare_data()
            stack.callback(datamodule.teardown, data_stage or stage)
            datamodule.setup(data_stage or stage)
            stack.callback(module.teardown, stage)
            module.setup(stage)
            set_frozen(module, True)
            stack.callback(set_frozen, module, False)
            self._fitting = stage == "fit"
            stack.callback(setattr, self, "_fitting", False)
            yield

    @contextlib.contextmanager
    def _hooks(self, stage: str, **fixed: Any) -> Iterator[Dispatcher]:
        """`setup` first; at the end `teardown`, after an error `on_exception` too, whatever a callback raises."""
        emit = self._dispatcher(stage, **fixed)
        try:
            emit("setup")
            yield emit
        except BaseException as error:
            emit.to_all("on_exception", error=error)
            emit.to_all("teardown")
            raise
        failure = emit.to_all("teardown")
        if failure is not None:
            raise failure

    def _heard(self) -> list[Callback]:
        """The callbacks that take part: a trial run saves nothing."""
        return [c for c in self.callbacks if not (c.is_checkpoint and self._settings.fast_dev_run)]

    def _dispatcher(self, stage: str, **fixed: Any) -> Dispatcher:
        return Dispatcher(self._heard(), lambda **fields: self._event(stage, **fixed, **fields))

    def _event(self, stage: str, **fields: Any) -> Event:
        fields = {"step": self.global_step, "epoch": self.current_epoch, **fields}
        live = np.ones(self.num_heads, bool) if self._loop is None else self._loop.training(fields["step"])
        return Event(self, stage, **{"live": live, **fields})

    def _say(self, line: str) -> None:
        if not self._settings.barebones:
            say(line)
