"""A process killed at any point of a save leaves a folder from which the newest whole step is read."""

import json
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints_under_test import save
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, differing, run

import hydrax as hx
from hydrax.callbacks import ModelCheckpoint
from hydrax.checkpoint import folders, format

SECS = 120  # a save that hangs has failed

# Where in the save the child dies: what is called there first, or last.
POINTS = {
    "before the mark": "first(folders, 'write_bytes')",
    "before data": "first(arrays, 'write')",
    "within data": "within_arrays()",
    "after data": "first(format, 'write_bytes')",
    "within metadata": "first(os, 'fsync')",
    "before reading back": "last(format, 'write_bytes')",
    "before rename": "last(arrays, 'first_difference')",
    "after rename": "first(folders, '_sync')",
    "before the old ones go": "once_renamed(lambda: first(folders, '_tidy'))",
    "while an old one goes": "once_renamed(within_delete)",
}
DEATHS = textwrap.dedent(
    """
    import json, os, shutil, signal, sys
    from pathlib import Path
    import numpy as np
    from checkpoints_under_test import save
    from hydrax.checkpoint import arrays, folders, format

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def first(module, name):
        setattr(module, name, die)

    def last(module, name):
        known = getattr(module, name)
        setattr(module, name, lambda *args, **kwargs: (known(*args, **kwargs), die()))

    def within_arrays():
        known = arrays.write
        def write(folder, given):
            known(folder, dict(list(given.items())[:1]))
            die()
        arrays.write = write

    def once_renamed(then):
        known = folders._sync
        folders._sync = lambda root: (known(root), then())

    def within_delete():
        def rmtree(path, **kwargs):
            next(file for file in Path(path).rglob("*") if file.is_file()).unlink()
            die()
        shutil.rmtree = rmtree

    def between_the_names():
        known = Path.rename
        Path.rename = lambda path, target: die() if path.suffix == ".draft" else known(path, target)
    """
)
# Importing takes longest, so one process does it, and forks one that dies for each line it reads.
FORKER = (
    f"import sys; sys.path[:] = {sys.path}\n"
    + DEATHS
    + textwrap.dedent(
        """
    import tensorstore
    for line in sys.stdin:
        root, step, value, point = json.loads(line)
        child = os.fork()
        if not child:
            exec(point)
            tree = {"a": np.full(8, value, np.float32), "b": np.arange(4, dtype=np.int32)}
            save(Path(root), step, tree, keep=2)
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)
    """
    )
)


@pytest.fixture(scope="module")
def save_and_die():
    with subprocess.Popen(
        [sys.executable, "-c", FORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as forker:
        watch = threading.Timer(SECS, forker.kill)
        watch.start()

        def save_and_die(root, step, point, value=None):
            value = step if value is None else value
            print(json.dumps([str(root), step, value, point]), file=forker.stdin, flush=True)
            assert int(forker.stdout.readline()) == signal.SIGKILL

        yield save_and_die
        watch.cancel()
        forker.stdin.close()


def small(step):
    return {"a": jnp.full(8, step, jnp.float32), "b": jnp.arange(4)}


def newest(root):
    """The newest sound step, and what it holds."""
    step = folders.first_sound(root, format.check)
    return format.read_meta(step)["step"], format.load(step, small(0))["a"].tolist()


AFTER = ("after rename", "before the old ones go", "while an old one goes")


@pytest.mark.parametrize("point", POINTS)
def test_three_saves_killed_at_one_point_leave_a_sound_step_and_the_next_save_tidies_up(tmp_path, point, save_and_die):
    for step in (1, 2):
        save(tmp_path, step, small(step), keep=2)
    if point == "before the mark":
        (tmp_path / folders.MARK).unlink()
    expected = {False: [2, 2, 2], True: [3, 4, 5]}[point in AFTER]
    for step, sound in zip((3, 4, 5), expected, strict=True):
        save_and_die(tmp_path, step, POINTS[point])
        assert newest(tmp_path) == (sound, [sound] * 8)
    save(tmp_path, 6, small(6), keep=2)
    assert newest(tmp_path) == (6, [6] * 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hydrax", str(expected[-1]), "6"]


# A step that is saved again: the old one stands until the new one has its name.
REPLACING = {**POINTS, "between the names": "between_the_names()"}
del REPLACING["before the mark"]


@pytest.mark.parametrize("point", REPLACING)
def test_a_step_whose_replacement_is_killed_is_the_old_one_or_the_new_one(tmp_path, point, save_and_die):
    save(tmp_path, 3, small(1))
    for value in (2, 3):
        save_and_die(tmp_path, 3, REPLACING[point], value)
        assert newest(tmp_path)[1] == [value if point in AFTER else 1] * 8
    save(tmp_path, 3, small(4))
    assert newest(tmp_path) == (3, [4] * 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hydrax", "3"]


SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1)
STEPS = 12


def fit(folder, ckpt_path=None):
    saver = ModelCheckpoint(every_n_train_steps=3, dirpath=folder)
    return run(PlainClassifier(), data_of(SLICES), ckpt_path, [saver], max_steps=STEPS, enable_checkpointing=True)


@pytest.mark.slow
@pytest.mark.parametrize("point", [point for point in POINTS if point != "before the mark"])
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
    path = json.dumps([*sys.path, str(Path(__file__).parent)])
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
