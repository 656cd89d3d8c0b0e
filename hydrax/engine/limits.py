"""Describes the machine (`environment`) and measures its limits (`measure_limits`)."""

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

_SIDE = 2048  # of the square matrices to multiply: 17 GFLOP
_COPIED = 2**26  # float32 numbers to copy: 256 MiB, more than any cache holds
_TURNS = 4


class Limits(NamedTuple):
    """The speed of all devices together.

    Attributes:
      flops: floating-point operations per second, in a large float32 matrix product at JAX's default precision.
      bytes: bytes per second, read plus written, in a large copy.
    """

    flops: float
    bytes: float


@functools.cache
def measure_limits(device: jax.Device, count: int) -> Limits:
    """Measures the speed of the devices. It takes about a second, once in a process.

    Args:
      device: one of the devices.
      count: how many there are of its kind. On a CPU the number does not matter: one program fills all cores.
    """
    with jax.default_device(device):
        square, line = jnp.ones((_SIDE, _SIDE), jnp.float32), jnp.ones(_COPIED, jnp.float32)
        products = 2.0 * _SIDE**3 / _best(jax.jit(lambda a: a @ a / _SIDE), square)
        # In place: the system must first map the pages of new memory, which takes longer than the copy.
        copies = 8.0 * _COPIED / _best(jax.jit(lambda a: a + 1, donate_argnums=0), line)
    share = 1 if device.platform == "cpu" else count
    return Limits(products * share, copies * share)


def _best(function: Callable[[Any], Any], array: Any) -> float:
    """Returns the seconds of the fastest of a few calls, without the one that compiles."""
    array = jax.block_until_ready(function(array))
    secs = []
    for _ in range(_TURNS):
        started = time.perf_counter()
        array = jax.block_until_ready(function(array))
        secs.append(time.perf_counter() - started)
    return min(secs)


def environment(device: jax.Device) -> dict[str, Any]:
    """Describes what bits may depend on besides the settings of a run: XLA shapes its loops by the number of cores."""
    return {
        "jaxlib": importlib.metadata.version("jaxlib"),
        "backend": device.platform,
        "device": device.device_kind,
        "cores": os.cpu_count(),
    }


def speed_environment(device: jax.Device) -> dict[str, Any]:
    """Describes what the time of a step depends on: `environment`, the processor, the usable cores, and XLA's flags."""
    return environment(device) | {
        "processor": _processor(),
        "usable_cores": num_cores(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            wanted = ("model name", "cache size", "flags", "Features")
            return "; ".join(sorted({line.strip() for line in lines if line.startswith(wanted)}))
    except OSError:
        return platform.processor()
