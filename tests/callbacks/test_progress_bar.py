"""ProgressBar: what it shows, how often, and that steps in between cost next to nothing."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from hydrax import Event
from hydrax.callbacks import ProgressBar, progress_bar
from hydrax.errors import ArgumentError

LIVE = np.array([True, True, False, True])


@dataclass
class FakeTrainer:
    """The part of a TrainerView that the bar reads."""

    estimated_stepping_batches: int = 1000
    progress_bar_metrics: Mapping[str, np.ndarray] = field(default_factory=dict)


class Clock:
    """Replaces the module `time`; moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_bar, "time", clock)
    return clock


@pytest.fixture
def stream(monkeypatch, clock):
    """A stderr that is not a terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(progress_bar, "sys", SimpleNamespace(stderr=stream))
    return stream


@pytest.fixture
def terminal(monkeypatch, clock):
    """A stderr that is a terminal."""
    stream = Terminal()
    monkeypatch.setattr(progress_bar, "sys", SimpleNamespace(stderr=stream))
    return stream


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def refreshes(terminal: Terminal) -> list[str]:
    return [drawn for drawn in terminal.getvalue().split("\r") if drawn.strip()]


def event(step: int, trainer: FakeTrainer | None = None, live: np.ndarray = LIVE) -> Event:
    return Event(trainer or FakeTrainer(), "fit", step, 0, live=live)


def run(
    bar: ProgressBar, clock: Clock, trainer: FakeTrainer, steps: range, secs_per_event: float, start: int = 0
) -> None:
    bar.on_train_start(event(start, trainer))
    for step in steps:
        clock.now += secs_per_event
        bar.on_train_steps_end(event(step, trainer))
    bar.on_train_end(event(steps[-1], trainer))


def shown(stream, clock, metrics: Mapping[str, np.ndarray]) -> str:
    run(ProgressBar(), clock, FakeTrainer(progress_bar_metrics=metrics), range(10, 20, 10), 1.0)
    return lines(stream)[-1]


# Which end is the worse one depends on the metric (a loss, an F1 score, an R2), so both are shown.
def test_a_metric_is_shown_by_its_median_and_both_ends(stream, clock):
    assert "train_loss=0.3 (0.1 to 0.9)" in shown(stream, clock, {"train_loss": np.float32([0.1, 0.2, 0.9, 0.4])})


def test_nan_heads_are_counted_apart(stream, clock):
    assert "loss=2 (1 to 3) nan=1" in shown(stream, clock, {"loss": np.float32([1, np.nan, 3, 2])})


def test_a_metric_that_is_nan_in_all_heads_is_shown_as_a_count_alone(stream, clock):
    assert "loss nan=4, live" in shown(stream, clock, {"loss": np.full(4, np.nan, np.float32)})


def test_infinite_heads_are_shown_as_they_are(stream, clock):
    assert "loss=nan (-inf to inf)" in shown(stream, clock, {"loss": np.float32([-np.inf, np.inf])})


def test_live_heads_are_shown_out_of_all(stream, clock):
    assert "live=3/4" in shown(stream, clock, {})


def test_the_speed_is_steps_per_second_times_live_heads_without_the_time_to_compile(stream, clock):
    bar, trainer = ProgressBar(), FakeTrainer()
    bar.on_train_start(event(0, trainer))
    clock.now = 60.0  # compiles
    bar.on_train_steps_end(event(50, trainer))
    clock.now = 70.0  # 500 steps of 3 live heads in 10 s
    bar.on_train_steps_end(event(550, trainer))
    assert "150 head-steps/s" in lines(stream)[-1]


def test_lines_carry_step_total_and_time_left(stream, clock):
    run(ProgressBar(), clock, FakeTrainer(), range(250, 251), 10.0)
    assert lines(stream)[-1].startswith("fit:  25% 250/1000 [00:10<00:30, 25.00step/s")


def test_a_resumed_fit_counts_its_speed_from_where_it_resumed(stream, clock):
    run(ProgressBar(), clock, FakeTrainer(), range(500, 501), 10.0, start=400)
    assert lines(stream)[0].startswith("fit:  40% 400/1000")
    assert lines(stream)[-1].startswith("fit:  50% 500/1000 [00:10<00:50, 10.00step/s")


def test_there_is_no_carriage_return_where_there_is_no_terminal(stream, clock):
    run(ProgressBar(), clock, FakeTrainer(), range(1, 100), 1.0)
    assert "\r" not in stream.getvalue()


def test_a_line_comes_at_most_every_5_seconds_besides_the_first_and_the_last(stream, clock):
    run(ProgressBar(), clock, FakeTrainer(), range(1, 125), 0.125)  # 15.5 s
    assert len(lines(stream)) == 1 + 3 + 1


@pytest.mark.parametrize(("refresh_per_second", "expected"), [(10, 10), (4, 4), (0.5, 0)])
def test_the_bar_is_drawn_at_most_as_often_as_asked_for(terminal, clock, refresh_per_second, expected):
    bar, trainer = ProgressBar(refresh_per_second), FakeTrainer()
    bar.on_train_start(event(0, trainer))
    before = len(refreshes(terminal))
    for step in range(1, 1025):  # a second
        clock.now += 2**-10
        bar.on_train_steps_end(event(step, trainer))
    assert expected - 1 <= len(refreshes(terminal)) - before <= expected
    bar.on_train_end(event(1024, trainer))


def test_the_bar_shows_the_last_step_and_ends_its_line(terminal, clock):
    run(ProgressBar(), clock, FakeTrainer(), range(100, 1001, 100), 0.01)
    assert "1000/1000" in refreshes(terminal)[-1]
    assert terminal.getvalue().endswith("\n")


def test_validation_brings_its_metrics_to_the_bar(terminal, clock):
    bar, trainer = ProgressBar(), FakeTrainer()
    bar.on_train_start(event(0, trainer))
    trainer.progress_bar_metrics = {"val_loss": np.float32([1, 2, 3, 4])}
    clock.now += 1.0
    bar.on_validation_end(event(0, trainer))
    assert "val_loss=2.5 (1 to 4)" in refreshes(terminal)[-1]
    bar.on_train_end(event(0, trainer))


def test_between_two_refreshes_nothing_of_the_trainer_is_read(stream, clock):
    bar = ProgressBar()
    bar.on_train_start(event(0))
    unreadable = SimpleNamespace()
    clock.now = 1.0
    bar.on_train_steps_end(Event(unreadable, "fit", 1, 0))
    bar.on_validation_end(Event(unreadable, "fit", 1, 0))
    assert len(lines(stream)) == 1


@pytest.mark.parametrize("hook", ["on_exception", "teardown"])
def test_a_fit_that_breaks_off_leaves_the_terminal_on_a_new_line(terminal, clock, hook):
    bar = ProgressBar()
    bar.on_train_start(event(0))
    getattr(bar, hook)(event(0))
    assert terminal.getvalue().endswith("\n")


@pytest.mark.parametrize(
    "hook", ["on_train_steps_end", "on_validation_end", "on_train_end", "on_exception", "teardown"]
)
def test_without_a_fit_nothing_is_written(stream, clock, hook):
    getattr(ProgressBar(), hook)(event(7))
    assert lines(stream) == []


def test_a_closed_stderr_does_not_end_the_fit(stream, clock):
    bar = ProgressBar()
    bar.on_train_start(event(0))
    stream.close()
    clock.now = 10.0
    bar.on_train_steps_end(event(1))
    bar.on_train_end(event(1))


@pytest.mark.parametrize("refresh_per_second", [0, -1.0, 10.5, True, "fast", float("nan")])
def test_a_refresh_rate_out_of_its_range_is_refused(refresh_per_second):
    with pytest.raises(ArgumentError, match=r"Got .*, expected 0 < refresh_per_second <= 10\. Fix: "):
        ProgressBar(refresh_per_second)


def test_a_notebook_has_its_own_bar_though_its_stderr_is_no_terminal(stream, clock, monkeypatch):
    shown = []

    class Widget(progress_bar.tqdm_asyncio):
        """The class that tqdm.auto exports in a notebook with ipywidgets, which draws by `display`."""

        def display(self, *args, **kwargs):
            shown.append((self.n, self.total, self.postfix))

    monkeypatch.setattr(progress_bar, "tqdm", Widget)
    run(ProgressBar(), clock, FakeTrainer(), range(1, 4), 1.0)
    assert shown[-1] == (3, 1000, "live=3/4, 3.00 head-steps/s")
    assert "\n" not in stream.getvalue().strip()


def test_without_a_stderr_nothing_is_shown_and_nothing_fails(monkeypatch, clock):
    monkeypatch.setattr(progress_bar, "sys", SimpleNamespace(stderr=None))
    run(ProgressBar(), clock, FakeTrainer(), range(10, 20, 10), 1.0)
