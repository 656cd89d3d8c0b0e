"""One flipped bit anywhere in a step is refused or harmless, and never a wrong value."""

import shutil

import jax
import numpy as np
import pytest
from checkpoints_under_test import files_below, flip_bit, save

from hydrax.checkpoint import format
from hydrax.errors import CheckpointError

HEADS = 200


def tree():
    rng = np.random.default_rng(0)
    model = {"kernel": rng.standard_normal((HEADS, 40, 3), np.float32), "bias": np.zeros((HEADS, 3), np.float32)}
    return {"heads": {"trainable": model, "opt_state": model, "live": np.ones(HEADS, bool)}, "one": np.float64(2.5)}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save(tmp_path_factory.mktemp("original"), 1, tree(), heads=HEADS)


def outcome(step):
    try:
        found = format.load(step, tree(), as_numpy=True)
    except CheckpointError:
        return "refused"
    same = [one.tobytes() == other.tobytes() for one, other in zip(*map(jax.tree.leaves, (found, tree())), strict=True)]
    return "as saved" if all(same) else "other values"


@pytest.mark.parametrize("seed", [pytest.param(n, marks=[] if n < 60 else pytest.mark.slow) for n in range(360)])
def test_a_flipped_bit_is_refused_or_harmless(seed, original, tmp_path):
    step = shutil.copytree(original, tmp_path / "1")
    rng = np.random.default_rng(seed)
    files = files_below(step)
    # By size, as a disk would, and every other time each file alike, so that the small ones have their turn.
    sizes = np.array([path.stat().st_size for path in files], float)
    weights = sizes if seed % 2 else np.ones(len(files))
    flip_bit(files[rng.choice(len(files), p=weights / weights.sum())], rng)
    assert outcome(step) in ("refused", "as saved")


def test_most_flips_are_refused(original, tmp_path):
    seen = []
    for number, file in enumerate(files_below(original)):
        step = shutil.copytree(original, tmp_path / str(number))
        flip_bit(step / file.relative_to(original), np.random.default_rng(number))
        seen.append(outcome(step))
    assert seen.count("refused") > len(seen) / 2
    assert outcome(original) == "as saved"
