"""Real signals to a real process, in each phase of a fit: it ends in order, and goes on to the bits of an unbroken run.

The child says that it has come to a phase, and waits there for the signal, as a phase that takes long would.
A child that hangs is a failure.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, differing, run

import hydrax as hx
from hydrax import checkpoint
from hydrax.callbacks import CSVLogger, ModelCheckpoint, TensorBoardLogger
from hydrax.engine.engine import Engine

HEADS, STEPS, AT = 3, 14, 6
SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1)  # 5 batches of 8 an epoch
HOW = {"max_steps": STEPS, "val_check_interval": 2, "check_val_every_n_epoch": None, "steps_per_call": 2}
PHASES = ("compiling", "stepping", "validating", "saving", "in a callback", "closing down")
START_SECS, END_SECS = 90, 60  # a loaded machine takes its time; a hang takes for ever
WAIT_SECS = 30


class Waits(hx.Callback):
    """Says that a phase is reached, and stays in it until so many signals have come; does so once."""

    def __init__(self, phase, signals):
        self.phase, self.signals, self.trainer = phase, signals, None

    def reach(self, phase, step):
        if phase != self.phase or step < AT * (phase != "compiling"):
            return
        self.phase = None
        for number in range(self.signals):
            print(f"reached {number}", flush=True)
            end = time.monotonic() + WAIT_SECS
            while time.monotonic() < end and not (number == 0 and self.trainer.interrupted):
                time.sleep(0.005)

    def next_due(self, step):
        return AT if step < AT else None

    def setup(self, event):
        self.trainer = event.trainer

    def on_train_steps_end(self, event):
        self.reach("in a callback", event.step)

    def on_train_end(self, event):
        self.reach("closing down", event.step)


@contextlib.contextmanager
def phases_reached_in(waits):
    """Around the parts of a fit that no hook stands in."""

    def before(phase, owner, name, step_of):
        real = getattr(owner, name)

        @functools.wraps(real)
        def wrapped(*args, **kwargs):
            waits.reach(phase, step_of(*args))
            return real(*args, **kwargs)

        patch.setattr(owner, name, wrapped)

    with pytest.MonkeyPatch.context() as patch:
        # The first superstep compiles, before training starts; later ones only run.
        before("compiling", Engine, "superstep", lambda engine, state, rows, first, *_: first)
        before("stepping", Engine, "superstep", lambda engine, state, rows, first, *_: first)
        before("validating", Engine, "evaluate", lambda engine, stage, accumulators, heads, rows, step, *_: step)
        before("saving", checkpoint, "save", lambda root, step, *_, **__: step)
        yield


def fit(root, *callbacks, ckpt_path=None):
    loggers = CSVLogger(), TensorBoardLogger(figures=False)
    every = [*callbacks, *loggers, ModelCheckpoint("val_loss", every_n_train_steps=4)]
    return run(PlainClassifier(), data_of(SLICES), ckpt_path, every, default_root_dir=root, **HOW)


def fit_as_a_process(root, phase, signals):
    """What a child does; says at its end how that came."""
    waits = Waits(phase, signals)
    with phases_reached_in(waits):
        result = fit(root, waits).result
    print(json.dumps([result.interrupted, result.step]), flush=True)


class Child(subprocess.Popen):
    """A process that runs a function of this file; what it says is a file."""

    def __init__(self, call, folder):
        self.said, self.complaints = folder / "said", folder / "complaints"
        paths = [str(Path(hx.__file__).parents[1]), *map(str, Path(__file__).parents[:2])]
        cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
        env = {**os.environ, **cache, "PYTHONPATH": os.pathsep.join(paths)}
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        command = [sys.executable, "-c", f"{heard}; import test_faults_in_processes as t; t.{call}"]
        with self.said.open("w") as said, self.complaints.open("w") as complaints:
            super().__init__(command, env=env, cwd=folder, stdout=said, stderr=complaints)

    def __exit__(self, *error):
        self.kill()
        super().__exit__(*error)

    def lines(self):
        return self.said.read_text().splitlines()

    def wait_for(self, line):
        end = time.monotonic() + START_SECS
        while line not in self.lines() and time.monotonic() < end and self.poll() is None:
            time.sleep(0.01)
        assert line in self.lines(), self.complaints.read_text()

    def end(self):
        """Exit status, what it said last, and how long that took."""
        start = time.monotonic()
        status = self.wait(END_SECS)
        return status, self.lines()[-1], time.monotonic() - start


def at_the_end(fitted):
    return {name: array for name, array in fitted.arrays.items() if not name.startswith("step.")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The unbroken run; what it compiles the children read."""
    return at_the_end(fit(tmp_path_factory.mktemp("whole")))


