"""The format on disk: every kind of leaf comes back bit for bit, and what is missing, other or damaged is refused."""

import concurrent.futures
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints_under_test import files_below, rewrite_meta, save

from hydrax import trees
from hydrax.checkpoint import folders, format, schema
from hydrax.errors import CheckpointError, DamagedCheckpointError


def tree():
    rng = np.random.default_rng(0)
    return {
        "heads": {
            "kernel": jnp.asarray(rng.normal(size=(3, 4, 2)), jnp.float32),
            "half": jnp.asarray(rng.normal(size=(3, 2)), jnp.bfloat16),
            "live": jnp.array([True, False, True]),
            "count": jnp.arange(3),
            "bytes": jnp.asarray(rng.integers(0, 256, (3, 4096)), jnp.uint8),
            "nan": jnp.array([jnp.nan, -0.0, jnp.inf]),
        },
        "keys": jax.random.split(jax.random.key(0), 3),
        "other_keys": jax.random.key(7, impl="rbg"),
        "nothing": (jnp.zeros((3, 0)), jnp.zeros((0,), jnp.int32)),
        "scalar": jnp.float32(2.5),
        "host": np.arange(4, dtype=np.int16),
    }


def words(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    save(root, 7, tree())
    return root


@pytest.fixture
def folder(tmp_path):
    """A checkpoint that a test may break."""
    return save(tmp_path, 7, tree())


def test_every_leaf_comes_back_bit_for_bit(root):
    found = format.load(root / "7", tree())
    assert jax.tree.structure(found) == jax.tree.structure(tree())
    for name, leaf in trees.named_leaves(found).items():
        saved = trees.named_leaves(tree())[name]
        assert (name, leaf.shape, leaf.dtype) == (name, saved.shape, saved.dtype)
        assert words(leaf).tobytes() == words(saved).tobytes()


@pytest.mark.parametrize("dtype", sorted(schema.DTYPES))
def test_every_dtype_of_the_schema_comes_back(dtype, tmp_path):
    array = np.arange(15).reshape(3, 5).astype(jnp.dtype(dtype))
    step = save(tmp_path, 0, {"a": array})
    found = format.load(step, {"a": array}, as_numpy=True)["a"]
    assert (found.dtype, found.tobytes()) == (array.dtype, array.tobytes())


def test_keys_come_back_as_keys_of_their_own_kind(root):
    found = format.load(root / "7", tree())
    np.testing.assert_array_equal(jax.random.normal(found["keys"][1], (2,)), jax.random.normal(tree()["keys"][1], (2,)))
    assert jax.random.key_impl(found["other_keys"]) == jax.random.key_impl(tree()["other_keys"])


def test_shapes_are_enough_to_load_by(root):
    like = jax.eval_shape(tree)
    np.testing.assert_array_equal(format.load(root / "7", like)["heads"]["count"], [0, 1, 2])


def test_a_part_of_the_tree_may_be_loaded_alone(root):
    found = format.load(root / "7", {"heads": {"live": jnp.zeros(3, bool)}})
    assert found["heads"]["live"].tolist() == [True, False, True]


def test_arrays_below_a_key_come_back_as_dicts_without_their_form_being_known(root):
    found = format.load_below(root / "7", "heads")
    assert sorted(found) == sorted(tree()["heads"])
    assert found["live"].tolist() == [True, False, True]
    assert format.load_below(root / "7", "nothing")["0"].shape == (3, 0)
    assert format.load_below(root / "7", "absent") == {}


def test_the_meta_say_what_was_saved(root):
    meta = format.read_meta(root / "7")
    assert (meta["format"], meta["kind"], meta["run"], meta["step"]) == (4, "heads", "this run", 7)
    assert {"path": ["heads", "live"], "shape": [3], "dtype": "bool", "key": None} in meta["leaves"]
    assert {"path": ["keys"], "shape": [3, 2], "dtype": "uint32", "key": "fry"} not in meta["leaves"]
    assert {"path": ["keys"], "shape": [3, 2], "dtype": "uint32", "key": "threefry2x32"} in meta["leaves"]
    assert meta["files"].keys() == {f.relative_to(root / "7").as_posix() for f in files_below(root / "7")} - {
        "meta.json"
    }


def test_no_file_is_a_pickle(root):
    files = files_below(root)
    assert [path for path in files if path.suffix in (".pkl", ".pickle") or path.read_bytes()[:1] == b"\x80"] == []


# ---- steps


def steps_in(root):
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())


def small(value):
    return {"a": jnp.full(2, value, jnp.float32)}


def value_of(step):
    return format.load(step, small(0))["a"].tolist()[0]


