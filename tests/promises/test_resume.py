"""Promise 4, resume: n steps, a kill, a resume and m steps are n + m steps, bit for bit, callbacks included."""

import functools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads_under_test import NUM_ROWS, Classifier, PlainClassifier, data_of, differing, named_arrays, rows_of, run

import hydrax as hx
from hydrax.callbacks import ModelCheckpoint
from hydrax.checkpoint import format

HEADS, STEPS = 6, 14
LENGTHS = [3, 40, 17, 25, 9, 33]  # 5 batches of 8 an epoch
SLICES = hx.Slices.random_subset(LENGTHS, NUM_ROWS, seed=1)
RATES = hx.PerHead(np.linspace(3e-3, 2e-2, HEADS))


class Killed(BaseException):
    """Not an Exception: nothing catches it on its way out."""


class Follower(hx.Callback):
    """A callback with state of every kind: on the host arrays and numbers, in the program a running mean."""

    def __init__(self):
        self.heard, self.best, self.total, self.note = 0, np.full(HEADS, np.inf, np.float32), 0.0, None

    def on_train_steps_end(self, event):
        self.heard += len(event.steps)
        self.total += float(event.metrics["train_loss"].sum(dtype=np.float64))

    def on_train_epoch_end(self, event):
        self.note = f"{self.note or ''} {event.epoch}: {event.metrics['accuracy_epoch'].sum():.6f}"

    def on_validation_end(self, event):
        better = event.metrics["val_loss"] < self.best
        self.best = np.where(better, event.metrics["val_loss"], self.best)
        return hx.Control(snapshot=better)

    def state_dict(self):
        return {"heard": self.heard, "best": self.best, "total": self.total, "note": self.note}

    def load_state_dict(self, state):
        self.heard, self.best, self.total, self.note = (state[key] for key in ("heard", "best", "total", "note"))

    def init(self, head):
        return jax.tree.map(jnp.zeros_like, head)

    def on_step(self, state, info):
        return jax.tree.map(lambda mean, new: 0.9 * mean + 0.1 * new, state, info.trainable)


