"""Heads written into one file that others read: NumPy's form and safetensors'."""

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from heads_under_test import TinyNet

import hydrax as hx
from hydrax.results.export import export
from hydrax.step.model import split

HEADS = 3


@pytest.fixture(scope="module")
def heads():
    """Three networks with batch statistics."""
    parts = [split(TinyNet(nnx.Rngs(head))) for head in range(HEADS)]
    trainable, state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[part[:2] for part in parts])
    return hx.Heads(trainable, state, parts[0].structure, np.arange(HEADS))


READ = {
    ".npz": lambda path: dict(np.load(path, allow_pickle=False)),
    ".safetensors": safetensors.numpy.load_file,
}


@pytest.fixture(params=READ)
def suffix(request):
    return request.param


def test_one_head_is_written_as_its_model_has_it(heads, tmp_path, suffix):
    found = READ[suffix](heads.export(tmp_path / f"head{suffix}", head=1))
    model = heads[1]
    np.testing.assert_array_equal(found["hidden.kernel"], model.hidden.kernel[...])
    np.testing.assert_array_equal(found["norm.mean"], model.norm.mean[...])
    assert {"hidden.bias", "norm.scale", "norm.var", "out.kernel", "out.bias"} <= set(found)


def test_all_heads_are_written_side_by_side(heads, tmp_path, suffix):
    found = READ[suffix](heads.export(tmp_path / f"heads{suffix}"))
    np.testing.assert_array_equal(found["out.kernel"], heads.trainable["out"]["kernel"])


def test_keys_with_dots_stay_apart_and_a_scalar_stays_one(tmp_path, suffix):
    key = jax.random.key(0)
    trainable = {"a.b": jnp.full(HEADS, 1.0), "a": {"b": jnp.full(HEADS, 2.0)}, "c.d": jnp.full((HEADS, 2), 3.0)}
    structure = split({"a.b": key}).structure
    heads = hx.Heads(trainable, {}, structure, np.arange(HEADS))
    found = READ[suffix](heads.export(tmp_path / f"head{suffix}", head=1))
    assert {name: array.tolist() for name, array in found.items()} == {r"a\.b": 1.0, "a.b": 2.0, "c.d": [3.0, 3.0]}


def test_a_second_export_takes_the_place_of_the_first(heads, tmp_path, suffix):
    path = tmp_path / f"head{suffix}"
    heads.export(path, head=0)
    heads.export(path, head=2)
    np.testing.assert_array_equal(READ[suffix](path)["out.bias"], heads[2].out.bias[...])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_bfloat16_stays_as_it_is_where_the_form_has_it_and_widens_where_it_has_not(tmp_path):
    arrays = {"w": jnp.array([1.0, -0.5, 3.140625], jnp.bfloat16)}
    assert READ[".safetensors"](export(arrays, tmp_path / "a.safetensors"))["w"].dtype == jnp.bfloat16
    found = READ[".npz"](export(arrays, tmp_path / "a.npz"))["w"]
    assert (found.dtype, found.tolist()) == (np.float32, [1.0, -0.5, 3.140625])


def test_keys_are_written_as_their_words(tmp_path, suffix):
    key = jax.random.key(7)
    found = READ[suffix](export({"key": key}, tmp_path / f"a{suffix}"))["key"]
    np.testing.assert_array_equal(found, [0, 7])  # threefry: the seed's high and low word


@pytest.mark.parametrize("name", ["file", "allow_pickle"])
def test_a_name_may_be_one_of_numpys_own_words(tmp_path, suffix, name):
    assert READ[suffix](export({name: np.arange(3)}, tmp_path / f"a{suffix}"))[name].tolist() == [0, 1, 2]


@pytest.mark.parametrize("head", [None, 1])
def test_a_checkpoint_is_written_without_the_module_that_built_it(heads, tmp_path, suffix, head):
    expected = READ[suffix](heads.export(tmp_path / f"expected{suffix}", head))
    found = READ[suffix](hx.export_heads(heads.save(tmp_path / "saved"), tmp_path / f"found{suffix}", head))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_head_that_a_checkpoint_does_not_hold_is_refused(heads, tmp_path):
    with pytest.raises(hx.ArgumentError, match="There is no such head"):
        hx.export_heads(heads.save(tmp_path), tmp_path / "head.npz", head=HEADS)


def test_another_ending_is_refused_with_those_that_there_are(heads, tmp_path):
    with pytest.raises(hx.ArgumentError, match=r"Got '.pt', expected .npz or .safetensors"):
        heads.export(tmp_path / "head.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_is_not_there_is_refused(heads, tmp_path):
    with pytest.raises(hx.ArgumentError, match="There is no such head"):
        heads.export(tmp_path / "head.npz", head=HEADS)


def test_without_safetensors_the_error_says_how_to_get_it(heads, tmp_path, monkeypatch):
    known = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(hx.ArgumentError, match=r"pip install 'hydrax-heads\[export\]'"):
        heads.export(tmp_path / "head.safetensors")


def test_the_random_state_of_dropout_is_left_out(tmp_path):
    model = TinyNet(nnx.Rngs(0))  # with dropout, whose state is a key and a counter
    parts = split(model)
    trainable, state = jax.tree.map(lambda a: a[None], tuple(parts[:2]))
    heads = hx.Heads(trainable, state, parts.structure, np.zeros(1, np.int32))
    expected = {"hidden.bias", "hidden.kernel", "norm.bias", "norm.mean", "norm.scale", "norm.var", "out.bias"}
    for file in (heads.export(tmp_path / "a.npz"), hx.export_heads(heads.save(tmp_path / "b"), tmp_path / "b.npz")):
        with np.load(file) as arrays:
            assert set(arrays) == expected | {"out.kernel"}
