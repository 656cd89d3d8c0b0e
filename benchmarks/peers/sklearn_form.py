"""scikit-learn's MLPClassifier, one for each head, in joblib with one process per core.

Sizes, batch size and optimiser (solver "adam") are the same, there is no penalty, and a turn has as many epochs as fit.
It uses its own initial values and shuffles, so its losses are not compared. The processes are started before the first
turn; the set-up of a fit counts, because its users pay for it.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import joblib
import numpy as np
from peers.cases import Case
from sklearn.neural_network import MLPClassifier


def fit(
    x: np.ndarray, y: np.ndarray, hidden: tuple[int, ...], batch_size: int, rate: float, epochs: int
) -> list[float]:
    """Trains and returns the mean loss of each epoch."""
    model = MLPClassifier(
        hidden,
        solver="adam",
        alpha=0.0,
        batch_size=batch_size,
        learning_rate_init=rate,
        max_iter=epochs,
        tol=0.0,
        n_iter_no_change=epochs + 1,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it did not converge, as intended
        return model.fit(x, y).loss_curve_


class SklearnJoblib:
    """One call is two epochs, and every call starts from new values."""

    def __init__(self, case: Case, start: Any) -> None:
        rows, data = case.rows(), case.make_data(case.num_rows)
        self.steps_per_epoch = -(-int(rows.length.max()) // case.batch_size)
        self.call_steps = 2 * self.steps_per_epoch
        self.steps_per_unit = (case.steps_per_unit or {}).get("own", 1)
        self.hidden, self.case = case.torch_model[1][0][1:-1], case
        self._parallel = joblib.Parallel(n_jobs=os.cpu_count()).__enter__()
        self.note = f"{os.cpu_count()} processes"
        own = zip(rows.length, rows.gap_at, rows.gap, strict=True)
        places = [np.arange(length) + np.where(np.arange(length) >= at, gap, 0) for length, at, gap in own]
        self._parts = [(data["x"][one], data["y"][one]) for one in places]
        self._curves: list[list[float]] = []

    def advance(self, num_steps: int) -> None:
        how = (self.hidden, self.case.batch_size, self.case.learning_rate, num_steps // self.steps_per_epoch)
        self._curves = self._parallel(joblib.delayed(fit)(x, y, *how) for x, y in self._parts)

    def losses(self) -> tuple[float, float]:
        first, last = np.mean([(curve[0], curve[-1]) for curve in self._curves], axis=0)
        return float(first), float(last)

    def close(self) -> None:
        self._parallel.__exit__(None, None, None)
