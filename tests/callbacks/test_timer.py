"""Timer: stops a fit cleanly when its time is over, and continues to count in a resumed fit."""

import datetime
import time

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of, differing, run

import hydrax as hx
from hydrax.callbacks import ModelCheckpoint, Timer
from hydrax.errors import ArgumentError

SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1)
STEPS = 14


@pytest.mark.parametrize(
    ("duration", "secs"),
    [
        ("01:02:03:04", 93784),
        ("00:00:00:05", 5),
        (datetime.timedelta(minutes=2), 120),
        ({"hours": 1, "seconds": 1}, 3601),
    ],
    ids=str,
)
def test_a_duration_is_that_many_seconds(duration, secs):
    timer = Timer(duration)
    assert (timer.duration_secs, timer.time_remaining(), timer.time_elapsed()) == (secs, secs, 0)


@pytest.mark.parametrize(
    "duration",
    [
        "12:00",
        "1:2:3:4",
        "",
        5,
        {"years": 1},
        {},
        datetime.timedelta(0),
        "x",
        {"hours": float("nan")},
        {"days": 1e10},
        "9999999999:00:00:00",
    ],
    ids=str,
)
def test_another_form_is_refused(duration):
    with pytest.raises(ArgumentError, match="Invalid duration: max_time, Timer"):
        Timer(duration)
    with pytest.raises(ArgumentError, match="Invalid duration: max_time, Timer"):
        hx.Trainer(max_steps=1, max_time=duration)


class Clock:
    """A clock that moves only at the end of a step."""

    def __init__(self, monkeypatch):
        self.secs = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.secs)


class Ticks(hx.Callback):
    """Moves the clock by a minute per step; it comes before the Timer."""

    def __init__(self, clock):
        self.clock = clock

    def next_due(self, step):
        return step + 1

    def on_train_steps_end(self, event):
        self.clock.secs += 60


def fit(folder, clock, timer, max_steps=STEPS, ckpt_path=None):
    saver = ModelCheckpoint(dirpath=folder)
    return run(
        PlainClassifier(), data_of(SLICES), ckpt_path, [Ticks(clock), timer, saver], max_steps=max_steps,
        enable_checkpointing=True,
    )  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_a_fit_ends_when_its_time_is_over_and_a_longer_one_goes_on_to_the_same_bits(tmp_path, clock, caplog):
    first = Timer("00:00:05:00")
    cut = fit(tmp_path / "cut", clock, first)
    assert (cut.result.step, cut.result.interrupted, cut.result.live.tolist()) == (5, False, [True] * 3)
    assert (first.time_elapsed(), first.time_remaining()) == (300, 0)
    assert "a callback asked for the end at step 5." in caplog.text
    second = Timer("00:00:08:00")
    again = fit(tmp_path / "cut", clock, second, ckpt_path=tmp_path / "cut" / "last")
    assert (again.result.step, second.time_elapsed()) == (8, 480)
    resumed = fit(tmp_path / "cut", clock, Timer("00:02:00:00"), ckpt_path=tmp_path / "cut" / "last")
    whole = fit(tmp_path / "whole", clock, Timer())
    ends = [{n: a for n, a in one.arrays.items() if not n.startswith("step.")} for one in (resumed, whole)]
    assert differing(*ends) == []


def test_max_time_is_a_timer_of_the_trainer(clock):
    trainer = hx.Trainer(max_steps=STEPS, chunk=4, max_time={"minutes": 3}, callbacks=[Ticks(clock)], **QUIET)
    assert trainer.fit(PlainClassifier(), data_of(SLICES)).step == 3


def test_the_stages_have_times_of_their_own(clock):
    class Slow(hx.Callback):
        def on_validation_start(self, event):
            clock.secs += 7

        def on_test_start(self, event):
            clock.secs += 3

    timer = Timer()
    trainer = hx.Trainer(max_steps=2, chunk=4, callbacks=[timer, Slow()], **QUIET)
    trainer.fit(PlainClassifier(), data_of(SLICES))
    trainer.test(verbose=False)
    times = [timer.time_elapsed(stage) for stage in ("train", "validate", "test", "predict")]
    np.testing.assert_allclose(times, [7, 7, 3, 0])
    with pytest.raises(ArgumentError, match=r"Timer\.time_elapsed\(stage="):
        timer.time_elapsed("fit")
