"""Damaged checkpoints: 200 ways to spoil the newest one, never a wrong load, always one that is whole."""

import functools
import logging
import shutil

import numpy as np
import pytest
from checkpoints_under_test import files_below, flip_bit
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, named_arrays, run

import hydrax as hx
from hydrax.callbacks import ModelCheckpoint
from hydrax.checkpoint import folders, format
from hydrax.errors import DamagedCheckpointError

SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1)
OLD, NEW = 3, 6


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])


def zero(path, rng):
    path.write_bytes(bytes(path.stat().st_size))


def delete(path, rng):
    path.unlink()


DAMAGES = [flip_bit, truncate, zero, delete]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with two steps of a run, and the heads of both."""
    folder = tmp_path_factory.mktemp("saved")
    saver = ModelCheckpoint(every_n_train_steps=OLD, dirpath=folder)
    run(PlainClassifier(), data_of(SLICES), callbacks=[saver], max_steps=NEW, enable_checkpointing=True)
    load = functools.partial(hx.Heads.load, module=PlainClassifier())
    return folder, {step: named_arrays(load(folder / "last" / str(step))) for step in (OLD, NEW)}


@pytest.mark.parametrize("number", [pytest.param(n, marks=[] if n < 40 else pytest.mark.slow) for n in range(200)])
def test_a_damaged_newest_step_is_never_read_as_if_it_were_whole(saved, tmp_path, number, caplog):
    folder, heads = saved
    last = shutil.copytree(folder / "last", tmp_path / "last")
    rng = np.random.default_rng(number)
    files = files_below(last / str(NEW))
    DAMAGES[number % 4](files[number // 4 % len(files)], rng)
    with caplog.at_level(logging.WARNING, "hydrax"):
        step = folders.first_sound(last, format.check)
    found = named_arrays(hx.Heads.load(step, PlainClassifier()))
    assert found.keys() == heads[int(step.name)].keys()
    for name, array in heads[int(step.name)].items():
        np.testing.assert_array_equal(found[name], array)
    # Some files say nothing about the content; else the step before is read, with a warning.
    assert ("Instead: " in caplog.text) == (step.name == str(OLD))


def test_the_damaged_step_is_renamed_and_a_run_goes_on_from_the_one_before(saved, tmp_path):
    last = shutil.copytree(saved[0] / "last", tmp_path / "last")
    delete(last / str(NEW) / "meta.json", None)
    saver = ModelCheckpoint(dirpath=tmp_path)
    fitted = run(PlainClassifier(), data_of(SLICES), last, callbacks=[saver], max_steps=NEW, enable_checkpointing=True)
    assert fitted.result.step == NEW
    assert sorted(path.name for path in last.iterdir()) == [".hydrax", str(OLD), str(NEW), f"{NEW}.damaged-1"]
    for name, array in saved[1][NEW].items():
        np.testing.assert_array_equal(named_arrays(fitted.result.heads)[name], array)


def test_a_step_that_is_asked_for_by_name_has_no_other(saved, tmp_path):
    last = shutil.copytree(saved[0] / "last", tmp_path / "last")
    zero(last / str(NEW) / "meta.json", None)
    with pytest.raises(DamagedCheckpointError, match="is damaged"):
        hx.Heads.load(last / str(NEW), PlainClassifier())
    assert (last / str(NEW)).is_dir()
