"""A fit before its first step: checked (`FitSpec`), then placed on the devices by a plan (`PlannedFit`)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hydrax.arguments import require_meant
from hydrax.data import DataModule, Feed, find_transform, stage_training
from hydrax.engine import (
    NO_CHOICE,
    Blocks,
    Candidate,
    Choice,
    Engine,
    Layout,
    Memory,
    Plan,
    PlanReport,
    Spill,
    StepCost,
    check_per_head,
    count_bytes,
    count_flops,
    find_devices,
    head_inputs,
    lay_out,
    make_plan,
    measure_limits,
    room,
    step_secs,
    too_large,
)
from hydrax.errors import ArgumentError, ModuleError
from hydrax.loop import Callback, Interrupts, RunState, Schedule, overrides
from hydrax.slices import Slices
from hydrax.step import (
    HeadInputs,
    HeadProgram,
    Logged,
    Lowering,
    PerHead,
    Preflight,
    TrainingShapes,
    has_own_update,
    has_second_tier,
    has_transform,
    padding_counted,
    per_head_values,
    with_transform,
)
from hydrax.train.evaluation import Evaluations, find_validation
from hydrax.train.module import HydraModule
from hydrax.train.sampling import Sampling, open_sampling
from hydrax.train.settings import Settings
from hydrax.train.warm_start import Start, find_start
from hydrax.trees import tree_bytes, tree_digest

_LOGS = 100  # Most logs of a fit whose epochs are shorter than `log_every_n_steps`.


@dataclasses.dataclass(frozen=True)
class FitSpec:
    """A checked fit, from which any plan starts; nothing is on the device yet.

    Attributes:
      settings: the Trainer's arguments.
      module: the user's module.
      flight: one head's functions and shapes.
      inputs: ids and `PerHead` values of all heads.
      sampling: how the heads walk their slices.
      validation: the validation set, or None.
      traced: shapes of one head's state, its step, and its empty accumulators.
      schedule: when things are due.
      every_step: whether a callback is called after every single step.
      scratch: folder for heads that wait for their turn.
      start: the weights that the heads begin with; None for fresh ones.
    """

    settings: Settings
    module: HydraModule
    flight: Preflight
    inputs: HeadInputs
    sampling: Sampling
    validation: Evaluations | None
    traced: TrainingShapes
    schedule: Schedule
    every_step: bool
    scratch: Path
    start: Start | None = None

    @property
    def slices(self) -> Slices:
        """The heads' slices."""
        return self.sampling.slices

    @functools.cached_property
    def devices(self) -> tuple[jax.Device, ...]:
        """The devices that heads may be spread over."""
        return find_devices(self.settings.devices)

    @property
    def step_cost(self) -> StepCost:
        """The least that a step of all heads has to do."""
        sampling = self.sampling
        rows = self.settings.most_batches * sampling.batch_size * sampling.data.row_bytes
        # The state is read and written, hence twice.
        one = StepCost(count_flops(self.traced.step.jaxpr), 2 * tree_bytes(self.traced.state) + rows)
        return one.times(len(self.slices))

    @property
    def rough_secs(self) -> float:
        """How long the fit will take, estimated from shapes alone."""
        return self.schedule.max_steps * step_secs(len(self.slices), len(self.devices), self.step_cost.flops)

    def rough_bytes(self, plan: Plan) -> int:
        """Bytes that a superstep takes besides data and heads, estimated from shapes alone; rather too many."""
        slots = self.settings.most_batches * self.sampling.batch_size
        # As if all values of a step existed at once; a dozen words for each slot that is drawn.
        one = count_bytes(self.traced.step.jaxpr) + plan.steps_per_call * slots * 64
        return one * plan.chunk * plan.devices

    @property
    def has_lowered_operations(self) -> bool:
        """Whether the step has an operation that a lowering would replace."""
        # The CPU's default lowers everything that can be lowered. The text of the jaxpr includes all nested jaxprs.
        return any(name in str(self.traced.step) for name in Lowering.auto("cpu").rules())

    def plan(self, choice: Choice = NO_CHOICE, waves: int = 1) -> Plan:
        """Returns the plan by rules, where neither the user nor the choice says otherwise."""
        sampling, slices = self.sampling, self.slices
        refuses_shared = slices.has_repeats or _has_batch_statistics(self.flight)
        return make_plan(
            choice,
            **self.settings.of_plan,
            num_heads=len(slices),
            slots=self.settings.most_batches * sampling.batch_size,
            backend=self.devices[0].platform,
            devices=len(self.devices),
            waves=waves,
            flops=self.step_cost.flops,
            head_bytes=None if self.settings.deterministic else int(self.step_cost.bytes) // len(slices),
            longest=self._longest_superstep,
            drawn_on_host=sampling.drawn_on_host,
            row_bytes=sampling.data.fetched_row_bytes,
            # For the remark that shared sampling would be faster, which must not be made where it is refused.
            live_share=None if refuses_shared else float(slices.lengths.mean() / slices.num_rows),
        )

    @property
    def _longest_superstep(self) -> tuple[int, str] | None:
        """Most steps of a superstep, and why; None if only the end of the fit ends one."""
        if self.every_step:
            return 1, "a callback overrides on_train_batch_end"
        if self.settings.detect_anomaly:
            return 1, "detect_anomaly checks each step by itself"
        longest = self.schedule.longest_superstep
        return None if longest is None else (longest, "the heads are needed at the end of each epoch")

    def place(self, plan: Plan) -> PlannedFit:
        """Puts the rows on the devices, and the heads in waves where their state alone exceeds the memory.

        Nothing compiles yet.

        Raises:
          MemoryLimitError: the data alone does not fit.
        """
        devices, heads = self.devices[: plan.devices], len(self.slices)
        available = room(devices[0], self.settings.device_memory)
        dataset = self.sampling.data
        data = dataset.num_rows * dataset.row_bytes if dataset.reader is None else 0
        # The lanes of a CPU are one device and share its memory, hence the set.
        state = tree_bytes(self.traced.state) * -(-heads // len(set(devices)))
        if plan.waves == 1 and data + state > available:
            if data >= available:
                raise too_large(heads, plan.chunk, f"{data:,} bytes of data", available)
            # The old and the new state of a wave exist at once, while one is written back and the next is read.
            plan = dataclasses.replace(plan, waves=-(-2 * state // (available - data)))
        # Nothing compiles yet, so this is a lower bound: activations come on top, and `tune` measures them.
        at_once = state // plan.waves
        engine, feed = self._build(plan)
        return PlannedFit(self, plan, engine, feed, Memory(at_once, data, at_once + data, available))

    def _build(self, plan: Plan) -> tuple[Engine, Feed]:
        layout = lay_out(len(self.slices), plan.chunk, self.devices[: plan.devices], plan.waves)
        spill = Spill(self.scratch) if layout.in_waves else None
        # XLA drops a loop over an axis of one, and the other program has other bits.
        most = max(2, plan.steps_per_call)
        feed = self.sampling.feed(layout, max_steps=most)
        program = dataclasses.replace(self.flight.program, lowering=plan.lowering)
        start = None if self.start is None else self.start.parts
        inputs, seed, epoch = self.inputs, self.settings.seed, self.traced.epoch
        detect = self.settings.detect_anomaly
        engine = Engine(program, inputs, seed, layout, epoch, feed.draw, spill, most, start, detect)
        return engine, feed

    def close(self) -> None:
        """Ends the threads and processes that read rows."""
        self.sampling.data.close()
        if self.validation is not None:
            self.validation.close()


@dataclasses.dataclass(frozen=True)
class PlannedFit:
    """A fit placed on the devices by a plan; what `FitLoop` trains.

    Attributes:
      spec: the checked fit.
      plan: how it is executed.
      engine: its compiled programs.
      feed: its rows and index batches.
      memory: the memory that it needs.
      measure: finds the peak of `memory` by waiting for the compiler; None if it is known.
      start: the heads before their first step, if they exist already; the first superstep consumes them.
      candidates: the plans that were timed, this one among them; empty if none was.
      validation: the validation set with its feed; None if there is none, or before `ready`.
    """

    spec: FitSpec
    plan: Plan
    engine: Engine
    feed: Feed
    memory: Memory
    measure: Callable[[], int] | None = None
    start: Blocks | None = None
    candidates: tuple[Candidate, ...] = ()
    validation: Evaluations | None = None

    @property
    def schedule(self) -> Schedule:
        """When things are due."""
        return self.spec.schedule

    @property
    def steps_per_call(self) -> int:
        """The most steps of one superstep."""
        return self.plan.steps_per_call

    @property
    def slots_per_step(self) -> int:
        """Slots of one head's update, those of all micro-batches, padding included."""
        return self.spec.settings.most_batches * self.spec.sampling.batch_size

    @property
    def own_batches(self) -> np.ndarray | None:
        """int64[H], batches after which a head has made its passes; None without that budget."""
        return self.spec.sampling.own_batches

    @property
    def logged(self) -> Mapping[str, Mapping[str, Logged]]:
        """What the steps log, by stage and name."""
        return self.spec.flight.program.logged

    @functools.cached_property
    def ids(self) -> list[int]:
        """The heads' ids, by place."""
        ids: list[int] = self.spec.slices.ids.tolist()
        return ids

    def ready(self) -> PlannedFit:
        """Returns the same fit with its validation set on the device: what a run starts with."""
        # Only after the plan is chosen: plans on trial do not need the validation set on the device.
        found = self.spec.validation
        if found is None:
            return self
        return dataclasses.replace(self, validation=found.open(self.engine.layout, self.spec.slices.ids))

    @functools.cached_property
    def fingerprint(self) -> Mapping[str, Any]:
        """What a checkpoint must share with this fit for a resumed run to give the same bits, by name.

        Only a run that saves or resumes asks for it, and so pays for the digest of its data.
        """
        sampling = self.spec.sampling
        # What shapes bits. Devices, waves and steps per call do not, so a resumed run may differ in them.
        marks = {
            "chunk": self.plan.chunk,
            "lowering": str(self.plan.lowering),
            "batch_size": sampling.batch_size,
            "small_slices": sampling.rows.small_slices,
        }
        return marks | _fingerprint(self.spec, self.feed)

    def set_layout(self, layout: Layout) -> None:
        """Passes the new layout of the heads to everything that hands out rows."""
        self.feed.set_layout(layout)
        if self.validation is not None:
            self.validation.set_layout(layout)

    def validate(self, interrupts: Interrupts, state: RunState, limit: int | None = None) -> dict[str, np.ndarray]:
        """Runs the validation set with the present heads; what they log, float[H] by name."""
        assert self.validation is not None
        return self.validation.run(self.engine, state.models(self.engine), state.step, interrupts.check, limit)

    def report(self, step_secs: float | None = None) -> PlanReport:
        """Describes the plan; measures the machine's limit on the first call, which takes a second or two.

        Args:
          step_secs: seconds of a step of all heads, as the fit takes it; None before it has run.
        """
        memory = self.memory if self.measure is None else self.memory._replace(peak=self.measure())
        timed = next((one.step_secs for one in self.candidates if one.plan.choice == self.plan.choice), None)
        return PlanReport(
            self.plan,
            self.candidates,
            memory,
            self.spec.step_cost,
            measure_limits(self.spec.devices[0], self.plan.devices),
            step_secs or timed,
        )

    def close(self) -> None:
        """Ends the engine's threads and the feeds; what reads rows belongs to the spec, for another plan to use."""
        self.engine.close()  # first: its lanes may still dispatch with rows of the feed
        self.feed.close()
        if self.validation is not None:
            self.validation.close_feeds()


def check_fit(
    settings: Settings,
    module: HydraModule,
    datamodule: DataModule,
    callbacks: Mapping[str, Callback],
    scratch: Path = Path("."),
    init_from: Any = None,
) -> FitSpec:
    """Checks everything that a fit needs, and traces the user's functions.

    Args:
      settings: the Trainer's arguments.
      module: the user's module.
      datamodule: the user's data module.
      callbacks: by key; those with a second tier run inside the program.
      scratch: folder for heads that wait for their turn.
      init_from: the weights to begin with; None for fresh ones.

    Raises:
      HydraxError: something does not fit; nothing has compiled.
    """
    if has_own_update(module) and settings.most_batches > 1:
        raise ArgumentError(
            "Invalid Trainer argument: accumulate_grad_batches. Got "
            f"{settings.accumulate_grad_batches}, expected 1 beside {type(module).__name__}.update, which sees one "
            "batch. Fix: pass a larger batch_size, or leave update out."
        )
    with contextlib.ExitStack() as opened:
        # Whatever is opened here is closed again if a later check fails.
        rows = stage_training(datamodule, wide=settings.precision == "64-true")
        opened.callback(rows.data.close)
        num_heads = len(rows.slices)
        module = with_transform(module, find_transform(datamodule))
        inputs = head_inputs(rows.slices.ids, check_per_head(module, num_heads))
        sampling = open_sampling(settings, rows)
        _refuse_large_sizes(settings, sampling)
        # Its rows are checked before anything is traced; they move to the device in `ready`.
        validation = find_validation(settings, module, datamodule, num_heads)
        if validation is not None:
            opened.callback(validation.close)
        program = HeadProgram(
            module=module,
            callbacks={key: callback for key, callback in callbacks.items() if has_second_tier(callback)},
            precision=settings.precision,
            clip_val=settings.gradient_clip_val,
            clip_algorithm=settings.gradient_clip_algorithm,
            # The reason itself, as text: it becomes part of the error for a scalar loss.
            padding={"training": sampling.padding, "validation": validation.padding if validation else None},
            may_idle=sampling.may_idle,
            masks_statistics=sampling.may_pad,
            watched=settings.on_nonfinite != "ignore",
        )
        flight = Preflight.of_model(program, inputs)
        start = None if init_from is None else find_start(init_from, flight, rows.slices.ids)
        _refuse_batch_statistics(flight, sampling)
        # A metric that is logged both by step and by epoch may be asked for by either of its names.
        asked = {name.removesuffix("_epoch") for callback in callbacks.values() for name in callback.epoch_means}
        traced = flight.training(rows.data.shapes, sampling.batch_size, settings.most_batches, asked)
        if validation is not None:
            validation = validation.traced(flight)
        _refuse_equal_names(flight, set(traced.epoch))
        schedule = _make_schedule(settings, sampling, validation is not None, callbacks, bool(traced.epoch))
        # One callback that needs each step makes all supersteps one step long.
        every_step = any(overrides(callback, "on_train_batch_end") for callback in callbacks.values())
        what = traced, schedule, every_step, scratch, start
        spec = FitSpec(settings, module, flight, inputs, sampling, validation, *what)
        opened.pop_all()  # no error from here on: the caller closes the spec
    return spec


def _refuse_large_sizes(settings: Settings, sampling: Sampling) -> None:
    rows, slices = sampling.rows, sampling.slices
    require_meant(f"{rows.source}.batch_size", sampling.batch_size, slices.num_rows, "rows")
    if isinstance(settings.chunk, int):
        require_meant("Trainer(chunk=)", settings.chunk, len(slices), "heads")
    batches, micro = sampling.batches_per_epoch, settings.most_batches
    require_meant("Trainer(accumulate_grad_batches=)", micro, batches, "batches in an epoch")


def _has_batch_statistics(flight: Preflight) -> bool:
    structure = flight.program.structure
    return structure is not None and structure.has_batch_statistics


def _refuse_batch_statistics(flight: Preflight, sampling: Sampling) -> None:
    structure = flight.program.structure
    assert structure is not None
    if sampling.shared and structure.has_batch_statistics:
        raise ModuleError(
            f"Batch statistics would leak rows of other heads: {type(flight.program.module).__name__} with "
            'sampling="shared". Got a model with batch statistics, expected one that treats each row by itself, '
            'because all heads share the rows of a batch. Fix: use a layer norm, or sampling="own".'
        )
    if sampling.padding and structure.unmaskable:
        expected = "nnx.BatchNorm or Linen's, which take a mask"
        raise padding_counted(structure.unmaskable, "a layer that takes no mask", expected, sampling.padding)


def _refuse_equal_names(flight: Preflight, means: Set[str]) -> None:
    """Refuses a logged name that another value is reported under, too.

    Args:
      flight: what the steps log.
      means: the training metrics whose means over epochs are reported.
    """
    logged = flight.program.logged
    training = logged["training"]
    # A value that is reported both by step and by epoch gets a suffix for each.
    derived = {f"{name}_epoch": name for name in means if training[name].on_step}
    derived |= {f"{name}_step": name for name, entry in training.items() if entry.on_step and entry.on_epoch}
    for stage in ("training", "validation"):
        for name in logged.get(stage, {}):
            if name in derived:
                raise ModuleError(
                    f"Two logged values have one name: {type(flight.program.module).__name__}, {name!r}. Got "
                    f"self.log({name!r}) in {stage}, and {derived[name]!r} in training, which is reported by step and "
                    f"by epoch as {derived[name]}_step and {derived[name]}_epoch, expected different names. Fix: "
                    "rename one of them."
                )


def _make_schedule(
    settings: Settings,
    sampling: Sampling,
    validates: bool,
    callbacks: Mapping[str, Callback],
    logs_epochs: bool,
) -> Schedule:
    waiting = [callback for callback in callbacks.values() if callback.needs_every_epoch]
    needs_epochs = any(overrides(one, f"on_train_epoch_{end}") for one in waiting for end in ("start", "end"))
    batches = settings.limit("train", sampling.batches_per_epoch)
    schedule = Schedule(
        batches_per_epoch=batches,
        accumulate=settings.accumulation,
        max_steps=0,  # until the steps of epochs are known
        val_every_batches=settings.validation_batches(batches) if validates else None,
        val_every_epochs=settings.check_val_every_n_epoch,
        log_every=settings.log_every_n_steps,
        # Only if something listens: with short epochs supersteps would have a few steps each.
        stop_at_epochs=logs_epochs or needs_epochs,
    )

    def steps_of_epochs(epochs: int) -> int:
        return schedule.steps_of(epochs * batches)

    end, least = settings.total_steps(steps_of_epochs), settings.least_steps(steps_of_epochs)
    if sampling.own_batches is not None:
        # If the passes of the last head are no whole number of batches, it finishes before the last epoch ends.
        end = min(end, schedule.steps_of(int(sampling.own_batches.max())))
    # A fit with epochs shorter than the interval would log little or nothing; with very short ones, too much.
    log_every = min(settings.log_every_n_steps, max(schedule.steps_in(0), -(-end // _LOGS)))
    return dataclasses.replace(schedule, max_steps=end, min_steps=least, log_every=log_every)


def _fingerprint(spec: FitSpec, feed: Feed) -> dict[str, Any]:
    """Lists what must stay the same, besides the plan, for a resumed run to give the same bits; readable if possible.

    The order counts: the error for a checkpoint that does not fit names the first difference.
    """
    settings, module, slices = spec.settings, spec.module, spec.slices
    names = (
        *("seed", "precision", "limit_train_batches", "sampling", "passes"),
        *("matmul_precision", "gradient_clip_val", "gradient_clip_algorithm"),
    )
    return {
        "module": type(module).__name__,
        "num_heads": len(slices),
        **{name: getattr(settings, name) for name in names},
        "accumulate_grad_batches": _accumulation_mark(settings),
        "overfit_batches": settings.overfit_batches or None,  # 0 and 0.0 both mean off
        **{f"hparams.{name}": _mark(value) for name, value in module.hparams.items()},
        **{name: _mark(value) for name, value in per_head_values(module).items()},
        **({"batch_transform": True} if has_transform(module) else {}),
        # The text is for the person who reads the error; the digest decides.
        "slices": _with_digest(_outline(slices), slices.digest()),
        "data": _with_digest(str(spec.sampling.data), feed.digest()),
    }


def _accumulation_mark(settings: Settings) -> Any:
    first, *others = settings.accumulation
    return [list(phase) for phase in (first, *others)] if others else first[1]  # lists, as JSON gives them back


def _outline(slices: Slices) -> str:
    first, last = slices[[0, -1]].recipes()
    return f"{slices.lengths.min()} to {slices.lengths.max()} rows, {first} to {last}"


def _with_digest(text: str, digest: str) -> str:
    return f"{text} ({digest[:16]})"


def _mark(value: Any) -> Any:
    """Returns a hyper-parameter in a form that JSON can compare; a function or other object by its name or type."""
    if isinstance(value, PerHead):
        return _with_digest(repr(value), tree_digest(value.values))
    if isinstance(value, bool | int | float | str | None):
        return value
    return getattr(value, "__name__", None) or type(value).__name__
