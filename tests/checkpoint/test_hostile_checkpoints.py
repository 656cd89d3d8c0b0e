"""A checkpoint made to do harm is refused: before memory is taken, with nothing read beside its folder or run."""

import hashlib
import json
import resource
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from hydrax.checkpoint import format
from hydrax.errors import CheckpointError, DamagedCheckpointError


def tree():
    return {"heads": {"w": jnp.arange(6.0).reshape(3, 2), "b": jnp.arange(3.0)}}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return format.save(tmp_path_factory.mktemp("original"), 1, tree(), {})


@pytest.fixture
def step(original, tmp_path):
    return shutil.copytree(original, tmp_path / "1")


def rewrite(step, change):
    """Metadata with a change, and the digest that then belongs to it."""
    file = step / "meta.json"
    meta = json.loads(file.read_text())
    del meta["sha256"]
    change(meta)
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({**meta, "sha256": digest}))


def leaf(**values):
    return lambda meta: meta["leaves"]["heads.w"].update(values)


@pytest.fixture
def flat():
    """Fails where the process's highest memory grew by 64 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


HUGE = 2**40


@pytest.mark.parametrize(
    "change",
    [
        leaf(shape=[HUGE, 2], size=2 * HUGE),
        leaf(shape=[3, 2], size=HUGE),
        leaf(shape=[HUGE, HUGE], size=0),
        leaf(size=-1),
        leaf(size=6.0),
        leaf(size=True),
        leaf(shape="3"),
        leaf(shape=[3, "2"]),
        leaf(dtype="object"),
        leaf(dtype="V8"),
        leaf(dtype="no such"),
        leaf(dtype=None),
        leaf(key="no such", size=HUGE),
        leaf(sha256=None),
        lambda meta: meta.update(leaves=[]),
        lambda meta: meta.update(leaves={"heads.w": 1}),
        lambda meta: meta.pop("leaves"),
        lambda meta: meta["leaves"].update({"../../heads.w": meta["leaves"]["heads.w"]}),
        lambda meta: meta["leaves"].update({"/heads.w": meta["leaves"]["heads.w"]}),
    ],
    ids=range(19),
)
def test_metadata_that_say_what_the_files_do_not_are_refused(step, change, flat):
    rewrite(step, change)
    with pytest.raises(DamagedCheckpointError):
        format.check(step)


def test_a_module_as_large_as_the_lie_is_refused_before_memory_is_taken(step, flat):
    rewrite(step, leaf(shape=[HUGE, 2], size=2 * HUGE))
    with pytest.raises(
        DamagedCheckpointError, match=r"Got ValueError: arrays of 8,796,093,022,2\d\d bytes in files of"
    ):
        format.load(step, {"heads": {"w": _Shape((HUGE, 2), np.dtype(np.float32))}})


class _Shape:
    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, dtype


@pytest.mark.parametrize(
    "text",
    ["", "[" * 100_000, "{" * 100_000, "null", "[]", '{"format": 3}', '{"format": {"a": 1}, "sha256": 1}', "\ud800"],
    ids=["empty", "deep list", "deep dict", "null", "list", "only a format", "odd format", "surrogate"],
)
def test_metadata_that_are_none_are_refused(step, text, flat):
    (step / "meta.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DamagedCheckpointError, match=r"meta\.json"):
        format.read_meta(step)


def test_metadata_of_a_gigabyte_are_not_read(step, flat):
    with (step / "meta.json").open("wb") as file:
        file.truncate(2**30)  # takes no room on the disk
    with pytest.raises(DamagedCheckpointError, match="Got ValueError: 1,073,741,824 bytes"):
        format.read_meta(step)


def _link_arrays(step, outside):
    shutil.move(step / "arrays", outside)
    (step / "arrays").symlink_to(outside)


def _link_meta(step, outside):
    shutil.move(step / "meta.json", outside)
    (step / "meta.json").symlink_to(outside)


def _link_inside(step, outside):
    (step / "arrays" / "more").symlink_to("/")


@pytest.mark.parametrize("link", [_link_arrays, _link_meta, _link_inside])
def test_a_link_is_not_followed(step, tmp_path, link):
    link(step, tmp_path / "outside")
    with pytest.raises(DamagedCheckpointError, match="Got ValueError: a link, "):
        format.load(step, tree())


def rewritten_array(step, metadata, values):
    """The array `heads.w` anew, in a form of one's own."""
    store = {"driver": "ocdbt", "base": f"file://{step / 'arrays'}/", "path": "heads.w/"}
    spec = {"driver": "zarr", "kvstore": store, "metadata": metadata}
    array = tensorstore.open(spec, create=True, delete_existing=True).result()
    if values is not None:
        array.write(values).result()


FORM = {"shape": [3, 2], "chunks": [3, 2], "dtype": "<f4", "compressor": None}


@pytest.mark.parametrize(
    ("metadata", "values"),
    [
        ({**FORM, "shape": [HUGE, 2]}, None),
        ({**FORM, "chunks": [HUGE, 2]}, None),
        ({**FORM, "dtype": "<f8"}, np.zeros((3, 2))),
        ({**FORM, "compressor": {"id": "zstd"}}, np.arange(6, dtype=np.float32).reshape(3, 2)),
        (FORM, np.arange(1, 7, dtype=np.float32).reshape(3, 2)),
        (FORM, None),
    ],
    ids=["shape", "chunks", "dtype", "compressed", "values", "no values"],
)
def test_arrays_in_another_form_than_was_written_are_refused(step, metadata, values, flat):
    rewritten_array(step, metadata, values)
    with pytest.raises(DamagedCheckpointError):
        format.check(step)
    with pytest.raises(CheckpointError):
        format.load(step, tree())


def test_the_original_is_sound(original):
    assert format.check(original) == original
