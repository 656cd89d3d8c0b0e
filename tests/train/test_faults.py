"""Signals, callbacks that raise, and folders that two runs want: a fit ends cleanly and nothing is lost."""

import functools
import logging
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, QUIET, Classifier, PlainClassifier, data_of, differing, run

import hydrax as hx
from hydrax.callbacks import ModelCheckpoint
from hydrax.errors import ArgumentError, CallbackError

HEADS, STEPS, AT = 3, 14, 6
SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1)  # 5 batches of 8 an epoch
HOW = {"max_steps": STEPS, "val_check_interval": 2, "check_val_every_n_epoch": None, "enable_checkpointing": True}


class Sends(hx.Callback):
    """Sends a signal to its own process, so many times, when a hook is first heard at a step or after it."""

    def __init__(self, hook, number=signal.SIGINT, times=1, at=AT):
        self.number, self.left, self.at = number, times, at
        setattr(self, hook, self.send)

    def next_due(self, step):
        return self.at if step < self.at else None

    def send(self, event):
        while self.left and event.step >= self.at:
            self.left -= 1
            os.kill(os.getpid(), self.number)

    def on_train_steps_end(self, event): ...
    def on_validation_start(self, event): ...
    def on_validation_end(self, event): ...
    def on_save_checkpoint(self, event): ...
    def on_train_epoch_end(self, event): ...
    def on_train_end(self, event): ...


def fit(folder, *callbacks, ckpt_path=None):
    return run(PlainClassifier(), data_of(SLICES), ckpt_path, callbacks, default_root_dir=folder, **HOW)


def at_the_end(arrays):
    return {name: array for name, array in arrays.items() if not name.startswith("step.")}


@functools.cache
def unbroken(root):
    return at_the_end(fit(root).arrays)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return unbroken(tmp_path_factory.mktemp("whole"))


