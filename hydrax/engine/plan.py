"""Plan: how a run is laid out over the machine, chosen by rules from shapes and the kind of machine alone."""

from __future__ import annotations

import dataclasses

from hydrax.notebook import text_box
from hydrax.step import Lowering

# Alone in its chunk a head shares no vector register with another, so its bits cannot depend on its place; nothing is
# padded, and convolutions stay ordinary ones. But where a step of a head moves few bytes, most of its time goes into
# calls that a wide chunk shares: up to ten times as much. Few heads stay alone, as a wide chunk would be padding.
_CPU_CHUNK = 1
_MANY_HEADS = 1024
# The most bytes of a step of one head, and the chunk: at most 1.25 times the time of the best width for each of eight
# models (linear 10-1 to MLP 784-128-10) where 1,024 heads or more were timed.
_WIDE_CHUNKS = ((8 * 2**10, 128), (32 * 2**10, 32), (160 * 2**10, 16))
# If heads share their rows, the first layer of a chunk is one wide product, so a wide chunk is the gain.
_SHARED_CPU_CHUNK = 128
_SHARED_SHARE = 0.75  # Share of live slots below which computing padding costs more than shared sampling saves.
_MIN_STEPS, _MAX_STEPS = 50, 500
_CALL_SECS = 0.1  # How long a dispatch should last, so that its own cost of about a millisecond does not count.
_HEAD_STEP_SECS, _FLOPS = 2e-5, 5e9  # Rough cost of a step of one head however small, and FLOP/s of a core.
_INDEX_BYTES = 64 * 2**20  # Most bytes for the rows and masks of one superstep.
_SLOT_BYTES = 5  # An int32 row and a bool mask.
FETCH_BYTES = 128 * 2**20
"""Most bytes for the fetched rows of one superstep."""
_MAX_SLOTS = 2**30  # Most slots of one head in a superstep: positions in a rotation are 32-bit.


@dataclasses.dataclass(frozen=True)
class Choice:
    """The part of a plan that bits depend on, if it was chosen before: by timing, or in the run being resumed.

    Attributes:
      chunk: C, or None to choose it by rule.
      lowering: the lowering, or None to choose it by rule.
    """

    chunk: int | None = None
    lowering: Lowering | None = None


