"""PlanReport: what `trainer.plan()` returns."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from hydrax.engine.flops import StepCost
from hydrax.engine.limits import Limits
from hydrax.engine.memory import Memory
from hydrax.engine.plan import Plan
from hydrax.notebook import text_box


class Candidate(NamedTuple):
    """A plan that was timed.

    Attributes:
      plan: the plan.
      step_secs: seconds of a step of all heads.
      start_secs: seconds that compiling and the first dispatch took.
    """

    plan: Plan
    step_secs: float
    start_secs: float


@dataclasses.dataclass(frozen=True)
class PlanReport:
    """The plan of a fit with what it needs and what it reaches; `str` gives it as a few lines.

    Attributes:
      plan: how the fit is executed. candidates: the plans that were timed; empty if none was. memory: bytes on the
        fullest device, as known before the first step. work: the least that a step of all heads has to do, counted from
        the user's step. limits: what the devices reach at most, measured. step_secs: seconds of a step of all heads: in
        this fit, or before it has run as the plan was timed; None if unknown.
    """

    plan: Plan
    candidates: tuple[Candidate, ...]
    memory: Memory
    work: StepCost
    limits: Limits
    step_secs: float | None

    @property
    def least_secs(self) -> float:
        """Seconds of a step at the limit of the machine, of arithmetic or of memory, whichever is slower."""
        return max(self.work.flops / self.limits.flops, self.work.bytes / self.limits.bytes)

    @property
    def share_of_limit(self) -> float | None:
        """The share of that limit which the fit reaches; above 1 if the state stays in a cache."""
        return None if self.step_secs is None else self.least_secs / self.step_secs

    def _repr_html_(self) -> str:
        return text_box(f"Plan\n{self}")

    def __str__(self) -> str:
        memory, work, limits = self.memory, self.work, self.limits
        binding = "arithmetic" if work.flops / limits.flops > work.bytes / limits.bytes else "memory"
        lines = [
            str(self.plan),
            f"memory, on the fullest device: state {_size(memory.state)}, data {_size(memory.data)}, "
            f"peak {_size(memory.peak)} of {_size(memory.room)}",
            f"a step of all heads: {work.flops:.3g} FLOP, {_size(work.bytes)} if nothing is cached",
            f"the machine: {limits.flops:.3g} FLOP/s, {_size(limits.bytes)}/s; limit of a step "
            f"{1e3 * self.least_secs:.3g} ms ({binding})",
        ]
        if self.step_secs is not None:
            lines.append(f"measured: {1e3 * self.step_secs:.3g} ms a step, {self.share_of_limit:.0%} of the limit")
        lines += [
            f"  tried: {1e3 * one.step_secs:.3g} ms a step, {one.start_secs:.1f} s to start: {one.plan}"
            for one in self.candidates
        ]
        return "\n".join(lines)


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"
