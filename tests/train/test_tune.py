"""The plan: settled by rules, by timing within a budget, from the disk, or by the run that is gone on with."""

import dataclasses
import json

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, differing, run

import hydrax as hx
from hydrax.engine.memory import Memory
from hydrax.engine.plan import NO_CHOICE, Choice
from hydrax.step.lowering.lowering import Lowering
from hydrax.train import tune
from hydrax.train.fit import FitSpec, PlannedFit, check_fit
from hydrax.train.settings import Settings

# By its rules a GPU starts with all heads in one chunk, and has nothing to time that these tests know of.
pytestmark = pytest.mark.cpu

HEADS = 8
SLICES = hx.Slices.random_subset(np.full(HEADS, 20), NUM_ROWS, seed=1)


def checked(heads=HEADS, **how):
    settings = Settings(**{"max_steps": 10_000, "devices": 1, **how})
    slices = SLICES if heads == HEADS else hx.Slices.full(heads, NUM_ROWS)
    return check_fit(settings, PlainClassifier("mlp", 1e-2), data_of(slices, val=None), {})


class Idle:
    """Stands in for an engine and a feed that nobody runs."""

    def close(self):
        pass


def built(checked, plan):
    """What `FitSpec.place` gives, but nothing is made."""
    return PlannedFit(checked, plan, Idle(), Idle(), Memory(1, 1, 2, 3))


def settle(checked, choice, folder, resumed=False, is_cut=lambda: False):
    return tune.choose_plan(tune.first_plan(checked, choice, folder, resumed=resumed), folder, is_cut)


class Timed:
    """Stands in for `_Trial`: the seconds of a step by chunk, with a clock that goes as fast as it is told."""

    secs = {1: 1.0, 2: 0.9, 4: 0.5, 8: 0.7}
    start_secs = 2.0
    again = {}  # what the second time gives, by chunk

    def __init__(self, checked, plan, planned=None):
        self.planned = planned or built(checked, plan)
        self.step_secs = self.secs[plan.chunk] + (0.2 if plan.lowering == Lowering() else 0)
        Timed.now += self.start_secs
        Timed.tried.append(plan.chunk)

    def measure(self):
        self.step_secs = min(self.step_secs, self.again.get(self.planned.plan.chunk, self.step_secs))

    @property
    def candidate(self):
        return tune.Candidate(self.planned.plan, self.step_secs, self.start_secs)


@pytest.fixture
def timed(monkeypatch):
    Timed.now, Timed.tried, Timed.start_secs = 0.0, [], 0.5
    Timed.secs, Timed.again = {1: 1.0, 2: 0.9, 4: 0.5, 8: 0.7}, {}
    monkeypatch.setattr(tune, "_Trial", Timed)
    monkeypatch.setattr(FitSpec, "place", built)
    monkeypatch.setattr(tune, "_fit_into_memory", lambda planned: planned)
    monkeypatch.setattr(tune.time, "perf_counter", lambda: Timed.now)
    monkeypatch.setattr(FitSpec, "rough_secs", 1e6)
    return Timed


def test_the_fastest_of_the_plans_that_were_timed_is_taken(timed):
    settled = settle(checked(), NO_CHOICE, None)
    assert (settled.plan.chunk, settled.plan.how) == (4, "timed")
    assert {
        one.plan.chunk: one.step_secs for one in settled.candidates if one.plan.lowering != Lowering()
    } == timed.secs


def test_a_plan_that_is_hardly_faster_is_not_taken(timed):
    timed.secs = {1: 1.0, 2: 0.99, 4: 0.98, 8: 0.98}
    assert settle(checked(), NO_CHOICE, None).plan.chunk == 1


def test_a_plan_that_seems_faster_must_be_so_again_beside_the_best(timed):
    timed.again = {1: 0.5}  # the first time of this one was disturbed
    assert settle(checked(), NO_CHOICE, None).plan.chunk == 1


def test_twice_the_width_is_not_tried_where_the_width_lost(timed):
    timed.secs = {1: 1.0, 2: 1.2, 4: 1.5}
    assert settle(checked(), NO_CHOICE, None).plan.chunk == 1
    assert 8 not in timed.tried


