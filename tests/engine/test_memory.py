"""Memory: known before a run, chunks that shrink, heads that take turns, and runs that go on after memory ended."""

import logging
import threading
import time
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
from heads_under_test import NUM_ROWS, Classifier, PlainClassifier, data_of, differing, run

import hydrax as hx
from hydrax.data.reader import RowReader
from hydrax.engine import memory
from hydrax.engine.engine import Engine
from hydrax.engine.spill import Spill
from hydrax.errors import CallbackError, MemoryLimitError
from hydrax.loop import loop
from hydrax.train import tune
from hydrax.train.fit import FitSpec

HEADS, BALLAST = 6, 5_000
SLICES = hx.Slices.random_subset(np.linspace(5, NUM_ROWS, HEADS).astype(int), NUM_ROWS, seed=1)
# One head: 18 + 3 parameters and the ballast, twice as many numbers and a count in AdamW; a mean in the making; live.
STATE_BYTES = 4 * (3 * (21 + BALLAST) + 1 + 2) + 1
DATA_BYTES = NUM_ROWS * (6 * 4 + 4)


class Heavy(PlainClassifier):
    """The same with parameters that nothing uses, so that it is heads that take the memory."""

    def configure_model(self, key):
        return {**super().configure_model(key), "ballast": jax.numpy.ones(BALLAST)}


def fit(callbacks=(), **how):
    module = Heavy("mlp", hx.PerHead(np.linspace(1e-3, 1e-2, HEADS)))
    return run(module, data_of(SLICES), callbacks=callbacks, **{"max_steps": 12, "chunk": 1, **how})


@pytest.fixture(scope="module")
def plain():
    return fit()


def test_the_state_and_the_data_are_counted_by_hand(plain):
    found = plain.trainer.plan().memory
    assert (found.state, found.data) == (HEADS * STATE_BYTES, DATA_BYTES)


def test_the_peak_holds_the_state_and_the_data_and_stays_below_the_room(plain):
    found = plain.trainer.plan().memory
    assert found.state + found.data < found.peak < found.room


# ---- an estimate in place of the compiler's answer


def test_a_fit_with_ample_room_starts_without_waiting_to_know_its_memory(monkeypatch):
    measured, measure = [], Engine.superstep_memory
    monkeypatch.setattr(Engine, "superstep_memory", lambda *args: measured.append(measure(*args)) or measured[-1])
    trainer = fit().trainer
    assert measured == []
    assert trainer.plan().memory.peak == measured[0]


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_estimate_is_more_than_the_compiler_reports(kind):
    trainer = run(Classifier(kind), data_of(SLICES, kind), max_steps=1).trainer
    planned, memory = trainer._planned, trainer.plan().memory
    assert memory.state + memory.data < memory.peak
    assert memory.peak < 2 * memory.state + memory.data + planned.spec.rough_bytes(planned.plan)


# ---- waves


@pytest.fixture(scope="module")
def waves():
    return fit(device_memory=DATA_BYTES + HEADS * STATE_BYTES - 1)


def test_heads_whose_state_exceeds_the_memory_run_in_waves(waves):
    assert waves.result.plan.waves > 1
    assert waves.trainer._run.planned.engine.layout.in_waves


def test_a_run_in_waves_is_the_run_in_one_bit_for_bit(plain, waves):
    assert differing(plain.arrays, waves.arrays) == []


def test_heads_of_a_run_in_waves_lie_on_disk_and_are_ordinary_heads(plain, waves):
    assert isinstance(waves.result.heads.trainable["kernel"], np.memmap)
    np.testing.assert_array_equal(waves.result.heads[3]["kernel"], plain.result.heads[3]["kernel"])
    np.testing.assert_array_equal(waves.trainer.predict(), plain.trainer.predict())


def test_the_files_of_waiting_heads_have_no_names(tmp_path):
    spill = Spill(tmp_path)
    kept = spill.put({"a": jax.numpy.arange(6.0).reshape(2, 3), "key": jax.random.key(3)})
    assert [*tmp_path.iterdir()] == []
    np.testing.assert_array_equal(kept["a"], [[0, 1, 2], [3, 4, 5]])
    assert kept["key"] == jax.random.key(3)
    again = spill.put({"a": jax.numpy.ones((2, 3)), "key": jax.random.key(4)}, into=kept)
    assert again["a"] is kept["a"] and kept["a"].sum() == 6


