"""TensorBoard's event files are written by a thread that survives every error of the disk."""

import os
import shutil
import threading
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX.proto.summary_pb2 import Summary

from hydrax.loggers import background, event_files
from hydrax.loggers.event_files import EventFiles


def number(value: float) -> dict[str, Summary]:
    return {"": Summary(value=[Summary.Value(tag="number", simple_value=value)])}


def points(folder, tag="number"):
    read = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    return [(point.step, point.value) for point in read.Scalars(tag)]


def until(condition, secs=20):
    end = time.monotonic() + secs
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


@pytest.fixture
def troubles():
    return []


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(event_files, "FLUSH_SECS", 0.01)
    monkeypatch.setattr(event_files, "RETRY_SECS", 0.05)


def test_a_log_is_written_into_each_of_its_runs(tmp_path, troubles):
    files = EventFiles(tmp_path, troubles.append)
    for step in (1, 2):
        files.add(number(step) | {"head_7": number(10 * step)[""]}, step)
    files.close()
    assert points(tmp_path) == [(1, 1.0), (2, 2.0)]
    assert points(tmp_path / "head_7") == [(1, 10.0), (2, 20.0)]
    assert (troubles, files.num_dropped) == ([], 0)


def test_nothing_is_written_where_nothing_was_logged(tmp_path, troubles):
    EventFiles(tmp_path / "run", troubles.append).close()
    assert list(tmp_path.iterdir()) == []


def test_what_was_logged_is_on_disk_soon_and_not_at_the_end_only(tmp_path, troubles, soon):
    files = EventFiles(tmp_path, troubles.append)
    files.add(number(1), 1)
    until(lambda: list(tmp_path.iterdir()))
    files.add(number(2), 2)
    until(lambda: points(tmp_path) == [(1, 1.0), (2, 2.0)])
    files.close()


# /dev/full can be opened and refuses every write, as a full disk does.
def test_a_full_disk_drops_and_counts_logs_until_it_takes_them_again(tmp_path, troubles, soon, monkeypatch):
    real, full = open, threading.Event()
    full.set()
    monkeypatch.setattr(
        "tensorboardX.record_writer.open_file", lambda path: real("/dev/full" if full.is_set() else path, "wb")
    )
    monkeypatch.setattr("hydrax.loggers.event_files.Path.exists", lambda path: True)
    files = EventFiles(tmp_path, troubles.append)
    for step in range(10):
        files.add(number(step), step)
    until(lambda: files.num_dropped == 10)
    assert "No space left" in troubles[0]
    full.clear()
    until(lambda: time.monotonic() > files._retry_at)
    files.add(number(10), 10)
    files.close()
    assert points(tmp_path) == [(10, 10.0)]
    assert files.num_dropped == 10


def test_a_folder_that_vanishes_is_said_and_made_again(tmp_path, troubles, soon):
    files = EventFiles(tmp_path / "run", troubles.append)
    files.add(number(1), 1)
    until(lambda: (tmp_path / "run").is_dir() and not files._unflushed)
    shutil.rmtree(tmp_path / "run")
    files.add(number(2), 2)
    until(lambda: files.num_dropped == 1)
    until(lambda: time.monotonic() > files._retry_at)
    files.add(number(3), 3)
    files.close()
    assert points(tmp_path / "run") == [(3, 3.0)]
    assert "is gone" in troubles[0]


def test_a_later_file_of_a_resumed_run_purges_nothing_more(tmp_path, troubles, soon):
    first = EventFiles(tmp_path, troubles.append)
    [first.add(number(step), step) for step in (1, 2, 3)]
    first.close()
    again = EventFiles(tmp_path, troubles.append, purge_step=3)
    again.add(number(30), 3)
    until(lambda: again._files and not again._unflushed)
    os.remove(max(tmp_path.iterdir(), key=lambda path: path.name))
    again.add(number(40), 4)
    until(lambda: again.num_dropped == 1)
    until(lambda: time.monotonic() > again._retry_at)
    again.add(number(50), 5)
    again.close()
    # The deleted file is the one that held the purge.
    assert points(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0), (5, 50.0)]


def test_a_disk_that_lags_too_far_behind_is_not_waited_for(tmp_path, troubles, monkeypatch):
    monkeypatch.setattr(event_files, "MAX_WAITING", 3)
    may_write = threading.Event()
    monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.write", lambda writer, record: may_write.wait(30))
    files = EventFiles(tmp_path, troubles.append)
    start = time.monotonic()
    [files.add(number(step), step) for step in range(50)]
    assert time.monotonic() - start < 10
    may_write.set()
    files.close()
    assert 40 < files.num_dropped <= 47
    assert troubles[0] == "a backlog of 3 logs"


def test_a_disk_that_never_answers_does_not_hold_the_end_up(tmp_path, troubles, monkeypatch):
    monkeypatch.setattr(background, "CLOSE_SECS", 0.1)
    may_write = threading.Event()
    monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.write", lambda writer, record: may_write.wait(30))
    files = EventFiles(tmp_path, troubles.append)
    files.add(number(1), 1)
    files.close()
    assert "no answer within 0.1 s" in troubles[0]
    may_write.set()
    files._thread._thread.join(30)
