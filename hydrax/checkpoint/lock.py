"""Locks that give a folder one writer: for the time of a fit, and for the time of a save."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from hydrax.errors import ArgumentError


def locked(folder: Path) -> TextIO | None:
    """Locks a folder for this process and returns the lock file, which names the holder.

    The lock ends when the file is closed or the process ends, however that happens. Returns None on Windows, which has
    no such locks.

    Raises:
      ArgumentError: another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("a+", encoding="utf-8", errors="replace")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise ArgumentError(
            f"The checkpoint folder is in use by another fit: ModelCheckpoint, {folder}. Got {holder}, expected a "
            "folder that no other fit uses. Fix: pass another dirpath, or wait until that fit ends."
        ) from error
    with contextlib.suppress(OSError):  # on a full disk the holder's name is missing, but the lock holds
        lock.truncate(0)
        os.write(lock.fileno(), f"process {os.getpid()} on {platform.node()}".encode())  # no buffer to fail at its end
    return lock


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Waits until no other thread or process runs such a block for the same folder.

    It does not wait on Windows, nor on a file system that cannot lock folders.
    """
    handle = None
    # The folder itself is locked, which leaves no file in it.
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
