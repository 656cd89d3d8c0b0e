"""The background writer makes calls in order, never blocks whoever adds one, and counts every drop."""

import threading
import time

import pytest

from hydrax.loggers import background
from hydrax.loggers.background import BackgroundWriter


@pytest.fixture
def troubles():
    return []


def test_calls_are_made_in_order_in_one_other_thread_and_the_last_one_last(troubles):
    made, writer = [], BackgroundWriter("test", 100, troubles.append)
    for number in range(10):
        writer.add(lambda number=number: made.append((number, threading.current_thread().name)))
    writer.close(lambda: made.append(("last", threading.current_thread().name)))
    assert made == [(number, "test") for number in [*range(10), "last"]]
    assert (troubles, writer.num_dropped) == ([], 0)


def test_a_call_that_raises_is_counted_and_reported_and_the_next_one_is_made(troubles):
    made, writer = [], BackgroundWriter("test", 100, troubles.append)
    writer.add(lambda: 1 / 0)
    writer.close(lambda: made.append(1))
    assert (made, writer.num_dropped) == ([1], 1)
    assert troubles == ["ZeroDivisionError('division by zero')"]


def test_calls_that_never_return_are_counted_once_and_do_not_hold_up_the_end(troubles, monkeypatch):
    monkeypatch.setattr(background, "CLOSE_SECS", 0.1)
    began, may_go_on = threading.Event(), threading.Event()
    writer = BackgroundWriter("test", 2, troubles.append)
    writer.add(lambda: began.set() or may_go_on.wait(30))
    assert began.wait(30)
    for _ in range(5):
        writer.add(lambda: None)
    assert (writer.num_dropped, troubles) == (3, ["a backlog of 2 logs"] * 3)
    writer.close(lambda: None)
    assert (writer.num_dropped, troubles[-1]) == (3 + 1 + 2, "no answer within 0.1 s")
    may_go_on.set()


def test_the_idle_call_comes_without_others_and_when_it_is_asked_for(troubles):
    idle = threading.Event()
    writer = BackgroundWriter("test", 2, troubles.append, idle.set, 0.01)
    assert idle.wait(30)
    writer.close(lambda: None)
    idle.clear()
    writer = BackgroundWriter("test", 2, troubles.append, idle.set, 1e6)
    time.sleep(0.02)
    assert not idle.is_set()
    writer.wake()
    assert idle.wait(30)
    writer.close(lambda: None)
