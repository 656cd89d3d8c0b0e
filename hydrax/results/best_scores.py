"""The best scores of each head so far, and the slots in which their models are kept."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass
class BestScores:
    """The best scores of each head so far, one in each slot.

    Attributes:
      scores: float[slots, H], in no order; NaN where there is none yet.
      steps: int64[slots, H], the updates done then; -1 where there is none yet.
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
        """bool[slots, H], the slots whose place new scores [H] took: the worst of a head, where its score is better."""
        costs = self._costs()
        worst = costs.argmax(axis=0)
        # Its own float type: a "64-true" run tells scores apart that float32 does not.
        self.scores = self.scores.astype(np.result_type(self.scores, scores), copy=False)
        improved = np.isfinite(scores) & (self.sign * scores < costs.max(axis=0))
        taken: np.ndarray = improved & (np.arange(len(costs))[:, None] == worst)
        self.scores, self.steps = np.where(taken, scores, self.scores), np.where(taken, step, self.steps)
        return taken

    def order(self) -> np.ndarray:
        """int64[slots, H], the slots of each head from the best on; of equal ones the first scored comes first."""
        return np.lexsort((self.steps, self._costs()), axis=0)

    def ranked(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and steps, [slots, H], each head's best first."""
        order = self.order()
        return np.take_along_axis(self.scores, order, axis=0), np.take_along_axis(self.steps, order, axis=0)

    def _costs(self) -> np.ndarray:
        return np.where(np.isnan(self.scores), np.inf, self.sign * self.scores)