def cases(*quick):
    return [pytest.param(phase, marks=[] if phase in quick else pytest.mark.slow) for phase in PHASES]


@pytest.mark.parametrize("phase", cases("saving"))
def test_after_one_ctrl_c_a_process_ends_in_order_and_its_run_goes_on_to_the_same_bits(tmp_path, whole, phase):
    with Child(f"fit_as_a_process({str(tmp_path)!r}, {phase!r}, 1)", tmp_path) as process:
        process.wait_for("reached 0")
        process.send_signal(signal.SIGINT)
        status, said, _ = process.end()
    assert status == 0
    assert json.loads(said)[0] is True
    assert differing(at_the_end(fit(tmp_path, ckpt_path="last")), whole) == []


@pytest.mark.parametrize("phase", cases("closing down"))
def test_after_a_second_ctrl_c_a_process_ends_at_once_and_the_last_checkpoint_is_good(tmp_path, whole, phase):
    with Child(f"fit_as_a_process({str(tmp_path)!r}, {phase!r}, 2)", tmp_path) as process:
        for number in range(2):
            process.wait_for(f"reached {number}")
            process.send_signal(signal.SIGINT)
        status, said, secs = process.end()
    assert status in (-signal.SIGINT, 128 + signal.SIGINT)
    assert said == "reached 1"
    assert secs < WAIT_SECS / 2
    ledgers = [path.read_text().count("\n") for path in tmp_path.rglob("heads.csv")]
    # Where it was cut off before the first step there is none, and no checkpoint.
    assert ledgers == [HEADS + 1] * (phase != "compiling")
    assert differing(at_the_end(fit(tmp_path, ckpt_path="auto")), whole) == []


@pytest.mark.parametrize("phase", cases("validating"))
def test_after_sigterm_a_process_exits_with_143_and_its_run_goes_on_to_the_same_bits(tmp_path, whole, phase):
    with Child(f"fit_as_a_process({str(tmp_path)!r}, {phase!r}, 1)", tmp_path) as process:
        process.wait_for("reached 0")
        process.send_signal(signal.SIGTERM)
        status, said, _ = process.end()
    assert (status, said) == (143, "reached 0")
    assert differing(at_the_end(fit(tmp_path, ckpt_path="last")), whole) == []


def hold(folder):
    """A fit that stays in its folder."""
    fit_as_a_process.__globals__["WAIT_SECS"] = 600
    waits = Waits("in a callback", 2)
    run(PlainClassifier(), data_of(SLICES), None, [waits, ModelCheckpoint(dirpath=folder)], **HOW)


def test_a_second_process_is_refused_with_the_holder_s_name_until_the_first_is_killed(tmp_path, whole):
    folder = tmp_path / "shared"
    with Child(f"hold({str(folder)!r})", tmp_path) as process:
        process.wait_for("reached 0")
        holder = rf"in use by another fit: .*Got process {process.pid} on {os.uname().nodename}, expected"
        with pytest.raises(hx.ArgumentError, match=holder):
            run(PlainClassifier(), data_of(SLICES), None, [ModelCheckpoint(dirpath=folder)], **HOW)
        process.send_signal(signal.SIGKILL)
        process.wait(END_SECS)
    again = run(PlainClassifier(), data_of(SLICES), None, [ModelCheckpoint(dirpath=folder)], **HOW)
    assert [path.name for path in (folder / "last").glob("[0-9]*")] == [str(STEPS)]
    assert again.result.step == STEPS


MAKES = """
import json, sys, time
from pathlib import Path
from hydrax.train.run_folder import make_run_folder
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([make_run_folder(Path(sys.argv[1])).name for _ in range(100)]))
"""


def test_processes_that_start_at_the_same_moment_get_folders_of_their_own(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(Path(hx.__file__).parents[1])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", MAKES, str(tmp_path)]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen(command, env=env, **pipes)) for _ in range(2)]
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        made = [name for process in processes for name in json.loads(process.communicate(timeout=END_SECS)[0])]
    assert sorted(made) == sorted(f"version_{number}" for number in range(200))