NO_CHOICE = Choice()
"""Nothing was chosen before."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a run is executed; `str` gives it as one line.

    >>> print(Plan(chunk=4, steps_per_call=50, backend="cpu", devices=2, how="timed"))
    chunk=4 steps_per_call=50 backend=cpu devices=2 sampling=own residence=device lowering=plain how=timed

    Attributes:
      chunk: number C of heads that run together as one vmapped block. A head's bits depend on it and on the lowering.
      steps_per_call: most steps K of one superstep.
      backend: "cpu", "gpu" or "tpu".
      sampling: "own" or "shared".
      residence: where the training dataset is kept, "device" or "host".
      devices: how many devices run heads; on a CPU the number of cores.
      waves: in how many turns the heads share the devices; 1 if the state of all heads fits into memory.
      lowering: which operations run in Hydrax's own form.
      how: how the plan was chosen: "rules", "timed", "cached" or "resumed".
      remark: what another choice by the user would gain, or None.
      shortened: why a superstep has fewer steps than the user requested, or None.
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
    shortened: str | None = None

    @property
    def choice(self) -> Choice:
        """The part of the plan that bits depend on."""
        return Choice(self.chunk, self.lowering)

    def _repr_html_(self) -> str:
        return text_box(f"Plan\n{self}")

    def __str__(self) -> str:
        names = ("chunk", "steps_per_call", "backend", "devices", "waves", "sampling", "residence", "lowering", "how")
        line = " ".join(f"{name}={getattr(self, name)}" for name in names if name != "waves" or self.waves > 1)
        return "".join([line, *(f" ({said})" for said in (self.shortened, self.remark) if said is not None)])


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
    head_bytes: int | None = None,
    longest: tuple[int, str] | None = None,
    drawn_on_host: bool = True,
    row_bytes: int | None = None,
    live_share: float | None = None,
) -> Plan:
    """Chooses whatever the user left on "auto" and no earlier choice fixes.

    On a CPU the chunk is 1, so that a head's bits do not depend on H, but 16 to 128 for 1,024 small heads or more. On
    other backends it is all heads, and with shared sampling on a CPU up to 128. A superstep has 50 steps; if those
    would be over too soon, up to 500; and never more than index batches that the host draws, and rows that it fetches,
    have room for.

    Args:
      choice: what was chosen before.
      chunk, steps_per_call, lowering, sampling: the arguments of these names of the Trainer.
      num_heads: H.
      slots: slots of one head in one step, over all micro-batches.
      backend: name of JAX's backend.
      devices: how many devices there are.
      waves: in how many turns the heads share them.
      flops: floating-point operations of a step of all heads, or None if unknown.
      head_bytes: the least bytes that a step of one head reads and writes; None keeps the chunk independent of H.
      longest: most steps of a superstep for another reason than memory, and that reason; or None.
      drawn_on_host: whether the host draws the index batches of all heads, or the program those of one chunk at a time.
      row_bytes: bytes of a row if rows are fetched; None if the dataset is on the device.
      live_share: with own sampling, the share of slots that would be live with shared sampling; None if shared sampling
        is not possible.
    """
    shared = sampling == "shared"
    width = chunk if isinstance(chunk, int) else choice.chunk or _rule(num_heads, backend, shared, head_bytes)
    asked = steps_per_call != "auto"
    steps = steps_per_call if isinstance(steps_per_call, int) else _steps(num_heads, devices, flops)
    limits = [(_MAX_SLOTS // slots, f"a head has {slots:,} slots in a step"), *([] if longest is None else [longest])]
    if drawn_on_host and not asked:
        limits.append((_INDEX_BYTES // (slots * num_heads * _SLOT_BYTES), "the index batches need the memory"))
    if row_bytes is not None:
        bytes_of_step = slots * row_bytes * (1 if shared else num_heads)
        limits.append((FETCH_BYTES // bytes_of_step, f"a step fetches {bytes_of_step:,} bytes of rows"))
    limit, reason = min(limits)
    return Plan(
        chunk=width,
        steps_per_call=max(1, min(steps, limit)),
        backend=backend,
        sampling=sampling,
        residence="device" if row_bytes is None else "host",
        devices=min(devices, -(-num_heads // width)),
        waves=waves,
        lowering=_lowering(lowering, choice, backend),
        remark=None if shared else _remark(num_heads, slots, live_share),
        shortened=reason if asked and limit < steps else None,
    )


def _rule(num_heads: int, backend: str, shared: bool, head_bytes: int | None) -> int:
    """Returns the chunk by rule."""
    if backend != "cpu":
        return num_heads
    if shared:
        return min(num_heads, _SHARED_CPU_CHUNK)
    if num_heads < _MANY_HEADS or head_bytes is None:
        return _CPU_CHUNK
    return next((chunk for most, chunk in _WIDE_CHUNKS if head_bytes <= most), _CPU_CHUNK)


def _steps(num_heads: int, devices: int, flops: float | None) -> int:
    """Steps of a dispatch: 50, or more if steps are short. Estimated from shapes, so that it is always the same."""
    if flops is None:
        return _MIN_STEPS
    return max(_MIN_STEPS, min(_MAX_STEPS, int(_CALL_SECS / step_secs(num_heads, devices, flops))))


def step_secs(num_heads: int, devices: int, flops: float) -> float:
    """Estimates the seconds of a step of all heads, roughly, from shapes alone."""
    return (num_heads * _HEAD_STEP_SECS + flops / _FLOPS) / devices


def _remark(num_heads: int, slots: int, live_share: float | None) -> str | None:
    """Says what shared sampling would gain, if it would."""
    if num_heads == 1 or live_share is None or live_share < _SHARED_SHARE:
        return None
    return (
        f'sampling="shared" would gather {slots} rows a step, not {slots * num_heads}, and make the first layer '
        f"one product, with {live_share:.0%} of slots live"
    )


def _lowering(asked: str, choice: Choice, backend: str) -> Lowering:
    if asked == "auto":
        return choice.lowering or Lowering.auto(backend)
    return Lowering.auto("cpu") if asked == "fast" else Lowering()
