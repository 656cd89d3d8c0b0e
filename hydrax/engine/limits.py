"""What the machine is, and what it can do at most: the best of a few large products and copies."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hydrax.engine.devices import num_cores

_SIDE = 2048  # Of the matrices: 17 GFLOP.
_COPIED = 2**26  # float32: 256 MiB, more than a cache holds.
_TURNS = 4


class Limits(NamedTuple):
    """What all devices together can do.

    Attributes:
      flops: floating-point operations a second, of a large float32 product at JAX's default precision.
      bytes: bytes a second, read and written, of a large copy.
    """

    flops: float
    bytes: float


@functools.cache
def limits(device: jax.Device, count: int) -> Limits:
    """Measures them; takes about a second, once a process.

    Args:
      device: one of the devices.
      count: how many like it there are; on a CPU the cores share one device, which one program fills.
    """
    with jax.default_device(device):
        square, line = jnp.ones((_SIDE, _SIDE), jnp.float32), jnp.ones(_COPIED, jnp.float32)
        products = 2.0 * _SIDE**3 / _best(jax.jit(lambda a: a @ a / _SIDE), square)
        # In place: memory that is new must be made ready by the system, which takes longer than a copy.
        copies = 8.0 * _COPIED / _best(jax.jit(lambda a: a + 1, donate_argnums=0), line)
    share = 1 if device.platform == "cpu" else count
    return Limits(products * share, copies * share)


def _best(function: Callable[[Any], Any], array: Any) -> float:
    array = jax.block_until_ready(function(array))
    secs = []
    for _ in range(_TURNS):
        started = time.perf_counter()
        array = jax.block_until_ready(function(array))
        secs.append(time.perf_counter() - started)
    return min(secs)


def environment(device: jax.Device) -> dict[str, Any]:
    """What bits may depend on besides the run's own settings: XLA shapes its loops by the number of cores."""
    return {
        "jaxlib": importlib.metadata.version("jaxlib"),
        "backend": device.platform,
        "device": device.device_kind,
        "cores": os.cpu_count(),
    }


def speed_environment(device: jax.Device) -> dict[str, Any]:
    """What the time of a step may depend on: the above, the processor, the cores in use, and XLA's flags."""
    return environment(device) | {
        "processor": _processor(),
        "usable_cores": num_cores(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            wanted = ("model name", "cache size", "flags", "Features")
            return "; ".join(sorted({line.strip() for line in lines if line.startswith(wanted)}))
    except OSError:
        return platform.processor()
