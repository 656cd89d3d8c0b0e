"""Figures of all heads: the numbers behind them, by hand, and what they show."""

import builtins

import numpy as np
import pytest

import hydrax as hx
from hydrax.loggers import plots

LENGTHS = np.array([10, 1, 10, 1, 100])
SCORES = np.array([2.0, 5.0, 4.0, np.nan, np.inf], np.float32)


def test_a_curve_has_a_line_for_each_length_that_has_a_finite_score():
    lines = [dict(zip(plots.CURVE_COLUMNS, line, strict=True)) for line in plots.curve_of(LENGTHS, SCORES)]
    assert lines[0] == dict.fromkeys(("length", "heads"), 1) | {"std": 0} | dict.fromkeys(
        ("mean", "min", "q10", "median", "q90", "max"), 5.0
    )
    assert lines[1] == pytest.approx(
        {"length": 10, "heads": 2, "mean": 3, "std": 1, "min": 2, "q10": 2.2, "median": 3, "q90": 3.8, "max": 4}
    )
    assert len(lines) == 2


def test_a_curve_of_nothing_is_an_empty_table():
    assert plots.curve_of(LENGTHS, np.full(5, np.nan)).shape == (0, 9)


def test_a_learning_curve_shows_each_finite_head_and_the_median_of_each_length():
    axes = plots.learning_curve(LENGTHS, SCORES, "loss").axes[0]
    dots, medians = axes.lines
    np.testing.assert_array_equal(dots.get_xydata(), [[10, 2], [1, 5], [10, 4]])
    np.testing.assert_array_equal(medians.get_xydata(), [[1, 5], [10, 3]])


def test_a_learning_curve_of_many_lengths_counts_neighbours_together():
    lengths = np.arange(1, 1001)
    axes = plots.learning_curve(lengths, np.log(lengths).astype(np.float32), "loss").axes[0]
    dots, medians = axes.lines
    assert len(dots.get_xdata()) == 1000
    assert 15 < len(medians.get_xdata()) <= 30
    np.testing.assert_allclose(medians.get_ydata(), np.log(medians.get_xdata()), atol=0.05)


def test_a_learning_curve_of_very_many_heads_has_dots_for_some_of_every_length(monkeypatch):
    monkeypatch.setattr(plots, "MAX_DOTS", 100)
    lengths = np.tile([10, 20, 30, 40], 100)  # every fourth head has the same length
    dots, medians = plots.learning_curve(lengths, lengths + np.arange(400.0), "loss").axes[0].lines
    found, counts = np.unique(dots.get_xdata(), return_counts=True)
    assert (found.tolist(), counts.tolist()) == ([10, 20, 30, 40], [25, 25, 25, 25])
    np.testing.assert_array_equal(
        medians.get_ydata(), [np.median(lengths[k::4] + np.arange(k, 400, 4)) for k in range(4)]
    )


def test_a_learning_curve_over_a_wide_span_has_a_logarithmic_axis():
    assert plots.learning_curve(np.arange(1, 785), np.ones(784), "loss").axes[0].get_xscale() == "log"
    assert plots.learning_curve(np.arange(50, 60), np.ones(10), "loss").axes[0].get_xscale() == "linear"


def test_a_heat_map_has_a_row_for_each_head_and_hides_what_is_not_finite():
    values = np.array([[1, 2, 3], [np.nan, 5, np.inf]])
    axes = plots.heat_map(np.array([0, 10, 20]), values, np.array([7, 9]), "loss").axes[0]
    image = axes.images[0].get_array()
    np.testing.assert_array_equal(image.mask, [[False, False, False], [True, False, True]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["7", "9"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "10", "20"]


@pytest.mark.parametrize("values", [np.full((2, 3), np.nan), np.ones((2, 3))], ids=["nothing finite", "all equal"])
def test_a_heat_map_of_odd_values_can_be_drawn(values):
    figure = plots.heat_map(np.arange(3), values, np.arange(2), "loss")
    assert plots.to_png(figure).startswith(b"\x89PNG")


def test_without_matplotlib_an_error_names_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(hx.ArgumentError, match=r"hydrax-heads\[plots\]"):
        plots.learning_curve(LENGTHS, SCORES, "loss")