@pytest.mark.parametrize(("keep", "expected"), [(None, [1, 5, 12]), (2, [5, 12]), (1, [12])])
def test_the_newest_are_kept(keep, expected, tmp_path):
    for step in (1, 5, 12):
        save(tmp_path, step, small(step), keep=keep)
    assert steps_in(tmp_path) == expected


def test_a_step_that_is_saved_again_holds_what_was_saved_last(tmp_path):
    save(tmp_path, 3, small(1))
    folder = save(tmp_path, 3, small(2))
    assert value_of(folder) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hydrax", "3"]


def test_two_saves_to_one_folder_take_turns(tmp_path, monkeypatch):
    known = format.array_files.write
    begun, go_on = threading.Event(), threading.Event()

    def write(folder, arrays):
        begun.set()
        assert go_on.wait(60)
        known(folder, arrays)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        monkeypatch.setattr(format.array_files, "write", write)
        first = pool.submit(save, tmp_path, 3, small(1))
        assert begun.wait(60)
        monkeypatch.setattr(format.array_files, "write", known)
        second = pool.submit(save, tmp_path, 3, small(2))
        assert concurrent.futures.wait([second], timeout=0.5).done == set()
        go_on.set()
        assert first.result() == second.result() == tmp_path / "3"
    assert value_of(tmp_path / "3") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hydrax", "3"]


def test_the_newest_step_goes_by_number_and_a_step_may_be_named(tmp_path):
    for step in (9, 10):
        save(tmp_path, step, small(step))
    (tmp_path / "11").mkdir()  # not a step: no save leaves an empty folder
    assert folders.first_sound(tmp_path, lambda step: step) == tmp_path / "10"
    assert folders.first_sound(tmp_path / "9", lambda step: step) == tmp_path / "9"


def test_a_step_may_be_copied_anywhere_under_any_name(root, tmp_path):
    moved = (root / "7").rename(tmp_path / "the best one")
    assert folders.first_sound(moved, format.check) == moved
    moved.rename(root / "7")


# ---- refusals


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no checkpoint: .*nowhere\. Got no step folder"):
        folders.first_sound(tmp_path / "nowhere", format.check)


@pytest.mark.parametrize(
    ("name", "leaf", "refusal"),
    [
        ("live", jnp.zeros(4, bool), r"leaf heads\.live\. Got bool\[3\], expected bool\[4\]"),
        ("half", jnp.zeros((3, 2), jnp.float32), r"leaf heads\.half\. Got bfloat16\[3, 2\], expected float32\[3, 2\]"),
        ("count", jax.random.key(0), r"leaf heads\.count\. Got int32\[3\], expected key<fry>\[\]"),
        ("absent", jnp.zeros(2), r"leaf heads\.absent\. Got no such leaf, expected float32\[2\]"),
    ],
    ids=["shape", "dtype", "key", "missing"],
)
def test_a_leaf_that_does_not_fit_is_refused_with_both_forms(root, name, leaf, refusal):
    with pytest.raises(CheckpointError, match=refusal):
        format.load(root / "7", {"heads": {name: leaf}})


def test_a_key_of_another_kind_does_not_fit(root):
    with pytest.raises(CheckpointError, match=r"leaf other_keys\. Got key<rbg>\[\], expected key<fry>\[\]"):
        format.load(root / "7", {"other_keys": jax.random.key(0)})


@pytest.mark.parametrize("dtype", ["datetime64[s]", "uint4", "object"])
def test_a_dtype_that_the_format_cannot_hold_is_refused_and_nothing_is_left(dtype, tmp_path):
    expected = rf"cannot be written: .*, leaf a\. Got dtype {re.escape(dtype)}, expected .*Fix: convert this array"
    with pytest.raises(CheckpointError, match=expected):
        save(tmp_path, 1, {"a": np.zeros(3, jnp.dtype(dtype))})
    assert list(tmp_path.iterdir()) == []


def test_one_flipped_bit_is_refused_and_the_leaf_is_named(folder):
    inside = words(tree()["heads"]["bytes"]).tobytes()[1000:1064]
    (path,) = [path for path in files_below(folder) if inside in path.read_bytes()]
    data = bytearray(path.read_bytes())
    data[data.index(inside)] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        DamagedCheckpointError, match=r"is damaged: .*, leaf heads\.bytes\. Got ValueError: .*Digest mismatch"
    ):
        format.load(folder, tree())


def test_files_that_are_cut_off_are_refused(folder):
    for path in files_below(folder / "arrays"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DamagedCheckpointError, match=r"is damaged: .*Got ValueError: arrays/.* bytes, not"):
        format.load(folder, tree())


def test_arrays_of_another_save_are_refused(folder, tmp_path):
    other = save(tmp_path / "other", 7, tree())
    for path in files_below(folder / "arrays"):
        path.unlink()
    (folder / "arrays" / "d").rmdir()
    (folder / "arrays").rmdir()
    (other / "arrays").rename(folder / "arrays")
    with pytest.raises(DamagedCheckpointError):
        format.load(folder, tree())