def test_timing_ends_with_its_budget_of_a_twentieth_of_the_run(timed):
    # 100 steps of 1 s: 5 s. The first plan took 0.5 s; each other is reckoned at 0.5 + 0.4 + 2 s of steps.
    timed.start_secs = 0.5
    settle(checked(max_steps=100), NO_CHOICE, None)
    assert timed.tried == [1, 4, 8, 2, 4][: len(timed.tried)] and len(timed.tried) > 1
    timed.tried = []
    settle(checked(max_steps=40), NO_CHOICE, None)  # 2 s
    assert timed.tried == [1]


def test_timing_ends_with_its_budget_of_ten_seconds(timed):
    timed.start_secs = 4.0
    settle(checked(max_steps=10**6), NO_CHOICE, None)
    assert timed.tried == [1]


def test_what_the_first_plan_took_to_compile_is_reckoned_for_the_next(timed, monkeypatch):
    def slow(planned):
        Timed.now += 9.9
        return planned

    monkeypatch.setattr(tune, "_fit_into_memory", slow)
    timed.start_secs = 0.0
    settle(checked(max_steps=10**6), NO_CHOICE, None)  # a budget of 10 s, and 9.9 + 0.4 + 2 s for another plan
    assert timed.tried == [1]


def test_a_short_run_is_not_timed_at_all(timed, monkeypatch):
    monkeypatch.setattr(FitSpec, "rough_secs", 5.0)
    assert settle(checked(), NO_CHOICE, None).plan.how == "rules"
    assert timed.tried == []


@pytest.mark.parametrize("how", [{"deterministic": True}, {"chunk": 2, "lowering": "fast"}], ids=str)
def test_what_is_settled_already_is_not_timed(timed, how):
    assert settle(checked(**how), NO_CHOICE, None).plan.how == "rules"
    assert timed.tried == []


def test_a_fit_that_a_signal_cuts_short_looks_for_no_faster_plan_and_keeps_none(timed, tmp_path):
    assert settle(checked(), NO_CHOICE, tmp_path, is_cut=lambda: True).plan.how == "rules"
    assert list(tmp_path.iterdir()) == []


def test_the_plan_of_a_resumed_run_is_kept_and_not_timed(timed):
    settled = settle(checked(), Choice(3, Lowering()), None, resumed=True)
    assert (settled.plan.chunk, settled.plan.lowering, settled.plan.how) == (3, Lowering(), "resumed")
    assert timed.tried == []


def test_a_dispatch_takes_no_longer_than_a_second_unless_the_user_says_so(timed):
    timed.secs = dict.fromkeys((1, 2, 4, 8), 0.4)
    assert settle(checked(), NO_CHOICE, None).plan.steps_per_call == 2
    assert settle(checked(steps_per_call=3), NO_CHOICE, None).plan.steps_per_call == 3  # an epoch


@pytest.mark.parametrize(
    ("secs", "tried", "chunk"),
    [
        ({16: 0.5, 128: 0.2, 512: 0.3}, [16, 128, 512], 128),
        ({16: 0.5, 128: 0.6, 32: 0.4}, [16, 128, 32], 32),
        ({16: 1.2, 4: 0.9, 8: 0.8, 2: 0.95}, [16, 4, 8, 2], 8),
        ({16: 1.2, 4: 1.1, 2: 0.9}, [16, 4, 2], 2),
    ],
)
def test_widths_are_tried_where_they_promise_most(timed, secs, tried, chunk):
    timed.secs, timed.start_secs = {1: 1.0, **secs}, 0.0
    assert settle(checked(heads=600, lowering="fast"), NO_CHOICE, None).plan.chunk == chunk
    assert list(dict.fromkeys(timed.tried)) == [1, *tried]


# ---- on disk


def test_a_chosen_plan_is_read_back_and_not_timed_again(timed, tmp_path):
    settle(checked(), NO_CHOICE, tmp_path)
    assert len([*tmp_path.iterdir()]) == 1
    timed.tried = []
    settled = settle(checked(), NO_CHOICE, tmp_path)
    assert (settled.plan.chunk, settled.plan.how, timed.tried) == (4, "cached", [])


@pytest.mark.parametrize(
    "how", [{"lowering": "plain"}, {"gradient_clip_val": 1.0}, {"precision": "bf16-mixed"}], ids=str
)
def test_another_step_has_another_plan(timed, tmp_path, how):
    settle(checked(), NO_CHOICE, tmp_path)
    assert settle(checked(**how), NO_CHOICE, tmp_path).plan.how == "timed"


