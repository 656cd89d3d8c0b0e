"""Stops each head by its own score."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hydrax import Callback, Control, Event
from hydrax.errors import ArgumentError

MODES = ("min", "max")


class EarlyStopping(Callback):
    """Freezes a head whose validation metric no longer improves; the others go on. The fit ends when none is left.

    Each head is judged by its own scores alone, at every validation. A score counts as better if it is so by more than
    `min_delta`. A stopped head is frozen bit for bit; its reason stands in `heads.csv` and in what the fit says at its
    end.

    Args:
      monitor: the validation metric that scores a head.
      min_delta: what a score must gain to count as better, 0 or more.
      patience: validations in a row without a better score after which a head stops.
      mode: "min" if a lower score is better, else "max".
      check_finite: stop a head whose score is NaN or infinite; else such a score counts as no better.
      stopping_threshold: stop a head as soon as its score is better than this.
      divergence_threshold: stop a head as soon as its score is worse than this.
      restore_best_weights: give a head the model of its best score back when it stops; and all others at the end of
        fit, after the last checkpoint was written, which a resume goes on from.

    Raises:
      ArgumentError: an argument is out of its range; in `setup`, before training, no validation metric is called
        `monitor`.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 3,
        mode: str = "min",
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        restore_best_weights: bool = False,
    ) -> None:
        if mode not in MODES:
            raise _error("mode", mode, '"min" or "max"', '"min" for a loss, "max" for an accuracy')
        if isinstance(patience, bool) or not isinstance(patience, int | np.integer) or patience < 1:
            raise _error("patience", patience, "an int of 1 or more", "pass patience=1 for none")
        if not _is_number(min_delta) or min_delta < 0:
            raise _error("min_delta", min_delta, "a number of 0 or more", "leave it out for 0")
        for name, value in (("stopping", stopping_threshold), ("divergence", divergence_threshold)):
            if value is not None and not _is_number(value):
                raise _error(f"{name}_threshold", value, "a number, or None", "leave it out for none")
        for name, flag in (("check_finite", check_finite), ("restore_best_weights", restore_best_weights)):
            if not isinstance(flag, bool):
                raise _error(name, flag, "True or False", "pass a bool")
        self.monitor, self.mode, self.min_delta, self.patience = monitor, mode, float(min_delta), int(patience)
        self.check_finite, self.restore_best_weights = check_finite, restore_best_weights
        self.stopping_threshold, self.divergence_threshold = stopping_threshold, divergence_threshold
        self._best: np.ndarray | None = None
        self._waited: np.ndarray | None = None

    @property
    def best_scores(self) -> np.ndarray | None:
        """Float[H], the best score of each head, NaN where it has none; None before training."""
        return self._best

    @property
    def wait_counts(self) -> np.ndarray | None:
        """int64[H], validations since each head's best score; None before training."""
        return self._waited

    def setup(self, event: Event) -> None:
        if event.stage == "fit" and self.monitor not in event.trainer.validation_metrics:
            names = ", ".join(sorted(event.trainer.validation_metrics)) or "none, as this fit has no validation"
            raise _error("monitor", self.monitor, f"one of what validation logs: {names}", "log it in validation_step")

    def on_train_start(self, event: Event) -> None:
        if event.step == 0 or self._best is None:  # a resumed fit has it from load_state_dict
            self._best = np.full(event.trainer.num_heads, np.nan, np.float32)
            self._waited = np.zeros(event.trainer.num_heads, np.int64)

    def on_validation_end(self, event: Event) -> Control | None:
        if event.stage != "fit" or event.step == 0 or self._best is None or self._waited is None:
            return None
        scores, finite = event.metrics[self.monitor], np.isfinite(event.metrics[self.monitor])
        better = finite & event.live & (self._is_better(scores, self._best, self.min_delta) | np.isnan(self._best))
        self._best = np.where(better, scores, self._best)
        self._waited = np.where(better, 0, self._waited + event.live)
        reasons = self._reasons(scores, finite, self._waited)
        stop = event.live & (reasons != "")
        if not self.restore_best_weights:
            return Control(stop=stop, reason=reasons.tolist()) if stop.any() else None
        return Control(stop=stop, snapshot=better, restore=stop & ~np.isnan(self._best), reason=reasons.tolist())

    def on_fit_end(self, event: Event) -> Control | None:
        if not self.restore_best_weights or event.trainer.interrupted or self._best is None:
            return None
        return Control(restore=~np.isnan(self._best))

    def state_dict(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "mode": self.mode, "best": self._best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes scores and counts back, unless another metric is monitored now: they would mean nothing."""
        if (state["monitor"], state["mode"]) == (self.monitor, self.mode) and state["best"] is not None:
            self._best, self._waited = np.array(state["best"]), np.array(state["waited"])

    def _is_better(self, scores: np.ndarray, than: Any, by: float = 0.0) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            better: np.ndarray = scores < than - by if self.mode == "min" else scores > than + by
        return better

    def _reasons(self, scores: np.ndarray, finite: np.ndarray, waited: np.ndarray) -> np.ndarray:
        """Why each head must stop, "" where it need not; the first that holds."""
        name, none = self.monitor, np.zeros(len(scores), bool)
        reached, gone = self.stopping_threshold, self.divergence_threshold
        cases = {
            f"{name} is NaN or infinite": ~finite if self.check_finite else none,
            f"{name} is better than {reached}": none if reached is None else self._is_better(scores, reached),
            f"{name} is worse than {gone}": none if gone is None else finite & self._is_worse(scores, gone),
            f"{name} did not improve in {self.patience} validations": waited >= self.patience,
        }
        return np.select(list(cases.values()), list(cases), "")

    def _is_worse(self, scores: np.ndarray, than: float) -> np.ndarray:
        return scores > than if self.mode == "min" else scores < than


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return number and not math.isnan(value)


def _error(name: str, value: Any, expected: str, fix: str) -> ArgumentError:
    return ArgumentError(
        f"An argument has no meaning: EarlyStopping({name}=...). Got {value!r}, expected {expected}. Fix: {fix}."
    )
