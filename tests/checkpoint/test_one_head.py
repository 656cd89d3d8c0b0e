"""One head is read from a checkpoint without the others, with the bits that reading all gives it."""

import logging
import re
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoints_under_test import files_below, save
from heads_under_test import NUM_ROWS, Classifier, data_of, run

import hydrax as hx
from hydrax.callbacks import ModelCheckpoint
from hydrax.checkpoint import arrays, format
from hydrax.errors import ArgumentError, CheckpointError, DamagedCheckpointError

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
    with pytest.raises(CheckpointError, match="does not fit"):
        hx.Heads.load(saved[0]["heads"], Classifier("cnn"), head=1)


def like(shape):
    return {"heads": {"trainable": {"w": jax.ShapeDtypeStruct(shape, np.float32)}}}


def read_head(step, size, head):
    return np.asarray(format.load(step, like((size,)), head=head)["heads"]["trainable"]["w"])


SIZES = {"a head a chunk": (6, 2**15, 1), "four heads a chunk": (32, 2**12, 4)}


@pytest.mark.parametrize("size", SIZES)
def test_a_flipped_bit_in_one_head_costs_its_chunk_and_no_other(size, tmp_path):
    heads, width, together = SIZES[size]
    w = np.random.default_rng(0).standard_normal((heads, width), np.float32)
    step = save(tmp_path, 1, {"heads": {"trainable": {"w": w}}}, heads=heads)
    bad = heads // 2
    inside = w[bad].tobytes()[64:128]
    (path,) = [path for path in files_below(step) if inside in path.read_bytes()]
    content = bytearray(path.read_bytes())
    content[content.index(inside) + 5] ^= 4
    path.write_bytes(content)
    lost = set()
    for head in range(heads):
        try:
            np.testing.assert_array_equal(read_head(step, width, head), w[head])
        except DamagedCheckpointError as error:
            assert f"leaf heads.trainable.w, head {head}. Got" in str(error)
            lost.add(head)
    assert lost == set(range(bad // together * together, bad // together * together + together))
    with pytest.raises(DamagedCheckpointError):
        format.load(step, like(w.shape))


@pytest.mark.parametrize(
    ("shape", "dtype", "rows"),
    [
        ((100_000, 10, 1), "float32", 1639),  # 40 bytes each
        ((784, 784, 128), "float32", 1),
        ((3, 2), "float32", 3),
        ((5, 40_000), "uint8", 2),
        ((10**6,), "bool", 2**16),
    ],
)
def test_a_chunk_holds_64_kilobytes_or_one_head(shape, dtype, rows):
    assert arrays._chunk((shape, dtype)) == [rows]


def test_a_hundred_thousand_tiny_heads_take_little_more_than_their_bytes(tmp_path):
    heads = 100_000
    model = {"kernel": np.full((heads, 10, 1), 0.5, np.float32), "bias": np.zeros((heads, 1), np.float32)}
    tree = {"heads": {"trainable": model, "opt_state": [model, model], "live": np.ones(heads, bool)}}
    step = save(tmp_path, 1, tree, heads=heads)
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert sum(path.stat().st_size for path in files_below(step)) < 1.5 * state
    assert len(files_below(step)) < 20


@pytest.mark.slow
def test_one_head_of_a_gigabyte_is_read_in_50_milliseconds_and_the_others_are_not(tmp_path):
    heads, size = 1_024, 2**18
    rng = np.random.default_rng(0)
    w = rng.integers(0, 2**32, (heads, size), np.uint32).view(np.float32)
    step = save(tmp_path, 1, {"heads": {"trainable": {"w": w}}}, heads=heads)
    assert sum(path.stat().st_size for path in files_below(step)) > heads * size * 4
    secs, read = [], []
    for head in (5, 900, 17, 1_023, 512):
        before, start = _bytes_read(), time.perf_counter()
        found = read_head(step, size, head)
        secs.append(time.perf_counter() - start)
        read.append(_bytes_read() - before)
        assert found.tobytes() == w[head].tobytes()
    print(f"one head of {heads * size * 4 / 1e9:.1f} GB: {1e3 * min(secs):.0f} ms, {max(read) / 1e6:.1f} MB read")
    assert min(secs) < 0.05
    assert max(read) < 8 * size * 4


def _bytes_read():
    """What this process has asked files for."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])
