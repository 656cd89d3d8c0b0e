"""Keeps compiled programs in the user's cache folder: a program compiles once on a machine, not in each process.

JAX has such a cache and leaves it off. Here it is turned on, where the user has not spoken: a folder of theirs
(`JAX_COMPILATION_CACHE_DIR`, or `jax_compilation_cache_dir` in `jax.config`) stays theirs, and
`JAX_ENABLE_COMPILATION_CACHE=false` switches it off.

Each kind of machine has its own folder. What XLA makes for a CPU depends on what that CPU can do, and on the number of
cores, which shapes its loops and so the bits of a sum. JAX's name for a program does not hold the cores, and the nodes
of a cluster share a home.

A cache only saves time, so nothing that goes wrong with it may stop a run: a folder that cannot be written leaves it
off, and a program that cannot be read or written is compiled, each with a line by the logger "hydrax".
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
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_config: Any = jax.config  # Type checkers do not know its options.

MAX_BYTES = 2**30
"""What the folder may hold; JAX's own bound needs a package, and a lock around each read."""

_KEPT_SHARE = 0.75  # Of it after a sweep, so that not every run sweeps.
_JAX_MIN_SECS = 1.0  # JAX's default: what compiles faster is not kept. A fit has a dozen such programs.
_TROUBLE = "Error (reading|writing) persistent compilation cache entry"
# What tells one kind of CPU from another in /proc/cpuinfo, on x86 and on Arm; the rest of it changes as one looks.
_CPU_WORDS = ("vendor_id", "cpu family", "model", "model name", "flags", "features", "cpu implementer", "cpu part")
# How many threads XLA takes to be there, where the user says so.
_THREAD_VARIABLES = ("NPROC", "PJRT_NPROC")


def enable() -> None:
    """Turns the cache on for the rest of the process, where the user has not spoken. Never raises."""
    if _turn_on():
        _listen()


@functools.cache  # once a process: the folder stays, and so does what keeps it from being used
def _turn_on() -> bool:
    if not _config.jax_enable_compilation_cache or _config.jax_compilation_cache_dir is not None:
        return False
    try:
        root = _user_cache() / "hydrax" / "jax"
        folder = root / _machine()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass  # A disk that is full or read-only says so here, once, and not for each program.
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        _log(f"Compiled programs cannot be kept: the user's cache folder. Got {error!r}, expected room for files.")
        return False
    with contextlib.suppress(OSError):  # another process may sweep too
        sweep(root, MAX_BYTES)
    _config.update("jax_compilation_cache_dir", str(folder))
    if _config.jax_persistent_cache_min_compile_time_secs == _JAX_MIN_SECS:
        _config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return True


def sweep(root: Path, max_bytes: int) -> None:
    """Removes what was not used for longest, if the files below a folder take more than this."""
    files = [path for path in root.rglob("*") if path.is_file()]
    stats = [path.stat() for path in files]
    excess = sum(stat.st_size for stat in stats) - max_bytes
    if excess <= 0:
        return
    excess += round(max_bytes * (1 - _KEPT_SHARE))
    # Most file systems note the time of a read, a day late at worst; on the others it is the oldest that go.
    for stat, path in sorted(zip(stats, files, strict=True), key=lambda f: max(f[0].st_atime, f[0].st_mtime)):
        path.unlink(missing_ok=True)
        excess -= stat.st_size
        if excess <= 0:
            break


def _listen() -> None:
    """Lets JAX's warnings about the cache be a log line; where warnings are errors they would end the run."""
    warnings.filterwarnings("default", _TROUBLE, UserWarning)
    # Each time, as whoever catches warnings (pytest does) takes both away again.
    if not isinstance(warnings.showwarning, _Listener):
        warnings.showwarning = _Listener(warnings.showwarning)


class _Listener:
    """Stands in front of what shows warnings, and takes those of the cache."""

    def __init__(self, show: Callable[..., Any]) -> None:
        self._show = show
        self._told = False

    def __call__(self, message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if not re.match(_TROUBLE, str(message)):
            self._show(message, category, *args, **kwargs)
            return
        folder = _config.jax_compilation_cache_dir
        if not self._told:  # once: a full disk refuses every program
            _log(f"A compiled program is not kept, so it compiles anew: {folder}. Got {str(message):.200}.")
            self._told = True
        damaged = re.match("Error reading .* for '([^']+)'", str(message))
        if damaged:
            # JAX never replaces an entry, so it would be met again in each run.
            with contextlib.suppress(OSError):
                for entry in Path(folder).glob(f"{damaged[1]}-*"):
                    entry.unlink(missing_ok=True)


def _log(what: str) -> None:
    logging.getLogger("hydrax").warning(
        "%s Fix: make room, or set JAX_COMPILATION_CACHE_DIR to another folder, or JAX_ENABLE_COMPILATION_CACHE=false; "
        "the run goes on without.",
        what,
    )


def _user_cache() -> Path:
    """Where this system's users keep what can be made anew."""
    given = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given)
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _machine() -> str:
    """A word for what XLA's programs for a CPU depend on besides themselves and its flags."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    known = [platform.machine(), *_cpu(), str(cores), *(os.environ.get(name, "") for name in _THREAD_VARIABLES)]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]


def _cpu() -> list[str]:
    try:
        # The first core stands for all; it ends with an empty line.
        with open("/proc/cpuinfo") as lines:
            first = list(itertools.takewhile(str.strip, lines))
    except OSError:
        # Elsewhere than on Linux homes are not shared as a rule, so the machine's own name will do.
        return [platform.processor(), platform.node()]
    return [line for line in first if line.split(":")[0].strip().lower() in _CPU_WORDS]
