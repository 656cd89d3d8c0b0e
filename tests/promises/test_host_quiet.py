"""Promise 8, host quiet: between supersteps the host reads nothing from the device but metrics, one superstep late."""

import jax
import numpy as np
import optax
import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of
from jax._src.array import ArrayImpl

import hydrax as hx
from hydrax.engine.engine import Engine
from hydrax.loop.loop import FitLoop


class Ends(hx.Callback):
    """Notes where the loop begins and ends."""

    def __init__(self, heard):
        self.heard = heard

    def on_train_start(self, event):
        self.heard.append("start")

    def on_train_steps_end(self, event):
        self.heard.append(f"told {event.step}")

    def on_train_end(self, event):
        self.heard.append("end")


class OneMetric(PlainClassifier):
    """Logs its loss and nothing else: a superstep has then two reads, whether a head was lost and the losses."""

    def training_step(self, model, batch, ctx):
        return optax.softmax_cross_entropy_with_integer_labels(self.logits(model, batch["x"]), batch["y"])


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """What happened in a fit, in order: dispatches, reads that the loop means to do, and reads by anything else."""
    events, reading, patch = [], [], pytest.MonkeyPatch()

    def dispatch(self, *args):
        result = superstep(self, *args)
        events.append(f"dispatch {args[2] + args[3]}")
        return result

    def read(self, *args):
        events.append("read")
        reading.append(True)
        result = late_read(self, *args)
        reading.pop()
        return result

    def watched(convert):
        def watch(value, *args, **kwargs):
            events.extend(["other read"] * (isinstance(value, jax.Array) and not reading))
            return convert(value, *args, **kwargs)

        return watch

    superstep, late_read = Engine.superstep, FitLoop._read
    patch.setattr(Engine, "superstep", dispatch)
    patch.setattr(FitLoop, "_read", read)
    # NumPy takes jax arrays on a CPU by their buffer, all else (float, bool, item, print) goes through _value.
    patch.setattr(np, "asarray", watched(np.asarray))
    patch.setattr(np, "array", watched(np.array))
    patch.setattr(ArrayImpl, "_value", property(watched(ArrayImpl._value.fget)))
    slices = hx.Slices.random_subset([5, 40, 21], NUM_ROWS)
    settings = {"max_steps": 12, "steps_per_call": 3, "default_root_dir": tmp_path_factory.mktemp("run"), **QUIET}
    with patch.context():
        trainer = hx.Trainer(callbacks=Ends(events), **settings)
        trainer.fit(OneMetric("mlp", hx.PerHead([1e-3, 2e-3, 3e-3])), data_of(slices, val=None))
        float(np.asarray(trainer.heads[0]["bias"])[0])
    patch.undo()
    return events


def test_metrics_are_read_one_superstep_late_and_nothing_else_is_read(heard):
    assert heard[heard.index("start") : heard.index("end") + 1] == [
        "start",
        "dispatch 3",
        "dispatch 6",
        "read",
        "read",
        "told 3",
        "dispatch 9",
        "read",
        "read",
        "told 6",
        "dispatch 12",
        "read",
        "read",
        "told 9",
        "read",
        "read",
        "told 12",
        "end",
    ]


def test_the_watch_sees_a_read(heard):
    assert "other read" in heard[heard.index("end") :]


class Guarded(hx.Callback):
    """Forbids implicit transfers, in either direction, from the first superstep to the last."""

    def on_train_steps_end(self, event):
        jax.config.update("jax_transfer_guard_host_to_device", "disallow")
        jax.config.update("jax_transfer_guard_device_to_device", "disallow")

    def next_due(self, step):
        return 2 if step < 2 else None

    def on_train_end(self, event):
        allow()

    on_exception = on_train_end


def allow():
    jax.config.update("jax_transfer_guard_host_to_device", "allow")
    jax.config.update("jax_transfer_guard_device_to_device", "allow")


@pytest.mark.parametrize("residence", ["device", "host"])
def test_no_array_reaches_the_device_by_accident(residence):
    slices = hx.Slices.random_subset([5, 40, 21], NUM_ROWS)
    trainer = hx.Trainer(callbacks=Guarded(), max_steps=12, steps_per_call=3, **QUIET)
    try:
        trainer.fit(OneMetric("mlp", 1e-2), data_of(slices, val=None, residence=residence))
    finally:
        allow()
    assert trainer.global_step == 12


def test_the_guard_sees_an_implicit_transfer():
    jax.config.update("jax_transfer_guard_host_to_device", "disallow")
    try:
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
            jax.jit(lambda a: a + 1)(np.ones(3))
    finally:
        allow()
