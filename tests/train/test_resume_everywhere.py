"""Promise 4 in its long form: a run killed at every step, and at a hundred random moments, ends with the same bits.

Some heads of the run stop early and get their best weights back, one is lost to a NaN among its rows, others go on.
Weights, metrics, ledger and events are those of the unbroken run, and what the parts of a broken run logged is together
what it logged.
"""

import csv
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from heads_under_test import NUM_ROWS, Classifier, data_of, differing, named_arrays, rows_of, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hydrax as hx
from hydrax.callbacks import CSVLogger, EarlyStopping, ModelCheckpoint, TensorBoardLogger
from hydrax.engine import Engine

pytestmark = pytest.mark.slow

HEADS, STEPS = 6, 60
# No two heads share a row, so that one NaN is met by one head; the longest has 2 batches of 8.
OWN_ROWS = np.split(np.random.default_rng(0).permutation(NUM_ROWS), [3, 10, 18, 25, 28])
SLICES = hx.Slices.from_indices(OWN_ROWS, NUM_ROWS)
RATES = hx.PerHead(np.geomspace(3e-4, 5e-2, HEADS))
# So many steps that some head still learns at the end of each.
SETTINGS = {"plain": {"max_steps": STEPS}, "accumulated": {"max_steps": 40, "accumulate_grad_batches": 2}}
KILLS = [(step, settings) for settings, how in SETTINGS.items() for step in range(1, how["max_steps"])]


# One head a chunk, so that heads that have stopped are moved out of the way.
HOW = {
    "max_steps": STEPS,
    "val_check_interval": 2,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 1,
    "steps_per_call": 1,
    "chunk": 1,
}


class Drifting(Classifier):
    """Logs the step at validation, too: a value that changes although its model does not."""

    def validation_step(self, model, batch, ctx):
        self.log("val_at", ctx.step.astype(np.float32))
        return super().validation_step(model, batch, ctx)


class Killed(BaseException):
    """Not an Exception: nothing catches it on its way out."""


class SaveAndDie(hx.Callback):
    """Saves at a step, in one hook, and dies there."""

    def __init__(self, folder, step, hook="on_train_steps_end"):
        self.folder, self.step, self.hook = folder, step, hook

    @property
    def is_checkpoint(self):
        return True

    def next_due(self, step):
        return self.step if step < self.step else None

    def on_train_steps_end(self, event):
        self.die(event, "on_train_steps_end")

    def on_validation_start(self, event):
        self.die(event, "on_validation_start")

    def on_validation_end(self, event):
        self.die(event, "on_validation_end")

    def die(self, event, hook):
        if (event.step, hook) == (self.step, self.hook):
            event.trainer.save_checkpoint(self.folder)
            raise Killed


class Logged(hx.Callback):
    """Which steps of training and which other events were heard of, over all parts of a run."""

    def __init__(self):
        self.steps, self.events = [], []

    def on_train_start(self, event):
        (event.trainer.log_dir / f"began_{event.step}").mkdir()  # there or not there, unlike what a file holds

    def on_train_steps_end(self, event):
        self.steps += event.steps.tolist()

    def on_validation_end(self, event):
        self.note("validation", event)

    def on_train_epoch_end(self, event):
        self.note("epoch", event)

    def note(self, hook, event):
        values = b"".join(event.metrics[name].tobytes() for name in sorted(event.metrics)) + event.live.tobytes()
        self.events.append(f"{hook} {event.step} {hashlib.sha256(values).hexdigest()[:16]}")

    def state_dict(self):
        return {"steps": self.steps, "events": self.events}

    def load_state_dict(self, state):
        self.steps, self.events = list(state["steps"]), list(state["events"])


def fit(root, *callbacks, ckpt_path=None, **how):
    stopping, logged = EarlyStopping("val_loss", patience=2, restore_best_weights=True), Logged()
    rows = rows_of("norm_dropout")
    rows["x"][OWN_ROWS[3][2], 0] = np.nan
    fitted = run(
        Drifting("norm_dropout", RATES),
        data_of(SLICES, "norm_dropout", rows, check_finite="off"),
        ckpt_path,
        [stopping, CSVLogger(), TensorBoardLogger(figures=False, max_head_runs=1), logged, *callbacks],
        **{**HOW, **how, "default_root_dir": root},
    )
    arrays = {name: array for name, array in fitted.arrays.items() if not name.startswith("step.")}
    arrays |= {f"kept.{n}": a for n, a in named_arrays(fitted.trainer.snapshots_of(stopping)).items()}
    arrays |= {"best": stopping.best_scores, "waited": stopping.wait_counts, "steps": np.array(logged.steps)}
    arrays |= {"events": np.array(logged.events), "ledger": np.array([json.dumps(row) for row in fitted.result.ledger])}
    return fitted, arrays | {"lost": np.array(sorted(fitted.trainer.quarantined))}


def logs_of(root):
    """What stands in the logs of all parts of a run: of each part when it began, its table, and its points."""
    parts = []
    for folder in sorted((root / "hydrax_logs").iterdir(), key=lambda path: int(path.name.removeprefix("version_"))):
        for began in folder.glob("began_*"):  # it may have been killed before
            parts.append((int(began.name.removeprefix("began_")), table_of(folder), points_of(folder)))
    return parts


