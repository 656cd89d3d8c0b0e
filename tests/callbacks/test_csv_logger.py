"""CSVLogger: the table holds every value that the run logged, once."""

import csv
import logging

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, Curves, PlainClassifier, data_of

import hydrax as hx
from hydrax.callbacks import CSVLogger

SLICES = hx.Slices.prefix([40, 17, 9], NUM_ROWS).with_ids([5, 2, 9])
# As many steps in each call, so that all fits run one program.
HOW = {"max_steps": 12, "chunk": 2, "steps_per_call": 5}
HOW |= dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    curves = Curves()
    trainer = hx.Trainer(
        callbacks=[CSVLogger(), curves], log_every_n_steps=3, default_root_dir=tmp_path_factory.mktemp("root"), **HOW
    )
    result = trainer.fit(PlainClassifier(), data_of(SLICES))
    return read(result.log_dir / "metrics.csv"), curves, result


def test_every_third_step_of_every_head_is_there_once_with_its_value(logged):
    rows, curves, _ = logged
    found = [(int(r["step"]), int(r["head"]), float(r["value"])) for r in rows if r["metric"] == "train_loss"]
    losses = curves.by_name()["train_loss"]
    expected = [
        (step, head, float(str(losses[place, step - 1])))
        for step in (3, 6, 9, 12)
        for place, head in enumerate([5, 2, 9])
    ]
    assert found == expected


def test_validation_and_epochs_are_there_at_their_steps(logged):
    rows, _, result = logged
    last = {int(r["head"]): float(r["value"]) for r in rows if r["metric"] == "val_loss" and r["step"] == "12"}
    assert last == {head: float(str(value)) for head, value in zip([5, 2, 9], result.metrics["val_loss"], strict=True)}
    assert {r["step"] for r in rows if r["metric"] == "accuracy_epoch"} == {"5", "10", "12"}


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    logger = CSVLogger(tmp_path / "file" / "metrics.csv")
    with caplog.at_level(logging.WARNING, "hydrax"):
        result = hx.Trainer(callbacks=[logger], default_root_dir=tmp_path, **HOW).fit(
            PlainClassifier(), data_of(SLICES)
        )
    assert result.step == 12
    assert logger.num_dropped > 0
    assert caplog.text.count("Values were dropped: CSVLogger") == 1


def test_nothing_is_written_without_a_folder():
    logger = CSVLogger()
    trainer = hx.Trainer(callbacks=[logger], barebones=True, max_steps=2, chunk=2, steps_per_call=5)
    trainer.fit(PlainClassifier(), data_of(SLICES))
    assert logger.num_dropped == 0


def test_a_name_that_is_none_is_refused():
    with pytest.raises(hx.ArgumentError, match=r"CSVLogger\(filename=.*Got 3, expected a file name"):
        CSVLogger(3)


def test_a_head_that_is_stopped_has_no_more_training_metrics_but_is_still_validated(tmp_path):
    class StopHeadTwo(hx.Callback):
        def on_validation_end(self, event):
            return hx.Control(stop=np.array([False, event.step >= 5, False]))

    trainer = hx.Trainer(callbacks=[CSVLogger(), StopHeadTwo()], log_every_n_steps=1, default_root_dir=tmp_path, **HOW)
    rows = read(trainer.fit(PlainClassifier(), data_of(SLICES)).log_dir / "metrics.csv")
    steps = {
        (head, metric): [int(row["step"]) for row in rows if (int(row["head"]), row["metric"]) == (head, metric)]
        for head in (2, 5)
        for metric in ("train_loss", "val_loss")
    }
    assert steps[5, "train_loss"] == list(range(1, 13))
    assert steps[2, "train_loss"] == list(range(1, 6))
    assert steps[2, "val_loss"] == steps[5, "val_loss"] == [5, 10, 12]
