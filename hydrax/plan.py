"""Plan: how the heads are laid over the machine. Rules from shapes and the kind of machine alone."""

from __future__ import annotations

import dataclasses

from hydrax.settings import Settings

# Alone in its chunk a head shares no vector with another, so its bits cannot depend on its place; nothing is padded,
# and convolutions stay ordinary ones. Chunks of 4 are up to 1.4 times as fast for small MLPs: docs/performance.md.
_CPU_CHUNK = 1
# Where heads share their rows, a chunk's first layer is one product, which is the gain: docs/performance.md.
_SHARED_CPU_CHUNK = 128
_SHARED_SHARE = 0.75  # Of live slots; below it padding eats the gain.
_MAX_STEPS = 50
_INDEX_BYTES = 64 * 2**20  # What the rows and masks of one superstep may take.
_SLOT_BYTES = 5  # int32 row and bool mask.
FETCH_BYTES = 128 * 2**20  # What the fetched rows of one superstep may take.
_MAX_SLOTS = 2**30  # Of one head in a superstep: places in a walk are 32-bit words.


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a run is executed.

    Attributes:
      chunk: heads C that run together as one vmapped block. Part of a result's identity: bits depend on it, and on it
        alone.
      steps_per_call: most steps K of one superstep.
      backend: "cpu", "gpu" or "tpu".
      sampling: "own" or "shared".
      residence: where the training dataset lies: "device" or "host".
      remark: what another choice of the user's would gain, or None.
    """

    chunk: int
    steps_per_call: int
    backend: str
    sampling: str = "own"
    residence: str = "device"
    remark: str | None = None

    def __str__(self) -> str:
        line = " ".join(
            f"{name}={getattr(self, name)}" for name in ("chunk", "steps_per_call", "backend", "sampling", "residence")
        )
        return line if self.remark is None else f"{line} ({self.remark})"


def make_plan(
    settings: Settings,
    *,
    num_heads: int,
    slots: int,
    backend: str,
    longest: int | None = None,
    drawn_on_host: bool = True,
    row_bytes: int | None = None,
    live_share: float | None = None,
) -> Plan:
    """Chooses what the user left on "auto".

    A chunk on a CPU is a constant, so that a head's bits do not depend on H; elsewhere, and where heads share their
    rows, it is all heads (on a CPU up to 128). A superstep has 50 steps, or as many as its index batches and its
    fetched rows leave room for.

    Args:
      settings: with the user's `chunk`, `steps_per_call` and `sampling`.
      num_heads: H.
      slots: of one head in one step, micro-batches included.
      backend: name of JAX's backend.
      longest: no superstep has more steps than this, if anything but memory bounds it.
      drawn_on_host: whether the index batches of all heads are made on the host, and not a chunk's in the program.
      row_bytes: bytes of a row where rows are fetched; None: the dataset lies on the device.
      live_share: with own sampling, the share of slots that would be live with shared sampling; None: it is no choice.
    """
    shared = settings.sampling == "shared"
    of_all = num_heads if backend != "cpu" else min(num_heads, _SHARED_CPU_CHUNK)
    auto = _CPU_CHUNK if backend == "cpu" and not shared else of_all
    chunk = settings.chunk if isinstance(settings.chunk, int) else auto
    together = num_heads if drawn_on_host else min(chunk, num_heads)
    steps = settings.steps_per_call
    if not isinstance(steps, int):
        steps = min(_MAX_STEPS, _INDEX_BYTES // (slots * together * _SLOT_BYTES))
    if row_bytes is not None:
        steps = min(steps, FETCH_BYTES // (slots * row_bytes * (1 if shared else num_heads)))
    steps = max(1, min(steps, _MAX_SLOTS // slots, steps if longest is None else longest))
    remark = None
    if not shared and num_heads > 1 and live_share is not None and live_share >= _SHARED_SHARE:
        remark = (
            f'sampling="shared" would gather {slots} rows a step, not {slots * num_heads}, and make the first layer '
            f"one product, with {live_share:.0%} of slots live"
        )
    return Plan(chunk, steps, backend, settings.sampling, "device" if row_bytes is None else "host", remark)
