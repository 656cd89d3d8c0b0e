"""Chooses the plan of a fit: by rules, from the resumed run, from disk, or by timing the real step."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hydrax.engine import (
    Blocks,
    Candidate,
    Choice,
    Plan,
    is_out_of_memory,
    room,
    shares_host_memory,
    speed_environment,
    too_large,
)
from hydrax.errors import MemoryLimitError
from hydrax.files import write_text
from hydrax.step import Lowering
from hydrax.train.fit import FitSpec, PlannedFit

_log = logging.getLogger("hydrax")

_MAX_SECS, _MAX_SHARE = 10.0, 0.05  # Timing may take this long, and this share of the run.
_FEWEST_SECS = 10.0  # A run that is estimated to be shorter would not win back the time.
_TIMED_SECS, _LONG_SECS = 0.1, 1.0  # How long one timing should last, and what is too long for another.
_AMORTISED = 0.8  # If a step takes this share of what one of fewer steps took, more steps may bring it down further.
_MARGIN = 0.97  # A candidate wins if it takes at most this share of the best time; a smaller gain is noise.
_AMPLE_SHARE = 0.1  # Of the room: what is estimated to take less need not be measured.
_CALL_LIMIT_SECS = 1.0  # A dispatch cannot be interrupted, so none takes longer.


def first_plan(spec: FitSpec, choice: Choice, folder: Path | None, *, resumed: bool = False) -> PlannedFit:
    """Places a fit by the plan that is known before anything compiles: by rules, from disk, or from the resumed run.

    Args:
      spec: the checked fit.
      choice: the parts of the plan that were chosen before.
      folder: the folder of kept plans; None keeps none.
      resumed: whether the choice is that of the run being resumed.
    """
    # A resumed run keeps chunk and lowering, however slow they are here: its bits depend on both.
    if resumed:
        return spec.place(dataclasses.replace(spec.plan(choice), how="resumed"))
    kept = _KeptPlan(folder, spec).read() if folder is not None and _has_choice(spec) else None
    if kept is not None:
        return spec.place(dataclasses.replace(spec.plan(kept), how="cached"))
    return spec.place(spec.plan(choice))


def choose_plan(first: PlannedFit, folder: Path | None, is_cut: Callable[[], bool] = lambda: False) -> PlannedFit:
    """Compiles a fit, makes its plan fit into memory and, where that may pay, looks for a faster one.

    Args:
      first: the fit as `first_plan` places it; closed if another takes its place.
      folder: the folder of kept plans; None keeps none.
      is_cut: whether to stop looking for a faster plan.
    """
    spec, started = first.spec, time.perf_counter()
    is_short = not _has_choice(spec) or spec.sampling.drawn_on_host or spec.rough_secs < _FEWEST_SECS
    if (is_short or first.plan.how != "rules") and _has_ample_room(first):
        return _begun(first)
    planned = _fit_into_memory(first)
    start_secs = time.perf_counter() - started
    if is_short or planned.plan.how != "rules" or planned.plan.waves > 1:
        return planned
    planned = _fastest(planned, start_secs, is_cut)
    if folder is not None and len(planned.candidates) > 1 and not is_cut():
        _KeptPlan(folder, spec).write(planned.plan)
    return planned


def plan_folder() -> Path | None:
    """Returns the folder of kept plans, beside the compiled programs; None if those are not kept."""
    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    return None if folder is None else Path(folder) / "plans"


def _has_choice(spec: FitSpec) -> bool:
    """Whether the user left anything for timing to choose."""
    settings = spec.settings
    return not settings.deterministic and "auto" in (settings.chunk, settings.lowering)


# Memory.


def _has_ample_room(planned: PlannedFit) -> bool:
    """Whether a fit needs so little of the memory that nobody has to wait for the compiler to know how much."""
    memory, plan = planned.memory, planned.plan
    rough = 2 * memory.state + memory.data + planned.spec.rough_bytes(plan)
    near = shares_host_memory(planned.spec.devices[0]) and plan.waves == 1
    return near and not planned.spec.sampling.drawn_on_host and rough < _AMPLE_SHARE * memory.room


def _begun(planned: PlannedFit) -> PlannedFit:
    """Starts to compile a fit, and waits for nothing: the compiler works while the callbacks get ready."""
    engine, rows = planned.engine, planned.feed.superstep(0, planned.schedule.counts(0, 1))
    if planned.plan.how != "resumed":  # a resumed run reads its heads from the checkpoint and needs no `init`
        engine.begin_init()
    engine.begin_superstep(rows)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), rows)  # not the rows, which would be kept
    return dataclasses.replace(planned, measure=functools.partial(engine.superstep_memory, shapes))


def _fit_into_memory(planned: PlannedFit) -> PlannedFit:
    """Compiles a fit, with smaller chunks or in more waves if it would not fit into memory."""
    spec = planned.spec
    # Rows that are read, or drawn by the user's code, come once and in the order of the steps, so none can be
    # spent on a trial.
    while not spec.sampling.drawn_on_host:
        start, peak = _try_superstep(planned)
        if peak <= planned.memory.room:
            return dataclasses.replace(planned, memory=planned.memory._replace(peak=peak), start=start)
        planned.close()
        planned = spec.place(smaller_plan(spec, planned.plan, f"{peak:,} bytes"))
    return planned


def _try_superstep(planned: PlannedFit) -> tuple[Blocks | None, int]:
    """Returns the heads before their first step, or None if a checkpoint has them, and the bytes of a superstep."""
    engine, memory, resumed = planned.engine, planned.memory, planned.plan.how == "resumed"
    try:
        if not resumed:  # a resumed run reads its heads from the checkpoint and needs no `init`
            engine.begin_init()
        rows = planned.feed.superstep(0, planned.schedule.counts(0, 1))
        peak = engine.superstep_memory(rows)
        if resumed or peak > memory.room:
            return None, peak
        # No step at all, but it takes all the memory of one.
        start, values = engine.superstep(engine.init(), rows, 0, 0, False)
        jax.block_until_ready(values)
        return start, peak
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None, memory.room + 1  # or more


def replan(spec: FitSpec, plan: Plan) -> PlannedFit:
    """Places the fit by a smaller plan than one that ran out of memory during training."""
    smaller = dataclasses.replace(smaller_plan(spec, plan, "more memory than was available"), how="resumed")
    return _fit_into_memory(spec.place(smaller))


def smaller_plan(spec: FitSpec, plan: Plan, needed: str) -> Plan:
    """Returns the plan with chunks of half the width; once chunks are single heads, with twice as many waves.

    Raises:
      MemoryLimitError: nothing is left to make smaller.
    """
    heads = len(spec.slices)
    available = room(spec.devices[0], spec.settings.device_memory)
    # The cheapest way first: half the chunk needs half the temporaries and loses little speed. A chunk that the user
    # chose stays, since bits depend on it.
    if plan.chunk > 1 and not isinstance(spec.settings.chunk, int):
        smaller = dataclasses.replace(plan, chunk=-(-plan.chunk // 2))
    # On a CPU all lanes share one memory: a single lane needs the temporaries of one chunk only.
    elif plan.devices > 1 and spec.devices[0] == spec.devices[-1]:
        smaller = dataclasses.replace(plan, devices=1)
    # Waves come last, because each superstep then writes the state of all heads to disk.
    elif plan.waves * plan.devices * plan.chunk < heads:
        smaller = dataclasses.replace(plan, waves=2 * plan.waves)
    else:
        raise too_large(heads, plan.chunk, needed, available)
    _log.warning(
        "A step takes %s; %s bytes are available. The fit continues with: %s", needed, f"{available:,}", smaller
    )
    return smaller


# Timing.


def _fastest(first: PlannedFit, start_secs: float, is_cut: Callable[[], bool]) -> PlannedFit:
    """Times the given plan, then others one by one while the budget lasts, and keeps the fastest.

    Args:
      first: the fit by the given plan.
      start_secs: how long it took to compile; the others are expected to take as long.
      is_cut: whether to stop.
    """
    spec, started = first.spec, time.perf_counter()
    best = _Trial(spec, first.plan, first)
    budget = min(_MAX_SECS, _MAX_SHARE * first.schedule.max_steps * best.step_secs)
    dearest = max(start_secs, best.start_secs)
    tried = [best.candidate._replace(start_secs=dearest)]
    for plan in _candidates(spec, tried):
        # Compile time cannot be known beforehand, and it dominates: the longest so far is assumed.
        cost = dearest + 4 * _TIMED_SECS + 2 * best.step_secs
        if is_cut() or time.perf_counter() - started + cost > budget:
            break
        try:
            trial = _Trial(spec, plan)
        except (MemoryLimitError, jax.errors.JaxRuntimeError) as error:  # not the plan to take
            _log.debug("A plan cannot be tried: %s: %r", plan, error)
            continue
        dearest = max(dearest, trial.start_secs)
        better = _beats(trial, best)
        tried.append(trial.candidate)
        (best if better else trial).planned.close()
        best = trial if better else best
    steps = best.planned.plan.steps_per_call
    if spec.settings.steps_per_call == "auto":
        # A signal waits for the end of a dispatch, and the rules only estimated the time of a step.
        steps = min(steps, max(1, int(_CALL_LIMIT_SECS / best.step_secs)))
    how = "timed" if len(tried) > 1 else "rules"
    plan = dataclasses.replace(best.planned.plan, steps_per_call=steps, how=how)
    return dataclasses.replace(best.planned, plan=plan, candidates=tuple(tried))


def _beats(trial: _Trial, best: _Trial) -> bool:
    """Whether a plan is faster than the best so far; if it seems so, both are timed once more, in turn."""
    if trial.step_secs >= _MARGIN * best.step_secs:
        return False
    # Both again, close together: the best was timed earlier, perhaps while the machine had other work.
    best.measure()
    trial.measure()
    return trial.step_secs < _MARGIN * best.step_secs


def _candidates(spec: FitSpec, tried: list[Candidate]) -> Iterator[Plan]:
    """Plans worth a try, each derived from the best so far."""

    def best() -> Plan:
        return min(tried, key=lambda one: one.step_secs).plan

    settings, base = spec.settings, tried[0].plan
    if settings.chunk == "auto" and base.backend == "cpu" and base.sampling == "own":
        for chunk in _chunks(lambda: best().chunk):
            if chunk <= len(spec.slices) and chunk != base.chunk:
                yield spec.plan(dataclasses.replace(best().choice, chunk=chunk))
    if settings.lowering == "auto" and spec.has_lowered_operations:
        plain, fast = Lowering(), Lowering.auto("cpu")
        yield dataclasses.replace(best(), lowering=plain if best().lowering != plain else fast)
    if settings.devices == "auto" and best().devices > 1 and best().backend == "cpu":
        yield dataclasses.replace(best(), devices=1)


def _chunks(best: Callable[[], int]) -> Iterator[int]:
    """Widths worth a try on a CPU, given the best so far: 16 fill a vector register; then wider or narrower ones."""
    yield 16
    if best() >= 16:
        yield 128
        yield 512 if best() == 128 else 32
        return
    yield 4
    # Where four times the width lost, eight times does too, and half of it is next.
    if best() == 4:
        yield 8
    yield 2


class _Trial:
    """A plan timed on the user's heads: frozen ones, which take the same time and keep every bit."""

    def __init__(self, spec: FitSpec, plan: Plan, planned: PlannedFit | None = None) -> None:
        """Times a plan; compiles it first unless the fit is placed by it already."""
        started = time.perf_counter()
        self.planned = planned or _fit_into_memory(spec.place(plan))
        self.start_secs = time.perf_counter() - started
        self.step_secs = math.inf
        self.measure()

    def measure(self) -> None:
        """Times some steps; the shortest time counts, because other work on the machine only adds to it."""
        engine = self.planned.engine
        # A frozen head costs as much as a live one: under vmap both branches are computed, and one is selected.
        self._state: Blocks = engine.freeze(engine.init(), np.ones(engine.num_heads, bool))
        most, steps, taken, before = self.planned.plan.steps_per_call, 1, self._secs(1), math.inf
        # A superstep has costs of its own, so a step of many costs less than one alone: more are timed while that
        # shows.
        while steps < most and (taken < _TIMED_SECS or (taken < _LONG_SECS and taken / steps < _AMORTISED * before)):
            before, steps = taken / steps, min(4 * steps, most)
            taken = self._secs(steps)
        if taken < _LONG_SECS:
            taken = min(taken, self._secs(steps))
        self.step_secs = min(self.step_secs, taken / steps)
        del self._state  # a trial that is kept must not hold a second copy of all heads

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.planned.plan, self.step_secs, self.start_secs)

    def _secs(self, steps: int) -> float:
        planned = self.planned
        rows = planned.feed.superstep(0, planned.schedule.counts(0, steps))
        started = time.perf_counter()
        self._state, values = planned.engine.superstep(self._state, rows, 0, steps, False)
        jax.block_until_ready((self._state, values))
        return time.perf_counter() - started


