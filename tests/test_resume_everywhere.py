"""Promise 4 in its long form: a run killed at every step, and at a hundred random moments, ends with the same bits.

Some heads of the run stop early, one is lost to a NaN among its rows, others go on.
"""

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from heads_under_test import NUM_ROWS, Classifier, data_of, differing, named_arrays, rows_of, run

import hydrax as hx
from hydrax.callbacks import EarlyStopping, ModelCheckpoint

pytestmark = pytest.mark.slow

HEADS, STEPS = 6, 60
# No two heads share a row, so that one NaN is met by one head; the longest has 2 batches of 8.
OWN_ROWS = np.split(np.random.default_rng(0).permutation(NUM_ROWS), [3, 10, 18, 25, 28])
SLICES = hx.Slices.from_indices(OWN_ROWS, NUM_ROWS)
RATES = hx.PerHead(np.geomspace(3e-4, 5e-2, HEADS))
SETTINGS = {"plain": {}, "accumulated": {"accumulate_grad_batches": 2}}


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

    def on_validation_end(self, event):
        self.die(event, "on_validation_end")

    def die(self, event, hook):
        if (event.step, hook) == (self.step, self.hook):
            event.trainer.save_checkpoint(self.folder)
            raise Killed


class Logged(hx.Callback):
    """Which steps of training were heard of, over all parts of a run."""

    def __init__(self):
        self.steps = []

    def on_train_steps_end(self, event):
        self.steps += event.steps.tolist()

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = list(state["steps"])


def fit(*callbacks, ckpt_path=None, **how):
    stopping, logged = EarlyStopping("val_loss", patience=2, restore_best_weights=True), Logged()
    rows = rows_of("norm_dropout")
    rows["x"][OWN_ROWS[3][2], 0] = np.nan
    fitted = run(
        Classifier("norm_dropout", RATES),
        data_of(SLICES, "norm_dropout", rows, check_finite="off"),
        ckpt_path,
        [stopping, logged, *callbacks],
        **{"max_steps": STEPS, "val_check_interval": 2, "check_val_every_n_epoch": None, **how},
    )
    arrays = {name: array for name, array in fitted.arrays.items() if not name.startswith("step.")}
    arrays |= {f"kept.{n}": a for n, a in named_arrays(fitted.trainer.snapshots_of(stopping)).items()}
    arrays |= {"best": stopping.best_scores, "waited": stopping.wait_counts, "steps": np.array(logged.steps)}
    return fitted, arrays | {"lost": np.array(sorted(fitted.trainer.quarantined))}


@functools.cache
def unbroken(settings="plain"):
    return fit(**SETTINGS[settings])


def test_the_run_has_heads_of_every_fate():
    fitted, arrays = unbroken()
    assert {row["status"] for row in fitted.result.ledger} == {"ok", "stopped", "quarantined"}
    assert arrays["steps"].tolist() == list(range(1, fitted.result.step + 1))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_run_killed_at_any_step_ends_with_the_same_bits(tmp_path, step, settings):
    with pytest.raises(Killed):
        fit(SaveAndDie(tmp_path, step), **SETTINGS[settings])
    resumed = fit(ckpt_path=tmp_path, **SETTINGS[settings])[1]
    assert differing(resumed, unbroken(settings)[1]) == []


@pytest.mark.parametrize("step", range(2, STEPS, 2))
def test_a_run_killed_after_any_validation_ends_with_the_same_bits(tmp_path, step):
    with pytest.raises(Killed):
        fit(SaveAndDie(tmp_path, step, "on_validation_end"))
    assert differing(fit(ckpt_path=tmp_path)[1], unbroken()[1]) == []


def fit_as_a_process(root):
    """Goes on where the process before it was killed; writes what it ends with."""
    _, arrays = fit(ModelCheckpoint(every_n_steps=1), ckpt_path="auto", default_root_dir=root)
    np.savez(Path(root) / "end.npz", **arrays)


@pytest.mark.timeout(3600)
def test_a_run_killed_at_a_hundred_random_moments_ends_with_the_same_bits(tmp_path):
    script = f"import test_resume_everywhere as t; t.fit_as_a_process({str(tmp_path / 'run')!r})"
    paths = [str(Path(hx.__file__).parents[1]), str(Path(__file__).parent)]
    kept = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    env = {**os.environ, **kept, "PYTHONPATH": os.pathsep.join(paths)}
    rng, kills, ends = np.random.default_rng(0), 0, []
    while kills < 100:
        with subprocess.Popen([sys.executable, "-c", script], env=env, cwd=tmp_path, stderr=subprocess.PIPE) as process:
            time.sleep(rng.uniform(1, 12))
            process.send_signal(signal.SIGKILL)
            process.wait()
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            with np.load(tmp_path / "run" / "end.npz") as end:
                ends.append({name: end[name] for name in end.files})
            shutil.rmtree(tmp_path / "run")
    assert [differing(end, unbroken()[1]) for end in ends] == [[]] * len(ends) != []
