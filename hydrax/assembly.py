"""Puts a fit together from settings, module and data: all checks first, then the device."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from hydrax.callback import Callback, overrides
from hydrax.checkpoint import tree_digest
from hydrax.data import DataModule, check_settings, check_slices
from hydrax.dataset import Dataset, open_dataset
from hydrax.engine import Engine, check_per_head, head_inputs
from hydrax.errors import DataError, ModuleError
from hydrax.evaluation import Evaluation, find_evaluation
from hydrax.feed import Feed
from hydrax.hparams import PerHead
from hydrax.module import HydraModule, Logged, per_head_values
from hydrax.plan import Plan, make_plan
from hydrax.preflight import Preflight
from hydrax.schedule import Schedule
from hydrax.settings import Settings
from hydrax.slices import Slices
from hydrax.state import padding_index
from hydrax.step import HeadProgram
from hydrax.walk import Walk, open_walk


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

    def close(self) -> None:
        """Ends the pipelines of index batches, and what reads rows."""
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
    with contextlib.ExitStack() as opened:
        data = _open_training(datamodule, wide=settings.precision == "64-true")
        opened.callback(data.close)
        slices = check_slices(datamodule.slices, data.num_rows)
        inputs = head_inputs(slices.ids, check_per_head(module, len(slices)))
        walk = open_walk(settings, datamodule, data, slices)
        validation = _find_validation(settings, module, datamodule, len(slices))
        if validation is not None:
            opened.callback(validation.close)
        program = HeadProgram(
            module=module,
            callbacks={key: callback for key, callback in callbacks.items() if overrides(callback, "on_step")},
            precision=settings.precision,
            clip_val=settings.gradient_clip_val,
            clip_algorithm=settings.gradient_clip_algorithm,
            padding={"training": walk.padding, "validation": validation.padding if validation else None},
            may_idle=walk.may_idle,
        )
        flight = Preflight.of_model(program, inputs)
        if walk.shared:
            _refuse_batch_statistics(flight)
        epoch = flight.training(data.shapes, walk.batch_size, settings.accumulate_grad_batches)
        if validation is not None:
            empty = flight.evaluation("validation", validation.data.shapes, validation.batch_size)
            validation = dataclasses.replace(validation, empty=empty)

        schedule = _make_schedule(settings, walk, validation is not None, callbacks, bool(epoch))
        every_step = any(overrides(callback, "on_train_batch_end") for callback in callbacks.values())
        plan = make_plan(
            settings,
            num_heads=len(slices),
            slots=settings.accumulate_grad_batches * walk.batch_size,
            backend=jax.default_backend(),
            longest=1 if every_step else schedule.longest_superstep,
            drawn_on_host=walk.drawn_on_host,
            row_bytes=data.fetched_row_bytes,
            live_share=None if slices.has_repeats else float(slices.lengths.mean() / slices.num_rows),
        )
        # Over an axis of one XLA would drop the loop: another program, with other bits.
        feed = walk.feed(padding_index(len(slices), plan.chunk), max_steps=max(2, plan.steps_per_call))
        engine = Engine(flight.program, inputs, settings.seed, plan, epoch, feed.draw)
        marks = {"chunk": plan.chunk, "batch_size": walk.batch_size, "small_slices": datamodule.small_slices}
        training = Training(
            slices=slices,
            engine=engine,
            plan=plan,
            schedule=schedule,
            feed=feed,
            own_batches=walk.own_batches,
            validation=validation.open(engine.places, slices.ids) if validation else None,
            logged=flight.program.logged,
            # Only a run that saves or resumes pays for the digest of its data.
            fingerprint=functools.cache(lambda: marks | _fingerprint(settings, module, slices, feed)),
        )
        opened.pop_all()
        return training


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
    walk: Walk,
    validates: bool,
    callbacks: Mapping[str, Callback],
    logs_epochs: bool,
) -> Schedule:
    def heard(*hooks: str) -> bool:
        return any(overrides(callback, hook) for callback in callbacks.values() for hook in hooks)

    batches = settings.limit("train", walk.batches_per_epoch)
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
    )
    if walk.own_batches is None:
        return schedule
    # The last head is through its passes before the last epoch's end, where its passes are no whole batches.
    return dataclasses.replace(schedule, max_steps=min(end, schedule.steps_of(int(walk.own_batches.max()))))


def _fingerprint(settings: Settings, module: HydraModule, slices: Slices, feed: Feed) -> dict[str, Any]:
    """What must be the same, besides the plan, for a resumed run to give the same bits."""
    names = (
        *("seed", "precision", "accumulate_grad_batches", "limit_train_batches", "sampling", "passes"),
        *("gradient_clip_val", "gradient_clip_algorithm"),
    )
    return {
        "module": type(module).__name__,
        "num_heads": len(slices),
        **{name: getattr(settings, name) for name in names},
        **{f"hparams.{name}": _mark(value) for name, value in module.hparams.items()},
        **{name: _mark(value) for name, value in per_head_values(module).items()},
        "slices": slices.digest(),
        "data": feed.digest(),
    }


def _mark(value: Any) -> Any:
    """A hyper-parameter as JSON can compare it; of one without a value of its own (a function), its name or type."""
    if isinstance(value, PerHead):
        return tree_digest(value.values)
    if isinstance(value, bool | int | float | str | None):
        return value
    return getattr(value, "__name__", None) or type(value).__name__
