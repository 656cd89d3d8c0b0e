"""The devices that heads are spread over: on a CPU each core counts as one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax

from hydrax.errors import ArgumentError


def find_devices(wanted: int | str | Sequence[Any]) -> tuple[jax.Device, ...]:
    """The devices that `Trainer(devices=)` names; a CPU stands there once for each core.

    The step of a chunk is many small operations, which one core does best; JAX's one CPU device runs several chunks at
    once where they are dispatched from several threads. So no virtual devices are needed, and nothing is compiled or
    kept twice.

    Raises:
      ArgumentError: there are fewer.
    """
    if not isinstance(wanted, int | str):
        return tuple(wanted)
    found = tuple(jax.local_devices())
    if found[0].platform == "cpu":
        found = found[:1] * num_cores()
    if wanted == "auto":
        return found
    assert isinstance(wanted, int)
    if wanted > len(found):
        kind = "cores" if found[0].platform == "cpu" else f"devices of kind {found[0].device_kind}"
        raise ArgumentError(
            f"There are not so many devices: Trainer(devices=). Got {wanted}, expected at most {len(found)} {kind}. "
            "Fix: pass fewer, or leave it out for all."
        )
    return found[:wanted]


def num_cores() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no such question
        return os.cpu_count() or 1


def tells_host(device: jax.Device) -> bool:
    """Whether a loop whose length is an argument keeps the host waiting, as `program.Programs.superstep` says."""
    return bool(device.platform == "gpu")
