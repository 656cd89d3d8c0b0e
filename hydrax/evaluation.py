"""Walks a validation, test or predict set with all heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import grain
import jax
import numpy as np

from hydrax.checkpoint import named_leaves
from hydrax.data import DataModule, check_dataset, check_settings, check_slices, num_rows
from hydrax.engine import Engine, check_per_head, head_inputs
from hydrax.errors import ArgumentError, DataError
from hydrax.feed import Feed, upload
from hydrax.heads import Heads
from hydrax.hparams import PerHead
from hydrax.module import HydraModule
from hydrax.plan import make_plan
from hydrax.preflight import Preflight
from hydrax.settings import Settings
from hydrax.step import HeadProgram

_STEPS = {"val": "validation", "test": "test", "predict": "predict"}
_MAX_BATCHES = 256  # Most batches of one dispatch: keeps their rows and masks small.
_MAX_BATCHES_PER_HEAD = 8  # The same where each head has rows of its own.


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation dataset, ready to be walked.

    Attributes:
      stage: "val", "test" or "predict".
      data: the dataset; on the host until `upload`.
      index: its index batches.
      num_batches: batches to walk, after the limit.
      batch_size: rows of a batch.
      per_head: whether each head has rows of its own.
      empty: empty accumulators of one head.
      feed: lays the index batches out for the program, after `upload`.
    """

    stage: str
    data: Any
    index: grain.MapDataset
    num_batches: int
    batch_size: int
    per_head: bool
    empty: dict[str, Any] = dataclasses.field(default_factory=dict)
    feed: Feed | None = None

    @property
    def padding(self) -> str | None:
        """Why a slot of the last batch is padding, or None."""
        live = np.asarray(self.index[self.num_batches - 1]["mask"])
        least = live.sum(axis=-1).min()
        return None if live.all() else f"the last {self.stage} batch has {least} rows for {live.shape[-1]} slots"

    @property
    def max_batches(self) -> int:
        """Batches of one dispatch."""
        if self.stage == "predict":
            return 1
        return min(self.num_batches, _MAX_BATCHES_PER_HEAD if self.per_head else _MAX_BATCHES)

    def upload(self, places: np.ndarray) -> Evaluation:
        """The same, with the dataset on the device and the index batches laid out for the program's places."""
        feed = Feed(
            self.index,
            num_rows=num_rows(self.data),
            places=places if self.per_head else None,
            max_steps=self.max_batches,
        )
        return dataclasses.replace(self, data=upload(self.data), feed=feed)

    def run(self, engine: Engine, head: Any, step: int) -> dict[str, np.ndarray]:
        """What all heads log over the dataset, float[H] by name; `head` is `(trainable, state)`, padded."""
        assert self.feed is not None
        if not self.empty:
            return {}  # a step may log nothing and return None
        accumulators = engine.spread(self.empty)
        for first in range(0, self.num_batches, self.max_batches):
            count = min(self.max_batches, self.num_batches - first)
            rows, mask = self.feed.take(first, [1] * count)
            accumulators = engine.evaluate(
                _STEPS[self.stage], accumulators, head, self.data, rows, mask, step, first, count
            )
        return engine.compute(accumulators)

    def predict(self, engine: Engine, head: Any, step: int, reduce: str | None) -> Any:
        """All heads' predictions, NumPy `[H, rows, ...]`, or `[rows, ...]` with `reduce="mean"`; batch by batch."""
        assert self.feed is not None

        def to_host(array: jax.Array, live: np.ndarray) -> np.ndarray:
            # The mean is taken on the device: H times fewer bytes come back.
            return np.asarray(array)[:, live] if reduce is None else np.asarray(array.mean(axis=0))[live]

        parts = []
        for batch in range(self.num_batches):
            rows, mask = self.feed.take(batch, [1])
            found = engine.predict(head, self.data, rows[0], mask[0], step, batch)
            parts.append([to_host(leaf, mask[0]) for leaf in jax.tree.leaves(found)])
        axis = 1 if reduce is None else 0
        leaves = [np.concatenate(arrays, axis) for arrays in zip(*parts, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(found), leaves)

    def close(self) -> None:
        """Ends the pipeline of index batches."""
        if self.feed is not None:
            self.feed.close()


def find_evaluation(settings: Settings, datamodule: DataModule, stage: str, num_heads: int) -> Evaluation | None:
    """The checked dataset of "val", "test" or "predict", still on the host; None where there is none."""
    dataset = datamodule.dataset(stage)
    if dataset is None or (stage == "val" and settings.limit_val_batches == 0):
        return None
    data = check_dataset(dataset, stage, datamodule.check_finite, wide=settings.precision == "64-true")
    if stage == "val" and datamodule.val_slices() is not None:
        check_slices(datamodule.val_slices, num_rows(data), num_heads)
    index = datamodule.eval_index_dataset(stage, num_rows(data))
    rows = np.asarray(index[0]["rows"])
    num_batches = settings.limit(stage, len(index))
    return Evaluation(stage, data, index, num_batches, rows.shape[-1], per_head=rows.ndim == 2)


def assemble_evaluation(
    settings: Settings,
    module: HydraModule,
    datamodule: DataModule,
    stage: str,
    heads: Heads,
    fitted: np.ndarray | None = None,
) -> tuple[Engine, Evaluation, Any]:
    """Checks all that a walk needs, traces the user's step, and only then touches the device.

    Args:
      stage: "val", "test" or "predict".
      fitted: int32[H], ids of the last fit's heads: some of them find their own `PerHead` values.

    Returns:
      The engine, the dataset ready to walk, and the heads' `(trainable, state)`, padded.
    """
    check_settings(datamodule)
    evaluation = find_evaluation(settings, datamodule, stage, len(heads))
    if evaluation is None:
        raise DataError(
            f"There is nothing to walk: {type(datamodule).__name__}.{stage}_dataset. Got None, expected a dataset. "
            f"Fix: return one from {stage}_dataset()."
        )
    inputs = head_inputs(heads.ids, _per_head_of(module, heads.ids, fitted))
    program = HeadProgram(module, precision=settings.precision, padding={_STEPS[stage]: evaluation.padding})
    flight = Preflight.of_model(program, inputs)
    _check_heads(heads, flight.parts)
    if stage == "predict":
        flight.prediction(evaluation.data, evaluation.batch_size)
    else:
        empty = flight.evaluation(_STEPS[stage], evaluation.data, evaluation.batch_size)
        evaluation = dataclasses.replace(evaluation, empty=empty)
    plan = make_plan(settings, num_heads=len(heads), slots=1, backend=jax.default_backend())
    engine = Engine(flight.program, inputs, settings.seed, plan, {})
    return engine, evaluation.upload(engine.places), engine.pad((heads.trainable, heads.state))


def _per_head_of(module: HydraModule, ids: np.ndarray, fitted: np.ndarray | None) -> dict[str, PerHead]:
    """The `PerHead` values of the heads with these ids."""
    if fitted is None or len(ids) == len(fitted) or not np.isin(ids, fitted).all():
        return check_per_head(module, len(ids))
    order = np.argsort(fitted)
    at = order[np.searchsorted(fitted, ids, sorter=order)]
    return {name: value[at] for name, value in check_per_head(module, len(fitted)).items()}


def _check_heads(heads: Heads, parts: Any) -> None:
    """Refuses heads of another module: their arrays are not those of the model it configures."""
    found, expected = named_leaves((heads.trainable, heads.state)), named_leaves(tuple(parts))
    for name in expected | found:
        got = list(found[name].shape[1:]) if name in found else "none"
        wanted = list(expected[name].shape) if name in expected else "none"
        if got != wanted:
            raise ArgumentError(
                f"Heads and module do not fit: heads, array {name[2:]}. Got {got} for one head, expected {wanted}. "
                "Fix: pass the module that the heads were trained with."
            )


def table(metrics: Mapping[str, np.ndarray], ids: np.ndarray) -> str:
    """Mean, spread and the three worst heads of each metric: never H columns.

    Args:
      metrics: float[H] by name.
      ids: int32[H].
    """
    lines = [f"{'metric':<24}{'mean':>10}{'std':>10}{'min':>10}{'max':>10}   worst heads"]
    for name, value in metrics.items():
        # Of an accuracy the least is worst, of a loss the most; a head without a finite value is worse than any.
        badness = np.where(np.isfinite(value), -value if "acc" in name else value, np.inf)
        worst = ", ".join(str(head) for head in ids[np.argsort(-badness, kind="stable")[:3]])
        spread = f"{value.mean():>10.4g}{value.std():>10.4g}{value.min():>10.4g}{value.max():>10.4g}"
        lines.append(f"{name:<24}{spread}   {worst}")
    return "\n".join(lines)
