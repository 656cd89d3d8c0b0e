"""Stops each head early, by its own score."""

from __future__ import annotations

from typing import Any

import numpy as np

from hydrax import Callback, Control, Event
from hydrax.arguments import is_choice, is_int, is_number, is_training_metric, require

MODES = ("min", "max")


class EarlyStopping(Callback):
    """Freezes a head when the metric that it is judged by no longer improves, and lets all other heads train on.

    Each head is judged by its own scores alone: at every validation if validation logs `monitor`, otherwise at the end
    of every epoch, by the mean of a training metric over it. The check before training does not count. A stopped head
    does not change by a single bit any more. The reason is written to `heads.csv` and logged at the end of the fit. The
    fit ends when no head is left.

    Args:
      monitor: name of the metric that scores a head. Default: "val_loss". A training metric need not be logged with
        `on_epoch=True`. If both log the name, the validation metric counts.
      min_delta: smallest change of the score that counts as an improvement, 0 or more. Default: 0.
      patience: number of validations, or epochs, in a row without improvement after which a head stops, 1 or more.
        Default: 3.
      mode: "min" if a lower score is better (the default), "max" if a higher one is.
      check_finite: whether to stop a head whose score is NaN or infinite; if False, such a score counts as no
        improvement. Default: True.
      stopping_threshold: a head stops as soon as its score is better than this; by default there is no threshold.
      divergence_threshold: a head stops as soon as its score is worse than this; by default there is no threshold.
      restore_best_weights: whether to restore the weights of a head's best score: when the head stops, and for all
        other heads at the end of the fit. That happens after the last checkpoint is saved, so a resumed fit continues
        from the weights as trained. Default: False.

    Raises:
      ArgumentError: an argument is out of range, or (in `setup`, before training) neither validation nor training logs
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
        _require(is_choice(mode, MODES), "mode", mode, '"min" or "max"', 'pass "min" for a loss, "max" for an accuracy')
        whole = is_int(patience, least=1)
        _require(
            whole, "patience", patience, "an int of 1 or more", "pass 1 to stop at the first score that is no better"
        )
        known = is_number(min_delta) and min_delta >= 0
        _require(known, "min_delta", min_delta, "a number of 0 or more", "leave it out for 0")
        for name, value in (("stopping", stopping_threshold), ("divergence", divergence_threshold)):
            known = value is None or is_number(value)
            _require(known, f"{name}_threshold", value, "a number or None", "leave it out for no threshold")
        for name, flag in (("check_finite", check_finite), ("restore_best_weights", restore_best_weights)):
            _require(isinstance(flag, bool), name, flag, "True or False", "pass a bool")
        self.monitor, self.mode, self.min_delta, self.patience = monitor, mode, float(min_delta), int(patience)
        self.check_finite, self.restore_best_weights = check_finite, restore_best_weights
        self.stopping_threshold, self.divergence_threshold = stopping_threshold, divergence_threshold
        self._best: np.ndarray | None = None
        self._waited: np.ndarray | None = None
        self._by_epoch = False  # by the mean of a training metric

    @property
    def best_scores(self) -> np.ndarray | None:
        """float[H], the best score of each head, NaN for a head without one; None before training."""
        return self._best

    @property
    def wait_counts(self) -> np.ndarray | None:
        """int64[H], the number of validations or epochs since each head's best score; None before training."""
        return self._waited

    @property
    def epoch_means(self) -> tuple[str, ...]:
        return (self.monitor,)

    @property
    def needs_every_epoch(self) -> bool:
        return False  # the mean that may be monitored ends a superstep with each epoch by itself

    def setup(self, event: Event) -> None:
        if event.stage == "fit":
            self._by_epoch = is_training_metric("EarlyStopping", self.monitor, event.trainer)

    def on_train_start(self, event: Event) -> None:
        if event.step == 0 or self._best is None:  # load_state_dict has set it for a resumed fit
            self._best = np.full(event.trainer.num_heads, np.nan, np.float32)
            self._waited = np.zeros(event.trainer.num_heads, np.int64)

    def on_validation_end(self, event: Event) -> Control | None:
        if event.stage != "fit" or event.step == 0 or self._by_epoch:
            return None
        # A head without validation rows is not judged.
        return self._judge(event, event.metrics[self.monitor], event.live & event.trainer.validated)

    def on_train_epoch_end(self, event: Event) -> Control | None:
        return self._judge(event, event.epoch_mean(self.monitor), event.live) if self._by_epoch else None

    def _judge(self, event: Event, scores: np.ndarray, live: np.ndarray) -> Control | None:
        if self._best is None or self._waited is None:
            return None
        finite = np.isfinite(scores)
        better = finite & live & (self._is_better(scores, self._best, self.min_delta) | np.isnan(self._best))
        self._best = np.where(better, scores, self._best)
        self._waited = np.where(better, 0, self._waited + live)
        reasons = self._reasons(scores, finite, self._waited)
        stop = live & (reasons != "")
        if not self.restore_best_weights:
            return Control(stop=stop, reason=reasons.tolist()) if stop.any() else None
        return Control(stop=stop, snapshot=better, restore=stop & ~np.isnan(self._best), reason=reasons.tolist())

    def on_fit_end(self, event: Event) -> Control | None:
        # An interrupted fit returns the weights as trained, from which a resumed one continues.
        if not self.restore_best_weights or event.trainer.interrupted or self._best is None:
            return None
        return Control(restore=~np.isnan(self._best))

    def state_dict(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "mode": self.mode, "best": self._best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores scores and counts, but not those of another metric: they say nothing about this one."""
        if (state["monitor"], state["mode"]) == (self.monitor, self.mode) and state["best"] is not None:
            self._best, self._waited = np.array(state["best"]), np.array(state["waited"])

    def _is_better(self, scores: np.ndarray, than: Any, by: float = 0.0) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            better: np.ndarray = scores < than - by if self.mode == "min" else scores > than + by
        return better

    def _reasons(self, scores: np.ndarray, finite: np.ndarray, waited: np.ndarray) -> np.ndarray:
        """Returns why each head must stop, by the first condition that holds; "" for a head that need not."""
        name, none, unit = self.monitor, np.zeros(len(scores), bool), "epochs" if self._by_epoch else "validations"
        reached, gone = self.stopping_threshold, self.divergence_threshold
        cases = {
            f"{name} is NaN or infinite": ~finite if self.check_finite else none,
            f"{name} is better than {reached}": none if reached is None else self._is_better(scores, reached),
            f"{name} is worse than {gone}": none if gone is None else finite & self._is_worse(scores, gone),
            f"{name} did not improve in {self.patience} {unit}": waited >= self.patience,
        }
        return np.select(list(cases.values()), list(cases), "")

    def _is_worse(self, scores: np.ndarray, than: float) -> np.ndarray:
        return scores > than if self.mode == "min" else scores < than


def _require(holds: bool, name: str, value: Any, expected: str, fix: str) -> None:
    require(holds, f"EarlyStopping({name}=...)", value, expected, fix)
