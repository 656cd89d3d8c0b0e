"""ThroughputMonitor: rates by hand, on a fake clock."""

import time

import numpy as np
import pytest

import hydrax as hx
from hydrax.callbacks import ThroughputMonitor
from hydrax.errors import ArgumentError


class View:
    slots_per_step = 8

    def __init__(self):
        self.scalars = {}

    def log_scalars(self, values):
        self.scalars |= values


@pytest.fixture
def hear(monkeypatch):
    """Tells the monitor of a superstep that ended at a time, and returns the rates."""
    view = View()

    def hear(monitor, secs, num_steps, live):
        monkeypatch.setattr(time, "monotonic", lambda: secs)
        steps, live = np.arange(num_steps), np.arange(4) < live
        monitor.on_train_steps_end(hx.Event(view, "fit", 0, 0, steps=steps, live=live))
        return [view.scalars.get(f"throughput/{name}_per_sec") for name in ("steps", "head_steps", "slots")]

    return hear


def test_the_first_superstep_which_compiles_does_not_count(hear):
    monitor = ThroughputMonitor()
    assert hear(monitor, 100.0, 50, 4) == [None, None, None]
    assert hear(monitor, 102.0, 10, 4) == [5, 20, 160]


def test_heads_that_stopped_make_no_steps(hear):
    monitor = ThroughputMonitor()
    hear(monitor, 0.0, 1, 4)
    hear(monitor, 1.0, 10, 4)
    assert hear(monitor, 2.0, 10, 2) == [10, 30, 240]


def test_what_is_older_than_the_window_is_forgotten(hear):
    monitor = ThroughputMonitor(window_secs=2.0)
    for second in range(6):
        hear(monitor, float(second), 1, 4)
    assert hear(monitor, 6.0, 21, 4) == [11, 44, 352]  # the steps after second 4: 1 + 21 in 2 s


def test_a_new_fit_starts_anew(hear):
    monitor = ThroughputMonitor()
    hear(monitor, 0.0, 1, 4)
    monitor.on_train_start(None)
    assert hear(monitor, 50.0, 1, 4) == [None, None, None]


@pytest.mark.parametrize("value", [0, -1.0, "1", True, float("nan")])
def test_a_window_that_is_no_time_is_refused(value):
    with pytest.raises(ArgumentError, match="window_secs"):
        ThroughputMonitor(value)