def test_another_machine_has_another_plan(timed, tmp_path, monkeypatch):
    settle(checked(), NO_CHOICE, tmp_path)
    monkeypatch.setattr(tune, "speed_environment", lambda device: {"processor": "another"})
    assert settle(checked(), NO_CHOICE, tmp_path).plan.how == "timed"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"chunk": 0, "lowering": {}}', '{"chunk": "x", "lowering": {}}', '{"chunk": 4}']
    + ['{"chunk": 4, "lowering": {"unknown": true}}', '{"chunk": 4, "lowering": 7}'],
)
def test_a_damaged_file_is_no_plan(timed, tmp_path, text):
    settle(checked(), NO_CHOICE, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    assert settle(checked(), NO_CHOICE, tmp_path).plan.how == "timed"
    assert json.loads(file.read_text())["chunk"] == 4


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(timed, tmp_path):
    (tmp_path / "file").write_text("")
    assert settle(checked(), NO_CHOICE, tmp_path / "file" / "plans").plan.chunk == 4


# ---- for real


def test_plans_are_timed_on_the_users_own_step_and_the_fit_goes_by_the_best(monkeypatch):
    monkeypatch.setattr(FitSpec, "rough_secs", 1e6)
    monkeypatch.setattr(tune, "_MAX_SECS", 1e6)  # a machine with other work compiles slowly
    monkeypatch.setattr(tune, "_MAX_SHARE", 1e6)
    monkeypatch.setattr(tune, "plan_folder", lambda: None)
    how = {"lowering": "fast", "max_steps": 12}
    found = run(PlainClassifier("mlp", 1e-2), data_of(SLICES[:4]), chunk="auto", **how)
    assert {one.plan.chunk for one in found.trainer.plan().candidates} >= {1, 4}
    by_hand = run(PlainClassifier("mlp", 1e-2), data_of(SLICES[:4]), chunk=found.result.plan.chunk, **how)
    assert differing(found.arrays, by_hand.arrays) == []


def test_a_checkpoint_keeps_the_plan_and_a_resume_takes_it(tmp_path):
    class Saves(hx.Callback):
        def on_fit_end(self, event):
            event.trainer.save_checkpoint(tmp_path)

    saved = run(PlainClassifier("mlp", 1e-2), data_of(SLICES), callbacks=[Saves()], chunk=4, max_steps=5)
    resumed = run(PlainClassifier("mlp", 1e-2), data_of(SLICES), tmp_path, chunk="auto", max_steps=9)
    assert (resumed.result.plan.chunk, resumed.result.plan.how) == (4, "resumed")
    assert resumed.result.plan.lowering == saved.result.plan.lowering


def test_the_report_prints_what_was_tried_and_what_it_takes():
    report = run(PlainClassifier("mlp", 1e-2), data_of(SLICES), max_steps=12).trainer.plan()
    tried = dataclasses.replace(report, candidates=(tune.Candidate(report.plan, 0.0123, 1.0),), step_secs=0.01)
    text = str(tried)
    assert "tried: 12.3 ms a step, 1.0 s to start: chunk=" in text
    assert "measured: 10 ms a step" in text
    assert tried.share_of_limit == pytest.approx(tried.least_secs / 0.01)


def test_there_is_no_plan_before_a_fit():
    with pytest.raises(hx.ArgumentError, match="There is no run"):
        hx.Trainer(max_steps=1).plan()


def test_a_fit_is_planned_without_training_as_it_is_then_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = hx.Trainer(max_steps=12, chunk=2)
    module, data = PlainClassifier("mlp", 1e-2), data_of(SLICES)
    before = trainer.plan(module, data)
    assert list(tmp_path.iterdir()) == []
    assert trainer.global_step == 0
    after = run(module, data, max_steps=12, chunk=2).trainer.plan()
    assert (before.plan, before.memory.state, before.memory.peak) == (
        after.plan,
        after.memory.state,
        after.memory.peak,
    )


def test_a_plan_of_half_a_fit_is_refused():
    with pytest.raises(hx.ArgumentError, match="wrong type: datamodule. Got NoneType"):
        hx.Trainer(max_steps=1).plan(PlainClassifier("mlp", 1e-2))
