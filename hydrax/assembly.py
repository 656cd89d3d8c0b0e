"""Puts a run together from settings, module and data: all checks first, then the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import grain
import jax
import numpy as np

from hydrax.callback import Callback, overrides
from hydrax.data import DataModule, check_dataset, check_settings, check_slices, num_rows
from hydrax.engine import Engine, head_inputs
from hydrax.errors import ArgumentError, DataError
from hydrax.feed import Feed, upload
from hydrax.module import HydraModule, Logged, per_head_values
from hydrax.plan import Plan, make_plan
from hydrax.preflight import Preflight
from hydrax.resume import dataset_digest
from hydrax.schedule import Schedule
from hydrax.settings import Settings
from hydrax.slices import Slices
from hydrax.step import HeadProgram

_STEPS = {"val": "validation", "test": "test", "predict": "predict"}
_EVAL_BATCHES = 256  # Most batches of one evaluation dispatch, and what keeps its rows and masks small.


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation dataset, ready to be walked.

    Attributes:
      stage: "val", "test" or "predict".
      data: the dataset, on the host until `upload`.
      index: its index batches.
      num_batches: batches to walk, after the limit.
      batch_size: rows of a batch.
      empty: empty accumulators of one head.
    """

    stage: str
    data: Any
    index: grain.MapDataset
    num_batches: int
    batch_size: int
    per_head: bool
    empty: dict[str, Any] = dataclasses.field(default_factory=dict)
    feed: Feed | None = None

    def upload(self, places: np.ndarray) -> Evaluation:
        """The same, with the dataset on the device and the index batches laid out for the program's places."""
        feed = Feed(
            self.index,
            num_rows=num_rows(self.data),
            places=places if self.per_head else None,
            max_steps=self.max_batches,
        )
        return dataclasses.replace(self, data=upload(self.data), feed=feed)

    @property
    def max_batches(self) -> int:
        """Batches of one dispatch."""
        return 1 if self.stage == "predict" else min(self.num_batches, 8 if self.per_head else _EVAL_BATCHES)

    def run(self, engine: Engine, head: Any, step: int) -> dict[str, np.ndarray]:
        """What all heads log over the dataset, float[H] by name."""
        assert self.feed is not None
        return engine.evaluate(
            _STEPS[self.stage], head, self.data, self.feed, self.empty, self.num_batches, self.max_batches, step
        )


@dataclasses.dataclass(frozen=True)
class Training:
    """A fit, ready to start."""

    slices: Slices
    engine: Engine
    plan: Plan
    schedule: Schedule
    feed: Feed
    data: Any
    logged: dict[str, Logged]
    prog_bar: frozenset[str]
    validation: Evaluation | None
    fingerprint: dict[str, Any]


def assemble_training(
    settings: Settings, module: HydraModule, datamodule: DataModule, callbacks: Mapping[str, Callback]
) -> Training:
    """Checks all that a fit needs, traces the user's functions, and only then touches the device.

    Args:
      callbacks: by key; those with a second tier run inside the program.
    """
    check_settings(datamodule)
    wide = settings.precision == "64-true"
    data = check_dataset(datamodule.train_dataset(), "train", datamodule.check_finite, wide)
    slices = check_slices(datamodule.slices(), num_rows(data))
    per_head = _check_per_head(module, len(slices))
    index = datamodule.index_dataset(settings.seed)
    first = _first_element(index, len(slices))
    validation = _validation(settings, module, datamodule, len(slices), wide)
    schedule = _schedule(settings, slices, datamodule, validation is not None)
    tier_two = {key: c for key, c in callbacks.items() if overrides(c, "on_step")}
    program = HeadProgram(
        module=module,
        structure=None,
        callbacks=tier_two,
        precision=settings.precision,
        clip_val=settings.gradient_clip_val,
        clip_algorithm=settings.gradient_clip_algorithm,
        padding={"training": _padding(first["mask"], slices), "validation": validation and _eval_padding(validation)},
    )
    inputs = head_inputs(slices.ids, per_head)
    batch_size = first["rows"].shape[-1]
    flight = Preflight.of_model(program, inputs)
    epoch = flight.training(data, batch_size, settings.accumulate_grad_batches)
    if validation is not None:
        empty = flight.evaluation("validation", validation.data, validation.batch_size)
        validation = dataclasses.replace(validation, empty=empty)
    plan = make_plan(
        num_heads=len(slices),
        index_bytes=settings.accumulate_grad_batches * batch_size * 5,
        backend=jax.default_backend(),
        chunk=settings.chunk,
        steps_per_call=settings.steps_per_call,
    )
    logged = dict(flight.program.logged["training"])
    engine = Engine(flight.program, inputs, settings.seed, plan, epoch)
    return Training(
        slices=slices,
        engine=engine,
        plan=plan,
        schedule=schedule,
        feed=Feed(
            index,
            num_rows=num_rows(data),
            places=engine.places,
            max_steps=plan.steps_per_call,
            accumulate=settings.accumulate_grad_batches,
        ),
        data=upload(data),
        logged=logged,
        prog_bar=_prog_bar(flight.program),
        validation=validation and validation.upload(engine.places),
        fingerprint={
            "module": type(module).__name__,
            "num_heads": len(slices),
            "chunk": plan.chunk,
            "seed": settings.seed,
            "batch_size": batch_size,
            "small_slices": datamodule.small_slices,
            "accumulate_grad_batches": settings.accumulate_grad_batches,
            "limit_train_batches": settings.limit_train_batches,
            "precision": settings.precision,
            "slices": slices.digest(),
            "data": dataset_digest(data),
        },
    )


