"""Settles the plan of a fit: by rules, from the run that is gone on with, from the disk, or by timing the real step."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hydrax.data import Feed
from hydrax.engine import (
    Blocks,
    Candidate,
    Choice,
    Engine,
    Memory,
    Plan,
    PlanReport,
    is_out_of_memory,
    limits,
    room,
    speed_environment,
    too_large,
)
from hydrax.errors import MemoryLimitError
from hydrax.files import write_text
from hydrax.step import Lowering
from hydrax.train.fit import Checked
from hydrax.trees import tree_bytes

_log = logging.getLogger("hydrax")

_MAX_SECS, _MAX_SHARE = 10.0, 0.05  # What timing may take: so long, and so much of the run.
_FEWEST_SECS = 10.0  # A run that is shorter by the rules' estimate has no time to lose.
_TIMED_SECS = 0.1  # How long one timing should last.
_CHUNKS = (4, 8, 2)  # Widths tried on a CPU beside the rule's, the likelier first.
_MARGIN = 0.97  # A candidate wins where it takes at most this share of the best time: below that is noise.
_CALL_LIMIT_SECS = 1.0  # A dispatch cannot be interrupted, so none takes longer.


class Settled(NamedTuple):
    """A plan, and what it made of a fit.

    Attributes:
      plan: it.
      engine, feed: built by it.
      memory: what it takes.
      start: the heads before their first step; None where they come from a checkpoint.
      candidates: the plans that were timed, this one among them; none where nothing was timed.
    """

    plan: Plan
    engine: Engine
    feed: Feed
    memory: Memory
    start: Blocks | None = None
    candidates: tuple[Candidate, ...] = ()


def lay_out(checked: Checked, choice: Choice, folder: Path | None, *, resumed: bool = False) -> Settled:
    """A fit by the plan that stands before anything compiles: by rules, from the disk, or from the run gone on with.

    Args:
      checked: the fit.
      choice: what of the plan was settled before.
      folder: where chosen plans are kept; None: nowhere.
      resumed: whether the choice is that of the run that is gone on with.
    """
    if resumed:
        return _built(checked, dataclasses.replace(checked.plan(choice), how="resumed"))
    kept = _Known(folder, checked).read() if folder is not None and _is_open(checked) else None
    if kept is not None:
        return _built(checked, dataclasses.replace(checked.plan(kept), how="cached"))
    return _built(checked, checked.plan(choice))


def choose_plan(
    checked: Checked, first: Settled, folder: Path | None, is_cut: Callable[[], bool] = lambda: False
) -> Settled:
    """Compiles a fit, makes its plan fit into memory and, where that may gain something, finds a faster one.

    Args:
      first: as `lay_out` gives it.
      folder: where the chosen plan is kept; None: nowhere.
      is_cut: whether to look for no faster one any more.
    """
    started = time.perf_counter()
    settled = _fitting(checked, first)
    start_secs = time.perf_counter() - started
    by_rules = settled.plan.how == "rules" and settled.plan.waves == 1
    if not by_rules or not _is_open(checked) or checked.sampling.drawn_on_host or checked.rough_secs < _FEWEST_SECS:
        return settled
    settled = _timed(checked, settled, start_secs, is_cut)
    if folder is not None and len(settled.candidates) > 1 and not is_cut():
        _Known(folder, checked).write(settled)
    return settled


def report(checked: Checked, settled: Settled, step_secs: float | None = None) -> PlanReport:
    """What is known of a fit's plan; measures the machine's limit when it is first asked for, in a second or two.

    Args:
      step_secs: a step of all heads, as the fit takes it; None: it has not run.
    """
    timed = next((one.step_secs for one in settled.candidates if one.plan.choice == settled.plan.choice), None)
    return PlanReport(
        settled.plan,
        settled.candidates,
        settled.memory,
        checked.work,
        limits(checked.devices[0], settled.plan.devices),
        step_secs or timed,
    )


def plan_folder() -> Path | None:
    """Where plans are kept: beside the compiled programs; None where those are not kept."""
    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    return None if folder is None else Path(folder) / "plans"


def _is_open(checked: Checked) -> bool:
    """Whether there is anything that timing may choose."""
    settings = checked.settings
    return not settings.deterministic and "auto" in (settings.chunk, settings.lowering)


# Memory.


def _built(checked: Checked, plan: Plan) -> Settled:
    """A fit by a plan, in waves where the heads' state alone would not fit into memory; nothing compiles."""
    devices, heads = checked.devices[: plan.devices], len(checked.sampling.slices)
    available = room(devices[0], checked.settings.device_memory)
    data = (
        checked.sampling.data.num_rows * checked.sampling.data.row_bytes if checked.sampling.data.reader is None else 0
    )
    state = tree_bytes(checked.traced.state) * -(-heads // len(set(devices)))
    if plan.waves == 1 and data + state > available:
        if data >= available:
            raise too_large(heads, plan.chunk, f"{data:,} bytes of data", available)
        # A wave's old state and its new one are there at once, as it comes from the host and goes back.
        plan = dataclasses.replace(plan, waves=-(-2 * state // (available - data)))
    at_once = state // plan.waves
    return Settled(plan, *checked.build(plan), Memory(at_once, data, at_once + data, available))


def _fitting(checked: Checked, settled: Settled) -> Settled:
    """Compiles a fit, with smaller chunks or in more waves where it would not fit into memory."""
    # Rows that are read, or drawn by the user's code, come in the order of the steps and once: none to try with.
    while not checked.sampling.drawn_on_host:
        plan, engine, feed, memory = settled[:4]
        start = None
        try:
            if plan.how != "resumed":
                engine.compile_in_background()
            rows = feed.superstep(0, checked.schedule.counts(0, 1))
            peak = engine.superstep_memory(rows)
            if peak <= memory.room and plan.how != "resumed":
                # No step, but all the memory that one takes.
                start, values = engine.superstep(engine.init(), rows, 0, 0, False)
                jax.block_until_ready(values)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            peak = memory.room + 1  # or more
        if peak <= memory.room:
            return settled._replace(memory=memory._replace(peak=peak), start=start)
        _drop(settled)
        settled = _built(checked, smaller_plan(checked, plan, f"{peak:,} bytes"))
    return settled


def _drop(settled: Settled) -> None:
    settled.engine.close()
    settled.feed.close()


def replan(checked: Checked, plan: Plan) -> Settled:
    """The fit by a plan that is smaller than one that ran out of memory on the way."""
    smaller = dataclasses.replace(smaller_plan(checked, plan, "more than there was"), how="resumed")
    return _fitting(checked, _built(checked, smaller))


def smaller_plan(checked: Checked, plan: Plan, needed: str) -> Plan:
    """The plan with chunks of half the width; where they are single heads, with twice as many waves.

    Raises:
      MemoryLimitError: nothing is left to make smaller.
    """
    heads = len(checked.sampling.slices)
    available = room(checked.devices[0], checked.settings.device_memory)
    if plan.chunk > 1 and not isinstance(checked.settings.chunk, int):
        smaller = dataclasses.replace(plan, chunk=-(-plan.chunk // 2))
    elif plan.devices > 1 and checked.devices[0] == checked.devices[-1]:
        smaller = dataclasses.replace(plan, devices=1)
    elif plan.waves * plan.devices * plan.chunk < heads:
        smaller = dataclasses.replace(plan, waves=2 * plan.waves)
    else:
        raise too_large(heads, plan.chunk, needed, available)
    _log.warning("A step takes %s; there are %s bytes. Instead: %s", needed, f"{available:,}", smaller)
    return smaller


# Timing.


def _timed(checked: Checked, first: Settled, start_secs: float, is_cut: Callable[[], bool]) -> Settled:
    """Times the plan at hand, then others one by one while the budget lasts, and keeps the best.

    Args:
      start_secs: what compiling the plan at hand took: the others will take as long.
    """
    steps = checked.schedule.max_steps
    start = time.perf_counter()
    best = _Trial(checked, first.plan, first)
    budget = min(_MAX_SECS, _MAX_SHARE * steps * best.step_secs)
    dearest = max(start_secs, best.start_secs)
    tried = [best.candidate._replace(start_secs=dearest)]
    for plan in _candidates(checked, tried):
        cost = dearest + 4 * _TIMED_SECS + 2 * best.step_secs
        if is_cut() or time.perf_counter() - start + cost > budget:
            break
        try:
            trial = _Trial(checked, plan)
        except (MemoryLimitError, jax.errors.JaxRuntimeError) as error:  # it is not the one to take
            _log.debug("A plan cannot be tried: %s: %r", plan, error)
            continue
        dearest = max(dearest, trial.start_secs)
        better = _beats(trial, best)
        tried.append(trial.candidate)
        _drop((best if better else trial).settled)
        best = trial if better else best
    limit = max(1, int(_CALL_LIMIT_SECS / best.step_secs))
    plan = dataclasses.replace(
        best.settled.plan,
        steps_per_call=min(best.settled.plan.steps_per_call, limit),
        how="timed" if len(tried) > 1 else "rules",
    )
    return best.settled._replace(plan=plan, candidates=tuple(tried))


def _beats(trial: _Trial, best: _Trial) -> bool:
    """Whether a plan is faster than the best so far; one that seems so must be it again, in turn with it."""
    if trial.step_secs >= _MARGIN * best.step_secs:
        return False
    best.measure()
    trial.measure()
    return trial.step_secs < _MARGIN * best.step_secs


def _candidates(checked: Checked, tried: list[Candidate]) -> Iterator[Plan]:
    """Plans worth a try, each from the best so far."""

    def best() -> Plan:
        return min(tried, key=lambda one: one.step_secs).plan

    settings, base = checked.settings, tried[0].plan
    if settings.chunk == "auto" and base.backend == "cpu" and base.sampling == "own":
        for chunk in _CHUNKS:
            # Where twice the width lost, four times does too, and half of it is next.
            if chunk <= len(checked.sampling.slices) and not (chunk == 8 and best().chunk != 4):
                yield checked.plan(dataclasses.replace(best().choice, chunk=chunk))
    if settings.lowering == "auto" and checked.has_lowered_operations:
        plain, fast = Lowering(), Lowering.auto("cpu")
        yield dataclasses.replace(best(), lowering=plain if best().lowering != plain else fast)
    if settings.devices == "auto" and best().devices > 1 and best().backend == "cpu":
        yield dataclasses.replace(best(), devices=1)


class _Trial:
    """A plan, timed on the user's heads: frozen ones, which take the same time and keep every bit."""

    def __init__(self, checked: Checked, plan: Plan, settled: Settled | None = None) -> None:
        started = time.perf_counter()
        self.settled = settled or _fitting(checked, _built(checked, plan))
        self.start_secs = time.perf_counter() - started
        self._checked = checked
        self.step_secs = math.inf
        self.measure()

    def measure(self) -> None:
        """Times some steps; the shortest time of all counts, since other work on the machine only adds to it."""
        engine = self.settled.engine
        self._state: Blocks = engine.freeze(engine.init(), np.ones(engine.num_heads, bool))
        once = self._secs(1)
        most = self.settled.plan.steps_per_call
        steps = max(1, min(most, int(_TIMED_SECS / once)))
        step_secs = min(self._secs(steps) for _ in range(2)) / steps if once < _MAX_SECS / 10 else once
        self.step_secs = min(self.step_secs, step_secs)
        del self._state

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.settled.plan, self.step_secs, self.start_secs)

    def _secs(self, steps: int) -> float:
        engine, feed = self.settled.engine, self.settled.feed
        rows = feed.superstep(0, self._checked.schedule.counts(0, steps))
        started = time.perf_counter()
        self._state, values = engine.superstep(self._state, rows, 0, steps, False)
        jax.block_until_ready((self._state, values))
        return time.perf_counter() - started


# Plans on disk.


class _Known:
    """The plan that was found best for this step, on this machine, with these versions."""

    def __init__(self, folder: Path, checked: Checked) -> None:
        # Functions print with their addresses, which differ from run to run.
        step = re.sub(r"0x[0-9a-f]+", "", str(checked.traced.step))
        settings = checked.settings
        about: dict[str, Any] = {
            "step": step,
            "num_heads": len(checked.sampling.slices),
            "settings": [str(settings.chunk), settings.lowering, settings.sampling, len(checked.devices)],
            "machine": speed_environment(checked.devices[0]),
        }
        self._path = folder / f"{hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]}.json"

    def read(self) -> Choice | None:
        """What was chosen; None where nothing is known, or what is there cannot be read."""
        try:
            found = json.loads(self._path.read_text())
            lowering = Lowering(**{str(name): bool(on) for name, on in found["lowering"].items()})
            chunk = found["chunk"]
            return Choice(chunk, lowering) if isinstance(chunk, int) and chunk > 0 else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, settled: Settled) -> None:
        """Keeps a choice; where that cannot be, the next run times again."""
        plan = settled.plan
        text = json.dumps({"chunk": plan.chunk, "lowering": dataclasses.asdict(plan.lowering), "plan": str(plan)})
        try:
            write_text(self._path, text)
        except OSError as error:
            _log.debug("A plan cannot be kept in %s: %r", self._path.parent, error)
