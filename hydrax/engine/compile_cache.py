"""Turns on JAX's compile cache, so that a program compiles once on a machine and not in each process.

JAX leaves this cache off. Hydrax turns it on, in the user's cache folder, unless the user has decided otherwise:
another folder (`JAX_COMPILATION_CACHE_DIR`, or `jax_compilation_cache_dir` in `jax.config`) is kept, and
`JAX_ENABLE_COMPILATION_CACHE=false` switches the cache off.

Each kind of machine has a folder of its own. What XLA compiles for a CPU depends on the CPU's instructions and on the
number of cores, which shapes its loops and so the bits of a sum. JAX's name for a program does not contain the number
of cores, and the nodes of a cluster share a home directory.

The folder holds machine code that the process runs, so it is used only if it belongs to the user and nobody else can
write to it.

A cache only saves time, so no problem with it may stop a run. If the folder cannot be written, the cache stays off; if
a program cannot be read or written, it is compiled. Both are reported by one line of the logger "hydrax".
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
import os
import platform
import re
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from hydrax.engine.devices import num_cores

_config: Any = jax.config  # Type checkers do not know its options.

MAX_BYTES = 2**30
"""Most bytes of the folder. JAX's own limit needs another package, and takes a lock for each read."""

_KEPT_SHARE = 0.75  # The share that a sweep leaves, so that not every run sweeps.
_JAX_MIN_SECS = 1.0  # JAX's default: it keeps no program that compiles faster. A fit has a dozen of those.
_TROUBLE = "Error (reading|writing) persistent compilation cache entry"
# The entries of /proc/cpuinfo that identify a kind of CPU, on x86 and on Arm. Others, such as MHz, change all the time.
_CPU_WORDS = ("vendor_id", "cpu family", "model", "model name", "flags", "features", "cpu implementer", "cpu part")
# Variables by which a user sets the number of threads that XLA plans for.
_THREAD_VARIABLES = ("NPROC", "PJRT_NPROC")


def enable() -> None:
    """Turns the cache on for the rest of the process, unless the user has decided otherwise. Never raises."""
    if _turn_on():
        _listen()


@functools.cache  # once a process: the folder stays, and so does what keeps it from being used
def _turn_on() -> bool:
    if not _config.jax_enable_compilation_cache or _config.jax_compilation_cache_dir is not None:
        return False
    try:
        root = _user_cache() / "hydrax" / "jax"
        folder = root / _machine()
        # One by one, as parents would get the mode of the umask.
        for part in (root.parent.parent, root.parent, root, folder):
            part.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_shared(root.parent, root, folder)
        with tempfile.TemporaryFile(dir=folder):
            pass  # A full or read-only disk is noticed here, once, and not for each program.
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home directory
        _log(
            f"The compile cache is off: the user's cache folder. Got {error!r}, expected a folder that you own "
            "and that nobody else can write."
        )
        return False
    with contextlib.suppress(OSError):  # another process may be sweeping as well
        sweep(root, MAX_BYTES)
    _config.update("jax_compilation_cache_dir", str(folder))
    if _config.jax_persistent_cache_min_compile_time_secs == _JAX_MIN_SECS:
        _config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return True


def _refuse_shared(*folders: Path) -> None:
    """Raises PermissionError if someone else may write machine code that this process would run."""
    for folder in folders if hasattr(os, "getuid") else ():
        info = folder.stat()
        if info.st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to user {info.st_uid}")
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{folder} can be written by others; chmod go-w makes it private")


def sweep(root: Path, max_bytes: int) -> None:
    """Removes the least recently used files below a folder, if all of them together are larger than `max_bytes`."""
    files = [path for path in root.rglob("*") if path.is_file()]
    stats = [path.stat() for path in files]
    excess = sum(stat.st_size for stat in stats) - max_bytes
    if excess <= 0:
        return
    excess += round(max_bytes * (1 - _KEPT_SHARE))
    # Most file systems record the time of the last read, at worst a day late. On the others the oldest files go.
    for info, path in sorted(zip(stats, files, strict=True), key=lambda f: max(f[0].st_atime, f[0].st_mtime)):
        path.unlink(missing_ok=True)
        excess -= info.st_size
        if excess <= 0:
            break


def _listen() -> None:
    """Turns JAX's warnings about the cache into one log line; with warnings as errors they would end the run.

    `warnings.showwarning` is the hook that Python documents for this, and no other will do. `warnings.catch_warnings`
    around a compile is not thread-safe, and programs compile in threads. The setting that JAX has for these warnings,
    `jax_raise_persistent_cache_errors`, makes errors of them.
    """
    warnings.filterwarnings("default", _TROUBLE, UserWarning)
    # At each call, because everyone who catches warnings, such as pytest, removes both again.
    if not isinstance(warnings.showwarning, _Listener):
        warnings.showwarning = _Listener(warnings.showwarning)


class _Listener:
    """Handles warnings about the cache, and passes all others on to the function that showed them before."""

    def __init__(self, show: Callable[..., Any]) -> None:
        self._show = show
        self._told = False

    def __call__(self, message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if not re.match(_TROUBLE, str(message)):
            self._show(message, category, *args, **kwargs)
            return
        folder = _config.jax_compilation_cache_dir
        if not self._told:  # once: on a full disk no program can be written
            _log(f"A compiled program is not kept, so it will compile again: {folder}. Got {str(message):.200}.")
            self._told = True
        damaged = re.match("Error reading .* for '([^']+)'", str(message))
        if damaged:
            # JAX never replaces an entry, so every run would read the damaged one again.
            with contextlib.suppress(OSError):
                for entry in Path(folder).glob(f"{damaged[1]}-*"):
                    entry.unlink(missing_ok=True)


def _log(what: str) -> None:
    logging.getLogger("hydrax").warning(
        "%s Fix: make room, or set JAX_COMPILATION_CACHE_DIR to another folder, or JAX_ENABLE_COMPILATION_CACHE=false; "
        "the run continues without the cache.",
        what,
    )


def _user_cache() -> Path:
    """Returns the folder for caches of the user, by the convention of the operating system."""
    given = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given)
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _machine() -> str:
    """Returns a digest of what XLA's code for a CPU depends on besides the program and XLA's flags."""
    known = [platform.machine(), *_cpu(), str(num_cores()), *(os.environ.get(name, "") for name in _THREAD_VARIABLES)]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]


def _cpu() -> list[str]:
    """Lines that identify the kind of CPU."""
    try:
        # All cores are alike; the first one's entries end with an empty line.
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            first = list(itertools.takewhile(str.strip, lines))
    except OSError:
        # Not Linux: home directories are rarely shared there, so the name of the machine will do.
        return [platform.processor(), platform.node()]
    return [line for line in first if line.split(":")[0].strip().lower() in _CPU_WORDS]
