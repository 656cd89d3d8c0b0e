"""How much memory a fit needs on a device, and how much there is."""

from __future__ import annotations

import os
from typing import NamedTuple

import jax

from hydrax.errors import MemoryLimitError

_SHARE = 0.9  # Of the free memory: the other programs of a run (validation, snapshots) come on top of a superstep.


class Memory(NamedTuple):
    """Bytes on the fullest device.

    Attributes:
      state: parameters, optimiser states and all else that changes, of the heads on this device.
      data: the dataset, or the fetched rows of one superstep.
      peak: the most that a superstep needs, including state and data.
      room: what the run may use.
    """

    state: int
    data: int
    peak: int
    room: int


def room(device: jax.Device, asked: int | str) -> int:
    """Returns the bytes that a run may use on a device: `device_memory` if it is a number, else most of those free."""
    if isinstance(asked, int):
        return asked
    # A GPU knows its own limit, which is what JAX has reserved. A CPU device reports nothing.
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    return int(_SHARE * _free())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that XLA ran out of memory."""
    # JAX has no class for it: the status is only in the text.
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def too_large(num_heads: int, chunk: int, needed: str, available: int) -> MemoryLimitError:
    """Makes the error for a run that does not fit even with the smallest plan.

    Args:
      needed: the memory it needs, in words.
      available: bytes that it may use.
    """
    return MemoryLimitError(
        f"A run does not fit into memory: Trainer.fit, {num_heads} heads in chunks of {chunk}. Got {needed}, expected "
        f"at most {available:,} bytes. Fix: use a smaller batch or model, or accumulate_grad_batches; for a large "
        'dataset pass residence="host".'
    )


def _free() -> int:
    """Returns the bytes of free memory of the machine; of all its memory if the system does not tell what is free."""
    # MemAvailable counts the page cache as free, which the system gives up on demand.
    try:
        with open("/proc/meminfo") as lines:
            found = next(line for line in lines if line.startswith("MemAvailable"))
            return int(found.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
