"""Setting the machine's clock back by an hour during a fit changes nothing that depends on time."""

import time

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hydrax as hx
from hydrax.callbacks import ModelCheckpoint, ProgressBar, TensorBoardLogger

STEPS, SET_BACK, PAUSE_SECS, SAVE_SECS = 24, 8, 0.1, 0.15
SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1)


class SetsBack(hx.Callback):
    """Sets the clock back, and pauses at every fourth step."""

    def __init__(self, patch):
        self.patch, self.saves = patch, []

    def next_due(self, step):
        return (step // 4 + 1) * 4

    def on_train_steps_end(self, event):
        time.sleep(PAUSE_SECS)
        if event.step == SET_BACK:
            real = time.time
            self.patch.setattr(time, "time", lambda: real() - 3600)

    def on_save_checkpoint(self, event):
        self.saves.append(time.monotonic())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hydrax.callbacks.progress_bar.LINE_SECS", PAUSE_SECS)
        clock = SetsBack(patch)
        every = [clock, TensorBoardLogger(figures=False), ProgressBar(), ModelCheckpoint(train_time_interval=SAVE_SECS)]
        root = tmp_path_factory.mktemp("run")
        how = {**QUIET, "max_steps": STEPS, "log_every_n_steps": 4, "default_root_dir": root, "chunk": 4}
        before = time.time(), time.monotonic()
        result = hx.Trainer(callbacks=every, **how).fit(PlainClassifier(), data_of(SLICES))
        secs = time.monotonic() - before[1]
    return clock, result, before[0], secs


def test_the_clock_was_set_back_and_the_fit_came_to_its_end(fitted):
    _, result, _, secs = fitted
    assert result.step == STEPS
    assert 0.5 < secs < 600


def test_saves_by_seconds_go_on_in_their_rhythm(fitted):
    # The pauses take half a second in all: without a monotonic clock the next save would come an hour later.
    gaps = np.diff(fitted[0].saves)
    assert len(gaps) >= 2
    assert gaps[:-1].min() >= SAVE_SECS * 0.9
    assert gaps.max() < SAVE_SECS + 5


def test_the_times_in_event_files_go_on(fitted):
    _, result, start, secs = fitted
    times = [point.wall_time for point in EventAccumulator(str(result.log_dir)).Reload().Scalars("metrics/train_loss")]
    assert len(times) == STEPS // 4
    assert np.diff(times).min() > 0
    assert start - 1 < times[0] < times[-1] < start + secs + 1


def test_speeds_stay_true(fitted):
    rates = EventAccumulator(str(fitted[1].log_dir)).Reload().Scalars("run/head_steps_per_sec")
    # Three heads, four steps, a pause or more.
    assert all(0 < rate.value <= 3 * 4 / PAUSE_SECS for rate in rates)
    assert rates


def test_the_progress_bar_goes_on(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("hydrax.callbacks.progress_bar.LINE_SECS", PAUSE_SECS)
    how = {**QUIET, "max_steps": STEPS, "default_root_dir": tmp_path, "chunk": 4}
    hx.Trainer(callbacks=[SetsBack(monkeypatch), ProgressBar()], **how).fit(PlainClassifier(), data_of(SLICES))
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("fit")]
    assert len(lines) >= STEPS // 4
    assert not any("-1:" in line or "-3600" in line for line in lines)
    assert f"{STEPS}/{STEPS}" in lines[-1]
