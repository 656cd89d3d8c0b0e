"""How much memory a fit takes on a device, known before it runs, and how much there is."""

from __future__ import annotations

import os
from typing import NamedTuple

import jax

from hydrax.errors import MemoryLimitError

_SHARE = 0.9  # Of what is free: other programs of the run (validation, snapshots) come on top.


class Memory(NamedTuple):
    """Bytes on the fullest device.

    Attributes:
      state: parameters, optimisers and all else that changes, of the heads that lie there.
      data: the dataset, or the fetched rows of a superstep.
      peak: the most that a superstep takes, these two included.
      room: what the run may take.
    """

    state: int
    data: int
    peak: int
    room: int


def room(device: jax.Device, asked: int | str) -> int:
    """Bytes that a run may take on a device: what the user asked for, or nearly all that is free now."""
    if isinstance(asked, int):
        return asked
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    return int(_SHARE * _free())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA found no memory for a program."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def too_large(num_heads: int, chunk: int, needed: str, available: int) -> MemoryLimitError:
    """The error where nothing is left to make smaller."""
    return MemoryLimitError(
        f"A run does not fit into memory: Trainer.fit, {num_heads} heads in chunks of {chunk}. Got {needed}, expected "
        f"at most {available:,} bytes. Fix: a smaller batch or model, or accumulate_grad_batches; data that is large "
        'goes with residence="host".'
    )


def _free() -> int:
    try:
        with open("/proc/meminfo") as lines:
            found = next(line for line in lines if line.startswith("MemAvailable"))
            return int(found.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
