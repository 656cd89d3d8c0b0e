"""Plan: how the heads are laid over the machine. Rules from shapes and the kind of machine alone."""

from __future__ import annotations

import dataclasses

_CPU_CHUNK = 4  # Within 25 % of the best of 1..32 for linear, MLP and tiny heads on two cores; see docs/performance.md.
_MAX_STEPS = 50
_INDEX_BYTES = 64 * 2**20  # What the rows and masks of one superstep may take.


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a run is executed.

    Attributes:
      chunk: heads C that run together as one vmapped block. Part of a result's identity: bits depend on it, and on it alone.
      steps_per_call: most steps K of one superstep.
      backend: "cpu", "gpu" or "tpu".
    """

    chunk: int
    steps_per_call: int
    backend: str

    def __str__(self) -> str:
        return f"chunk={self.chunk} steps_per_call={self.steps_per_call} backend={self.backend}"


def make_plan(
    *, num_heads: int, index_bytes: int, backend: str, chunk: int | str = "auto", steps_per_call: int | str = "auto"
) -> Plan:
    """Chooses what the user left on "auto".

    Args:
      num_heads: H.
      index_bytes: bytes of rows and mask of one step of one head.
      backend: name of JAX's backend.
      chunk: heads in a chunk, or "auto": a constant on a CPU, so that a head's bits do not depend on H; all heads elsewhere.
      steps_per_call: most steps of a superstep, or "auto": 50, or what the index batches leave room for.
    """
    if chunk == "auto":
        chunk = _CPU_CHUNK if backend == "cpu" else num_heads
    if steps_per_call == "auto":
        steps_per_call = max(1, min(_MAX_STEPS, _INDEX_BYTES // (index_bytes * num_heads)))
    return Plan(int(chunk), int(steps_per_call), backend)
