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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from hydrax.checkpoint import schema
from hydrax.errors import CheckpointError, DamagedCheckpointError
from hydrax.files import write_bytes

MARK = ".hydrax"

# Without leading zeros, so that each step has one name only.
_STEP = re.compile(r"0|[1-9][0-9]{0,17}")
# Temporary folders: being written, replaced by a newer one of the same step, or deleted.
_PASSING = re.compile(r"\.hydrax-([0-9]{1,18})\.(draft|old|deleted)")
# What a killed process may leave behind: files of tensorstore and of Hydrax that have not got their final names yet.
_HALF_WRITTEN = re.compile(r"(arrays/(d/)?)?([0-9a-z.]+\.__lock|\.hydrax-[0-9a-f]{16}\.part)")
_log = logging.getLogger("hydrax")
_T = TypeVar("_T")


class _Label(NamedTuple):
    """Whose step a folder holds."""

    run: str
    step: int


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
    # The mark comes before any step, so a root is known as Hydrax's even if its first save is cut off.
    root.mkdir(parents=True, exist_ok=True)
    _claim(root, run)
    _tidy(root)
    draft, folder = root / f".hydrax-{step}.draft", root / str(step)
    _check_free(folder, run)
    try:
        draft.mkdir()
        fill(draft)
        if _label(folder) is not None:
            folder.rename(root / f".hydrax-{step}.old")  # a reader that comes now uses it
        elif folder.exists():
            set_aside(folder)
        draft.rename(folder)  # atomic: this is the moment at which the step exists
    except BaseException:
        with contextlib.suppress(OSError):
            _tidy(root)
        raise
    _sync(root)  # before anything older is deleted: the new name must survive a power failure
    _tidy(root)
    if keep is not None:
        own = (path for path in _steps_in(root) if _label(path) == _Label(run, int(path.name)))
        for old in list(own)[keep:]:
            if old != folder and _is_ours(old):
                # Renamed first, so that a half-deleted step is never mistaken for a checkpoint.
                shutil.rmtree(old.rename(root / f".hydrax-{old.name}.deleted"))
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
    labels = {step: _label(step) for step in _steps_in(root)}
    foreign = [step.name for step, label in labels.items() if not (label or (mark and _is_ours(step)))]
    if foreign:
        raise CheckpointError(
            f"The checkpoint folder holds other data: {root}. Got folders that Hydrax did not write "
            f"({', '.join(foreign[:5])}), expected an empty folder, a new one, or one of this run's checkpoints. Fix: "
            "choose another folder."
        )
    return [step.name for step, label in labels.items() if label is None or label.run != run]


def _check_free(folder: Path, run: str) -> None:
    """Raises CheckpointError if something that must not be replaced has the name of a step."""
    if not os.path.lexists(folder):
        return
    label = _label(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if not _is_ours(folder) or (label is not None and label != _Label(run, int(folder.name))):
        raise CheckpointError(
            f"The name of a checkpoint is taken: {folder}. Got "
            f"{'something that Hydrax did not write' if label is None else f'step {label.step} of another run'}, "
            "expected nothing or a step of this run. Fix: choose another folder, or move that one away."
        )


def _mark(root: Path) -> str | None:
    """Returns the id of the run that a root belongs to; None if it has no mark, or a damaged one."""
    with contextlib.suppress(Exception):
        run = schema.read_sealed(root / MARK)["run"]
        return run if isinstance(run, str) else None
    return None


def _label(step: Path) -> _Label | None:
    """Whose step a folder holds, by its metadata alone; None if the metadata cannot be read."""
    with contextlib.suppress(Exception):
        meta = schema.read_sealed(step / schema.META)
        label = _Label(meta["run"], meta["step"])
        return label if isinstance(label.run, str) and type(label.step) is int else None
    return None


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds files with the names of a checkpoint's, and nothing else."""
    try:
        names = schema.files_in(folder)
    except (OSError, ValueError):
        return False
    known = (name == schema.META or schema.ARRAYS.fullmatch(name) or _HALF_WRITTEN.fullmatch(name) for name in names)
    return not folder.is_symlink() and all(known) and (bool(names) or bool(_PASSING.fullmatch(folder.name)))


def _steps_in(root: Path) -> Iterator[Path]:
    """Folders with the names of steps, the newest first."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        steps = [path for path in root.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]
        yield from sorted(steps, key=lambda path: int(path.name), reverse=True)


def _find(path: Path) -> Iterator[Path]:
    """Yields the steps to read below a path, the newest first; the path itself if it is one."""
    if os.path.lexists(path / schema.META):
        yield path
        return
    passed_over: list[str] = []
    for root in (path, path / "last", path / "checkpoints" / "last"):
        own = next(steps := _own_steps(root, passed_over), None)
        if own is not None:
            yield from (own, *steps)
            return
    if path.is_dir() and _is_ours(path):
        yield path  # without its metadata: the reader says what is wrong with it
        return
    raise CheckpointError(
        f"There is no checkpoint: {path}. Got {'; '.join(passed_over) or 'no step folder'}, expected one written by "
        'ModelCheckpoint, save_checkpoint or Heads.save. Fix: check the path; ckpt_path="auto" starts afresh where '
        "there is none."
    )


def _own_steps(root: Path, passed_over: list[str]) -> Iterator[Path]:
    """Yields the steps of the run that a root belongs to, the newest first.

    Args:
      passed_over: takes a description of each step that another run, or a copy under another number, left there.
    """
    run = _mark(root)
    # A process that died between two renames leaves only the replaced step, which is intact.
    old = {path for path in _passing(root, "old") if not (root / _number(path)).exists()}
    steps = {path: int(_number(path)) for path in (*_steps_in(root), *old)}
    for step, number in sorted(steps.items(), key=lambda item: item[1], reverse=True):
        label = _label(step)
        if label is None and not _is_ours(step):
            continue
        # A step whose label cannot be read is offered too: the reader reports the damage and tries the next one.
        run = run or (label and label.run)  # without a mark the root belongs to the run of its newest step
        if label not in (None, (run, number)):
            reason = f"step {label.step} under another name" if label.step != number else "a step of another run"
            passed_over.append(f"{reason}, {step.name}")
            _log.warning("A checkpoint is passed over: %s is %s.", step, reason)
            continue
        yield step


def _number(path: Path) -> str:
    passing = _PASSING.fullmatch(path.name)
    return passing[1] if passing else path.name


def _passing(root: Path, *kinds: str) -> Iterator[Path]:
    """Yields the temporary folders of these kinds."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in root.iterdir():
            passing = _PASSING.fullmatch(path.name)
            if passing and passing[2] in kinds and _is_ours(path):
                yield path


def _tidy(root: Path) -> None:
    """Removes the temporary folders of this save, or of one that was killed; the root has no other writer."""
    for path in list(_passing(root, "old")):
        if not (root / _number(path)).exists():
            path.rename(root / _number(path))
    for path in list(_passing(root, "draft", "old", "deleted")):
        shutil.rmtree(path)


def _sync(folder: Path) -> None:
    """Waits until the names in a folder are on disk; on Windows, where a folder cannot be opened, it does nothing."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
