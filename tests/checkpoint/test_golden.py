"""Checkpoints that an earlier day wrote keep loading, with the values that were written down beside them."""

import json
import shutil

import numpy as np
import pytest
from golden.write import FOLDER, STEPS, Golden, fit, module, named

import hydrax as hx


@pytest.fixture(scope="module")
def values():
    return json.loads((FOLDER / "values.json").read_text())


@pytest.mark.parametrize("kind", ["run", "heads"])
def test_all_heads_are_those_that_were_written(kind, values):
    assert named(hx.Heads.load(FOLDER / kind, module())) == values


@pytest.mark.parametrize("kind", ["run", "heads"])
def test_one_head_is_read_by_its_class_alone(kind, values):
    model = Golden.load_from_checkpoint(FOLDER / kind, head=1)
    np.testing.assert_array_equal(model.layers[0].kernel[...], np.float32(values["[0]['layers'][0]['kernel']"][1]))


def test_hyper_parameters_come_back():
    hparams = Golden.load_from_checkpoint(FOLDER / "run").hparams
    assert (hparams.width, hparams.lr.values.tolist()) == (4, [0.5, 0.25, 0.125])


def test_the_run_goes_on(tmp_path):
    shutil.copytree(FOLDER / "run", tmp_path / "last")
    result = fit(tmp_path, max_steps=STEPS + 4, ckpt_path=tmp_path / "last")
    assert result.step == STEPS + 4
    assert np.isfinite(result.metrics["val_loss"]).all()
