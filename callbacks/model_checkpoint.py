"""Saves the newest state of all heads, and the best models of each head."""

from __future__ import annotations

import contextlib
import datetime
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from hydrax import Callback, Control, Event, Heads
from hydrax.arguments import is_choice, is_int, is_number, is_training_metric, require
from hydrax.checkpoint import check_root, locked, make_way
from hydrax.errors import ArgumentError, CallbackError, CheckpointError, NonFiniteError
from hydrax.files import as_path
from hydrax.results import BestScores

MODES = ("min", "max")
LAST_SECS = 30.0
"""Shortest time between two saves if the user sets none."""
LAST_SHARE = 0.05
"""Largest share of the time of a fit that these saves take."""


LEDGER_SHARE = 50
"""During training a ledger that takes long is written again after this many times the time that writing it takes."""


class ModelCheckpoint(Callback):
    """Writes `last`, the newest state of everything, and `best`, the best model of each head, to one folder.

    - `last/`: everything that a resume needs, for the newest `keep_last` saves; written as described below and at the
      end of training;
    - `best/`: the model of each head that scored best, as one `Heads`; written at the end of fit if `monitor` is given;
    - `best-2/`, ...: the second best model of each head and so on, up to `save_top_k`; written with `best/`;
    - `heads.csv`: the ledger, one row per head, with the best scores and their steps; written with each of these, but,
      if writing it takes more than a second, as for a million heads, so rarely during training that it takes 2 % of the
      time.

    `last` is saved every `every_n_train_steps` steps, at the end of every `every_n_epochs`-th epoch and whenever
    `train_time_interval` has passed, if these are given. If none is, it is saved when the last save, or the start, was
    at least 30 s before, and later if saving would take more than a twentieth of the time. That bounds both what a
    crash can cost and what saving costs.

    A fit that starts afresh while `last/` holds the steps of another run first renames that folder to `last-1`, or to
    the next number that is free, and logs this to "hydrax". A resumed fit continues in its own `last/`. Folders that
    Hydrax did not write are never touched: if `last/` holds any that look like steps, the fit is refused before it
    trains.

    Scores are compared per head. At each validation, or at the end of each epoch for a training metric, the model of a
    head is kept as a snapshot if its score is better than its best so far, or than the worst of its `save_top_k`. A tie
    is no improvement, and neither is a score that is NaN or infinite. The check before training does not count. If a
    head never scored, or scored less often than others, a folder holds its model from the moment at which the first
    head was kept there, and its score in `heads.csv` is NaN.

    If a callback raises, or all heads are lost, `last` is saved before the fit ends with its error. A running fit locks
    the folder: another fit that is to write there is refused with the name of the holder.

    If the disk refuses a save, the callback warns through the logger "hydrax" and tries again when the next save is
    due; the last good save stays.

    Args:
      monitor: the metric that scores a head: one that validation logs, at each validation, or one that training logs,
        by its mean at the end of each epoch. If None, no best models are kept.
      mode: "min" if a lower score is better, else "max".
      save_top_k: how many of the best models of each head to keep; each takes the memory of the models of all heads.
      every_n_train_steps: steps between two saves of `last`; a superstep ends there.
      every_n_epochs: epochs between two saves of `last`.
      train_time_interval: time between two saves of `last`, a `datetime.timedelta` or a number of seconds; the step
        after it is a superstep of its own.
      save_last: whether to write `last` at all.
      keep_last: how many saves of `last` to keep.
      dirpath: the folder; if None, `trainer.log_dir / "checkpoints"`. If that is None too, nothing is saved.

    Raises:
      ArgumentError: an argument is out of range; in `setup`, before training, neither validation nor training logs a
        metric called `monitor`.
      CheckpointError: in `setup`, `last` holds folders of others.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: str = "min",
        save_top_k: int = 1,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: datetime.timedelta | float | None = None,
        save_last: bool = True,
        keep_last: int = 2,
        dirpath: str | Path | None = None,
    ) -> None:
        if not is_choice(mode, MODES):
            raise ArgumentError(
                f'Unknown mode: ModelCheckpoint(mode=...). Got {mode!r}, expected "min" or "max". '
                'Fix: "min" for a loss, "max" for an accuracy.'
            )
        require(
            isinstance(save_last, bool), "ModelCheckpoint(save_last=...)", save_last, "True or False", "pass a bool"
        )
        fix = "leave it out to save every 30 s"
        if every_n_train_steps is not None:
            every_n_train_steps = _check_count("every_n_train_steps", every_n_train_steps, fix)
        if every_n_epochs is not None:
            every_n_epochs = _check_count("every_n_epochs", every_n_epochs, "leave it out")
        given = train_time_interval
        interval_secs = given.total_seconds() if isinstance(given, datetime.timedelta) else given
        if interval_secs is not None and not (is_number(interval_secs) and interval_secs > 0):
            raise ArgumentError(
                f"Time out of range: ModelCheckpoint(train_time_interval=...). Got {given!r}, expected a timedelta or "
                f"seconds, more than 0. Fix: {fix}."
            )
        self.monitor = monitor
        self.mode = mode
        self.save_top_k = _check_count("save_top_k", save_top_k, "leave monitor out to keep no best")
        self.every_n_train_steps, self.every_n_epochs = every_n_train_steps, every_n_epochs
        self.train_time_interval, self._interval_secs = train_time_interval, interval_secs
        self.save_last = save_last
        self.keep_last = _check_count("keep_last", keep_last, "pass save_last=False to keep none")
        self.dirpath = (
            None if dirpath is None else as_path("ModelCheckpoint(dirpath=...)", dirpath).absolute()
        )  # so that os.chdir has no effect
        self._folder: Path | None = None
        self._lock: TextIO | None = None
        self._last_save_secs = self._last_try_secs = self._save_secs = 0.0
        self._ledger_at = self._ledger_secs = 0.0  # when the ledger was last written, and how long that took
        # Steps that train_time_interval asked for. The loop asks again, for the next step, before it reports the first.
        self._due_steps: set[int] = set()
        self._is_due = False  # at the end of an epoch, for the next hook
        self._by_epoch = False  # by the mean of a training metric
        self._best: BestScores | None = None
        self._best_model_path: Path | None = None
        self._last_model_path: Path | None = None

    @property
    def is_checkpoint(self) -> bool:
        return True

    @property
    def epoch_means(self) -> tuple[str, ...]:
        return () if self.monitor is None else (self.monitor,)

    @property
    def best_scores(self) -> np.ndarray | None:
        """Float[H], NaN for a head that has no score yet; None without `monitor` or before training."""
        return None if self._best is None else self._best.ranked()[0][0]

    @property
    def best_steps(self) -> np.ndarray | None:
        """int64[H], the step of each head's best score, -1 for a head that has none yet; None as for `best_scores`."""
        return None if self._best is None else self._best.ranked()[1][0]

    @property
    def best_model_path(self) -> Path | None:
        """Where `best` was written; None before the end of fit."""
        return self._best_model_path

    @property
    def last_model_path(self) -> Path | None:
        """The newest state that was written; None before the first."""
        return self._last_model_path

    @property
    def needs_every_epoch(self) -> bool:
        return self.every_n_epochs is not None

    def next_due(self, step: int) -> int | None:
        if not self.save_last:
            return None
        wait = None if self._folder is None else self._wait_secs
        if wait is not None and time.monotonic() - self._last_try_secs >= wait:
            self._due_steps.add(step + 1)
            return step + 1
        every = self.every_n_train_steps
        return None if every is None else (step // every + 1) * every

    def setup(self, event: Event) -> None:
        if event.stage == "fit" and self.monitor is not None:
            self._by_epoch = is_training_metric("ModelCheckpoint", self.monitor, event.trainer)
        folder = self._find_folder(event) if event.stage == "fit" else None
        self._folder = None  # until training starts
        if event.stage == "fit":
            self._last_model_path = None  # even if the fit is resumed: what an earlier fit wrote is not this one's
        if folder is None:
            return
        with contextlib.suppress(OSError):  # what cannot be read is reported when it cannot be written either
            check_root(folder / "last")
        with _reporting(folder):
            self._lock = locked(folder)

    def on_train_start(self, event: Event) -> None:
        self._folder = self._find_folder(event)
        self._last_save_secs = self._last_try_secs = time.monotonic()
        # A fresh fit forgets the one before; a resumed one continues from load_state_dict.
        if event.step == 0:
            self._best_model_path = self._last_model_path = None
            self._best = None
        if self.monitor is not None and self._best is None:
            self._best = BestScores.of(self.save_top_k, event.trainer.num_heads, self.mode)
        if self._folder is not None and self.save_last:
            # Now and not at the first save: if this run is killed before it, a resume must not find the other's steps.
            with _reporting(self._folder / "last"):
                _make_way(self._folder / "last", event)

    def on_train_steps_end(self, event: Event) -> None:
        by_steps = self.every_n_train_steps is not None and event.step % self.every_n_train_steps == 0
        if by_steps or event.step in self._due_steps:
            self._save_last(event)

    def on_validation_end(self, event: Event) -> Control | None:
        # Step 0 is the check before training, with untrained models and a few batches.
        if self.monitor is None or event.stage != "fit" or event.step == 0 or self._by_epoch:
            return None
        return self._keep_best(event, event.metrics[self.monitor])

    def on_train_epoch_end(self, event: Event) -> Control | None:
        if self.every_n_epochs is not None:
            due = (event.epoch + 1) % self.every_n_epochs == 0
        else:
            # At the end of an epoch rather than a step later, if both are due.
            wait = None if self._interval_secs is not None else self._wait_secs
            due = wait is not None and time.monotonic() - self._last_save_secs >= wait
        if self.monitor is None or not self._by_epoch:
            if due:
                self._save_last(event)
            return None
        # A save must hold the models that this hook is about to ask for, so it comes with the next hook.
        self._is_due = due
        return self._keep_best(event, event.epoch_mean(self.monitor))

    def on_train_epoch_start(self, event: Event) -> None:
        if self._is_due:
            self._save_last(event)

    def _keep_best(self, event: Event, scores: np.ndarray) -> Control | None:
        if self._folder is None or self._best is None:
            return None
        improved = self._best.take(scores, event.step)
        return Control(snapshot=improved) if improved.any() else None

    def on_train_end(self, event: Event) -> None:
        self._save_last(event, at_end=True)

    def on_fit_end(self, event: Event) -> None:
        """Saves the best models; in `on_train_end` the Control of the last validation is not yet carried out."""
        if self._folder is not None and self._best is not None:
            kept = [event.trainer.snapshots_of(self, slot) for slot in range(self.save_top_k)]
            for rank, (order, score) in enumerate(zip(self._best.order(), self._best.ranked()[0], strict=True)):
                if np.isnan(score).all():
                    break
                path = self._folder / ("best" if rank == 0 else f"best-{rank + 1}")
                with _reporting(path):
                    _picked(kept, order).save(path)
                    self._best_model_path = path if rank == 0 else self._best_model_path
        self._write_ledger(event)

    def on_exception(self, event: Event) -> None:
        if isinstance(event.error, CallbackError | NonFiniteError):  # the heads are whole
            self._save_last(event, at_end=True)
        elif isinstance(event.error, KeyboardInterrupt):
            with contextlib.suppress(RuntimeError):  # from JAX: after an interrupted superstep the heads may be gone
                self._write_ledger(event)

    def teardown(self, event: Event) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "monitor": self.monitor,
            "mode": self.mode,
            "best_scores": None if self._best is None else self._best.scores,
            "best_steps": None if self._best is None else self._best.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the best scores, unless another metric is monitored now.

        Raises:
          ArgumentError: `save_top_k` is smaller than it was.
        """
        if (state["monitor"], state["mode"]) != (self.monitor, self.mode) or state["best_scores"] is None:
            return
        scores, steps = (np.atleast_2d(state[name]) for name in ("best_scores", "best_steps"))
        if len(scores) > self.save_top_k:
            raise ArgumentError(
                f"Models would be lost: ModelCheckpoint(save_top_k=...). Got {self.save_top_k}, expected at least the "
                f"{len(scores)} that the checkpoint holds. Fix: save_top_k={len(scores)}."
            )
        self._best = BestScores.of(self.save_top_k, scores.shape[1], self.mode)
        self._best.scores[: len(scores)], self._best.steps[: len(scores)] = scores, steps

    def _find_folder(self, event: Event) -> Path | None:
        if self.dirpath is not None:
            return self.dirpath
        return None if event.trainer.log_dir is None else Path(event.trainer.log_dir) / "checkpoints"

    @property
    def _wait_secs(self) -> float | None:
        """Seconds between two saves, or None if they are counted in steps or epochs."""
        if self._interval_secs is not None or self.every_n_train_steps is not None or self.every_n_epochs is not None:
            return self._interval_secs
        return max(LAST_SECS, self._save_secs / LAST_SHARE)

    def _save_last(self, event: Event, *, at_end: bool = False) -> None:
        if self._folder is None or not self.save_last:
            return
        path, started = self._folder / "last", time.monotonic()
        if at_end or self._ledger_secs < 1 or started - self._ledger_at > LEDGER_SHARE * self._ledger_secs:
            self._write_ledger(event)  # first, because it is faster and a second Ctrl-C may interrupt the save
        with _reporting(path):
            _make_way(path, event)
            self._last_model_path = event.trainer.save_checkpoint(path, keep=self.keep_last)
            self._last_save_secs = time.monotonic()
            self._save_secs = self._last_save_secs - started
        self._last_try_secs = time.monotonic()  # otherwise train_time_interval would retry a failing save at every step
        self._due_steps.clear()
        self._is_due = False

    def _write_ledger(self, event: Event) -> None:
        if self._folder is None:
            return
        path, began = self._folder / "heads.csv", time.monotonic()
        with _reporting(path):
            if self._best is None:
                event.trainer.save_ledger(path, self.monitor)
            else:
                scores, steps = self._best.ranked()
                more = {"step": steps[0]}
                for rank in range(1, self.save_top_k):
                    more |= {f"score_{rank + 1}": scores[rank], f"step_{rank + 1}": steps[rank]}
                event.trainer.save_ledger(path, self.monitor, scores[0], more)
        self._ledger_at = time.monotonic()
        self._ledger_secs = self._ledger_at - began


def _make_way(last: Path, event: Event) -> None:
    """Renames a `last` that holds another run's steps."""
    if aside := make_way(last, event.trainer.run_id):
        logging.getLogger("hydrax").info("ModelCheckpoint: %s holds another run, it is now %s", last, aside)


def _picked(kept: list[Heads | None], slots: np.ndarray) -> Heads:
    """Picks each head from its own slot, int[H]."""
    filled = [heads for heads in kept if heads is not None]
    if len(filled) == 1:
        return filled[0]
    places = np.minimum(slots, len(filled) - 1)  # an empty slot counts as the last that is filled
    picked: Heads = jax.tree.map(lambda *leaves: jnp.stack(leaves)[places, np.arange(len(places))], *filled)
    return picked


def _check_count(name: str, value: int, fix: str) -> int:
    if not is_int(value, least=1):
        raise ArgumentError(
            f"Count out of range: ModelCheckpoint({name}=...). Got {value!r}, expected an int of 1 or more. Fix: {fix}."
        )
    return int(value)


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Turns a failed save into a warning: training is worth more than one save."""
    try:
        yield
    except (OSError, CheckpointError) as error:
        logging.getLogger("hydrax").warning(
            "A save has failed: ModelCheckpoint, %s. Got %r, expected a folder that can take it. Fix: mend what "
            "this error names, or pass another dirpath; the next save tries again.",
            path,
            error,
        )
