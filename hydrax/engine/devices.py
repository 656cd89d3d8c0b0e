"""The devices that run heads; on a CPU each core counts as one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax

from hydrax.errors import ArgumentError


def find_devices(wanted: int | str | Sequence[Any]) -> tuple[jax.Device, ...]:
    """Finds the devices for `Trainer(devices=)`; JAX's CPU device is listed once for each core.

    The step of a chunk is many small operations, for which one core is best. JAX's one CPU device runs several chunks
    in parallel if they are dispatched from several threads, so Hydrax needs no virtual devices, and nothing is compiled
    or stored twice.

    Args:
      wanted: "auto" for all, a number, or the devices themselves.

    Raises:
      ArgumentError: there are fewer than that.
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
            f"Too many devices requested: Trainer(devices=). Got {wanted}, expected at most {len(found)} {kind}. "
            "Fix: pass a smaller number, or leave the argument out to use all."
        )
    return found[:wanted]


def num_cores() -> int:
    """Returns how many cores this process may use; a container or `taskset` may allow fewer than there are."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1


def loops_need_host(device: jax.Device) -> bool:
    """Whether a loop of dynamic length asks the host after each turn if there is another; see `Programs.superstep`."""
    return bool(device.platform == "gpu")


def shares_host_memory(device: jax.Device) -> bool:
    """Whether NumPy reads the arrays of a device without a copy."""
    return bool(device.platform == "cpu")
