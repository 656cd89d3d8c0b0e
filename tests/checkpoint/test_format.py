"""The format on disk: every kind of leaf comes back bit for bit, and what is missing, other or damaged is refused."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrax.checkpoint import folders, format
from hydrax.errors import CheckpointError, DamagedCheckpointError


def tree():
    rng = np.random.default_rng(0)
    return {
        "heads": {
            "kernel": jnp.asarray(rng.normal(size=(3, 4, 2)), jnp.float32),
            "half": jnp.asarray(rng.normal(size=(3, 2)), jnp.bfloat16),
            "live": jnp.array([True, False, True]),
            "count": jnp.arange(3),
            "bytes": jnp.asarray(rng.integers(0, 256, 4096), jnp.uint8),
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
    format.save(root, 7, tree(), {"kind": "test", "ids": [0, 1, 2]})
    return root


@pytest.fixture
def folder(tmp_path):
    """A checkpoint that a test may break."""
    return format.save(tmp_path, 7, tree(), {})


def test_every_leaf_comes_back_bit_for_bit(root):
    found = format.load(root / "7", tree())
    assert jax.tree.structure(found) == jax.tree.structure(tree())
    for name, leaf in format.named_leaves(found).items():
        saved = format.named_leaves(tree())[name]
        assert (name, leaf.shape, leaf.dtype) == (name, saved.shape, saved.dtype)
        assert words(leaf).tobytes() == words(saved).tobytes()


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


def test_the_meta_keeps_what_it_was_given(root):
    meta = format.read_meta(root / "7")
    assert (meta["kind"], meta["ids"]) == ("test", [0, 1, 2])
    assert meta["leaves"]["heads.live"] == {
        "shape": [3],
        "dtype": "bool",
        "size": 3,
        "key": None,
        "sha256": hashlib.sha256(bytes([1, 0, 1])).hexdigest(),
    }


def test_no_file_is_a_pickle(root):
    files = [path for path in root.rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix in (".pkl", ".pickle") or path.read_bytes()[:1] == b"\x80"] == []


# ---- steps


def steps_in(root):
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())


def small(value):
    return {"a": jnp.full(2, value, jnp.float32)}


@pytest.mark.parametrize(("keep", "expected"), [(None, [1, 5, 12]), (2, [5, 12]), (1, [12])])
def test_the_newest_are_kept(keep, expected, tmp_path):
    for step in (1, 5, 12):
        format.save(tmp_path, step, small(step), {}, keep=keep)
    assert steps_in(tmp_path) == expected


def test_a_step_that_is_there_stays_as_it_is(tmp_path):
    format.save(tmp_path, 3, small(1), {})
    folder = format.save(tmp_path, 3, small(2), {})
    assert format.load(folder, small(0))["a"].tolist() == [1, 1]


def test_find_takes_the_newest_step_by_number_or_the_step_itself(tmp_path):
    for step in (9, 10):
        format.save(tmp_path, step, small(step), {})
    (tmp_path / "11").mkdir()  # of a save that was cut off
    assert folders.find(tmp_path) == tmp_path / "10"
    assert folders.find(tmp_path / "9") == tmp_path / "9"


# ---- refusals


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no checkpoint: .*nowhere\. Got no step folder"):
        folders.find(tmp_path / "nowhere")


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


def test_one_flipped_bit_is_refused_and_the_leaf_is_named(folder):
    # Random bytes do not compress, so they lie in their file as they are.
    inside = words(tree()["heads"]["bytes"]).tobytes()[1000:1064]
    (path,) = [path for path in folder.rglob("*") if path.is_file() and inside in path.read_bytes()]
    data = bytearray(path.read_bytes())
    data[data.index(inside)] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged: .*, leaf heads\.bytes\. Got bytes with another digest"):
        format.load(folder, tree())


def test_files_that_are_cut_off_are_refused(folder):
    for path in (path for path in (folder / "arrays").rglob("*") if path.is_file()):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"cannot be read: .*arrays\. Got .*, expected whole files"):
        format.load(folder, tree())


def meta_file(folder):
    return folder / "meta.json"


def rewrite_meta(folder, **changes):
    """With the digest of what then stands there; a change to None leaves a part out."""
    path = meta_file(folder)
    meta = {**json.loads(path.read_text()), **changes}
    meta = {name: value for name, value in meta.items() if value is not None and name != "sha256"}
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(meta if "sha256" in changes else {**meta, "sha256": digest}))


def test_another_format_is_refused_with_both_numbers(folder):
    rewrite_meta(folder, format=4)
    with pytest.raises(CheckpointError, match=r"another format: .*\. Got format 4, expected 3"):
        format.load(folder, tree())


def test_a_meta_with_other_bytes_is_damaged(folder):
    path = meta_file(folder)
    path.write_text(path.read_text().replace('"size": ', '"size": 1', 1))
    with pytest.raises(DamagedCheckpointError, match=r"is damaged: .*meta\.json\. Got bytes with another digest"):
        format.load(folder, tree())


def test_a_meta_that_is_no_json_is_refused(folder):
    meta_file(folder).write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot be read: .*meta\.json\. Got .*, expected JSON"):
        format.read_meta(folder)


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written: .*file"):
        format.save(tmp_path / "file", 1, small(1), {})


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


@pytest.mark.parametrize(
    ("nested", "names"),
    [
        ({"a": {"b": 1}}, ["a.b"]),
        ({"a": (1, [2])}, ["a.0", "a.1.0"]),
        ({"a": None, "b": 1}, ["b"]),
    ],
    ids=str,
)
def test_leaves_are_named_by_their_path(nested, names):
    assert list(format.named_leaves(nested)) == names


def test_a_digest_is_that_of_the_bytes_in_row_order():
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert format.digest(array) == hashlib.sha256(array.tobytes()).hexdigest()
    assert format.digest(np.asfortranarray(array)) == format.digest(array)