def test_a_run_in_waves_is_saved_and_resumed(plain, tmp_path):
    class Saves(hx.Callback):
        def next_due(self, step):
            return 7 if step < 7 else None

        def on_train_steps_end(self, event):
            if event.step == 7:
                event.trainer.save_checkpoint(tmp_path)

    how = {"device_memory": DATA_BYTES + HEADS * STATE_BYTES - 1}
    fit([Saves()], max_steps=8, **how)
    again = fit([Saves()], ckpt_path=tmp_path / "7", **how)
    of_state = {name: array for name, array in again.arrays.items() if not name.startswith("step.")}
    assert differing(of_state, {name: plain.arrays[name] for name in of_state}) == []


def test_data_that_does_not_fit_is_an_error_before_anything_compiles(monkeypatch):
    monkeypatch.setattr(Engine, "init", None)
    with pytest.raises(MemoryLimitError, match=rf"Got {DATA_BYTES:,} bytes of data, expected at most 1,000 bytes"):
        fit(device_memory=1000)


# ---- chunks


def test_a_chunk_that_would_not_fit_is_halved_before_the_run(caplog, monkeypatch):
    monkeypatch.setattr(Engine, "superstep_memory", lambda engine, rows: 10**6 * engine.layout.chunk)
    with caplog.at_level(logging.WARNING):
        found = fit(chunk="auto", sampling="shared", devices=1, device_memory=5 * 10**6)
    assert found.result.plan.chunk == HEADS // 2
    assert "A step takes 6,000,000 bytes; 5,000,000 bytes are available." in caplog.text


