"""The profiler: parts that add up, and a trace of one superstep that can be read."""

import gzip
import json
import logging
import time

import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of

import hydrax as hx
from hydrax.loop.timing import Profiler

SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1)


def test_each_part_has_its_seconds_and_calls_and_the_rest_is_other(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    profiler = Profiler()

    def spend(part, secs):
        with profiler.measure(part):
            now[0] += secs

    spend("superstep", 2.0)
    spend("validation", 1.0)
    spend("superstep", 4.0)
    now[0] += 3.0
    assert [line.split() for line in profiler.table().splitlines()] == [
        ["part", "seconds", "share", "calls", "ms", "a", "call"],
        ["superstep", "6.00", "60.0%", "2", "3000.000"],
        ["validation", "1.00", "10.0%", "1", "1000.000"],
        ["other", "3.00", "30.0%", "-", "-"],
        ["all", "10.00"],
    ]


def fit(folder, profiler):
    how = {**QUIET, "default_root_dir": folder, "log_every_n_steps": 2}
    hx.Trainer(max_steps=12, profiler=profiler, **how).fit(PlainClassifier(), data_of(SLICES))


def test_simple_says_at_the_end_where_the_time_went(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hydrax"):
        fit(tmp_path, "simple")
    (text,) = [record.message for record in caplog.records if record.message.startswith("Where the time went:")]
    for part in ("plan and compile", "wait for rows", "superstep", "wait for metrics", "validation", "callbacks, "):
        assert part in text
    assert list(tmp_path.rglob("*.gz")) == []


def test_jax_writes_a_trace_of_a_superstep(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hydrax"):
        fit(tmp_path, "jax")
    assert "A trace of one superstep is in" in caplog.text
    (path,) = tmp_path.rglob("*.trace.json.gz")
    assert "profile" in path.parts
    assert json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def test_nothing_is_said_unless_it_was_asked_for(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hydrax"):
        fit(tmp_path, None)
    assert "Where the time went" not in caplog.text


def test_an_error_of_the_fit_ends_the_trace(tmp_path):
    class Raises(hx.Callback):
        def next_due(self, step):
            return step + 1

        def on_train_steps_end(self, event):
            if event.step == 3:
                raise RuntimeError

    trainer = hx.Trainer(max_steps=12, profiler="jax", callbacks=[Raises()], default_root_dir=tmp_path, **QUIET)
    with pytest.raises(hx.CallbackError):
        trainer.fit(PlainClassifier(), data_of(SLICES))
    fit(tmp_path, "jax")  # another one can be started
