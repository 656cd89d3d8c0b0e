"""Puts a fit together from settings, module and data: all checks first, then the device."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hydrax.data import DataModule, Dataset, Feed, check_settings, check_slices, open_dataset
from hydrax.engine import (
    NO_CHOICE,
    Choice,
    Engine,
    Layout,
    Plan,
    Spill,
    StepCost,
    check_per_head,
    count_flops,
    find_devices,
    head_inputs,
    lay_out,
    make_plan,
    step_secs,
)
from hydrax.errors import ArgumentError, DataError, ModuleError
from hydrax.loop import Callback, Schedule, overrides
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
    per_head_values,
)
from hydrax.train.evaluation import Evaluation, find_evaluation
from hydrax.train.module import HydraModule
from hydrax.train.sampling import Sampling, open_sampling
from hydrax.train.settings import Settings
from hydrax.trees import tree_bytes, tree_digest


@dataclasses.dataclass(frozen=True)
class Training:
    """A fit, ready to start.

    Attributes:
      slices: the heads' slices.
      engine: the compiled programs.
      plan: how the heads are laid out.
      schedule: when things are due.
      feed: the training rows and index batches.
      own_batches: int64[H], batches after which a head is through its passes, or None.
      validation: the validation set, or None.
      logged: what the steps log, by stage and name.
      fingerprint: gives what a checkpoint must share with this run.
    """

    slices: Slices
    engine: Engine
    plan: Plan
    schedule: Schedule
    feed: Feed
    own_batches: np.ndarray | None
    validation: Evaluation | None
    logged: Mapping[str, Mapping[str, Logged]]
    fingerprint: Callable[[], Mapping[str, Any]]

    @property
    def steps_per_call(self) -> int:
        """The most steps of one superstep."""
        return self.plan.steps_per_call

    @property
    def ids(self) -> list[int]:
        """The heads' ids, by place."""
        ids: list[int] = self.slices.ids.tolist()
        return ids

    def set_layout(self, layout: Layout) -> None:
        """Says where the heads stand from now on."""
        self.feed.set_layout(layout)
        if self.validation is not None:
            self.validation.set_layout(layout)

    def close(self) -> None:
        """Ends the pipelines of index batches, what reads rows, and the threads of the engine."""
        self.engine.close()
        self.feed.close()
        if self.validation is not None:
            self.validation.close()


