"""Folders of steps, `<root>/<step>/`: written whole or not at all, found, set aside, deleted."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hydrax.errors import CheckpointError, DamagedCheckpointError

META = "meta.json"

_DRAFT, _DELETED = ".draft", ".deleted"
_log = logging.getLogger("hydrax")
_T = TypeVar("_T")


def write(root: Path, step: int, fill: Callable[[Path], None], keep: int | None) -> Path:
    """Makes the folder of one step. Whatever ends the process on the way, a reader finds it whole or not at all.

    First goes what a process that died has left; a draft is filled and takes the step's name; then steps beyond `keep`
    lose theirs and are deleted.

    Args:
      root: made if it is not there.
      step: names the folder; one of that name that is no whole step is renamed.
      fill: writes into the draft.
      keep: how many of the newest steps to keep, this one in any case; None keeps all.
    """
    root.mkdir(parents=True, exist_ok=True)
    for left in [*root.glob(f".*{_DRAFT}"), *root.glob(f".*{_DELETED}")]:
        shutil.rmtree(left)
    draft, folder = root / f".{step}{_DRAFT}", root / str(step)
    try:
        draft.mkdir()
        fill(draft)
        if folder.exists():
            set_aside(folder)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    _sync(root)
    if keep is not None:
        for old in _steps_in(root)[keep:]:
            if old != folder:
                _delete(old)
    return folder


def find(path: Path) -> Path:
    """The folder of one step: `path` itself, or the newest step in it, in its `last`, or in its `checkpoints/last`."""
    steps = _steps(path)
    return next((step for step in steps if is_whole(step)), steps[0])


def is_whole(step: Path) -> bool:
    """Whether a folder of that name is there and was written to its end."""
    return (step / META).is_file()


def first_sound(path: Path, read: Callable[[Path], _T]) -> _T:
    """What `read` makes of the newest step below a path; one that is damaged is renamed, and the one before is read.

    Args:
      path: as for `find`; of a folder of one step there is none before.
      read: takes the folder of a step.

    Raises:
      DamagedCheckpointError: none is left.
    """
    steps = _steps(path)
    for number, step in enumerate(steps):
        try:
            return read(step)
        except DamagedCheckpointError as error:
            if number + 1 == len(steps):
                raise
            _log.warning("%s Instead: %s.", error, steps[number + 1])
            # So that no later run takes it for the newest; where it cannot be renamed it stays.
            with contextlib.suppress(OSError):
                set_aside(step)
    raise AssertionError("there is at least one step")


def set_aside(step: Path) -> None:
    """Renames a step that is not whole or not sound."""
    names = (step.with_name(f"{step.name}.damaged-{number}") for number in itertools.count(1))
    step.rename(next(name for name in names if not name.exists()))


def _steps(path: Path) -> list[Path]:
    """The steps below a path, the newest first; the path itself where it is one."""
    if path.name.isdigit() and path.is_dir():
        return [path]
    for folder in (path, path / "last", path / "checkpoints" / "last"):
        if steps := _steps_in(folder):
            return steps
    raise CheckpointError(
        f"There is no checkpoint: {path}. Got no step folder, expected one written by ModelCheckpoint, save_checkpoint "
        'or Heads.save. Fix: check the path; ckpt_path="auto" starts afresh where there is none.'
    )


def _steps_in(root: Path) -> list[Path]:
    steps = [path for path in root.glob("*") if path.name.isdigit() and path.is_dir()]
    return sorted(steps, key=lambda path: int(path.name), reverse=True)


def _delete(step: Path) -> None:
    """Takes a step its name first: half of one must not be taken for one."""
    gone = step.with_name(f".{step.name}{_DELETED}")
    step.rename(gone)
    shutil.rmtree(gone)


def _sync(folder: Path) -> None:
    """Waits until the disk has the names in a folder; on Windows, where a folder cannot be opened, it does not."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
