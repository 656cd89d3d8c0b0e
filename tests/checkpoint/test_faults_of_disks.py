"""Disks that are full, read-only or gone in the middle of a fit: it goes on, says so, and writes again once it can.

On a small file system of its own, where this process may mount one; elsewhere a file stands in the place of the folder
for the while.
"""

import contextlib
import csv
import logging
import shutil
import subprocess
import time

import pytest
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, differing, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hydrax as hx
from hydrax.callbacks import CSVLogger, ModelCheckpoint, TensorBoardLogger
from hydrax.checkpoint import folders, format
from hydrax.loggers import event_files

STEPS = 24
BREAKS, HEALS = 9, 17  # steps after which the disk takes nothing more, and all again; saves are due at each fourth
SLICES = hx.Slices.random_subset([40, 17, 9, 30, 25, 40, 11, 8], NUM_ROWS, seed=1)
HEADS = len(SLICES)
HOW = {
    "max_steps": STEPS,
    "val_check_interval": 4,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 1,
    "steps_per_call": 1,
}


class SmallDisk:
    """One megabyte, mounted at a folder."""

    # The last good checkpoint as the trouble ends: what was there before, or where that is gone what was saved since.
    kept = {"full": "8", "read-only": "8", "gone": "16"}

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self._call("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)

    def _call(self, *command):
        subprocess.run([str(word) for word in command], check=True, capture_output=True)

    def fill(self):
        with contextlib.suppress(OSError), (self.folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def make_room(self):
        (self.folder / "filler").unlink()

    def lock(self):
        # Not the file system itself, which stays as it is while files are open for writing: its view at the folder.
        self._call("mount", "--bind", self.folder, self.folder)
        self._call("mount", "-o", "remount,bind,ro", self.folder)

    def unlock(self):
        self._call("umount", self.folder)

    def vanish(self):
        for path in self.folder.iterdir():
            shutil.rmtree(path)

    def come_back(self): ...

    def close(self):
        self._call("umount", "--lazy", self.folder)


class InTheWay:
    """A folder in whose place there is a file, whatever the trouble is called."""

    kept = {"full": "8", "read-only": "8", "gone": "8"}

    def __init__(self, folder):
        self.folder, self._aside = folder, folder.with_name("aside")
        folder.mkdir()

    def fill(self):
        self.folder.rename(self._aside)
        self.folder.write_text("")

    def make_room(self):
        self.folder.unlink()
        self._aside.rename(self.folder)

    lock = vanish = fill
    unlock = come_back = make_room

    def close(self): ...


def disk_at(folder):
    try:
        return SmallDisk(folder)
    except (OSError, subprocess.CalledProcessError):
        folder.rmdir()
        return InTheWay(folder)


class Breaks(hx.Callback):
    """Spoils a disk for some steps."""

    def __init__(self, spoil, mend):
        self.at = {BREAKS: spoil, HEALS: mend}

    def next_due(self, step):
        return min((at for at in self.at if at > step), default=None)

    def on_train_steps_end(self, event):
        if event.step in self.at:
            self.at[event.step]()
            time.sleep(0.3)  # for the thread that writes event files to notice


class KeptAtHand(hx.Callback):
    """Looks for the last good checkpoint, once the disk can be read again."""

    def __init__(self, last):
        self.last, self.found = last, None

    def on_train_steps_end(self, event):
        if event.step == HEALS and self.last.is_dir():
            self.found = folders.first_sound(self.last, format.check).name


TROUBLES = {"full": ("fill", "make_room"), "read-only": ("lock", "unlock"), "gone": ("vanish", "come_back")}


def fit(root, saves, *callbacks):
    logger = CSVLogger()
    every = [
        *callbacks,
        logger,
        TensorBoardLogger(figures=False),
        ModelCheckpoint(every_n_train_steps=4, dirpath=saves),
    ]
    fitted = run(PlainClassifier(), data_of(SLICES), None, every, default_root_dir=root, **HOW)
    return logger, fitted


def troubled(disk, trouble, root, saves):
    spoil, mend = (getattr(disk, name) for name in TROUBLES[trouble])
    kept = KeptAtHand(saves / "last")
    return kept, *fit(root, saves, Breaks(spoil, mend), kept)


def table(fitted):
    with (fitted.result.log_dir / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), int(row["head"]), row["metric"], row["value"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    fitted = fit(folder, folder / "saves")[1]
    return fitted, table(fitted)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(event_files, "FLUSH_SECS", 0.01)
    monkeypatch.setattr(event_files, "RETRY_SECS", 0.05)


@pytest.fixture(params=["a small disk", pytest.param("a file in the way", marks=pytest.mark.slow)])
def disk(request, tmp_path):
    make = {"a small disk": disk_at, "a file in the way": InTheWay}[request.param]
    with contextlib.closing(make(tmp_path / "disk")) as disk:
        yield disk


def check_training(fitted, whole):
    assert differing(fitted.arrays, whole[0].arrays) == []


def check_checkpoints(saves):
    assert folders.first_sound(saves / "last", format.check).name == str(STEPS)
    assert (saves / "heads.csv").read_text().count("\n") == HEADS + 1
    assert [path.name for path in saves.glob(".heads*")] == []


def check_logs(fitted, whole):
    """What stands in the logs is true and there once, and all that came once the disk was whole is there."""
    rows, expected = table(fitted), whole[1]
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(expected)
    assert {row for row in expected if row[0] > HEALS} <= set(rows)
    points = EventAccumulator(str(fitted.result.log_dir)).Reload().Scalars("metrics/train_loss")
    assert [point.step for point in points][-(STEPS - HEALS) :] == list(range(HEALS + 1, STEPS + 1))


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_disk_in_trouble_stops_no_fit_and_is_written_again(disk, trouble, whole, caplog):
    saves = disk.folder / "saves"
    with caplog.at_level(logging.WARNING, "hydrax"):
        kept, _, fitted = troubled(disk, trouble, disk.folder / "run", saves)
    check_training(fitted, whole)
    check_checkpoints(saves)
    check_logs(fitted, whole)
    assert kept.found == disk.kept[trouble]
    assert caplog.text.count("A save has failed: ModelCheckpoint") <= 4  # last and heads.csv, at two steps


@pytest.mark.parametrize("trouble", ["full", pytest.param("read-only", marks=pytest.mark.slow)])
def test_what_a_disk_refuses_is_counted_and_said_once(disk, trouble, whole, caplog):
    with caplog.at_level(logging.WARNING, "hydrax"):
        _, logger, fitted = troubled(disk, trouble, disk.folder / "run", disk.folder / "saves")
    assert len(table(fitted)) + logger.num_dropped == len(whole[1])
    assert logger.num_dropped > 0
    assert caplog.text.count("Values were dropped: CSVLogger") == 1
    assert caplog.text.count("A save has failed: ModelCheckpoint") >= 2


@pytest.mark.slow
@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_with_the_logs_costs_no_checkpoint(disk, trouble, whole, tmp_path, caplog):
    kept, _, fitted = troubled(disk, trouble, disk.folder / "run", tmp_path / "saves")
    check_training(fitted, whole)
    check_checkpoints(tmp_path / "saves")
    check_logs(fitted, whole)
    assert kept.found == "16"
    assert "A save has failed" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_with_the_checkpoints_costs_no_log(disk, trouble, whole, tmp_path, caplog):
    _, logger, fitted = troubled(disk, trouble, tmp_path / "run", disk.folder / "saves")
    check_training(fitted, whole)
    check_checkpoints(disk.folder / "saves")
    assert (table(fitted), logger.num_dropped) == (whole[1], 0)
    assert "are dropped" not in caplog.text


@pytest.mark.parametrize("trouble", ["read-only", pytest.param("full", marks=pytest.mark.slow)])
def test_a_fit_that_can_write_nowhere_from_its_start_trains_all_the_same(disk, trouble, whole, caplog):
    spoil, mend = (getattr(disk, name) for name in TROUBLES[trouble])
    spoil()
    with caplog.at_level(logging.WARNING, "hydrax"):
        _, fitted = fit(disk.folder / "run", disk.folder / "saves")
    mend()
    check_training(fitted, whole)
    assert "A save has failed: ModelCheckpoint" in caplog.text
