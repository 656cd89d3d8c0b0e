"""A process killed at any point of a save leaves a folder from which the newest whole step is read."""

import json
import signal
import subprocess
import sys
import textwrap
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, differing, run

import hydrax as hx
from hydrax.callbacks import ModelCheckpoint
from hydrax.checkpoint import folders, format

SECS = 120  # a save that hangs has failed

# Where in the save the child dies: what is called there first, or last.
POINTS = {
    "before data": "first(checkpoint_arrays, 'write')",
    "within data": "within_arrays()",
    "after data": "first(checkpoint, '_write_meta')",
    "within metadata": "first(os, 'fsync')",
    "before rename": "last(checkpoint, '_write_meta')",
    "after rename": "first(step_folders, '_sync')",
    "before the old ones go": "first(step_folders, '_delete')",
    "while an old one goes": "within_delete()",
}
DEATHS = textwrap.dedent(
    """
    import json, os, shutil, signal, sys
    from pathlib import Path
    import numpy as np
    from hydrax import checkpoint, checkpoint_arrays, step_folders

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def first(module, name):
        setattr(module, name, die)

    def last(module, name):
        known = getattr(module, name)
        setattr(module, name, lambda *args, **kwargs: (known(*args, **kwargs), die()))

    def within_arrays():
        known = checkpoint_arrays.write
        def write(folder, arrays, piece_bytes):
            known(folder, dict(list(arrays.items())[:1]), piece_bytes)
            die()
        checkpoint_arrays.write = write

    def within_delete():
        known = folders._delete
        def rmtree(path, **kwargs):
            next(file for file in Path(path).rglob("*") if file.is_file()).unlink()
            die()
        def delete(step):
            shutil.rmtree = rmtree
            known(step)
        folders._delete = delete
    """
)
# Importing takes longest, so one process does it, and forks one that dies for each line it reads.
FORKER = DEATHS + textwrap.dedent(
    """
    import orbax.checkpoint
    for line in sys.stdin:
        root, step, point = json.loads(line)
        child = os.fork()
        if not child:
            exec(point)
            tree = {"a": np.full(8, step, np.float32), "b": np.arange(4, dtype=np.int32)}
            format.save(Path(root), step, tree, {"kind": "test"}, keep=2)
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)
    """
)


@pytest.fixture(scope="module")
def save_and_die():
    with subprocess.Popen(
        [sys.executable, "-c", FORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as forker:
        watch = threading.Timer(SECS, forker.kill)
        watch.start()

        def save_and_die(root, step, point):
            print(json.dumps([str(root), step, point]), file=forker.stdin, flush=True)
            assert int(forker.stdout.readline()) == signal.SIGKILL

        yield save_and_die
        watch.cancel()
        forker.stdin.close()


def small(step):
    return {"a": jnp.full(8, step, jnp.float32), "b": jnp.arange(4)}


def newest(root):
    """The newest sound step, and what it holds."""
    step = folders.first_sound(root, format.check)
    return int(step.name), format.load(step, small(0))["a"].tolist()


AFTER = ("after rename", "before the old ones go", "while an old one goes")


@pytest.mark.parametrize("point", POINTS)
def test_three_saves_killed_at_one_point_leave_a_sound_step_and_the_next_save_tidies_up(tmp_path, point, save_and_die):
    for step in (1, 2):
        format.save(tmp_path, step, small(step), {"kind": "test"}, keep=2)
    expected = {False: [2, 2, 2], True: [3, 4, 5]}[point in AFTER]
    for step, sound in zip((3, 4, 5), expected, strict=True):
        save_and_die(tmp_path, step, POINTS[point])
        assert newest(tmp_path) == (sound, [sound] * 8)
    format.save(tmp_path, 6, small(6), {"kind": "test"}, keep=2)
    assert newest(tmp_path) == (6, [6] * 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(expected[-1]), "6"]


SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1)
STEPS = 12


def fit(folder, ckpt_path=None):
    saver = ModelCheckpoint(every_n_steps=3, dirpath=folder)
    return run(PlainClassifier(), data_of(SLICES), ckpt_path, [saver], max_steps=STEPS, enable_checkpointing=True)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_dies_in_its_third_save_goes_on_to_the_same_bits(tmp_path, point):
    at_third = textwrap.dedent(
        f"""
        known, count = folders.write, 0
        def write(*args):
            global count
            count += 1
            if count == 3:
                {POINTS[point]}
            return known(*args)
        folders.write = write
        """
    )
    program = DEATHS + at_third + "from test_crash_points import fit\nfit(Path(sys.argv[1]))\n"
    died = tmp_path / "died"
    path = json.dumps(sys.path)
    child = subprocess.run(
        [sys.executable, "-c", f"import hydrax, sys; sys.path[:] = {path}\n{program}", died],
        timeout=SECS,
        capture_output=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    resumed, unbroken = fit(died, died / "last"), fit(tmp_path / "whole")
    ends = [{n: a for n, a in one.arrays.items() if not n.startswith("step.")} for one in (resumed, unbroken)]
    assert differing(*ends) == []
    np.testing.assert_array_equal(resumed.result.step, STEPS)