def out_of_memory(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")


class Breaks:
    """Runs out of memory at one superstep, as XLA says it, once."""

    def __init__(self, monkeypatch, at):
        self.at, self.broken, self.superstep = at, False, Engine.superstep
        monkeypatch.setattr(Engine, "superstep", lambda *args: self(*args))

    def __call__(self, engine, state, rows, first, num_steps, new_epoch):
        if first >= self.at and num_steps and not self.broken:
            self.broken = True
            jax.tree.map(lambda a: a.delete(), state)  # as donated ones are
            out_of_memory()
        return self.superstep(engine, state, rows, first, num_steps, new_epoch)


def test_memory_that_ends_on_the_way_is_survived_from_the_start_with_half_the_chunk(monkeypatch, caplog):
    how = {"chunk": "auto", "sampling": "shared", "devices": 1}
    expected = fit(**{**how, "chunk": HEADS // 2})
    broken = Breaks(monkeypatch, at=5)
    with caplog.at_level(logging.WARNING):
        found = fit(**how)
    assert broken.broken and found.result.plan.chunk == HEADS // 2
    assert "Out of memory after step 5; the fit restarts from the start" in caplog.text
    state = [name for name in expected.arrays if not name.startswith("step.")]
    assert differing({n: found.arrays[n] for n in state}, {n: expected.arrays[n] for n in state}) == []


def test_memory_that_ends_on_the_way_is_survived_from_the_newest_checkpoint(monkeypatch, caplog, tmp_path):
    from hydrax.callbacks import ModelCheckpoint

    Breaks(monkeypatch, at=10)
    given_back = []
    monkeypatch.setattr(hx.DataModule, "state_dict", lambda data: {"drawn": 3})
    monkeypatch.setattr(hx.DataModule, "load_state_dict", lambda data, state: given_back.append(state))
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=5)
    with caplog.at_level(logging.WARNING):
        found = fit([saver], chunk="auto", sampling="shared", devices=1)
    assert "Out of memory after step 10; the fit restarts from " in caplog.text and "last" in caplog.text
    assert (found.result.step, found.result.plan.chunk) == (12, HEADS // 2)
    assert given_back == [{"drawn": 3}]


def test_a_resumed_fit_restarts_from_its_own_checkpoint_if_it_has_saved_none_since(monkeypatch, caplog, tmp_path):
    from hydrax.callbacks import ModelCheckpoint

    how = {"chunk": "auto", "sampling": "shared", "devices": 1, "default_root_dir": tmp_path}
    expected = fit(**how)
    fit([ModelCheckpoint(dirpath=tmp_path / "first")], **{**how, "max_steps": 8})
    # This callback has saved another run before, from which nothing may restart.
    saver = ModelCheckpoint(dirpath=tmp_path / "second", every_n_train_steps=100)
    fit([saver], **{**how, "max_steps": 9})
    breaks = [Breaks(monkeypatch, at=8), Breaks(monkeypatch, at=8)]
    with caplog.at_level(logging.WARNING):
        found = fit([saver], ckpt_path=tmp_path / "first", **how)
    assert all(one.broken for one in breaks)
    assert caplog.text.count(f"after step 8; the fit restarts from {tmp_path / 'first' / 'last' / '8'}") == 2
    assert (found.result.step, found.result.plan.chunk) == (12, 2)
    np.testing.assert_allclose(
        found.result.heads.trainable["kernel"], expected.result.heads.trainable["kernel"], rtol=1e-5
    )


def test_a_smaller_plan_that_cannot_start_is_closed(monkeypatch, tmp_path):
    from hydrax.callbacks import ModelCheckpoint

    class Forgets(hx.Callback):
        def load_state_dict(self, state):
            raise RuntimeError("on purpose")

    Breaks(monkeypatch, at=8)
    made, closed, init, close = [], [], Engine.__init__, Engine.close
    monkeypatch.setattr(Engine, "__init__", lambda engine, *args: made.append(id(engine)) or init(engine, *args))
    monkeypatch.setattr(Engine, "close", lambda engine: closed.append(id(engine)) or close(engine))
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=5)
    with pytest.raises(CallbackError, match="on purpose"):
        fit([saver, Forgets()], chunk="auto", sampling="shared", devices=1)
    assert len(made) == 2 and set(made) == set(closed)


def test_after_memory_ends_the_old_engine_and_feed_are_gone_before_the_smaller_plan_is_sized(monkeypatch):
    Breaks(monkeypatch, at=5)
    made, left, place = [], [], FitSpec.place

    def watched(spec, plan):
        left.append([type(one()).__name__ for one in made if one() is not None])
        planned = place(spec, plan)
        made.extend(map(weakref.ref, (planned.engine, planned.feed)))
        return planned

    monkeypatch.setattr(FitSpec, "place", watched)
    fit(chunk="auto", sampling="shared", devices=1)
    assert left == [[], []]


def test_rows_on_their_way_when_memory_ends_have_arrived_before_the_smaller_plan_is_sized(monkeypatch):
    reading, seen, read, place, read_steps = threading.Event(), [], RowReader.read, FitSpec.place, loop.read_steps

    def slow_read(*args, **how):
        reading.set()
        time.sleep(0.2)
        found = read(*args, **how)
        reading.clear()
        return found

    def end_memory(*args):
        # On a GPU the error comes with the values of a superstep, while the rows of a later one are being fetched.
        monkeypatch.setattr(loop, "read_steps", read_steps)
        assert reading.wait(30)
        out_of_memory()

    monkeypatch.setattr(RowReader, "read", slow_read)
    monkeypatch.setattr(loop, "read_steps", end_memory)
    monkeypatch.setattr(FitSpec, "place", lambda *args: seen.append(reading.is_set()) or place(*args))
    how = {"max_steps": 6, "steps_per_call": 2, "chunk": "auto", "sampling": "shared", "devices": 1}
    found = run(Heavy("mlp", 1e-2), data_of(SLICES, residence="host"), **how)
    assert seen == [False, False]
    assert (found.result.step, found.result.plan.chunk) == (6, HEADS // 2)


def test_a_chunk_of_the_users_own_is_kept_and_the_heads_take_turns_instead(monkeypatch):
    Breaks(monkeypatch, at=5)
    found = fit(chunk=2, devices=1)
    assert (found.result.plan.chunk, found.result.plan.waves) == (2, 2)


def test_a_real_allocation_that_fails_is_known_as_one():
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.block_until_ready(jax.numpy.zeros(2**52, jax.numpy.float32))
    assert memory.is_out_of_memory(caught.value)


def test_other_errors_of_the_device_are_not_taken_for_it():
    assert not memory.is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: something else"))
    assert not memory.is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))


def test_a_single_head_that_does_not_fit_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(Engine, "superstep_memory", lambda *_: 10**15)
    monkeypatch.setattr(tune, "_AMPLE_SHARE", 0)
    with pytest.raises(MemoryLimitError, match=r"1 heads in chunks of 1\. Got 1,000,000,000,000,000 bytes.*Fix: "):
        run(PlainClassifier("mlp", 1e-2), data_of(SLICES[[0]]), max_steps=3, chunk=1)


@pytest.mark.parametrize("value", [0, -5, 1.5, True, "8GB", None], ids=str)
def test_a_memory_that_is_no_number_of_bytes_is_refused_by_name(value):
    with pytest.raises(hx.ArgumentError, match=r"device_memory\. Got"):
        hx.Trainer(max_steps=1, device_memory=value)


@pytest.mark.cpu
def test_the_room_on_a_cpu_is_most_of_what_is_free():
    found = memory.room(jax.devices()[0], "auto")
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    assert 0.7 * free < found < free