@pytest.mark.parametrize("number", [3, 5])
def test_another_format_is_refused_with_both_numbers(folder, number):
    rewrite_meta(folder, lambda meta: meta.update(format=number))
    with pytest.raises(CheckpointError, match=rf"another format: .*\. Got format {number}, expected 4"):
        format.load(folder, tree())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_formats_that_had_their_checksum_at_the_end_are_named_too(folder, number):
    (folder / "meta.json").write_text(f'{{"kind": "run", "format": {number}, "leaves": {{}}, "sha256": "0"}}')
    with pytest.raises(CheckpointError, match=rf"another format: .*\. Got format {number}, expected 4"):
        format.load(folder, tree())


@pytest.mark.parametrize(("old", "new"), [('"uint8"', '"int16"'), ('"format": 4', '"format": 3'), ("{", " {")])
def test_a_meta_with_other_bytes_is_damaged(folder, old, new):
    path = folder / "meta.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DamagedCheckpointError, match=r"is damaged: .*meta\.json\. Got ValueError: bytes with another"):
        format.load(folder, tree())


def test_a_meta_that_is_no_json_is_refused(folder):
    (folder / "meta.json").write_text("{")
    with pytest.raises(DamagedCheckpointError, match=r"is damaged: .*meta\.json"):
        format.read_meta(folder)


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written: .*file"):
        save(tmp_path / "file", 1, small(1))


def test_a_draft_that_does_not_read_back_is_refused_and_the_step_before_stays(tmp_path, monkeypatch):
    save(tmp_path, 1, small(1))
    known = format.array_files.write

    def write(folder, arrays):
        known(folder, {number: array + 1 for number, array in arrays.items()})

    monkeypatch.setattr(format.array_files, "write", write)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*leaf a did not read back as it was written"):
        save(tmp_path, 1, small(5))
    assert value_of(folders.first_sound(tmp_path, format.check)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hydrax", "1"]


@pytest.mark.parametrize(
    ("saved", "present", "refusal"),
    [
        ({"seed": 0, "chunk": 4}, {"seed": 0, "chunk": 8}, r"run: run, chunk\. Got 4 there, expected 8 as here"),
        ({}, {"seed": 0}, r"run: run, seed\. Got None there, expected 0 as here"),
    ],
    ids=["other", "absent"],
)
def test_a_checkpoint_of_another_run_is_refused_by_the_first_difference(saved, present, refusal, tmp_path):
    with pytest.raises(CheckpointError, match=refusal):
        format.check_same(tmp_path.relative_to(tmp_path) / "run", saved, present)


def test_what_the_present_run_does_not_ask_for_may_differ(tmp_path):
    format.check_same(tmp_path, {"seed": 0, "of_a_later_version": 1}, {"seed": 0})


# ---- names


def test_keys_with_dots_slashes_and_other_characters_stay_apart(tmp_path):
    given = {"a.b": 1.0, "a": {"b": 2.0, "": 3.0}, "a/b": 4.0, "..": {"%2e": 5.0}, "ü\udc80": 6.0, "a\\.b": 7.0}
    given = jax.tree.map(lambda value: jnp.full(3, value), given)
    step = save(tmp_path, 0, {"heads": {"trainable": given}})
    found = format.load(step, {"heads": {"trainable": given}})["heads"]["trainable"]
    assert jax.tree.map(lambda a: float(a[0]), found) == jax.tree.map(lambda a: float(a[0]), given)
    assert sorted(array[0] for array in format.load_models(step).values()) == [1, 2, 3, 4, 5, 6, 7]


class Odd:
    """A key that reads like another."""

    def __init__(self, number):
        self.number = number

    def __str__(self):
        return "k"

    def __lt__(self, other):
        return self.number < other.number


def test_two_leaves_with_one_path_are_refused():
    with pytest.raises(ValueError, match="Two leaves of a tree have the same path. Got 2 leaves with 1 paths"):
        trees.leaves_by_path({Odd(0): 1, Odd(1): 2})


@pytest.mark.parametrize(
    ("nested", "names"),
    [
        ({"a": {"b": 1}}, ["a.b"]),
        ({"a": (1, [2])}, ["a.0", "a.1.0"]),
        ({"a": None, "b": 1}, ["b"]),
        ({"a.b": 1, "a": {"b": 2}, "c.d": 3}, ["a.b", r"a\.b", "c.d"]),
        ({"a.b": 1, "a": {"b": 2}, "a\\": {"b": 3}}, ["a.b", r"a\.b", r"a\\.b"]),
    ],
    ids=str,
)
def test_leaves_are_named_by_their_path(nested, names):
    assert sorted(trees.named_leaves(nested)) == sorted(names)