HOOKS = [
    "on_validation_start",
    "on_train_epoch_end",
    pytest.param("on_train_steps_end", marks=pytest.mark.slow),
    pytest.param("on_validation_end", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("hook", HOOKS)
def test_after_ctrl_c_the_run_is_saved_and_goes_on_to_the_same_bits(tmp_path, whole, hook):
    broken = fit(tmp_path, Sends(hook))
    assert broken.result.interrupted
    assert broken.result.step < STEPS
    resumed = fit(tmp_path, ckpt_path="last")
    assert not resumed.result.interrupted
    assert differing(at_the_end(resumed.arrays), whole) == []


def test_ctrl_c_raises_after_the_teardown_and_the_trainer_has_the_result(tmp_path, caplog):
    told, sends = [], Sends("on_validation_start")
    notes = hx.callbacks.LambdaCallback(teardown=lambda event: told.append("teardown"))
    trainer = hx.Trainer(callbacks=[sends, notes], default_root_dir=tmp_path, **{**QUIET, **HOW})
    with caplog.at_level(logging.INFO, "hydrax"), pytest.raises(KeyboardInterrupt):
        trainer.fit(PlainClassifier(), data_of(SLICES))
    assert told == ["teardown"]
    assert trainer.result.interrupted
    assert trainer.result.step == trainer.global_step == AT
    assert f'interrupted at step {AT}; fit(..., ckpt_path="last") resumes from the checkpoint.' in caplog.text
    last = hx.Heads.load(trainer.result.log_dir / "checkpoints" / "last", PlainClassifier())
    np.testing.assert_array_equal(last.trainable["kernel"], trainer.result.heads.trainable["kernel"])


def test_with_checkpointing_off_nobody_is_sent_to_a_checkpoint(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hydrax"):
        how = {**HOW, "enable_checkpointing": False, "default_root_dir": tmp_path}
        broken = run(PlainClassifier(), data_of(SLICES), None, [Sends("on_validation_start")], **how)
    assert broken.result.interrupted
    assert f"interrupted at step {AT}, and nothing was saved." in caplog.text


def test_ctrl_c_in_the_middle_of_a_save_lets_it_end(tmp_path, whole):
    broken = fit(tmp_path, ModelCheckpoint(every_n_train_steps=4), Sends("on_save_checkpoint", at=4))
    assert (broken.result.interrupted, broken.result.step) == (True, 4)
    resumed = fit(tmp_path, ckpt_path="last")
    assert differing(at_the_end(resumed.arrays), whole) == []


def test_ctrl_c_when_all_is_done_changes_nothing(tmp_path, whole):
    broken = fit(tmp_path, Sends("on_train_end"))
    assert broken.result.step == STEPS
    assert differing(at_the_end(broken.arrays), whole) == []


def test_a_second_ctrl_c_raises_at_once(tmp_path):
    sends = Sends("on_train_steps_end", times=2)
    trainer = hx.Trainer(callbacks=[sends], default_root_dir=tmp_path, **{**QUIET, **HOW})
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(PlainClassifier(), data_of(SLICES))
    with pytest.raises(ArgumentError, match="There is no run"):
        _ = trainer.result


def test_sigterm_saves_and_exits_with_143(tmp_path, whole):
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path, Sends("on_validation_start", signal.SIGTERM))
    assert ended.value.code == 143
    resumed = fit(tmp_path, ckpt_path="last")
    assert differing(at_the_end(resumed.arrays), whole) == []


def test_ctrl_c_before_the_first_step_raises_at_once(tmp_path):
    class Impatient(Classifier):
        def configure_model(self, key):
            os.kill(os.getpid(), signal.SIGINT)
            return super().configure_model(key)

    with pytest.raises(KeyboardInterrupt):
        run(Impatient("mlp"), data_of(SLICES), default_root_dir=tmp_path, **HOW)


def test_handlers_are_given_back_and_those_of_a_user_stay(tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("mine"))
    try:
        result = fit(tmp_path, Sends("on_train_steps_end", signal.SIGTERM)).result
        assert (heard, result.interrupted, result.step) == (["mine"], False, STEPS)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Fails(hx.Callback):
    """Raises once, in a hook at a step."""

    def __init__(self, hook, at=AT):
        self.at = at
        setattr(self, hook, self.fail)

    def next_due(self, step):
        return self.at if step < self.at else None

    def fail(self, event):
        if event.step == self.at:
            raise RuntimeError("no more")

    def on_train_steps_end(self, event): ...
    def on_validation_end(self, event): ...
    def on_train_epoch_end(self, event): ...


class Listens(hx.Callback):
    def __init__(self):
        self.errors = []

    def on_exception(self, event):
        self.errors.append(str(event.error))


@pytest.mark.parametrize(
    ("hook", "at"), [("on_train_steps_end", 6), ("on_validation_end", 6), ("on_train_epoch_end", 5)]
)
def test_a_callback_that_raises_is_named_and_the_run_saved(tmp_path, whole, hook, at):
    listens = Listens()
    with pytest.raises(CallbackError, match=rf"Fails\.(fail|{hook}) at step {at}\. Got RuntimeError: no more"):
        fit(tmp_path, Fails(hook, at), listens)
    assert len(listens.errors) == 1
    resumed = fit(tmp_path, ckpt_path="last")
    assert differing(at_the_end(resumed.arrays), whole) == []


HOLDER = """
    import sys, time
    from pathlib import Path
    from hydrax.checkpoint import locked
    lock = locked(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_that_another_fit_writes_in_is_refused_with_its_holder(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path / "shared")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(
                ArgumentError, match=rf"The checkpoint folder is in use by another fit: .*Got process {holder.pid} on"
            ):
                fit(tmp_path, ModelCheckpoint(dirpath=tmp_path / "shared"))
        finally:
            holder.kill()
    # A lock ends with its process, even a killed one.
    fit(tmp_path, ModelCheckpoint(dirpath=tmp_path / "shared"))


def test_two_fits_one_after_the_other_share_a_folder(tmp_path):
    for _ in range(2):
        fit(tmp_path, ModelCheckpoint(dirpath=tmp_path / "shared"))
    assert sorted(path.name for path in (tmp_path / "shared").iterdir() if path.is_dir()) == ["last", "last-1"]


def test_training_goes_on_where_no_folder_can_be_written(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "hydrax"):
        result = fit(tmp_path, ModelCheckpoint(dirpath=tmp_path / "file" / "below")).result
    assert result.step == STEPS
    assert "A save has failed: ModelCheckpoint" in caplog.text
    assert np.isfinite(result.metrics["train_loss"]).all()