@dataclasses.dataclass(frozen=True)
class Checked:
    """All of a fit but its plan: what any plan starts from. The device was not touched yet.

    Attributes:
      settings: the Trainer's arguments.
      module: the user's module.
      flight: one head's functions and shapes.
      inputs: ids and `PerHead` values of all heads.
      sampling: how they walk their slices.
      validation: the validation set, or None.
      traced: shapes of one head's state, its step, and its empty accumulators.
      schedule: when things are due.
      every_step: whether a callback hears every single step.
      scratch: folder for heads that wait for their turn.
    """

    settings: Settings
    module: HydraModule
    flight: Preflight
    inputs: HeadInputs
    sampling: Sampling
    validation: Evaluation | None
    traced: TrainingShapes
    schedule: Schedule
    every_step: bool
    scratch: Path

    @functools.cached_property
    def devices(self) -> tuple[jax.Device, ...]:
        """What heads may be spread over."""
        return find_devices(self.settings.devices)

    @property
    def work(self) -> StepCost:
        """What a step of all heads has to do at least."""
        sampling, heads = self.sampling, len(self.sampling.slices)
        rows = self.settings.accumulate_grad_batches * sampling.batch_size * sampling.data.row_bytes
        return StepCost(count_flops(self.traced.step.jaxpr), 2 * tree_bytes(self.traced.state) + rows).times(heads)

    @property
    def rough_secs(self) -> float:
        """How long the fit will take, estimated from shapes alone."""
        return self.schedule.max_steps * step_secs(len(self.sampling.slices), len(self.devices), self.work.flops)

    @property
    def has_lowered_operations(self) -> bool:
        """Whether the step has an operation that a lowering would replace."""
        return any(name in str(self.traced.step) for name in Lowering.auto("cpu").rules())

    def plan(self, choice: Choice = NO_CHOICE, waves: int = 1) -> Plan:
        """The plan by rules, where neither the user nor the choice says otherwise."""
        sampling, slices = self.sampling, self.sampling.slices
        return make_plan(
            choice,
            **self.settings.of_plan,
            num_heads=len(slices),
            slots=self.settings.accumulate_grad_batches * sampling.batch_size,
            backend=self.devices[0].platform,
            devices=len(self.devices),
            waves=waves,
            flops=self.work.flops,
            longest=1 if self.every_step else self.schedule.longest_superstep,
            drawn_on_host=sampling.drawn_on_host,
            row_bytes=sampling.data.fetched_row_bytes,
            live_share=None if slices.has_repeats else float(slices.lengths.mean() / slices.num_rows),
        )

    def build(self, plan: Plan) -> tuple[Engine, Feed]:
        """What a plan makes of it, on the device."""
        layout = lay_out(len(self.sampling.slices), plan.chunk, self.devices[: plan.devices], plan.waves)
        spill = Spill(self.scratch) if layout.in_waves else None
        # Over an axis of one XLA would drop the loop: another program, with other bits.
        most = max(2, plan.steps_per_call)
        feed = self.sampling.feed(layout, max_steps=most)
        program = dataclasses.replace(self.flight.program, lowering=plan.lowering)
        return Engine(program, self.inputs, self.settings.seed, layout, self.traced.epoch, feed.draw, spill, most), feed

    def training(self, plan: Plan, engine: Engine, feed: Feed) -> Training:
        """A fit by this plan."""
        slices, sampling = self.sampling.slices, self.sampling
        marks = {
            "chunk": plan.chunk,
            "lowering": str(plan.lowering),
            "batch_size": sampling.batch_size,
            "small_slices": sampling.datamodule.small_slices,
        }
        return Training(
            slices=slices,
            engine=engine,
            plan=plan,
            schedule=self.schedule,
            feed=feed,
            own_batches=sampling.own_batches,
            validation=self.validation.open(engine.layout, slices.ids) if self.validation else None,
            logged=self.flight.program.logged,
            # Only a run that saves or resumes pays for the digest of its data.
            fingerprint=functools.cache(
                lambda: marks | _fingerprint(self.settings, self.module, slices, sampling.data, feed)
            ),
        )

    def close(self) -> None:
        """Ends what reads rows."""
        self.sampling.data.close()
        if self.validation is not None:
            self.validation.close()


def check_training(
    settings: Settings,
    module: HydraModule,
    datamodule: DataModule,
    callbacks: Mapping[str, Callback],
    scratch: Path = Path("."),
) -> Checked:
    """Checks all that a fit needs, and traces the user's functions.

    Args:
      callbacks: by key; those with a second tier run inside the program.
      scratch: folder for heads that wait for their turn.
    """
    check_settings(datamodule)
    if has_own_update(module) and settings.accumulate_grad_batches > 1:
        raise ArgumentError(
            "A Trainer argument has no meaning: accumulate_grad_batches. Got "
            f"{settings.accumulate_grad_batches}, expected 1 beside {type(module).__name__}.update, which sees one "
            "batch. Fix: pass a larger batch_size, or leave update out."
        )
    with contextlib.ExitStack() as opened:
        data = _open_training(datamodule, wide=settings.precision == "64-true")
        opened.callback(data.close)
        slices = check_slices(datamodule.slices, data.num_rows)
        inputs = head_inputs(slices.ids, check_per_head(module, len(slices)))
        sampling = open_sampling(settings, datamodule, data, slices)
        validation = _find_validation(settings, module, datamodule, len(slices))
        if validation is not None:
            opened.callback(validation.close)
        program = HeadProgram(
            module=module,
            callbacks={key: callback for key, callback in callbacks.items() if has_second_tier(callback)},
            precision=settings.precision,
            clip_val=settings.gradient_clip_val,
            clip_algorithm=settings.gradient_clip_algorithm,
            padding={"training": sampling.padding, "validation": validation.padding if validation else None},
            may_idle=sampling.may_idle,
            watched=settings.on_nonfinite != "ignore",
        )
        flight = Preflight.of_model(program, inputs)
        if sampling.shared:
            _refuse_batch_statistics(flight)
        traced = flight.training(data.shapes, sampling.batch_size, settings.accumulate_grad_batches)
        if validation is not None:
            empty = flight.evaluation("validation", validation.data.shapes, validation.batch_size)
            validation = dataclasses.replace(validation, empty=empty)
        schedule = _make_schedule(settings, sampling, validation is not None, callbacks, bool(traced.epoch))
        every_step = any(overrides(callback, "on_train_batch_end") for callback in callbacks.values())
        checked = Checked(settings, module, flight, inputs, sampling, validation, traced, schedule, every_step, scratch)
        opened.pop_all()
    return checked


