"""Puts a fit together from settings, module and data: all checks first, then the device."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import numpy as np

from hydrax.callback import Callback, overrides
from hydrax.data import DataModule, check_dataset, check_settings, check_slices, num_rows
from hydrax.engine import Engine, check_per_head, head_inputs
from hydrax.errors import DataError
from hydrax.evaluation import Evaluation, find_evaluation
from hydrax.feed import Feed, upload
from hydrax.hparams import PerHead
from hydrax.module import HydraModule, Logged, per_head_values
from hydrax.plan import Plan, make_plan
from hydrax.preflight import Preflight
from hydrax.resume import dataset_digest
from hydrax.schedule import Schedule
from hydrax.settings import Settings
from hydrax.slices import Slices
from hydrax.step import HeadProgram


@dataclasses.dataclass(frozen=True)
class Training:
    """A fit, ready to start.

    Attributes:
      slices: the heads' slices.
      engine: the compiled programs.
      plan: how the heads are laid out.
      schedule: when things are due.
      feed: the training index batches.
      data: the training dataset on the device.
      validation: the validation set, or None.
      logged: what the steps log, by stage and name.
      fingerprint: gives what a checkpoint must share with this run.
    """

    slices: Slices
    engine: Engine
    plan: Plan
    schedule: Schedule
    feed: Feed
    data: Any
    validation: Evaluation | None
    logged: Mapping[str, Mapping[str, Logged]]
    fingerprint: Callable[[], Mapping[str, Any]]

    def close(self) -> None:
        """Ends the pipelines of index batches."""
        self.feed.close()
        if self.validation is not None:
            self.validation.close()


def assemble_training(
    settings: Settings, module: HydraModule, datamodule: DataModule, callbacks: Mapping[str, Callback]
) -> Training:
    """Checks all that a fit needs, traces the user's functions, and only then touches the device.

    Args:
      callbacks: by key; those with a second tier run inside the program.
    """
    check_settings(datamodule)
    data = check_dataset(
        datamodule.train_dataset(), "train", datamodule.check_finite, wide=settings.precision == "64-true"
    )
    slices = check_slices(datamodule.slices, num_rows(data))
    inputs = head_inputs(slices.ids, check_per_head(module, len(slices)))
    index, batch_size, padding = _training_index(datamodule, settings.seed, slices)
    validation = _find_validation(settings, module, datamodule, len(slices))

    program = HeadProgram(
        module=module,
        callbacks={key: callback for key, callback in callbacks.items() if overrides(callback, "on_step")},
        precision=settings.precision,
        clip_val=settings.gradient_clip_val,
        clip_algorithm=settings.gradient_clip_algorithm,
        padding={"training": padding, "validation": validation.padding if validation else None},
    )
    flight = Preflight.of_model(program, inputs)
    epoch = flight.training(data, batch_size, settings.accumulate_grad_batches)
    if validation is not None:
        empty = flight.evaluation("validation", validation.data, validation.batch_size)
        validation = dataclasses.replace(validation, empty=empty)

    schedule = _make_schedule(settings, slices, batch_size, validation is not None, callbacks, bool(epoch))
    slots = settings.accumulate_grad_batches * batch_size
    every_step = any(overrides(callback, "on_train_batch_end") for callback in callbacks.values())
    longest = 1 if every_step else schedule.longest_superstep
    backend = jax.default_backend()
    plan = make_plan(settings, num_heads=len(slices), slots=slots, backend=backend, longest=longest)
    engine = Engine(flight.program, inputs, settings.seed, plan, epoch)
    feed = Feed(
        index,
        num_rows=num_rows(data),
        places=engine.places,
        # Over an axis of one XLA would drop the loop: another program, with other bits.
        max_steps=max(2, plan.steps_per_call),
        accumulate=settings.accumulate_grad_batches,
    )
    on_device = upload(data)
    marks = {"chunk": plan.chunk, "batch_size": batch_size, "small_slices": datamodule.small_slices}
    return Training(
        slices=slices,
        engine=engine,
        plan=plan,
        schedule=schedule,
        feed=feed,
        data=on_device,
        validation=validation.upload(engine.places) if validation else None,
        logged=flight.program.logged,
        # Only a run that saves or resumes pays for the digest of its data.
        fingerprint=functools.cache(lambda: marks | _fingerprint(settings, module, slices, on_device)),
    )


def _training_index(datamodule: DataModule, seed: int, slices: Slices) -> tuple[grain.MapDataset, int, str | None]:
    """The training index batches, their slots B, and why a slot can be padding, or None."""
    index = datamodule.index_dataset(seed)
    if not isinstance(index, grain.MapDataset):
        raise DataError(
            f"Index batches have the wrong type: {type(datamodule).__name__}.index_dataset. Got "
            f"{type(index).__name__}, expected a grain.MapDataset. Fix: build it with grain.MapDataset.source(...)."
        )
    feed = Feed(index, num_rows=slices.num_rows, places=np.arange(len(slices)), max_steps=1)
    mask = feed.take(0, [1])[1][0]
    feed.close()
    live, slots = mask.sum(axis=1), mask.shape[1]
    head = int(np.argmin(live))
    padding = None if mask.all() else f"head {slices.ids[head]} has {live[head]} rows for {slots} slots"
    return index, slots, padding


def _find_validation(
    settings: Settings, module: HydraModule, datamodule: DataModule, num_heads: int
) -> Evaluation | None:
    """The validation of a fit; None where the module has no validation_step or the data module no rows for it."""
    if type(module).validation_step is HydraModule.validation_step:
        return None
    return find_evaluation(settings, datamodule, "val", num_heads)


def _make_schedule(
    settings: Settings,
    slices: Slices,
    batch_size: int,
    validates: bool,
    callbacks: Mapping[str, Callback],
    logs_epochs: bool,
) -> Schedule:
    def heard(*hooks: str) -> bool:
        return any(overrides(callback, hook) for callback in callbacks.values() for hook in hooks)

    batches = settings.limit("train", -(-int(slices.lengths.max()) // batch_size))
    steps = -(-batches // settings.accumulate_grad_batches)
    return Schedule(
        batches_per_epoch=batches,
        accumulate=settings.accumulate_grad_batches,
        max_steps=settings.total_steps(steps),
        val_every_batches=settings.validation_batches(batches) if validates else None,
        val_every_epochs=settings.check_val_every_n_epoch,
        log_every=min(settings.log_every_n_steps, steps),
        stop_at_epochs=logs_epochs or heard("on_train_epoch_start", "on_train_epoch_end"),
        stop_at_logs=heard("on_train_steps_end", "on_train_batch_end"),
    )


def _fingerprint(settings: Settings, module: HydraModule, slices: Slices, data: Any) -> dict[str, Any]:
    """What must be the same, besides the plan, for a resumed run to give the same bits."""
    names = (
        *("seed", "precision", "accumulate_grad_batches", "limit_train_batches"),
        *("gradient_clip_val", "gradient_clip_algorithm"),
    )
    return {
        "module": type(module).__name__,
        "num_heads": len(slices),
        **{name: getattr(settings, name) for name in names},
        **{f"hparams.{name}": _mark(value) for name, value in module.hparams.items()},
        **{name: _mark(value) for name, value in per_head_values(module).items()},
        "slices": slices.digest(),
        "data": dataset_digest(data),
    }


def _mark(value: Any) -> Any:
    """A hyper-parameter as JSON can compare it; of one without a value of its own (a function), its name or type."""
    if isinstance(value, PerHead):
        return dataset_digest(value.values)
    if isinstance(value, bool | int | float | str | None):
        return value
    return getattr(value, "__name__", None) or type(value).__name__