# Plans on disk.


class _KeptPlan:
    """The file with the fastest plan for this step on this machine with these versions."""

    def __init__(self, folder: Path, spec: FitSpec) -> None:
        # A jaxpr prints functions with their addresses, which differ from run to run.
        step = re.sub(r"0x[0-9a-f]+", "", str(spec.traced.step))
        settings = spec.settings
        about: dict[str, Any] = {
            "step": step,
            "num_heads": len(spec.slices),
            "settings": [str(settings.chunk), settings.lowering, settings.sampling, len(spec.devices)],
            "machine": speed_environment(spec.devices[0]),
        }
        self._path = folder / f"{hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]}.json"

    def read(self) -> Choice | None:
        """Reads what was chosen; None if there is no such file or it is not valid."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            lowering = Lowering(**{str(name): bool(on) for name, on in found["lowering"].items()})
            chunk = found["chunk"]
            return Choice(chunk, lowering) if isinstance(chunk, int) and chunk > 0 else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, plan: Plan) -> None:
        """Writes what was chosen; if that fails, the next run times the plans again."""
        text = json.dumps({"chunk": plan.chunk, "lowering": dataclasses.asdict(plan.lowering), "plan": str(plan)})
        try:
            write_text(self._path, text)
        except OSError as error:
            _log.debug("The plan cannot be kept in %s: %r", self._path.parent, error)
