"""A long fit takes no more memory, threads or files as it goes on, and compiles nothing anew."""

import ctypes
import gc
import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, PlainClassifier, data_of

import hydrax as hx
from hydrax.callbacks import CSVLogger, EarlyStopping, ModelCheckpoint, TensorBoardLogger
from hydrax.loggers import plots

HEADS = 32
SLICES = hx.Slices.random_subset(np.linspace(1, NUM_ROWS, HEADS).astype(int), NUM_ROWS, seed=1)
# By then every kind of work has been done several times: logs, validations, saves, epochs.
WARM = 400
WARM_SAVES = 40
EVERY = 20
MAX_GROWTH = 1.0  # megabytes in 1,000 steps


# glibc keeps some of what is freed; it is told to give it back before each reading.
give_back = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)


class Gauges(hx.Callback):
    """Reads what the process holds, at each twentieth step; saves often before the first.

    Each save has threads of its own, and glibc gives threads memory of their own, which fills for some thirty saves.
    """

    def __init__(self, scratch):
        self.scratch = scratch
        self.steps, self.megabytes, self.threads, self.files = [], [], [], []

    def on_train_start(self, event):
        for number in range(WARM_SAVES):
            event.trainer.save_checkpoint(self.scratch / str(number))

    def next_due(self, step):
        return (step // EVERY + 1) * EVERY

    def on_train_steps_end(self, event):
        if event.step % EVERY or event.step < WARM:
            return
        gc.collect()
        give_back(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.steps.append(event.step)
        self.megabytes.append(pages * resource.getpagesize() / 1e6)
        self.threads.append(threading.active_count())
        self.files.append(len(os.listdir("/proc/self/fd")))


def soak(root, steps):
    gauges = Gauges(root / "scratch")
    # What was there before is looked at once: else each reading would go through all that other tests left.
    gc.collect()
    gc.freeze()
    # What draws is loaded with the first figure, which in a short fit is the last thing that is done.
    plots.to_png(plots.heat_map(np.arange(2), np.ones((2, 2)), np.arange(2), "warm"))
    callbacks = [
        gauges, CSVLogger(), TensorBoardLogger(), EarlyStopping("val_loss", patience=10_000),
        ModelCheckpoint("val_loss", every_n_train_steps=200),
    ]  # fmt: skip
    trainer = hx.Trainer(
        max_steps=steps, callbacks=callbacks, default_root_dir=root, enable_progress_bar=False,
        val_check_interval=100, check_val_every_n_epoch=None, log_every_n_steps=50,
    )  # fmt: skip
    trainer.fit(PlainClassifier(), data_of(SLICES))
    gc.unfreeze()
    return gauges, trainer


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return soak(tmp_path_factory.mktemp("short"), 1_000)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return soak(tmp_path_factory.mktemp("long"), 10_000)


@pytest.fixture(params=["short", pytest.param("long", marks=pytest.mark.slow)])
def soaked(request):
    return request.getfixturevalue(request.param)


def test_memory_does_not_grow(soaked):
    steps, megabytes = np.array(soaked[0].steps), np.array(soaked[0].megabytes)
    third = len(steps) // 3
    growth = megabytes[-third:].min() - megabytes[:third].min()
    apart = steps[-third:].mean() - steps[:third].mean()
    print(f"{growth:.2f} MB in {apart:.0f} steps, {megabytes.min():.1f} to {megabytes.max():.1f} MB")
    # A save moves it by half a megabyte up or down, so what a few hundred steps take is not multiplied.
    assert growth < MAX_GROWTH * max(1, apart / 1_000)


def test_threads_and_open_files_stay_as_many(soaked):
    assert len(set(soaked[0].threads)) == 1
    assert len(set(soaked[0].files)) == 1


def test_each_program_was_compiled_once(soaked):
    programs = soaked[1]._run.planned.engine.programs
    # Epoch means and validation means are different trees for `compute`, and the last batch of the validation set is
    # shorter than the others.
    assert {name: p.num_compiled for name, p in programs.items() if p.num_compiled != 1} == {
        "compute": 2,
        "evaluate": 2,
        "evaluation_parameters": 0,
        "predict": 0,
        "finite": 0,  # NumPy looks on a CPU
        "find_fault": 0,
        "freeze": 0,
    }
