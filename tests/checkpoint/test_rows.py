"""One head is read from a checkpoint without the others, with the bits that reading all gives it."""

import logging
import re
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from heads_under_test import NUM_ROWS, Classifier, data_of, run

import hydrax as hx
from hydrax.callbacks import ModelCheckpoint
from hydrax.checkpoint import format
from hydrax.errors import ArgumentError, DamagedCheckpointError

HEADS = 5
SLICES = hx.Slices.random_subset([40, 17, 9, 30, 22], NUM_ROWS, seed=1)
MODULE = Classifier("norm_dropout")  # parameters, batch statistics, and PRNG keys


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folders of a run's checkpoint and of saved heads, and the heads."""
    folder = tmp_path_factory.mktemp("saved")
    saver = ModelCheckpoint(dirpath=folder)
    data = data_of(SLICES, "norm_dropout")
    heads = run(MODULE, data, callbacks=[saver], max_steps=3, enable_checkpointing=True).result.heads
    return {"run": folder / "last", "heads": heads.save(folder / "heads")}, heads


def words(model):
    keys = lambda a: jax.random.key_data(a) if jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key) else a  # noqa: E731
    return [np.asarray(keys(leaf)) for leaf in jax.tree.leaves(model)]


@pytest.mark.parametrize("kind", ["run", "heads"])
@pytest.mark.parametrize("head", [0, 3, -1])
def test_one_head_is_the_one_that_reading_all_gives(saved, kind, head):
    folders, heads = saved
    found, expected = hx.Heads.load(folders[kind], MODULE, head=head), heads[head]
    assert type(found) is type(expected)
    for one, other in zip(words(found), words(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    x = np.ones((2, 6), np.float32)
    np.testing.assert_array_equal(found(x), expected(x))


def test_the_arrays_of_the_others_are_not_read(saved, monkeypatch):
    monkeypatch.setattr(format, "_read", lambda *_: pytest.fail("all heads were read"))
    hx.Heads.load(saved[0]["heads"], MODULE, head=2)


def test_a_save_says_nothing(saved, tmp_path, caplog, capfd):
    with caplog.at_level(logging.INFO):
        saved[1].save(tmp_path)
    assert [record for record in caplog.records if record.name == "absl"] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("head", [HEADS, -HEADS - 1, "2", 1.0, True])
def test_a_head_that_is_not_there_is_refused(saved, head):
    with pytest.raises(ArgumentError, match="There is no such head: .*expected -5 to 4"):
        hx.Heads.load(saved[0]["heads"], MODULE, head=head)


def test_another_module_is_refused(saved):
    with pytest.raises(format.CheckpointError, match="does not fit"):
        hx.Heads.load(saved[0]["heads"], Classifier("cnn"), head=1)


def test_a_head_whose_digest_is_another_ones_is_damaged(saved):
    (path,) = [path for path in saved[0]["heads"].parent.iterdir() if path.name.isdigit()]
    meta = format.read_meta(path)
    forms = {n: (leaf["size"], format._stored_dtype(leaf)) for n, leaf in meta["leaves"].items() if leaf["size"]}
    of_others = meta["row_digests"][:4] + meta["row_digests"]  # three bytes further on
    with pytest.raises(DamagedCheckpointError, match="head 2. Got bytes with another digest"):
        format.checkpoint_rows.read(path / "arrays", forms, 2, of_others)


@pytest.mark.slow
def test_one_head_of_a_gigabyte_is_read_in_50_milliseconds_and_the_others_are_not(tmp_path):
    heads, size = 1_024, 2**18
    rng = np.random.default_rng(0)
    w = rng.integers(0, 2**32, (heads, size), np.uint32).view(np.float32)
    step = format.save(tmp_path, 1, {"heads": {"trainable": {"w": w}}}, {})
    assert sum(path.stat().st_size for path in step.rglob("*") if path.is_file()) > heads * size * 4
    like = {"heads": {"trainable": {"w": jax.ShapeDtypeStruct((size,), np.float32)}}}
    secs, read = [], []
    for head in (5, 900, 17, 1_023, 512):
        before, start = _bytes_read(), time.perf_counter()
        found = format.load_head(step, like, head)["heads"]["trainable"]["w"]
        secs.append(time.perf_counter() - start)
        read.append(_bytes_read() - before)
        assert np.asarray(found).tobytes() == w[head].tobytes()
    print(f"one head of {heads * size * 4 / 1e9:.1f} GB: {1e3 * min(secs):.0f} ms, {max(read) / 1e6:.1f} MB read")
    assert min(secs) < 0.05
    assert max(read) < 8 * size * 4


def _bytes_read():
    """What this process has asked files for."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])
