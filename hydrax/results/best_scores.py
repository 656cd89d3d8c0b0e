"""Keeps track of the best scores of each head, and of the slots that hold the models."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass
class BestScores:
    """The best scores of each head so far, one per slot.

    Attributes:
      scores: float[slots, H], in no order; NaN in a slot that is still empty.
      steps: int64[slots, H], the updates done at that score; -1 in a slot that is still empty.
      sign: 1 where a lower score is better, else -1.
    """

    scores: np.ndarray
    steps: np.ndarray
    sign: int

    @classmethod
    def of(cls, slots: int, heads: int, mode: str) -> BestScores:
        shape = slots, heads
        return cls(np.full(shape, np.nan, np.float32), np.full(shape, -1, np.int64), 1 if mode == "min" else -1)

    def take(self, scores: np.ndarray, step: int) -> np.ndarray:
        """Adds new scores [H]; a score that is good enough replaces the worst slot of its head.

        Returns:
          bool[slots, H], the slots that were replaced.
        """
        costs = self._costs()
        worst = costs.argmax(axis=0)
        # The scores' own float type: a "64-true" run can have scores that only float64 tells apart.
        self.scores = self.scores.astype(np.result_type(self.scores, scores), copy=False)
        improved = np.isfinite(scores) & (self.sign * scores < costs.max(axis=0))
        taken: np.ndarray = improved & (np.arange(len(costs))[:, None] == worst)
        self.scores, self.steps = np.where(taken, scores, self.scores), np.where(taken, step, self.steps)
        return taken

    def order(self) -> np.ndarray:
        """Ranks the slots of each head, best first; ties go to the earlier step. Returns int64[slots, H]."""
        return np.lexsort((self.steps, self._costs()), axis=0)

    def ranked(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores and steps, [slots, H], with the best of each head first."""
        order = self.order()
        return np.take_along_axis(self.scores, order, axis=0), np.take_along_axis(self.steps, order, axis=0)

    def _costs(self) -> np.ndarray:
        return np.where(np.isnan(self.scores), np.inf, self.sign * self.scores)
