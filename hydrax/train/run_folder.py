"""The folders of runs, `<root>/hydrax_logs/version_<n>/`."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from hydrax import checkpoint
from hydrax.errors import ArgumentError, CheckpointError
from hydrax.files import as_path

_PREFIX = "version_"


def check_root(root: Any) -> Path:
    """Returns the Trainer's `default_root_dir` as a path."""
    if not isinstance(root, str | os.PathLike):
        raise ArgumentError(
            f'Invalid Trainer argument: default_root_dir. Got {root!r}, expected a path. Fix: leave it out for ".".'
        )
    return as_path("Trainer(default_root_dir=)", root).absolute()  # so that os.chdir has no effect


def make_run_folder(root: Path) -> Path:
    """Makes the next free `version_<n>` folder, for this process alone."""
    number = max(_versions(root), default=-1) + 1
    while True:
        folder = root / "hydrax_logs" / f"{_PREFIX}{number}"
        try:
            folder.mkdir(parents=True)  # claims the number: another process may have found the same one free
            return folder
        except FileExistsError:
            number += 1


def drop_unused(folder: Path) -> None:
    """Removes the folder of a run that never began, if nothing but locks was written to it."""
    with contextlib.suppress(OSError):
        if all(path.is_dir() or path.name == ".lock" for path in folder.rglob("*")):
            shutil.rmtree(folder)


def find_checkpoint(ckpt_path: Any, root: Path, saver: Any) -> Path | None:
    """Finds the checkpoint that `ckpt_path` names; None if it is None, or if it is "auto" and there is none.

    Args:
      ckpt_path: a path, "last", "best", "auto" or None.
      root: the Trainer's `default_root_dir`.
      saver: the callback that saves checkpoints, or None.

    Raises:
      ArgumentError: `ckpt_path` has another type.
      CheckpointError: there is no such checkpoint.
    """
    if not isinstance(ckpt_path, str | Path | None):
        raise ArgumentError(
            f"An argument has the wrong type: ckpt_path. Got {type(ckpt_path).__name__}, expected a path, "
            '"last", "best" or "auto". Fix: pass the folder that ModelCheckpoint wrote.'
        )
    if ckpt_path is None or ckpt_path not in ("last", "auto", "best"):
        return None if ckpt_path is None else as_path("ckpt_path", ckpt_path)
    kind = "best" if ckpt_path == "best" else "last"
    folder = getattr(saver, "dirpath", None)
    found = getattr(saver, f"{kind}_model_path", None) or find_newest(kind, root, folder and Path(folder))
    if not found and ckpt_path != "auto":
        raise CheckpointError(
            f"There is no checkpoint: ckpt_path={ckpt_path!r}. Got none below {root / 'hydrax_logs'}, expected one "
            "written by ModelCheckpoint. Fix: pass its path, or 'auto' to start afresh if there is none."
        )
    return Path(found) if found else None


def find_newest(kind: str, root: Path, folder: Path | None = None) -> Path | None:
    """Finds the newest `last` or `best` folder that holds a checkpoint; None if there is none.

    Args:
      kind: "last" or "best".
      root: the Trainer's `default_root_dir`.
      folder: the only folder to look into, if the user chose one for checkpoints.
    """
    versions = sorted(_versions(root), reverse=True)
    folders = [root / "hydrax_logs" / f"{_PREFIX}{number}" / "checkpoints" for number in versions]
    for found in (one / kind for one in ([folder] if folder else folders)):
        if checkpoint.holds_steps(found):
            return found
    return None


def _versions(root: Path) -> list[int]:
    names = [p.name.removeprefix(_PREFIX) for p in (root / "hydrax_logs").glob(f"{_PREFIX}*")]
    return [int(name) for name in names if name.isdigit()]
