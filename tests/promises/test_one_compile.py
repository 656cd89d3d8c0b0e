"""Promise 6, one compile: a fit compiles each program once, whatever the lengths, freezes and cadences."""

import jax
import numpy as np
import pytest
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, run

import hydrax as hx

HEADS, STEPS = 6, 23
LENGTHS = np.array([1, 40, 9, 23, 8, 31])
RATES = np.linspace(1e-3, 2e-2, HEADS)
# Epochs of 5 batches, logs each 7 steps, checkpoints each 4, validations each 3 batches across epochs, and a last
# superstep of whatever is left. The validation set of 21 rows ends with a batch of 5, which has a program of its own.
CADENCES = {"max_steps": STEPS, "log_every_n_steps": 7, "val_check_interval": 3, "check_val_every_n_epoch": None}


class Busy(hx.Callback):
    """Stops and snapshots one head after the other, and saves at steps that suit no other cadence."""

    def __init__(self, folder):
        self.folder = folder

    def next_due(self, step):
        return (step // 4 + 1) * 4

    def on_train_steps_end(self, event):
        if event.step % 4 == 0:
            event.trainer.save_checkpoint(self.folder)

    def on_validation_end(self, event):
        some = np.arange(HEADS) < event.step // 6
        return hx.Control(stop=some, snapshot=~some)


def fit(*callbacks, lengths=LENGTHS, rates=RATES, ckpt_path=None, **how):
    slices = hx.Slices.random_subset(lengths, NUM_ROWS, seed=0)
    return run(PlainClassifier("mlp", hx.PerHead(rates)), data_of(slices), ckpt_path, callbacks, **{**CADENCES, **how})


def compiled(trainer):
    """How often each program of a run has been compiled."""
    return {name: program.num_compiled for name, program in trainer._run.planned.engine.programs.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def busy(folder):
    return fit(Busy(folder))


ONCE = dict.fromkeys(("init", "superstep", "compute", "freeze", "select", "broadcast"), 1) | {
    "evaluate": 2,
    "predict": 0,
    "evaluation_parameters": 0,  # only if they differ from those that are trained
    "find_fault": 0,
    "finite": 0,  # NumPy looks on a CPU
}


@pytest.mark.cpu  # a GPU has a second one for whole supersteps
def test_each_program_of_a_fit_is_compiled_once(busy):
    # Epoch means and validation means are different trees for `compute`.
    assert compiled(busy.trainer) == {**ONCE, "compute": 2}


def test_the_fit_that_is_counted_was_cut_unevenly(busy):
    assert busy.arrays["step.train_loss"].shape == (HEADS, STEPS)
    assert busy.result.live.tolist() == [False, False, False, True, True, True]


@pytest.mark.cpu  # a GPU has a second one for whole supersteps
def test_each_program_of_a_resumed_fit_is_compiled_once(busy, folder):
    resumed = fit(Busy(folder), ckpt_path=folder / "12")
    assert compiled(resumed.trainer) == {**ONCE, "init": 0, "compute": 2}


@pytest.fixture
def misses():
    """Programs that no earlier fit compiled: what the compile cache on disk did not know."""
    found = []

    def listen(event, **_):
        found.extend([event] * event.endswith("cache_misses"))

    jax.monitoring.register_event_listener(listen)
    yield found
    jax.monitoring.unregister_event_listener(listen)


CHANGES = {
    "PerHead values": {"rates": RATES[::-1] * 0.5},
    "slice lengths": {"lengths": LENGTHS[::-1]},
    "seed": {"seed": 5},
    "length of the fit": {"max_steps": 11},
    # The longest superstep is a shape of the program, so it stays at an epoch's five steps.
    "cadences": {"log_every_n_steps": 50, "val_check_interval": 4, "check_val_every_n_epoch": 2},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_values_are_no_part_of_the_programs(busy, misses, change):
    fit(**change)
    assert misses == []


def test_another_program_is_compiled_anew(busy, misses):
    fit(chunk=3)
    assert misses
