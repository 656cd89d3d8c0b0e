"""A fit needs few open files, and leaves its own to its user alone where the user's umask says so."""

import contextlib
import os
import resource
import stat

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of

import hydrax as hx
from hydrax.callbacks import CSVLogger, ModelCheckpoint, TensorBoardLogger

SLICES = hx.Slices.random_subset(np.arange(1, 41), NUM_ROWS, seed=1)
FREE = 32  # files that may be open at the same time beside those of the tests


@contextlib.contextmanager
def narrow():
    """A umask that keeps others out, and a limit of open files a little above those that are open now."""
    before, limits = os.umask(0o077), resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))  # the limit is one of numbers
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + FREE, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.umask(before)


def fit(root, steps, ckpt_path=None):
    loggers = CSVLogger(), TensorBoardLogger(max_head_runs=8, figures=False)
    callbacks = [*loggers, ModelCheckpoint("val_loss", every_n_train_steps=1, keep_last=3)]
    how = {"max_steps": steps, "log_every_n_steps": 1, "chunk": 4, "default_root_dir": root}
    trainer = hx.Trainer(callbacks=callbacks, **{**QUIET, **how})
    return trainer.fit(PlainClassifier(), data_of(SLICES), ckpt_path), [logger.num_dropped for logger in loggers]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    root = tmp_path_factory.mktemp("narrow")
    with narrow():
        fit(root, 3)
        return root, *fit(root, 6, ckpt_path="last")


def test_a_fit_and_its_resume_need_few_open_files(fitted):
    _, result, dropped = fitted
    assert (result.step, dropped) == (6, [0, 0])
    best = hx.Heads.load(result.log_dir / "checkpoints" / "best", PlainClassifier())
    assert len(best) == len(SLICES)


def test_under_a_private_umask_no_file_of_a_run_is_open_to_others(fitted):
    written = list((fitted[0] / "hydrax_logs").rglob("*"))
    assert len([path for path in written if path.is_file()]) > 10
    assert [path for path in written if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
