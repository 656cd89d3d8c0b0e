"""A checkpoint made to do harm is refused: before memory is taken, with nothing read beside its folder or run."""

import copy
import functools
import json
import operator
import os
import resource
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from checkpoints_under_test import rewrite_meta, save
from golden.write import FOLDER, Golden, named

import hydrax as hx
from hydrax.checkpoint import arrays, format, schema
from hydrax.errors import CheckpointError, DamagedCheckpointError


def tree():
    return {"heads": {"b": jnp.arange(3.0), "w": jnp.arange(6.0).reshape(3, 2)}}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save(tmp_path_factory.mktemp("original"), 1, tree())


@pytest.fixture
def step(original, tmp_path):
    return shutil.copytree(original, tmp_path / "1")


def leaf(**values):
    return lambda meta: meta["leaves"][1].update(values)


@pytest.fixture
def flat():
    """Fails where the process's highest memory grew by 64 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.fixture
def soon():
    """Ends a test that hangs, inside a call that Python cannot interrupt too."""
    signal.alarm(280)
    yield
    signal.alarm(0)


HUGE = 2**40


@pytest.mark.parametrize(
    "change",
    [
        leaf(shape=[HUGE, 2]),
        leaf(shape=[3, HUGE]),
        leaf(shape=[3, HUGE, HUGE]),
        leaf(shape=[3, 4]),
        leaf(shape=[3, 1]),
        leaf(shape=[3, -2]),
        leaf(shape=[3, 2.0]),
        leaf(shape=[3, True]),
        leaf(shape="3"),
        leaf(shape=[3, "2"]),
        leaf(dtype="object"),
        leaf(dtype="V8"),
        leaf(dtype="no such"),
        leaf(dtype="int32"),
        leaf(dtype=None),
        leaf(key="no such"),
        leaf(key="rbg"),
        leaf(path=[]),
        leaf(path=["heads", "b"]),
        leaf(more=1),
        lambda meta: meta["leaves"].pop(),
        lambda meta: meta["leaves"].reverse(),
        lambda meta: meta.update(leaves={}),
        lambda meta: meta.update(leaves=[1]),
        lambda meta: meta.pop("leaves"),
        lambda meta: meta.update(files={}),
        lambda meta: meta["files"].update({"../1/meta.json": 1}),
        lambda meta: meta["files"].update({name: 2**60 for name in meta["files"]}),
        lambda meta: meta.update(ids=[0, 1, 2, 3]),
        lambda meta: meta.update(kind="run"),
        lambda meta: meta.update(hparams=[]),
    ],
    ids=range(31),
)
def test_metadata_that_say_what_the_files_do_not_are_refused(step, change, flat):
    rewrite_meta(step, change)
    with pytest.raises(CheckpointError):
        format.check(step)
        format.load(step, tree())


def test_a_module_as_large_as_the_lie_is_refused_before_memory_is_taken(step, flat):
    rewrite_meta(step, leaf(shape=[3, HUGE]))
    with pytest.raises(
        DamagedCheckpointError, match=r"Got ValueError: arrays of 13,194,139,533,3\d\d bytes in files of"
    ):
        format.load(step, {"heads": {"w": _Shape((3, HUGE), np.dtype(np.float32))}})


class _Shape:
    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, dtype


@pytest.mark.parametrize(
    "text",
    ["", "[" * 100_000, "{" * 100_000, "null", "[]", '{"format": 4}', '{"format": {"a": 1}, "sha256": 1}', "\ud800"],
    ids=["empty", "deep list", "deep dict", "null", "list", "only a format", "odd format", "surrogate"],
)
def test_metadata_that_are_none_are_refused(step, text, flat):
    (step / "meta.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DamagedCheckpointError, match=r"meta\.json"):
        format.read_meta(step)


@pytest.mark.parametrize("body", ["null}", "1: 2}", '"a": ' + "[" * 100_000, '"format": 4}', '"format": [4]}'])
def test_metadata_with_a_valid_checksum_and_no_sense_are_refused(step, body, flat):
    (step / "meta.json").write_bytes(schema._seal(body.encode()) + body.encode())
    with pytest.raises(CheckpointError, match=r"A checkpoint"):
        format.read_meta(step)


def test_metadata_of_a_gigabyte_are_not_read(step, flat):
    with (step / "meta.json").open("wb") as file:
        file.truncate(2**30)  # takes no room on the disk
    with pytest.raises(DamagedCheckpointError, match="Got ValueError: 1,073,741,824 bytes"):
        format.read_meta(step)


# ---- every field of a real file


def spoilt(value):
    """Values that could stand in the place of one by accident or ill will, of the same kind and of others."""
    others = [None, True, -1, 2**62, 2**70, 1e300, float("nan"), "", "../..", [], [[]], {}, {"": None}, [value]]
    return [other for other in others if json.dumps(other) != json.dumps(value)]


def places(value, at=()):
    """The path of each field and item; of lists the first and the last item."""
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        if isinstance(value, dict) or key in (0, len(value) - 1):
            yield from places(part, (*at, key))


def changed(meta, at, *values):
    """The metadata with another value at a place, or without it."""
    meta = copy.deepcopy(meta)
    *path, last = at
    node = meta
    for key in path:
        node = node[key]
    if values:
        node[last] = values[0]
    else:
        del node[last]
    return meta


VALUES_THERE = json.loads((FOLDER / "values.json").read_text())


def outcome(step):
    """What all readers make of a step: nothing but our own errors may come of it, and no other values."""
    try:
        format.check(step)
        assert named(hx.Heads.load(step, Golden(lr=0.1))) == VALUES_THERE
        return "as saved"
    except CheckpointError as error:
        assert str(error).startswith("A checkpoint ")
        return "refused"


@pytest.mark.parametrize("kind", ["run", "heads"])
@pytest.mark.parametrize("tries", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_whatever_a_field_is_changed_to_the_file_is_refused_or_gives_what_was_saved(kind, tries, tmp_path, soon, flat):
    (step,) = [path for path in (FOLDER / kind).iterdir() if path.name.isdigit()]
    step = shutil.copytree(step, tmp_path / step.name)
    meta = schema.read_sealed(step / "meta.json")
    assert outcome(step) == "as saved"
    rng = np.random.default_rng(0)
    seen = []
    for at in places(meta):
        others = spoilt(functools.reduce(operator.getitem, at, meta))
        for values in [(), *((others[number],) for number in rng.permutation(len(others))[:tries])]:
            (step / "meta.json").write_bytes(schema.sealed(changed(meta, at, *values)))
            seen.append((at[0], outcome(step)))
    assert {found for field, found in seen if field in ("format", "kind")} == {"refused"}
    # Some fields may hold anything: what callbacks saved, a fingerprint that is another run's.
    assert {found for _, found in seen} == {"as saved", "refused"}


# ---- files that are none


def _link_arrays(step, outside):
    shutil.move(step / "arrays", outside)
    (step / "arrays").symlink_to(outside)


def _link_meta(step, outside):
    shutil.move(step / "meta.json", outside)
    (step / "meta.json").symlink_to(outside)


def _link_inside(step, outside):
    (step / "arrays" / "more").symlink_to("/")


def _pipe(name):
    def put(step, outside):
        (step / name).unlink(missing_ok=True)
        os.mkfifo(step / name)

    return put


PIPES = [_pipe(name) for name in ("meta.json", "arrays/manifest.ocdbt", "arrays/more", "more")]


@pytest.mark.parametrize("spoil", [_link_arrays, _link_meta, _link_inside, *PIPES])
def test_links_and_named_pipes_are_refused_and_not_opened(step, tmp_path, spoil, soon):
    spoil(step, tmp_path / "outside")
    with pytest.raises(DamagedCheckpointError, match="Got ValueError: a link, named pipe or device"):
        format.load(step, tree())


# ---- arrays


def rewritten_array(step, metadata, values):
    """The array `heads.w` anew, in a form of one's own; sizes in the metadata follow."""
    spec = arrays._spec(step / "arrays", 1, ([3, 2], "float32"))
    spec["metadata"] = {**spec["metadata"], **metadata}
    array = tensorstore.open(spec, create=True, delete_existing=True).result()
    if values is not None:
        array.write(values).result()
    del array
    files = {name: size for name, size in schema.files_in(step).items() if name != "meta.json"}
    rewrite_meta(step, lambda meta: meta.update(files=files))


def chunks(*shape):
    return {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}}}


RAW = {"name": "bytes", "configuration": {"endian": "little"}}
VALUES = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.mark.parametrize(
    ("metadata", "values"),
    [
        ({"shape": [HUGE, 2]}, None),
        (chunks(HUGE, 2), None),
        (chunks(1, 2), VALUES),
        ({"data_type": "float64"}, VALUES.astype(np.float64)),
        ({"codecs": [RAW]}, VALUES),
        ({"codecs": [RAW, {"name": "zstd", "configuration": {"level": 1}}, {"name": "crc32c"}]}, VALUES),
        ({}, None),
    ],
    ids=["shape", "chunks", "small chunks", "dtype", "no checksum", "compressed", "no values"],
)
def test_arrays_in_another_form_than_was_written_are_refused(step, metadata, values, flat):
    rewritten_array(step, metadata, values)
    with pytest.raises(DamagedCheckpointError):
        format.check(step)
    with pytest.raises(DamagedCheckpointError):
        format.load(step, tree())


def test_the_original_is_sound(original):
    assert format.check(original) == original
