"""Folders of steps, `<root>/<step>/`: written whole or not at all, found, set aside and deleted.

Hydrax changes nothing that it did not write. The file `.hydrax` in a root names the run whose steps it holds. A root
with folders that are named like steps but were not written by Hydrax is refused. A folder is deleted or renamed only if
all files in it have the names of a checkpoint's files.

A run has a random id, which its checkpoints carry and a resumed run keeps. So a step that another run left in the
folder is never mistaken for the newest, however high its number.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from hydrax.checkpoint import schema
from hydrax.checkpoint.lock import one_at_a_time
from hydrax.errors import CheckpointError, DamagedCheckpointError
from hydrax.files import write_bytes

MARK = ".hydrax"

# The name of a step, without leading zeros so that it has only one name, or of a temporary folder: a step that is being
# written, that another of the same number replaces, or that is being deleted.
_NAME = re.compile(r"(\.hydrax-)?(?P<step>0|[1-9][0-9]{0,17})(?(1)\.(?P<kind>draft|old|deleted))")
# What a killed process may leave behind: files of tensorstore and of Hydrax that have not got their final names yet.
_HALF_WRITTEN = re.compile(r"(arrays/(d/)?)?([0-9a-z.]+\.__lock|\.hydrax-[0-9a-f]{16}\.part)")
_log = logging.getLogger("hydrax")
_T = TypeVar("_T")


class _Label(NamedTuple):
    """Whose step a folder holds, by its metadata."""

    run: str
    step: int


class _Step(NamedTuple):
    """A folder that is named like a step; its label is None if its metadata cannot be read."""

    path: Path
    number: int
    label: _Label | None


def write(root: Path, step: int, run: str, fill: Callable[[Path], None], keep: int | None) -> Path:
    """Writes the folder of one step. Whatever ends the process, a reader finds the folder complete or not at all.

    Args:
      root: made if it is missing.
      step: names the folder. A step of the same run is replaced; a damaged one is renamed.
      run: id of the run that the root belongs to from now on.
      fill: writes into the draft, and raises if the draft does not read back.
      keep: how many of the newest steps of this run to keep, this one in any case; None keeps all.

    Raises:
      CheckpointError: the root holds folders that Hydrax did not write, or steps of another run.
    """
    root.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(root):
        # The mark comes before any step, so a root is known as Hydrax's even if its first save is cut off.
        _claim(root, run)
        _tidy(root)
        folder = _write(root, step, run, fill)
        _sync(root)  # before anything older is deleted: the new name must survive a power failure
        _tidy(root)
        if keep is not None:
            own = [found for found in _steps_in(root) if found.label == (run, found.number)]
            for old in own[keep:]:
                if old.path != folder and _is_ours(old.path):
                    # Renamed first, so that a half-deleted step is never mistaken for a checkpoint.
                    shutil.rmtree(old.path.rename(root / f".hydrax-{old.number}.deleted"))
    return folder


def _write(root: Path, step: int, run: str, fill: Callable[[Path], None]) -> Path:
    draft, folder = root / f".hydrax-{step}.draft", root / str(step)
    label = _label(folder)
    _check_free(folder, label, run, step)
    try:
        draft.mkdir()
        fill(draft)
        if label is not None:
            folder.rename(root / f".hydrax-{step}.old")  # a reader that comes now uses it
        elif folder.exists():
            set_aside(folder)
        draft.rename(folder)  # atomic: this is the moment at which the step exists
    except BaseException:
        with contextlib.suppress(OSError):
            _tidy(root)
        raise
    return folder


def first_sound(path: Path, read: Callable[[Path], _T]) -> _T:
    """Reads the newest intact step below a path, and renames the damaged ones that are newer.

    Args:
      path: the folder of a step, or one that holds steps, or whose `last` or `checkpoints/last` does.
      read: reads the folder of a step.

    Raises:
      CheckpointError: there is no step.
      DamagedCheckpointError: no step can be read. None is renamed then, since the cause may be elsewhere.
    """
    failed: list[tuple[Path, DamagedCheckpointError]] = []
    for step in _find(path):
        try:
            found = read(step)
        except DamagedCheckpointError as error:
            failed.append((step, error))
            continue
        for damaged, why in failed:
            _log.warning("%s Instead: %s.", why, step)
            # So that no later run tries it first; if it cannot be renamed, it stays.
            with contextlib.suppress(OSError):
                set_aside(damaged)
        return found
    raise failed[0][1]  # of the newest step, which the user wanted


def holds_steps(root: Path) -> bool:
    """Tells whether a folder holds a step under any name that a step can have, readable or not."""
    return bool(_steps_in(root))


def check_root(root: Path) -> None:
    """Raises CheckpointError if a folder for checkpoints holds folders that look like steps but are not Hydrax's."""
    _others(root, "")


def make_way(root: Path, run: str) -> Path | None:
    """Renames a folder that holds another run's steps, so that a run can use its name.

    Returns:
      The new name, or None if the folder is free for the run as it is.

    Raises:
      CheckpointError: the folder holds folders that Hydrax did not write.
    """
    # Renamed, never deleted: the other run may be the one that the user wants to keep.
    return root.rename(_free_name(root, "-")) if _others(root, run) else None


def set_aside(step: Path) -> None:
    """Renames a step that is damaged, if it is Hydrax's own."""
    if _is_ours(step):
        step.rename(_free_name(step, ".damaged-"))


def _free_name(path: Path, separator: str) -> Path:
    names = (path.with_name(f"{path.name}{separator}{number}") for number in itertools.count(1))
    # `lexists`: a broken link takes a name, too.
    return next(name for name in names if not os.path.lexists(name))


