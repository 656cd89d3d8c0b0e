"""Refuses to run programs in a forked process: it lacks JAX's threads, so the first program would wait forever."""

from __future__ import annotations

import os
import sys

from hydrax.errors import ArgumentError

_hangs = False


def _note() -> None:
    global _hangs
    bridge = sys.modules.get("jax._src.xla_bridge")  # JAX has no public way to ask whether its backend has started
    _hangs = bridge is not None and bridge.backends_are_initialized()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note)


def refuse_forked() -> None:
    """Raises an error in a process that was forked after JAX had started.

    Raises:
      ArgumentError: this is such a process.
    """
    if _hangs:
        raise ArgumentError(
            "A forked process cannot run JAX: its threads were not copied. Got a fork after JAX had started, expected "
            'a process of its own. Fix: use multiprocessing.get_context("spawn"), or fork before anything uses JAX.'
        )
