"""Walks a validation, test or predict set with all heads."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrax.data import DataModule, Dataset, Feed, IndexBatches, check_settings, check_slices, open_dataset
from hydrax.engine import (
    FETCH_BYTES,
    NO_CHOICE,
    Blocks,
    Choice,
    Engine,
    Layout,
    SuperstepRows,
    check_per_head,
    find_devices,
    head_inputs,
    lay_out,
    make_plan,
)
from hydrax.errors import ArgumentError, DataError, SliceError
from hydrax.results import Heads
from hydrax.slices import Slices
from hydrax.step import HeadProgram, PerHead, Preflight, per_head_values
from hydrax.train.module import HydraModule
from hydrax.train.settings import Settings
from hydrax.trees import named_leaves

if TYPE_CHECKING:
    import grain

_STEPS = {"val": "validation", "test": "test", "predict": "predict", "held_out": "predict"}
_MAX_BATCHES = 256  # Most batches of one dispatch: keeps their rows and masks small.
_MAX_BATCHES_PER_HEAD = 8  # The same where each head has rows of its own.


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation dataset, ready to be walked.

    Attributes:
      stage: "val", "test", "predict", or "held_out": the training rows that a head did not learn from.
      data: the dataset.
      index: its index batches.
      num_batches: batches to walk, after the limit.
      batch_size: rows of a batch.
      per_head: whether each head has rows of its own.
      empty: empty accumulators of one head.
      feed: gives the program its rows, once `open` was called.
    """

    stage: str
    data: Dataset
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

    def open(self, layout: Layout, ids: np.ndarray) -> Evaluation:
        """The same, with its rows on the device or on their way.

        Args:
          layout: where the heads stand.
          ids: int32[H], names the heads in errors.
        """
        rows = self.batch_size * (len(ids) if self.per_head else 1)
        size = self._max_batches(rows)

        def batches(places: np.ndarray) -> IndexBatches:
            places_of_own = places if self.per_head else None
            return IndexBatches(self.index, num_rows=self.data.num_rows, places=places_of_own, max_steps=size)

        return dataclasses.replace(self, feed=self.data.feed(batches, layout, size * rows, ids))

    def set_layout(self, layout: Layout) -> None:
        """Says where the heads stand from now on."""
        assert self.feed is not None
        self.feed.set_layout(layout)

    def run(
        self,
        engine: Engine,
        heads: Blocks,
        step: int,
        check: Callable[[], None] = lambda: None,
        limit: int | None = None,
    ) -> dict[str, np.ndarray]:
        """What all heads log over the dataset, float[H] by name.

        Args:
          heads: their `(trainable, state)`.
          step: updates done.
          check: called before each dispatch; what it raises ends the walk.
          limit: most batches to walk; None: all.
        """
        if not self.empty:
            return {}  # a step may log nothing and return None
        accumulators = engine.spread(self.empty)
        for first, count, rows in self._walk(engine.num_heads, limit):
            check()
            accumulators = engine.evaluate(_STEPS[self.stage], accumulators, heads, rows, step, first, count)
        return engine.compute(accumulators)

    def predict(self, engine: Engine, heads: Blocks, step: int) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
        """All heads' predictions, batch by batch.

        Yields:
          `(predictions, rows, mask)`: leaves `[H, B, ...]` on the device; base rows int32 and live slots bool, `[B]` or
          `[H, B]`.
        """
        for first, _, rows in self._walk(engine.num_heads):
            found = engine.predict(heads, rows, step, first)
            element = self.index[first]
            yield found, np.asarray(element["rows"]), np.asarray(element["mask"])

    def close(self) -> None:
        """Ends the pipeline of index batches and what reads the rows."""
        if self.feed is not None:
            self.feed.close()
        self.data.close()

    def _walk(self, num_heads: int, limit: int | None = None) -> Iterator[tuple[int, int, SuperstepRows]]:
        """Dispatch by dispatch: first batch, number of batches, the rows and the index batches."""
        assert self.feed is not None
        size = self._max_batches(self.batch_size * (num_heads if self.per_head else 1))
        end = self.num_batches if limit is None else min(limit, self.num_batches)
        counts = [min(size, end - first) for first in range(0, end, size)]
        for number, count in enumerate(counts):
            rows = self.feed.superstep(number * size, [1] * count)
            if number + 1 < len(counts):
                self.feed.prefetch((number + 1) * size, [1] * counts[number + 1])
            yield number * size, count, rows

    def _max_batches(self, rows: int) -> int:
        """Batches of one dispatch, of so many rows each."""
        if self.stage in ("predict", "held_out"):
            return 1
        most = min(self.num_batches, _MAX_BATCHES_PER_HEAD if self.per_head else _MAX_BATCHES)
        row_bytes = self.data.fetched_row_bytes
        return most if row_bytes is None else max(1, min(most, FETCH_BYTES // (rows * row_bytes)))


def find_evaluation(
    settings: Settings,
    datamodule: DataModule,
    stage: str,
    num_heads: int,
    ids: np.ndarray | None = None,
    fitted: np.ndarray | None = None,
) -> Evaluation | None:
    """The checked dataset of "val", "test", "predict" or "held_out"; None where there is none.

    Args:
      num_heads: H.
      ids: int32[H], which of the data module's heads these are; None: all of them, in order.
      fitted: int32[], ids of the heads that were fitted together, if known.
    """
    if stage == "val" and settings.limit_val_batches == 0:
        return None
    data = open_dataset(datamodule, "train" if stage == "held_out" else stage, settings.precision == "64-true")
    if data is None:
        return None
    with contextlib.ExitStack() as opened:
        opened.callback(data.close)
        at = None
        if stage == "held_out" or (stage == "val" and datamodule.val_slices() is not None):
            own = datamodule.slices if stage == "held_out" else datamodule.val_slices
            at = None if ids is None else _positions(ids, _known_ids(datamodule))
            # Heads picked out of many come with the slices of all of them, or with their own.
            made = own()
            whole = made.num_heads if at is not None and isinstance(made, Slices) else num_heads
            check_slices(own, data.num_rows, whole if fitted is None or whole == len(fitted) else num_heads)
            if at is not None and whole != len(datamodule.slices()):
                at = None  # validation slices of these heads alone, in their order
        if stage == "held_out" and at is None:
            raise SliceError(
                f"A head has no slice: {type(datamodule).__name__}.slices. Got heads of ids {ids}, expected ids among "
                f"{_known_ids(datamodule)}. Fix: pass the data module that the heads were trained with."
            )
        picked = {} if at is None else {"heads": at}
        index = datamodule.eval_index_dataset(stage, data.num_rows, **picked)
        rows = np.asarray(index[0]["rows"])
        num_batches = len(index) if stage == "held_out" else settings.limit(stage, len(index))
        evaluation = Evaluation(stage, data, index, num_batches, rows.shape[-1], per_head=rows.ndim == 2)
        opened.pop_all()
    return evaluation


def _known_ids(datamodule: DataModule) -> np.ndarray | None:
    """int32[H], the ids of the heads that a data module has slices for; None where it has none."""
    try:
        slices = datamodule.slices()
    except DataError:
        return None
    return slices.ids if isinstance(slices, Slices) else None


def _positions(ids: np.ndarray, known: np.ndarray | None) -> np.ndarray | None:
    """int64[H], where these ids stand among the known ones; None where they do not all stand there."""
    if known is None:
        return None
    order = np.argsort(known)
    at: np.ndarray = order[np.searchsorted(known, ids, sorter=order).clip(max=known.size - 1)]
    return at if np.array_equal(known[at], ids) else None


def assemble_evaluation(
    settings: Settings,
    module: HydraModule,
    datamodule: DataModule,
    stage: str,
    heads: Heads,
    fitted: np.ndarray | None = None,
    choice: Choice = NO_CHOICE,
) -> tuple[Engine, Evaluation, Any]:
    """Checks all that a walk needs, traces the user's step, and only then touches the device.

    Args:
      stage: "val", "test", "predict" or "held_out".
      fitted: int32[H], ids of the last fit's heads: some of them find their own `PerHead` values.
      choice: what shaped the bits of that fit.

    Returns:
      The engine, the dataset ready to walk, and the heads' `(trainable, state)`.
    """
    check_settings(datamodule)
    evaluation = find_evaluation(settings, datamodule, stage, len(heads), heads.ids, fitted)
    if evaluation is None:
        raise DataError(
            f"There is nothing to walk: {type(datamodule).__name__}.{stage}_dataset. Got None, expected a dataset. "
            f"Fix: return one from {stage}_dataset()."
        )
    with contextlib.ExitStack() as opened:
        opened.callback(evaluation.close)
        inputs = head_inputs(
            heads.ids, _per_head_of(module, heads.ids, _known_ids(datamodule) if fitted is None else fitted)
        )
        program = HeadProgram(module, precision=settings.precision, padding={_STEPS[stage]: evaluation.padding})
        flight = Preflight.of_model(program, inputs)
        _check_heads(heads, flight.parts)
        if _STEPS[stage] == "predict":
            flight.prediction(evaluation.data.shapes, evaluation.batch_size)
        else:
            empty = flight.evaluation(_STEPS[stage], evaluation.data.shapes, evaluation.batch_size)
            evaluation = dataclasses.replace(evaluation, empty=empty)
        devices = find_devices(settings.devices)
        how = {"num_heads": len(heads), "slots": 1, "backend": devices[0].platform, "devices": len(devices)}
        plan = make_plan(choice, **settings.of_plan, **how)
        layout = lay_out(len(heads), plan.chunk, devices[: plan.devices])
        engine = Engine(dataclasses.replace(flight.program, lowering=plan.lowering), inputs, settings.seed, layout, {})
        ready = evaluation.open(layout, heads.ids)
        opened.pop_all()
    return engine, ready, engine.scatter((heads.trainable, heads.state))


def _per_head_of(module: HydraModule, ids: np.ndarray, known: np.ndarray | None) -> dict[str, PerHead]:
    """The `PerHead` values of the heads with these ids: one for each known head, or in the order of the ids."""
    values, at = per_head_values(module), _positions(ids, known)
    if at is None or known is None or any(len(value) != len(known) for value in values.values()):
        return check_per_head(module, len(ids))
    return {name: value[at] for name, value in values.items()}


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
