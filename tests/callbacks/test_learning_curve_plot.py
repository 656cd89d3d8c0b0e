"""LearningCurvePlot: the table agrees with NumPy, and the figure is a PNG file."""

import csv
import logging

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of

import hydrax as hx
from hydrax.callbacks import LearningCurvePlot
from hydrax.errors import ArgumentError

LENGTHS = [40, 9, 9, 17]
SLICES = hx.Slices.random_subset(LENGTHS, NUM_ROWS, seed=1)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    plots = [LearningCurvePlot(), LearningCurvePlot("accuracy_epoch")]
    trainer = hx.Trainer(max_steps=5, callbacks=plots, default_root_dir=tmp_path_factory.mktemp("run"), **QUIET)
    return trainer, trainer.fit(PlainClassifier(), data_of(SLICES))


@pytest.mark.parametrize("metric", ["val_loss", "accuracy_epoch"])
def test_the_table_has_a_line_for_each_length(fitted, metric):
    trainer, result = fitted
    with (trainer.log_dir / f"learning_curve_{metric}.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [(float(line["length"]), float(line["heads"])) for line in found] == [(9, 2), (17, 1), (40, 1)]
    of_nine = result.metrics[metric][[1, 2]].astype(np.float64)
    expected = [of_nine.mean(), of_nine.std(), of_nine.min(), np.median(of_nine), of_nine.max()]
    np.testing.assert_allclose([float(found[0][n]) for n in ("mean", "std", "min", "median", "max")], expected)


def test_the_picture_is_a_png(fitted):
    assert (fitted[0].log_dir / "learning_curve_val_loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_folder_that_takes_nothing_is_reported_and_the_fit_ends_well(tmp_path, caplog):
    class Spoils(hx.Callback):
        def on_train_end(self, event):
            (event.trainer.log_dir / "learning_curve_val_loss.csv").mkdir()

    trainer = hx.Trainer(max_steps=1, callbacks=[Spoils(), LearningCurvePlot()], default_root_dir=tmp_path, **QUIET)
    with caplog.at_level(logging.WARNING, "hydrax"):
        assert trainer.fit(PlainClassifier(), data_of(SLICES)).step == 1
    assert "The learning curve could not be written: " in caplog.text


@pytest.mark.parametrize("metric", ["", 3])
def test_a_metric_without_a_name_is_refused(metric):
    with pytest.raises(ArgumentError, match="Unknown metric: LearningCurvePlot"):
        LearningCurvePlot(metric)


def test_a_validation_metric_that_nobody_logs_is_refused_before_training(tmp_path):
    trainer = hx.Trainer(max_steps=1, callbacks=[LearningCurvePlot("val_acc")], default_root_dir=tmp_path, **QUIET)
    with pytest.raises(
        ArgumentError, match="Got 'val_acc', expected one of the validation metrics: val_loss, val_noise"
    ):
        trainer.fit(PlainClassifier(), data_of(SLICES))