def assemble_evaluation(
    settings: Settings, module: HydraModule, datamodule: DataModule, stage: str, ids: np.ndarray
) -> tuple[Engine, Evaluation, Any]:
    """Checks all that a walk over "val", "test" or "predict" needs, and traces the user's step.

    Args:
      ids: int32[H], the heads' ids.

    Returns:
      The engine, the dataset ready to walk, and for "predict" the shape of one head's output.
    """
    check_settings(datamodule)
    wide = settings.precision == "64-true"
    evaluation = _evaluation(settings, datamodule, stage, len(ids), wide)
    if evaluation is None:
        raise DataError(
            f"There is nothing to walk: {type(datamodule).__name__}.{stage}_dataset. Got None, expected a dataset. "
            f"Fix: return one from {stage}_dataset()."
        )
    program = HeadProgram(module, None, {}, settings.precision, padding={_STEPS[stage]: _eval_padding(evaluation)})
    inputs = head_inputs(ids, _check_per_head(module, len(ids)))
    flight = Preflight.of_model(program, inputs)
    output = None
    if stage == "predict":
        output = flight.prediction(evaluation.data, evaluation.batch_size)
    else:
        empty = flight.evaluation(_STEPS[stage], evaluation.data, evaluation.batch_size)
        evaluation = dataclasses.replace(evaluation, empty=empty)
    plan = make_plan(num_heads=len(ids), index_bytes=1, backend=jax.default_backend(), chunk=settings.chunk)
    engine = Engine(flight.program, inputs, settings.seed, plan, {})
    return engine, evaluation.upload(engine.places), output


def _validation(settings: Settings, module: HydraModule, datamodule: DataModule, heads: int, wide: bool) -> Evaluation | None:
    """The validation of a fit; None where the module has no validation_step or the data module no rows for it."""
    if type(module).validation_step is HydraModule.validation_step:
        return None
    return _evaluation(settings, datamodule, "val", heads, wide)


def _evaluation(settings: Settings, datamodule: DataModule, stage: str, num_heads: int, wide: bool) -> Evaluation | None:
    dataset = datamodule.dataset(stage)
    if dataset is None:
        return None
    data = check_dataset(dataset, stage, datamodule.check_finite, wide)
    slices = datamodule.val_slices() if stage == "val" else None
    if slices is not None:
        check_slices(slices, num_rows(data), "val_slices", num_heads)
    index = datamodule.eval_index_dataset(stage, num_rows(data))
    rows = np.asarray(index[0]["rows"])
    num_batches = settings.limit(stage, len(index))
    return Evaluation(stage, data, index, num_batches, rows.shape[-1], per_head=rows.ndim == 2)


def _schedule(settings: Settings, slices: Slices, datamodule: DataModule, validates: bool) -> Schedule:
    longest = int(slices.lengths.max())
    batches = settings.limit("train", -(-longest // datamodule.batch_size))
    steps = -(-batches // settings.accumulate_grad_batches)
    return Schedule(
        batches_per_epoch=batches,
        accumulate=settings.accumulate_grad_batches,
        max_steps=settings.total_steps(steps),
        val_every_batches=settings.validation_batches(batches) if validates else None,
        val_every_epochs=settings.check_val_every_n_epoch,
        log_every=min(settings.log_every_n_steps, steps),
    )


def _check_per_head(module: HydraModule, num_heads: int) -> dict[str, Any]:
    found = per_head_values(module)
    for name, value in found.items():
        if len(value) != num_heads:
            raise ArgumentError(
                f"A PerHead has the wrong length: {type(module).__name__}, {name}. Got {len(value)} values, expected {num_heads}, one "
                "for each head. Fix: give as many values as there are slices."
            )
    return found


def _first_element(index: Any, num_heads: int) -> dict[str, np.ndarray]:
    if not isinstance(index, grain.MapDataset):
        raise DataError(
            f"Index batches have the wrong type: DataModule.index_dataset. Got {type(index).__name__}, expected a grain.MapDataset. "
            "Fix: build it with grain.MapDataset.source(...)."
        )
    feed = Feed(index, num_rows=2**31 - 1, places=np.arange(num_heads), max_steps=1)
    rows, mask = feed.take(0, [1])
    feed.close()
    return {"rows": rows[0], "mask": mask[0]}


def _padding(mask: np.ndarray, slices: Slices) -> str | None:
    live = mask.sum(axis=1)
    if mask.all():
        return None
    head = int(np.argmin(live))
    return f"head {slices.ids[head]} has {live[head]} rows for {mask.shape[1]} slots"


def _eval_padding(evaluation: Evaluation) -> str | None:
    live = np.asarray(evaluation.index[evaluation.num_batches - 1]["mask"])
    return None if live.all() else f"the last {evaluation.stage} batch has {live.sum(axis=-1).min()} rows for {live.shape[-1]} slots"


def _prog_bar(program: HeadProgram) -> frozenset[str]:
    return frozenset(
        name for stage in ("training", "validation") for name, entry in program.logged.get(stage, {}).items() if entry.prog_bar
    )
