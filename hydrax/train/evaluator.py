"""Evaluator: validate, test and predict, with the heads of a fit, of a checkpoint, or given."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from hydrax.data import DataModule
from hydrax.engine import Engine
from hydrax.errors import ArgumentError, CheckpointError
from hydrax.loop import Callback
from hydrax.results import Heads, HeldOut, held_out, stacked
from hydrax.train.evaluation import Evaluation, assemble_evaluation, table
from hydrax.train.fitting import Fitting
from hydrax.train.module import HydraModule
from hydrax.train.run_folder import find_newest
from hydrax.train.settings import Settings


class Evaluator(Fitting):
    """The part of the Trainer that evaluates heads."""

    def __init__(self, settings: Settings, callbacks: list[Callback], log_root: Path | None, root: Path) -> None:
        super().__init__(settings, callbacks, log_root)
        self._root = root

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
          module: what one head is; None: that of the last fit.
          datamodule: the data; None: that of the last fit.
          heads: the heads; None: those of the last fit.
          ckpt_path: reads the heads from a checkpoint instead.
          verbose: print mean, spread and the worst heads.

        Returns:
          The mean over the set of everything logged, float[H] by name.

        Raises:
          ArgumentError: there are no heads: no fit before, none given; or an argument has the wrong type.
          CheckpointError: there is no checkpoint at `ckpt_path`, or it is damaged.
          HydraxError: the dataset is missing, or something else does not fit; said before anything compiles.
        """
        return self._evaluate("test", module, datamodule, heads, ckpt_path, verbose)

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
          reduce: None, or "mean" over heads: the ensemble.

        Returns:
          NumPy arrays `[H, rows, ...]`, or `[rows, ...]` with `reduce="mean"`.

        Raises:
          ArgumentError: there is no such reduction; or as `test`.
        """
        if reduce not in (None, "mean"):
            raise ArgumentError(
                f'No such reduction: Trainer.predict(reduce=). Got {reduce!r}, expected None or "mean". Fix: drop it.'
            )
        module, datamodule, heads = self._subject(module, datamodule, heads, ckpt_path)
        with self._stage(module, datamodule, "predict"):
            engine, evaluation, head = self._assemble(module, datamodule, "predict", heads)
            with (
                contextlib.closing(engine),
                contextlib.closing(evaluation),
                self._hooks("predict", live=np.ones(len(heads), bool)) as emit,
            ):
                emit("on_predict_start")
                found = stacked(evaluation.predict(engine, head, self.global_step), reduce)
                emit("on_predict_end")
        return found

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
        with self._stage(module, datamodule, "predict", data_stage="fit"):
            engine, evaluation, head = self._assemble(module, datamodule, "held_out", heads)
            with (
                contextlib.closing(engine),
                contextlib.closing(evaluation),
                self._hooks("predict", live=np.ones(len(heads), bool)) as emit,
            ):
                emit("on_predict_start")
                batches = evaluation.predict(engine, head, self.global_step)
                found = held_out(batches, len(heads), evaluation.data.num_rows)
                emit("on_predict_end")
        return found

    def _evaluate(
        self, stage: str, module: Any, datamodule: Any, heads: Any, ckpt_path: Any, verbose: bool
    ) -> dict[str, np.ndarray]:
        module, datamodule, heads = self._subject(module, datamodule, heads, ckpt_path)
        verb, hook = {"val": ("validate", "validation"), "test": ("test", "test")}[stage]
        with self._stage(module, datamodule, verb):
            engine, evaluation, head = self._assemble(module, datamodule, stage, heads)
            live = np.ones(len(heads), bool)
            with contextlib.closing(engine), contextlib.closing(evaluation), self._hooks(verb, live=live) as emit:
                emit(f"on_{hook}_start")
                found = evaluation.run(engine, head, self.global_step)
                emit(f"on_{hook}_end", metrics=found)
        self._evaluated |= found
        if verbose and not self._settings.barebones:
            print(table(found, heads.ids))
        return found

    def _assemble(
        self, module: HydraModule, datamodule: DataModule, stage: str, heads: Heads
    ) -> tuple[Engine, Evaluation, Any]:
        if self._training is None or module is not self.module:
            return assemble_evaluation(self._settings, module, datamodule, stage, heads)
        fitted, choice = self._training.slices.ids, self._training.plan.choice
        return assemble_evaluation(self._settings, module, datamodule, stage, heads, fitted, choice)

    def _subject(
        self, module: Any, datamodule: Any, heads: Any, ckpt_path: Any
    ) -> tuple[HydraModule, DataModule, Heads]:
        """What to evaluate: what is given, else what the last fit left."""
        if heads is None and ckpt_path is None and self._loop is None:
            raise ArgumentError(
                "There are no heads to evaluate: Trainer. Got no fit before, no heads and no ckpt_path, expected one. "
                "Fix: fit first, or pass heads=Heads.load(path, module)."
            )
        module, datamodule = check_types(module or self.module, datamodule or self.datamodule)
        if ckpt_path is not None:
            heads = Heads.load(self._find_checkpoint(ckpt_path) or ckpt_path, module)
        if not isinstance(heads, Heads | None):
            raise ArgumentError(
                f"An argument has the wrong type: heads. Got {type(heads).__name__}, expected hydrax.Heads. Fix: pass "
                "result.heads, or Heads.load(path, module)."
            )
        return module, datamodule, self.heads if heads is None else heads

    def _find_checkpoint(self, ckpt_path: str | Path | None) -> Path | None:
        if not isinstance(ckpt_path, str | Path | None):
            raise ArgumentError(
                f"An argument has the wrong type: ckpt_path. Got {type(ckpt_path).__name__}, expected a path, "
                '"last", "best" or "auto". Fix: pass the folder ModelCheckpoint wrote.'
            )
        if ckpt_path is None or ckpt_path not in ("last", "auto", "best"):
            return None if ckpt_path is None else Path(ckpt_path)
        saver = self.checkpoint_callback
        kind = "best" if ckpt_path == "best" else "last"
        folder = getattr(saver, "dirpath", None)
        known = getattr(saver, f"{kind}_model_path", None)
        found = known or find_newest(kind, self._root, folder and Path(folder))
        if not found and ckpt_path != "auto":
            below = self._root / "hydrax_logs"
            raise CheckpointError(
                f"There is no checkpoint: ckpt_path={ckpt_path!r}. Got none below {below}, expected one of "
                "ModelCheckpoint. Fix: pass its path, or 'auto' to start afresh where there is none."
            )
        return Path(found) if found else None


def check_types(module: Any, datamodule: Any) -> tuple[HydraModule, DataModule]:
    """Both, if they are what their names say."""
    for name, value, kind in (("module", module, HydraModule), ("datamodule", datamodule, DataModule)):
        if not isinstance(value, kind):
            got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
            raise ArgumentError(
                f"An argument has the wrong type: {name}. Got {got}, expected an instance of hydrax.{kind.__name__}. "
                f"Fix: pass an object whose class derives from hydrax.{kind.__name__}."
            )
    return module, datamodule
