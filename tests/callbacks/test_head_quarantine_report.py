"""HeadQuarantineReport: one line per quarantined head, with its settings and its fault."""

import csv
import logging

import jax.numpy as jnp
import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of

import hydrax as hx
from hydrax.callbacks import HeadQuarantineReport
from hydrax.errors import NonFiniteError

SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1).with_ids([5, 6, 7])


class Spoiled(PlainClassifier):
    """The loss of some heads is NaN from a step on."""

    def __init__(self, step, lr=0.01):
        self.save_hyperparameters()

    def training_step(self, model, batch, ctx):
        loss = super().training_step(model, batch, ctx)
        return jnp.where(ctx.step >= self.hparams.step, jnp.nan, loss)


def fit(folder, steps):
    report = HeadQuarantineReport()
    trainer = hx.Trainer(max_steps=6, callbacks=[report], default_root_dir=folder, **QUIET)
    module = Spoiled(hx.PerHead(steps))
    return report, trainer, lambda: trainer.fit(module, data_of(SLICES))


def test_each_lost_head_has_a_line_with_step_leaf_and_settings(tmp_path):
    report, trainer, run = fit(tmp_path, [2, 99, 4])
    run()
    with (trainer.log_dir / "quarantine.csv").open() as file:
        found = [{k: line[k] for k in ("head", "recipe", "length", "leaf")} for line in csv.DictReader(file)]
    assert found == [
        {"head": "5", "recipe": "random_subset(40)", "length": "40", "leaf": "loss"},
        {"head": "7", "recipe": "random_subset(9)", "length": "9", "leaf": "loss"},
    ]
    assert [row["head"] for row in report.rows] == [5, 7]


def test_a_fit_that_fails_because_all_are_lost_is_reported_too(tmp_path):
    report, trainer, run = fit(tmp_path, [1, 1, 1])
    with pytest.raises(NonFiniteError):
        run()
    assert [row["head"] for row in report.rows] == [5, 6, 7]
    assert (trainer.log_dir / "quarantine.csv").is_file()


def test_a_fit_that_loses_none_writes_nothing(tmp_path):
    report, _, run = fit(tmp_path, [99, 99, 99])
    run()
    assert report.rows == []
    assert list(tmp_path.rglob("quarantine.csv")) == []


def test_a_folder_that_takes_nothing_is_reported(tmp_path, caplog):
    report, trainer, run = fit(tmp_path, [2, 99, 99])
    trainer.callbacks.append(_Spoils())
    with caplog.at_level(logging.WARNING, "hydrax"):
        run()
    assert "The table of quarantined heads could not be written: " in caplog.text


class _Spoils(hx.Callback):
    def on_train_end(self, event):
        (event.trainer.log_dir / "quarantine.csv").mkdir()