def _claim(root: Path, run: str) -> None:
    """Marks a root as this run's, or raises CheckpointError."""
    if others := _others(root, run):
        raise CheckpointError(
            f"A folder holds checkpoints of another run: {root}. Got its steps {', '.join(others[:5])}, expected steps "
            "of the present run or none. Fix: choose another folder, or move that one away."
        )
    if _mark(root) != run:
        write_bytes(root / MARK, schema.sealed({"format": schema.FORMAT, "run": run}), sync=True)


def _others(root: Path, run: str) -> list[str]:
    """Returns the steps of other runs in a root. Raises CheckpointError if it has folders that only look like steps."""
    mark = _mark(root)
    if mark == run:
        return []
    steps = _steps_in(root)
    foreign = [step.path.name for step in steps if not (step.label or (mark and _is_ours(step.path)))]
    if foreign:
        raise CheckpointError(
            f"The checkpoint folder holds other data: {root}. Got folders that Hydrax did not write "
            f"({', '.join(foreign[:5])}), expected an empty folder, a new one, or one of this run's checkpoints. Fix: "
            "choose another folder."
        )
    return [step.path.name for step in steps if step.label is None or step.label.run != run]


def _check_free(folder: Path, label: _Label | None, run: str, step: int) -> None:
    """Raises CheckpointError if something that must not be replaced has the name of a step."""
    is_free = not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and not (_is_ours(folder) and label in (None, (run, step))):
        raise CheckpointError(
            f"The name of a checkpoint is taken: {folder}. Got "
            f"{'something that Hydrax did not write' if label is None else f'step {label.step} of another run'}, "
            "expected nothing or a step of this run. Fix: choose another folder, or move that one away."
        )


def _mark(root: Path) -> str | None:
    """Returns the id of the run that a root belongs to; None if it has no mark, or a damaged one."""
    with contextlib.suppress(Exception):
        run: str = schema.read_sealed(root / MARK)["run"]
        return run
    return None


def _label(step: Path) -> _Label | None:
    """Returns whose step a folder holds, by its metadata alone; None if the metadata cannot be read."""
    with contextlib.suppress(Exception):
        meta = schema.read_sealed(step / schema.META)
        return _Label(meta["run"], meta["step"])
    return None


def _is_ours(folder: Path) -> bool:
    """Tells whether a folder holds files with the names of a checkpoint's, and nothing else."""
    try:
        names = schema.files_in(folder)
    except (OSError, ValueError):
        return False
    known = (name == schema.META or schema.ARRAYS.fullmatch(name) or _HALF_WRITTEN.fullmatch(name) for name in names)
    # Only a temporary folder may be empty: no save leaves a step without files.
    return not folder.is_symlink() and all(known) and (bool(names) or folder.name.startswith(".hydrax-"))


def _steps_in(root: Path) -> list[_Step]:
    """Lists the folders with names of steps, the newest first.

    A process that died between two renames leaves only the replaced step, under its temporary name. So that name counts
    too, but comes after the step's own.
    """
    steps = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in root.iterdir():
            name = _NAME.fullmatch(path.name)
            if name and name["kind"] in (None, "old") and path.is_dir():
                steps.append(_Step(path, int(name["step"]), _label(path)))
    return sorted(steps, key=lambda step: (-step.number, step.path.name.startswith(".")))


def _find(path: Path) -> list[Path]:
    """Lists the steps to read below a path, the newest first; the path itself if it is one."""
    if os.path.lexists(path / schema.META):
        return [path]
    passed_over: list[str] = []
    for root in (path, path / "last", path / "checkpoints" / "last"):
        own, others = _sort_out(root)
        if own:
            return own
        passed_over += others
    if path.is_dir() and _is_ours(path):
        return [path]  # without its metadata: the reader says what is wrong with it
    raise CheckpointError(
        f"There is no checkpoint: {path}. Got {'; '.join(passed_over) or 'no step folder'}, expected one written by "
        'ModelCheckpoint, save_checkpoint or Heads.save. Fix: check the path; ckpt_path="auto" starts afresh where '
        "there is none."
    )


def _sort_out(root: Path) -> tuple[list[Path], list[str]]:
    """Returns the steps of the run that a root belongs to, the newest first, and descriptions of all other steps."""
    # A step whose metadata cannot be read is offered too: the reader reports the damage and tries the next one.
    steps = [step for step in _steps_in(root) if step.label or _is_ours(step.path)]
    # Without a mark the root belongs to the run of its newest step.
    run = _mark(root) or next((step.label.run for step in steps if step.label), None)
    own, others = [], []
    for path, number, label in steps:
        if label in (None, (run, number)):
            own.append(path)
            continue
        what = f"step {label.step} under another name" if label.step != number else "a step of another run"
        others.append(f"{what}, {path.name}")
        _log.warning("A checkpoint is passed over: %s is %s.", path, what)
    return own, others


def _tidy(root: Path) -> None:
    """Removes the temporary folders of this save, or of one that was killed; the root has no other writer."""
    for path in list(root.iterdir()):
        name = _NAME.fullmatch(path.name)
        if name and name["kind"] and _is_ours(path):
            if name["kind"] == "old" and not (root / name["step"]).exists():
                path.rename(root / name["step"])
            else:
                shutil.rmtree(path)


def _sync(folder: Path) -> None:
    """Waits until the names in a folder are on disk; on Windows, where a folder cannot be opened, it does nothing."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
