"""WandbLogger, read back from the file that wandb writes in offline mode."""

import builtins
import json
import struct

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of

import hydrax as hx
from hydrax.callbacks import ModelCheckpoint, WandbLogger
from hydrax.errors import ArgumentError

SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1)
STEPS = 6


def fit(folder, ckpt_path=None, max_steps=STEPS):
    logger = WandbLogger("project", "name", mode="offline", init={"tags": ["a"]})
    callbacks = [logger, ModelCheckpoint(dirpath=folder)]
    trainer = hx.Trainer(
        max_steps=max_steps, chunk=4, callbacks=callbacks, default_root_dir=folder, log_every_n_steps=2, **QUIET
    )
    result = trainer.fit(PlainClassifier(lr=hx.PerHead([0.1, 0.2, 0.3])), data_of(SLICES), ckpt_path)
    return trainer, result, logger


BLOCK, HEADER = 32_768, 7


def records(path):
    """Returns the records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts, found = path.read_bytes(), HEADER, b"", []
    while at + HEADER <= len(data):
        at += left if (left := BLOCK - at % BLOCK) < HEADER else 0
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return found


def history(path):
    """Numbers by step: what was logged."""
    found = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            found.setdefault(items["_step"], []).append(items)
    return found


def files(folder):
    return sorted(folder.rglob("*.wandb"), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, *fit(folder)


def test_there_is_one_run_for_all_heads(fitted):
    folder, _, _, logger = fitted
    (path,) = files(folder)
    assert logger.run_id in path.name
    assert logger.num_dropped == 0


def test_the_numbers_are_those_of_the_fit(fitted):
    folder, _, result, _ = fitted
    last = {key: value for items in history(files(folder)[0])[STEPS] for key, value in items.items()}
    scores = result.metrics["val_loss"].astype(np.float64)
    assert last["val_loss/mean"] == pytest.approx(scores.mean())
    assert last["val_loss/max"] == pytest.approx(scores.max())
    assert last["heads/live"] == 3
    np.testing.assert_allclose(np.sum(last["val_loss/heads.values"]), 3)
    assert last["val_loss/heads.bins"][0] == pytest.approx(scores.min())


def test_each_head_has_a_row_in_a_table(fitted):
    (path,) = fitted[0].rglob("*.table.json")
    table = json.loads(path.read_text())
    place = table["columns"].index("head")
    assert [row[place] for row in table["data"]] == [0, 1, 2]
    np.testing.assert_allclose([row[table["columns"].index("lr")] for row in table["data"]], [0.1, 0.2, 0.3])


def test_the_learning_curve_is_an_image(fitted):
    assert [path.name.startswith("val_loss") for path in fitted[0].rglob("learning_curve/*.png")].count(True) == 1


def test_the_hyper_parameters_are_its_config(fitted):
    (record,) = [r for r in records(files(fitted[0])[0]) if r.WhichOneof("record_type") == "run"][:1]
    config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
    assert (config["kind"], config["lr"]) == ("mlp", "PerHead([0.1, 0.2, 0.3], heads=3)")
    assert (record.run.project, record.run.display_name, list(record.run.tags)) == ("project", "name", ["a"])


def test_a_resumed_fit_goes_on_with_its_run_and_logs_no_step_twice(fitted):
    folder, _, _, logger = fitted
    again = fit(folder, folder / "last", STEPS + 4)[2]
    assert again.run_id == logger.run_id
    old, new = (history(path) for path in files(folder))
    assert min(new) > max(old)
    assert STEPS + 4 in new


def test_an_unknown_mode_is_refused():
    with pytest.raises(ArgumentError, match=r"WandbLogger\(mode=\.\.\.\)\. Got 'off'"):
        WandbLogger(mode="off")


def test_without_wandb_the_error_says_how_to_get_it(monkeypatch):
    known = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "wandb":
            raise ImportError(name)
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ArgumentError, match=r"pip install 'hydrax-heads\[wandb\]'"):
        WandbLogger()
