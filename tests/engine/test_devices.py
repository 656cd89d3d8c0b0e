"""Heads over devices: a CPU counts once for each core, any H will do, and no bit depends on how many there are."""

import functools

import jax
import numpy as np
import pytest
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, differing, run

import hydrax as hx
from hydrax.engine import devices as devices_module
from hydrax.engine.devices import find_devices
from hydrax.engine.engine import run_key
from hydrax.errors import ArgumentError


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """The same on every machine: threads do not need cores of their own to give these bits."""
    monkeypatch.setattr(devices_module, "num_cores", lambda: 2)


@functools.cache
def fit(num_heads, devices, chunk=1):
    """One fit for all tests of this file that need it."""
    slices = hx.Slices.random_subset(np.linspace(3, NUM_ROWS, num_heads).astype(int), NUM_ROWS, seed=2)
    module = PlainClassifier("mlp", hx.PerHead(np.linspace(1e-3, 1e-2, num_heads)))
    return run(module, data_of(slices), devices=devices, chunk=chunk, max_steps=7)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("wide", [False, True])
def test_the_key_of_a_run_is_that_of_jax(seed, impl, wide):
    with jax.default_prng_impl(impl), jax.enable_x64(wide):
        assert run_key(seed) == jax.random.key(seed)
        assert run_key(seed).dtype == jax.random.key(seed).dtype


@pytest.mark.cpu
@pytest.mark.parametrize(("num_heads", "chunk"), [(5, 1), pytest.param(9, 4, marks=pytest.mark.slow)])
def test_bits_do_not_depend_on_the_number_of_devices(num_heads, chunk):
    one, two = (fit(num_heads, devices, chunk) for devices in (1, 2))
    assert two.trainer._run.planned.engine.layout.num_lanes == 2
    assert differing(one.arrays, two.arrays) == []


@pytest.mark.cpu
def test_nothing_compiles_twice_on_two_cores():
    programs = fit(5, 2).trainer._run.planned.engine.programs
    assert (programs["superstep"].num_compiled, programs["init"].num_compiled) == (1, 1)


def test_no_collective_is_in_the_compiled_program():
    programs = fit(5, "auto").trainer._run.planned.engine.programs
    text = "".join(program.result().as_text() for program in programs["superstep"]._programs.values())
    assert "fusion" in text
    words = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    assert [word for word in words if word in text] == []


@pytest.mark.cpu
def test_auto_is_every_core_of_a_cpu():
    assert find_devices("auto") == (jax.devices()[0],) * 2


def test_devices_of_the_users_own_are_taken_as_they_are():
    assert find_devices(jax.devices()[:1]) == tuple(jax.devices()[:1])


@pytest.mark.cpu
def test_more_devices_than_there_are_is_an_error_that_says_how_many_there_are():
    with pytest.raises(ArgumentError, match=rf"Got {2 + 1}, expected at most {2} cores"):
        find_devices(2 + 1)


@pytest.mark.parametrize("devices", [0, -1, 1.5, True, None, "all", [], ["cpu"], [jax.devices()[0]] * 2], ids=str)
def test_devices_that_cannot_be_are_refused_by_name(devices):
    with pytest.raises(ArgumentError, match=r"devices\. Got"):
        hx.Trainer(max_steps=1, devices=devices)


def test_heads_over_devices_predict_and_validate_in_order():
    found = {devices: fit(5, devices) for devices in (1, "auto")}
    predictions = [one.trainer.predict() for one in found.values()]
    np.testing.assert_array_equal(*predictions)
    np.testing.assert_array_equal(*(one.trainer.test(verbose=False)["test_loss"] for one in found.values()))
