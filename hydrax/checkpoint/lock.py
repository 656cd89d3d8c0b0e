"""One writer in a folder: a lock with its holder's name."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import TextIO

from hydrax.errors import ArgumentError


def locked(folder: Path) -> TextIO | None:
    """A file that says who writes in a folder; the lock on it ends with the process, however that ends.

    None on Windows, which has no such locks.

    Raises:
      ArgumentError: somebody else does.
    """
    try:
        import fcntl
    except ImportError:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise ArgumentError(
            f"Another fit writes there: ModelCheckpoint, {folder}. Got {holder}, expected a folder of this fit's own. "
            "Fix: pass another dirpath, or wait until that one ends."
        ) from error
    with contextlib.suppress(OSError):  # a full disk keeps the holder's name out, and holds the lock all the same
        lock.truncate(0)
        os.write(lock.fileno(), f"process {os.getpid()} on {platform.node()}".encode())  # no buffer to fail at its end
    return lock