class StopSome(hx.Callback):
    """Stops head 1 and, later, head 3."""

    def on_validation_end(self, event):
        return hx.Control(stop=np.isin(np.arange(HEADS), [1, 3][: event.step // 4]))


class SaveAndDie(hx.Callback):
    """Saves at a step, in one hook, and dies there as by a kill: no other hook is heard, nothing else is written."""

    def __init__(self, folder, step, hook):
        self.folder, self.step, self.hook = folder, step, hook

    @property
    def is_checkpoint(self):
        return True

    def next_due(self, step):
        return self.step

    def on_train_steps_end(self, event):
        self.die(event, "on_train_steps_end")

    def on_validation_end(self, event):
        self.die(event, "on_validation_end")

    def on_train_epoch_end(self, event):
        self.die(event, "on_train_epoch_end")

    def die(self, event, hook):
        if (event.step, hook) == (self.step, self.hook):
            event.trainer.save_checkpoint(self.folder)
            raise Killed


def fit(*callbacks, ckpt_path=None, slices=SLICES, rates=RATES, seed=0, train=None, module=Classifier, **how):
    """A fit of every kind of state: batch statistics, dropout keys, means over epochs, snapshots, stopped heads."""
    follower = Follower()
    settings = {"max_steps": STEPS, "val_check_interval": 2, "seed": seed, **how}
    data = data_of(slices, "norm_dropout", train)
    fitted = run(module("norm_dropout", rates), data, ckpt_path, [follower, StopSome(), *callbacks], **settings)
    return fitted, follower


def everything(fitted, follower):
    """Every array and number that a run leaves behind; what it logged at each step apart."""
    arrays = {name: array for name, array in fitted.arrays.items() if not name.startswith("step.")}
    kept = fitted.trainer.snapshots_of(follower)
    arrays |= {f"snapshots.{n}": a for n, a in named_arrays(kept).items()}
    arrays |= {f"follower.{n}": a for n, a in named_arrays(fitted.trainer.callback_state(follower)).items()}
    return arrays | {f"host.{name}": np.asarray(value) for name, value in follower.state_dict().items()}


SETTINGS = {"plain": {}, "accumulated": {"accumulate_grad_batches": 2}}


@functools.cache
def uninterrupted(settings="plain"):
    return everything(*fit(**SETTINGS[settings]))


KILLS = [
    pytest.param("plain", 3, "on_train_steps_end", marks=pytest.mark.slow),  # inside an epoch
    ("plain", 4, "on_train_steps_end"),  # before the validation that is due then
    ("plain", 4, "on_validation_end"),
    pytest.param("plain", 5, "on_train_steps_end", marks=pytest.mark.slow),  # before the epoch's end is heard
    ("plain", 10, "on_train_epoch_end"),
    ("accumulated", 5, "on_validation_end"),
    pytest.param("accumulated", 7, "on_train_steps_end", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("settings", "step", "hook"), KILLS)
def test_a_killed_and_resumed_fit_is_the_uninterrupted_one_bit_for_bit(tmp_path, settings, step, hook):
    with pytest.raises(Killed):
        fit(SaveAndDie(tmp_path, step, hook), **SETTINGS[settings])
    resumed = everything(*fit(ckpt_path=tmp_path, **SETTINGS[settings]))
    assert differing(resumed, uninterrupted(settings)) == []


def test_the_fit_that_is_compared_has_state_of_every_kind():
    names = uninterrupted().keys()
    assert {"epoch.accuracy.total", "state.norm.mean", "state.dropout.rngs.count", "opt_state.0.count"} <= names
    assert {
        "snapshots.0.out.bias",
        "follower.out.bias",
        "host.best",
        "host.total",
        "callbacks.Follower.out.bias",
    } <= names
    np.testing.assert_array_equal(uninterrupted()["live"], [True, False, True, False, True, True])
    assert np.isfinite(uninterrupted()["host.best"]).all()


def fit_until_killed(root):
    """Runs in a process of its own, which ends between two saves without a chance to clean up."""
    fit(ModelCheckpoint(every_n_train_steps=4), KillItself(), default_root_dir=root, steps_per_call=1)


class KillItself(hx.Callback):
    def on_train_steps_end(self, event):
        os.kill(os.getpid(), signal.SIGKILL * (event.step == 6))


def test_a_run_killed_from_outside_goes_on_from_its_last_checkpoint(tmp_path):
    script = f"import test_resume; test_resume.fit_until_killed({str(tmp_path)!r})"
    paths = [str(Path(hx.__file__).parents[1]), *map(str, Path(__file__).parents[:2])]
    kept = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    env = {**os.environ, **kept, "PYTHONPATH": os.pathsep.join(paths)}
    died = subprocess.run([sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    resumed, follower = fit(ModelCheckpoint(), ckpt_path="last", default_root_dir=tmp_path)
    assert resumed.arrays["step.train_loss"].shape == (HEADS, STEPS - 4)
    assert differing(everything(resumed, follower), uninterrupted()) == []


def test_last_with_nothing_there_is_an_error(tmp_path):
    with pytest.raises(hx.CheckpointError, match="no checkpoint: ckpt_path='last'.*starts? afresh"):
        fit(ckpt_path="last", default_root_dir=tmp_path)


def test_auto_with_nothing_there_starts_afresh(tmp_path):
    assert differing(everything(*fit(ckpt_path="auto", default_root_dir=tmp_path)), uninterrupted()) == []


class OtherClassifier(Classifier):
    pass


OTHER_ROWS = rows_of("norm_dropout", seed=9)
DATA = rf"{NUM_ROWS} rows of x float32\[6\], y int32\[\]"
REFUSED = {
    "slices": (
        {"slices": SLICES.with_ids(np.arange(HEADS) + 1)},
        r"'\d+ to \d+ rows, .* \([0-9a-f]{16}\)'",
        r"'\d+ to \d+ rows, .* \([0-9a-f]{16}\)'",
    ),
    "seed": ({"seed": 1}, "0", "1"),
    "chunk": ({"chunk": 2}, "4", "2"),
    "num_heads": ({"slices": SLICES[:5], "rates": RATES[:5]}, "6", "5"),
    "data": ({"train": OTHER_ROWS}, rf"'{DATA} \([0-9a-f]{{16}}\)'", rf"'{DATA} \([0-9a-f]{{16}}\)'"),
    "hparams.lr": (
        {"rates": hx.PerHead(RATES.values * 2)},
        r"'PerHead\(\[.*\], heads=6\) \(.*\)'",
        r"'PerHead\(\[.*\], heads=6\) \(.*\)'",
    ),
    "module": ({"module": OtherClassifier}, "'Classifier'", "'OtherClassifier'"),
    "accumulate_grad_batches": ({"accumulate_grad_batches": 2}, "1", "2"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint of step 3 of a fit."""
    folder = tmp_path_factory.mktemp("saved")
    with pytest.raises(Killed):
        fit(SaveAndDie(folder, 3, "on_train_steps_end"))
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_a_checkpoint_of_another_run_is_refused_and_both_values_are_named(saved, name):
    change, there, here = REFUSED[name]
    with pytest.raises(hx.CheckpointError, match=f"{name}. Got {there} there, expected {here} as here"):
        fit(ckpt_path=saved, **change)


def read(step_folder, expected):
    """What becomes of a read of the heads: "refused", "as saved" or "other bits"."""
    try:
        found = format.load_below(step_folder, "heads")
    except hx.CheckpointError:
        return "refused"
    same = [np.array_equal(*pair) for pair in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)]
    return "as saved" if all(same) else "other bits"


def read_with_a_flipped_byte(file, place, step_folder, expected):
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[int(place * len(whole))] ^= 1
    file.write_bytes(damaged)
    outcome = read(step_folder, expected)
    file.write_bytes(whole)
    return outcome


@pytest.mark.parametrize("place", [0.05, 0.5])
def test_one_flipped_byte_in_a_checkpoint_is_refused(saved, tmp_path, place):
    # The store keeps an older copy of its index beside the new one: a flip there harms nothing.
    step_folder = shutil.copytree(saved / "3", tmp_path / "3")
    files = sorted((step_folder / "arrays").rglob("d/*"))
    expected = format.load_below(step_folder, "heads")
    outcomes = {read_with_a_flipped_byte(file, place, step_folder, expected) for file in files}
    assert outcomes - {"as saved"} == {"refused"}
    assert read(step_folder, expected) == "as saved"


# ---- a data module's own state


class SomeRows(hx.DataModule):
    """Draws its rows by a seed; with another seed they are others, unless its state says which."""

    batch_size = 8

    def __init__(self, seed):
        self.seed, self.rows = seed, None

    def setup(self, stage):
        if self.rows is None:
            self.rows = np.random.default_rng(self.seed).permutation(NUM_ROWS)[:20]

    def train_dataset(self):
        return {name: column[self.rows] for name, column in rows_of().items()}

    def slices(self):
        return hx.Slices.prefix([5, 20], 20)

    def state_dict(self):
        return {"rows": self.rows, "seed": self.seed}

    def load_state_dict(self, state):
        self.rows, self.seed = state["rows"], state["seed"]


class Stateless(SomeRows):
    def state_dict(self):
        return {}


def saved_run(folder, data, **how):
    """A fit of 4 steps that leaves a checkpoint."""
    run(PlainClassifier(), data, None, [ModelCheckpoint(dirpath=folder)], max_steps=4, **how)
    return folder / "last"


def test_a_data_module_goes_on_with_the_rows_that_it_has_drawn(tmp_path):
    resumed = run(PlainClassifier(), SomeRows(seed=1), saved_run(tmp_path, SomeRows(seed=0)), max_steps=8)
    unbroken = run(PlainClassifier(), SomeRows(seed=0), max_steps=8)
    state = [name for name in unbroken.arrays if not name.startswith("step.")]
    assert differing({n: resumed.arrays[n] for n in state}, {n: unbroken.arrays[n] for n in state}) == []


def test_a_schedule_of_accumulation_goes_on_where_it_was(tmp_path):
    how = {"accumulate_grad_batches": {0: 2, 1: 1}}  # epoch 0 has 3 steps, so the checkpoint is inside epoch 1
    resumed = run(PlainClassifier(), data_of(SLICES), saved_run(tmp_path, data_of(SLICES), **how), max_steps=8, **how)
    unbroken = run(PlainClassifier(), data_of(SLICES), max_steps=8, **how)
    state = [name for name in unbroken.arrays if not name.startswith("step.")]
    assert differing({n: resumed.arrays[n] for n in state}, {n: unbroken.arrays[n] for n in state}) == []
    with pytest.raises(
        hx.CheckpointError, match=r"accumulate_grad_batches. Got \[\[0, 2\], \[1, 1\]\] there, expected 2"
    ):
        run(PlainClassifier(), data_of(SLICES), tmp_path / "last", max_steps=8, accumulate_grad_batches=2)


def test_without_state_the_same_is_refused_as_other_data(tmp_path):
    with pytest.raises(hx.CheckpointError, match="belongs to another run: .*, data"):
        run(PlainClassifier(), Stateless(seed=1), saved_run(tmp_path, Stateless(seed=0)), max_steps=8)


STATE = {
    **{"mean": np.linspace(0, 1, 3), "label": np.array(["a"]).tolist(), "seen": np.bool_(True), "row": np.int64(7)},
    **{"none": None, "words": {"a": 0, "b": [1, 2.5]}, "empty": np.zeros((0, 2), np.int8), "one": np.array(2**40)},
    "on_device": jnp.arange(3),
}


class WithState(SomeRows):
    """Gives what it is told to, and keeps what it gets."""

    def __init__(self, state):
        super().__init__(seed=0)
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_a_data_module_gets_back_what_it_gave_arrays_in_their_dtypes(tmp_path):
    data = WithState({})
    run(PlainClassifier(), data, saved_run(tmp_path, WithState(STATE)), max_steps=5)
    np.testing.assert_equal(data.state, {**STATE, "on_device": np.arange(3)})
    dtypes = {name: data.state[name].dtype for name in ("mean", "empty", "one", "on_device")}
    assert dtypes == {"mean": np.float64, "empty": np.int8, "one": np.int64, "on_device": np.int32}


def test_state_that_a_checkpoint_cannot_hold_is_refused_by_name():
    data = WithState({"file": object()})
    trainer = run(PlainClassifier(), data, max_steps=1).trainer
    with pytest.raises(
        hx.DataError, match="data module's state cannot be saved: WithState.state_dict, 'file'. Got obj"
    ):
        trainer.save_checkpoint("unused")
