"""The best head of a fit."""

import numpy as np
import pytest

import hydrax as hx
from hydrax.results.fit_result import FitResult

METRICS = {"val_loss": [0.3, np.nan, 0.1, 0.2, -np.inf], "acc": [0.5, 0.9, 0.9, np.inf, 0.1], "gone": [np.nan] * 5}
LEDGER = [{"head": head, "lr": rate} for head, rate in zip([7, 8, 9, 10, 11], [0.1, 0.2, 0.3, 0.4, 0.5], strict=True)]


@pytest.fixture
def result():
    metrics = {name: np.array(values, np.float32) for name, values in METRICS.items()}
    return FitResult("abcde", metrics, np.ones(5, bool), 9, None, LEDGER)


@pytest.mark.parametrize(
    ("monitor", "mode", "place"), [("val_loss", "min", 2), ("val_loss", "max", 0), ("acc", "max", 1)]
)
def test_it_is_the_first_of_those_with_the_best_finite_value(result, monitor, mode, place):
    best = result.best(monitor, mode)
    assert (best.place, best.model, best.settings) == (place, "abcde"[place], LEDGER[place])
    assert best.score == np.float32(METRICS[monitor][place])


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        (("loss",), r"best\('loss', 'min'\)\. Expected one of acc, gone, val_loss"),
        (("acc", "most"), r"best\('acc', 'most'\)"),
        (("gone",), r"Got no head with a finite value"),
    ],
)
def test_where_there_is_none_the_error_says_why(result, arguments, refusal):
    with pytest.raises(hx.ArgumentError, match=refusal):
        result.best(*arguments)
