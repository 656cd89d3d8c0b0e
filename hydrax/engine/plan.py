"""Plan: how the heads are laid over the machine. Rules from shapes and the kind of machine alone."""

from __future__ import annotations

import dataclasses

from hydrax.step import Lowering

# Alone in its chunk a head shares no vector with another, so its bits cannot depend on its place; nothing is padded,
# and convolutions stay ordinary ones. Chunks of 4 are up to 1.4 times as fast for small MLPs: docs/performance.md.
_CPU_CHUNK = 1
# Where heads share their rows, a chunk's first layer is one product, which is the gain: docs/performance.md.
_SHARED_CPU_CHUNK = 128
_SHARED_SHARE = 0.75  # Of live slots; below it padding eats the gain.
_MIN_STEPS, _MAX_STEPS = 50, 500
_CALL_SECS = 0.1  # How long a dispatch should last: its own cost, about a millisecond, is then nothing.
_HEAD_STEP_SECS, _FLOPS = 2e-5, 5e9  # Of the estimate of a step: what a head costs at least, and what a core does.
_INDEX_BYTES = 64 * 2**20  # What the rows and masks of one superstep may take.
_SLOT_BYTES = 5  # int32 row and bool mask.
FETCH_BYTES = 128 * 2**20  # What the fetched rows of one superstep may take.
_MAX_SLOTS = 2**30  # Of one head in a superstep: places in a walk are 32-bit words.


@dataclasses.dataclass(frozen=True)
class Choice:
    """What of a plan shapes bits, and was settled before: by timing, or by the run that is gone on with.

    Attributes:
      chunk: C, or None: by rule.
      lowering: or None: by rule.
    """

    chunk: int | None = None
    lowering: Lowering | None = None


NO_CHOICE = Choice()
"""Nothing was settled before."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a run is executed.

    Attributes:
      chunk: heads C that run together as one vmapped block. Part of a result's identity: bits depend on it, and on the
        lowering.
      steps_per_call: most steps K of one superstep.
      backend: "cpu", "gpu" or "tpu".
      sampling: "own" or "shared".
      residence: where the training dataset lies: "device" or "host".
      devices: how many of them run heads; on a CPU cores.
      waves: turns in which heads share the devices; 1: their state fits.
      lowering: which operations run in Hydrax's own form.
      how: where it comes from: "rules", "timed", "cached" or "resumed".
      remark: what another choice of the user's would gain, or None.
    """

    chunk: int
    steps_per_call: int
    backend: str
    sampling: str = "own"
    residence: str = "device"
    devices: int = 1
    waves: int = 1
    lowering: Lowering = Lowering()
    how: str = "rules"
    remark: str | None = None

    @property
    def choice(self) -> Choice:
        """What of it shapes bits."""
        return Choice(self.chunk, self.lowering)

    def __str__(self) -> str:
        names = ("chunk", "steps_per_call", "backend", "devices", "waves", "sampling", "residence", "lowering", "how")
        line = " ".join(f"{name}={getattr(self, name)}" for name in names if name != "waves" or self.waves > 1)
        return line if self.remark is None else f"{line} ({self.remark})"


def make_plan(
    choice: Choice = NO_CHOICE,
    *,
    chunk: int | str = "auto",
    steps_per_call: int | str = "auto",
    lowering: str = "auto",
    sampling: str = "own",
    num_heads: int,
    slots: int,
    backend: str,
    devices: int = 1,
    waves: int = 1,
    flops: float | None = None,
    longest: int | None = None,
    drawn_on_host: bool = True,
    row_bytes: int | None = None,
    live_share: float | None = None,
) -> Plan:
    """Chooses what the user left on "auto", and what was not settled before.

    A chunk on a CPU is a constant, so that a head's bits do not depend on H; elsewhere, and where heads share their
    rows, it is all heads (on a CPU up to 128). A superstep has 50 steps or, where these would be over in no time, up
    to 500; or as many as its index batches and its fetched rows leave room for.

    Args:
      choice: what was settled before.
      chunk, steps_per_call, lowering, sampling: the Trainer's arguments of these names.
      num_heads: H.
      slots: of one head in one step, micro-batches included.
      backend: name of JAX's backend.
      devices: how many there are.
      waves: turns in which heads share them.
      flops: of a step of all heads; None: not known.
      longest: no superstep has more steps than this, if anything but memory bounds it.
      drawn_on_host: whether the index batches of all heads are made on the host, and not a chunk's in the program.
      row_bytes: bytes of a row where rows are fetched; None: the dataset lies on the device.
      live_share: with own sampling, the share of slots that would be live with shared sampling; None: it is no choice.
    """
    shared = sampling == "shared"
    width = chunk if isinstance(chunk, int) else choice.chunk or _rule(num_heads, backend, shared)
    together = num_heads if drawn_on_host else min(width, num_heads)
    if isinstance(steps_per_call, int):
        steps = steps_per_call
    else:
        steps = min(_steps(num_heads, devices, flops), _INDEX_BYTES // (slots * together * _SLOT_BYTES))
    if row_bytes is not None:
        steps = min(steps, FETCH_BYTES // (slots * row_bytes * (1 if shared else num_heads)))
    remark = None
    if not shared and num_heads > 1 and live_share is not None and live_share >= _SHARED_SHARE:
        remark = (
            f'sampling="shared" would gather {slots} rows a step, not {slots * num_heads}, and make the first layer '
            f"one product, with {live_share:.0%} of slots live"
        )
    return Plan(
        chunk=width,
        steps_per_call=max(1, min(steps, _MAX_SLOTS // slots, steps if longest is None else longest)),
        backend=backend,
        sampling=sampling,
        residence="device" if row_bytes is None else "host",
        devices=min(devices, -(-num_heads // width)),
        waves=waves,
        lowering=_lowering(lowering, choice, backend),
        remark=remark,
    )


def _rule(num_heads: int, backend: str, shared: bool) -> int:
    """The chunk where nobody chose one."""
    if backend == "cpu":
        return min(num_heads, _SHARED_CPU_CHUNK) if shared else _CPU_CHUNK
    return num_heads


def _steps(num_heads: int, devices: int, flops: float | None) -> int:
    """Steps of a dispatch: 50, or more where a step of all heads is short. From shapes alone, so always the same."""
    if flops is None:
        return _MIN_STEPS
    return max(_MIN_STEPS, min(_MAX_STEPS, int(_CALL_SECS / step_secs(num_heads, devices, flops))))


def step_secs(num_heads: int, devices: int, flops: float) -> float:
    """A rough guess at the time of a step of all heads, from shapes alone."""
    return (num_heads * _HEAD_STEP_SECS + flops / _FLOPS) / devices


def _lowering(asked: str, choice: Choice, backend: str) -> Lowering:
    if asked == "auto":
        return choice.lowering or Lowering.auto(backend)
    return Lowering.auto("cpu") if asked == "fast" else Lowering()