def _refuse_batch_statistics(flight: Preflight) -> None:
    structure = flight.program.structure
    if structure is not None and structure.has_batch_statistics:
        raise ModuleError(
            f"Batch statistics would tell a head of rows that are not its own: {type(flight.program.module).__name__} "
            'with sampling="shared". Got a model with batch statistics, expected one that takes each row by itself, as '
            'all heads meet the same rows. Fix: use a layer norm, or sampling="own".'
        )


def _open_training(datamodule: DataModule, wide: bool) -> Dataset:
    data = open_dataset(datamodule, "train", wide)
    if data is None:
        raise DataError(
            f"A dataset is missing: {type(datamodule).__name__}.train_dataset. Got None, expected a pytree of arrays "
            "or a source. Fix: return the rows that heads learn from."
        )
    return data


def _find_validation(
    settings: Settings, module: HydraModule, datamodule: DataModule, num_heads: int
) -> Evaluation | None:
    """The validation of a fit; None where the module has no validation_step or the data module no rows for it."""
    if type(module).validation_step is HydraModule.validation_step:
        return None
    return find_evaluation(settings, datamodule, "val", num_heads)


def _make_schedule(
    settings: Settings,
    sampling: Sampling,
    validates: bool,
    callbacks: Mapping[str, Callback],
    logs_epochs: bool,
) -> Schedule:
    def heard(*hooks: str) -> bool:
        return any(overrides(callback, hook) for callback in callbacks.values() for hook in hooks)

    batches = settings.limit("train", sampling.batches_per_epoch)
    steps = -(-batches // settings.accumulate_grad_batches)
    end = settings.total_steps(steps)
    schedule = Schedule(
        batches_per_epoch=batches,
        accumulate=settings.accumulate_grad_batches,
        max_steps=end,
        val_every_batches=settings.validation_batches(batches) if validates else None,
        val_every_epochs=settings.check_val_every_n_epoch,
        log_every=min(settings.log_every_n_steps, steps),
        stop_at_epochs=logs_epochs or heard("on_train_epoch_start", "on_train_epoch_end"),
        stop_at_logs=heard("on_train_steps_end", "on_train_batch_end"),
        min_steps=settings.least_steps(steps),
    )
    if sampling.own_batches is None:
        return schedule
    # The last head is through its passes before the last epoch's end, where its passes are no whole batches.
    return dataclasses.replace(schedule, max_steps=min(end, schedule.steps_of(int(sampling.own_batches.max()))))


def _fingerprint(settings: Settings, module: HydraModule, slices: Slices, data: Dataset, feed: Feed) -> dict[str, Any]:
    """What must be the same, besides the plan, for a resumed run to give the same bits, in words where it has some."""
    names = (
        *(
            "seed",
            "precision",
            "accumulate_grad_batches",
            "limit_train_batches",
            "sampling",
            "passes",
            "matmul_precision",
        ),
        *("gradient_clip_val", "gradient_clip_algorithm"),
    )
    return {
        "module": type(module).__name__,
        "num_heads": len(slices),
        **{name: getattr(settings, name) for name in names},
        "overfit_batches": settings.overfit_batches or None,  # as where it was not there yet
        **{f"hparams.{name}": _mark(value) for name, value in module.hparams.items()},
        **{name: _mark(value) for name, value in per_head_values(module).items()},
        "slices": _with_digest(_outline(slices), slices.digest()),
        "data": _with_digest(str(data), feed.digest()),
    }


def _outline(slices: Slices) -> str:
    first, last = slices[[0, -1]].recipes()
    return f"{slices.lengths.min()} to {slices.lengths.max()} rows, {first} to {last}"


def _with_digest(text: str, digest: str) -> str:
    return f"{text} ({digest[:16]})"


def _mark(value: Any) -> Any:
    """A hyper-parameter as JSON can compare it; of one without a value of its own (a function), its name or type."""
    if isinstance(value, PerHead):
        return _with_digest(repr(value), tree_digest(value.values))
    if isinstance(value, bool | int | float | str | None):
        return value
    return getattr(value, "__name__", None) or type(value).__name__
