"""What the machine can do, measured in the run that uses it: a big matrix product, and a big copy."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_CALLS = 10


def measure(tiny: bool) -> dict[str, float]:
    """Measures FLOP/s and bytes/s of all devices together: the best of some calls, in float32 at default precision."""
    on_gpu = jax.default_backend() != "cpu"
    side = 256 if tiny else 8192 if on_gpu else 2048
    floats = 2**18 if tiny else 2**28 if on_gpu else 2**25
    product = jax.jit(lambda a: a @ a / side)
    # In place, because the system takes longer to provide new memory than to copy.
    copy = jax.jit(lambda a: a + 1, donate_argnums=0)
    devices = jax.devices()
    squares = [jax.device_put(jnp.ones((side, side)), device) for device in devices]
    lines = [jax.device_put(jnp.ones(floats // len(devices)), device) for device in devices]
    return {
        "flops": len(devices) * 2.0 * side**3 / _least_secs(product, squares),
        "bytes": 2.0 * 4 * floats / _least_secs(copy, lines),
    }


def _least_secs(run: Callable[[Any], Any], parts: list[Any]) -> float:
    secs = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        parts = jax.block_until_ready([run(part) for part in parts])
        secs.append(time.perf_counter() - start)
    return min(secs[1:])


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