def table_of(folder):
    """CSVLogger's values by step, head and metric; each is there once."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [((int(row["step"]), int(row["head"]), row["metric"]), row["value"]) for row in csv.DictReader(file)]
    table = dict(rows)
    assert len(table) == len(rows)
    return table


def points_of(folder):
    """TensorBoardLogger's scalars of metrics by step, tag and run; each is there once."""
    points = {}
    for events in sorted({path.parent for path in folder.rglob("*tfevents*")}):
        read = EventAccumulator(str(events), {"scalars": 0}).Reload()
        for tag in (tag for tag in read.Tags()["scalars"] if not tag.startswith("run/")):
            found = {(point.step, tag, events.name * (events != folder)): point.value for point in read.Scalars(tag)}
            assert len(found) == len(read.Scalars(tag))
            points |= found
    return points


def together(parts, which):
    """One log of all parts: of each what it logged before the next one began, or at that very step."""
    ends = [*(part[0] for part in parts[1:]), STEPS]
    merged = {}
    for part, end in zip(parts, ends, strict=True):
        merged |= {key: value for key, value in part[which].items() if key[0] <= end}
    return merged


TABLE, POINTS = 1, 2


def check_logs(root, settings="plain"):
    """The parts of a run logged what the unbroken run did, and nothing twice."""
    parts = logs_of(root)
    for which in (TABLE, POINTS):
        assert sum(len(part[which]) for part in parts) == len(together(parts, which))
        assert together(parts, which) == together(unbroken(settings)[2], which)


@functools.cache
def unbroken(settings="plain"):
    with tempfile.TemporaryDirectory() as root:
        fitted, arrays = fit(root, **SETTINGS[settings])
        return fitted, arrays, logs_of(Path(root))


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_run_has_heads_of_every_fate(settings):
    fitted, arrays, logs = unbroken(settings)
    assert fitted.result.step == SETTINGS[settings]["max_steps"]
    assert {row["status"] for row in fitted.result.ledger} == {"ok", "stopped", "quarantined"}
    assert arrays["steps"].tolist() == list(range(1, fitted.result.step + 1))
    assert {step for step, _, metric in logs[0][TABLE] if metric == "train_loss"} == set(arrays["steps"].tolist())
    assert {step for step, tag, _ in logs[0][POINTS] if tag == "metrics/train_loss"} == set(arrays["steps"].tolist())


@pytest.mark.parametrize(("step", "settings"), KILLS)
def test_a_run_killed_at_any_step_ends_with_the_same_bits_and_logs(tmp_path, step, settings):
    with pytest.raises(Killed):
        fit(tmp_path, SaveAndDie(tmp_path / "saved", step), **SETTINGS[settings])
    resumed = fit(tmp_path, ckpt_path=tmp_path / "saved", **SETTINGS[settings])[1]
    assert differing(resumed, unbroken(settings)[1]) == []
    check_logs(tmp_path, settings)


@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_end"])
@pytest.mark.parametrize("step", range(2, STEPS, 2))
def test_a_run_killed_before_or_after_any_validation_ends_with_the_same_bits_and_logs(tmp_path, step, hook):
    with pytest.raises(Killed):
        fit(tmp_path, SaveAndDie(tmp_path / "saved", step, hook))
    assert differing(fit(tmp_path, ckpt_path=tmp_path / "saved")[1], unbroken()[1]) == []
    check_logs(tmp_path)


@pytest.mark.parametrize("step", range(2, STEPS, 8))
def test_a_run_killed_inside_a_validation_ends_with_the_same_bits_and_logs(tmp_path, monkeypatch, step):
    real = Engine.evaluate

    def evaluate(engine, stage, accumulators, heads, rows, at, *others):
        if at == step:
            raise Killed
        return real(engine, stage, accumulators, heads, rows, at, *others)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Engine, "evaluate", evaluate)
        fit(tmp_path, ModelCheckpoint(every_n_train_steps=1))
    assert differing(fit(tmp_path, ModelCheckpoint(), ckpt_path="last")[1], unbroken()[1]) == []
    check_logs(tmp_path)


def fit_as_a_process(root):
    """Goes on where the process before it was killed; writes what it ends with."""
    _, arrays = fit(root, ModelCheckpoint(every_n_train_steps=1), ckpt_path="auto")
    np.savez(Path(root) / "end.npz", **arrays)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("number", "status", "times"), [(signal.SIGKILL, -9, 100), (signal.SIGTERM, 143, 20)])
def test_a_run_killed_at_random_moments_ends_with_the_same_bits_and_logs(tmp_path, number, status, times):
    script = f"import test_resume_everywhere as t; t.fit_as_a_process({str(tmp_path / 'run')!r})"
    paths = [str(Path(hx.__file__).parents[1]), *map(str, Path(__file__).parents[:2])]
    kept = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    env = {**os.environ, **kept, "PYTHONPATH": os.pathsep.join(paths)}
    rng, kills, ends, logs, lacking = np.random.default_rng(0), 0, [], [], 0
    points = together(unbroken()[2], POINTS)
    while kills < times or not ends:
        with subprocess.Popen([sys.executable, "-c", script], env=env, cwd=tmp_path, stderr=subprocess.PIPE) as process:
            time.sleep(rng.uniform(1, 12))
            process.send_signal(number)
            process.wait()
        kills += process.returncode == status
        if process.returncode == 0:
            with np.load(tmp_path / "run" / "end.npz") as end:
                ends.append({name: end[name] for name in end.files})
            parts = logs_of(tmp_path / "run")
            logs.append(together(parts, TABLE))
            found = together(parts, POINTS)
            assert found.items() <= points.items()
            lacking += len(points) - len(found)
            shutil.rmtree(tmp_path / "run")
    print(f"{kills} kills, {len(ends)} runs to their ends, {lacking} of {len(ends) * len(points)} points lacking")
    assert [differing(end, unbroken()[1]) for end in ends] == [[]] * len(ends)
    assert logs == [together(unbroken()[2], TABLE)] * len(ends)
