"""Plan: how the heads are laid over the machine. Rules from shapes and the kind of machine alone."""

from __future__ import annotations

import dataclasses

from hydrax.settings import Settings

# Alone in its chunk a head shares no vector with another, so its bits cannot depend on its place; nothing is padded,
# and convolutions stay ordinary ones. Chunks of 4 are up to 1.4 times as fast for small MLPs: docs/performance.md.
_CPU_CHUNK = 1
_MAX_STEPS = 50
_INDEX_BYTES = 64 * 2**20  # What the rows and masks of one superstep may take.
_SLOT_BYTES = 5  # int32 row and bool mask.


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a run is executed.

    Attributes:
      chunk: heads C that run together as one vmapped block. Part of a result's identity: bits depend on it, and on it
        alone.
      steps_per_call: most steps K of one superstep.
      backend: "cpu", "gpu" or "tpu".
    """

    chunk: int
    steps_per_call: int
    backend: str

    def __str__(self) -> str:
        return f"chunk={self.chunk} steps_per_call={self.steps_per_call} backend={self.backend}"


def make_plan(settings: Settings, *, num_heads: int, slots: int, backend: str, longest: int | None = None) -> Plan:
    """Chooses what the user left on "auto".

    A chunk on a CPU is a constant, so that a head's bits do not depend on H; elsewhere it is all heads. A superstep
    has 50 steps, or as many as its index batches leave room for.

    Args:
      settings: with the user's `chunk` and `steps_per_call`.
      num_heads: H.
      slots: of one head in one step, micro-batches included.
      backend: name of JAX's backend.
      longest: no superstep has more steps than this, if anything but memory bounds it.
    """
    chunk = settings.chunk if isinstance(settings.chunk, int) else _CPU_CHUNK if backend == "cpu" else num_heads
    room = _INDEX_BYTES // (slots * num_heads * _SLOT_BYTES)
    steps = settings.steps_per_call if isinstance(settings.steps_per_call, int) else max(1, min(_MAX_STEPS, room))
    return Plan(chunk, steps if longest is None else min(steps, longest), backend)
