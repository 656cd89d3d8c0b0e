"""Keeps some versions of jaxlib from computing wrong numbers on a CPU. Runs before JAX's backend starts.

On a CPU, jaxlib 0.10.2 computes some vmapped products followed by a sum wrongly: 1 row of 32,769 in
tests/project/test_jaxlib_guard.py. 0.11.2 computes that case correctly, but its program still contains the same fusion,
so it is guarded too; 0.12 is not. One XLA flag turns the fusion off; very small matrix products then take up to twice
as long. XLA reads its flags when the backend starts, so this file is imported before anything that uses JAX.

Source: https://github.com/jax-ml/jax/issues/39103
"""

import logging
import os
import sys
import warnings

from jaxlib.version import __version_info__ as jaxlib_version

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
"""Name of the XLA flag; an empty value turns the fusion off."""

_BROKEN_SINCE = (0, 10, 2)
_MENDED_SINCE = (0, 12)


def apply() -> bool:
    """Turns the faulty fusion off if this jaxlib has it and the CPU may be used.

    If the user has set the flag, it is kept, whatever its value. A second call changes nothing.

    Returns:
      True if `XLA_FLAGS` was changed.

    Warns:
      RuntimeWarning: the backend has started already, or `XLA_FLAGS` names a file. The fusion then stays on and results
        may be wrong.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if not _BROKEN_SINCE <= jaxlib_version < _MENDED_SINCE or not _cpu_may_be_used() or FLAG in flags:
        return False
    version = ".".join(map(str, jaxlib_version))
    hindrance = _hindrance(flags)
    if hindrance:
        warnings.warn(
            f"Some results on this CPU may be wrong (jax#39103): jaxlib {version}. Got {hindrance[0]}, "
            f"expected {FLAG}= in XLA_FLAGS before that. Fix: {hindrance[1]}.",
            RuntimeWarning,
            stacklevel=3,  # the user's `import hydrax`, not hydrax/__init__.py
        )
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=".strip()
    logging.getLogger("hydrax").info(
        "Added %s= to XLA_FLAGS: jaxlib %s may compute some vmapped sums wrongly on a CPU without it (jax#39103).",
        FLAG,
        version,
    )
    return True


def _hindrance(flags: str) -> tuple[str, str] | None:
    """Returns what prevents setting the flag here, and how to fix it; None if nothing does."""
    if _backend_started():
        return (
            "a JAX backend that has already started",
            f"import hydrax before JAX computes, or set XLA_FLAGS='{FLAG}='",
        )
    if flags and not flags.startswith("-"):
        # XLA reads a value without a leading dash as the name of a file; with a flag appended it would find neither.
        return f"the file name XLA_FLAGS={flags}", f"put that file's flags and {FLAG}= into XLA_FLAGS themselves"
    return None


def _cpu_may_be_used() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return not platforms or "cpu" in platforms.split(",")


def _backend_started() -> bool:
    # JAX has no public way to ask this, and asking for its devices would start the backend.
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()
