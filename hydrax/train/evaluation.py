"""Runs a validation, test or predict set with all heads."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from hydrax.data import (
    DataModule,
    Dataset,
    EvaluationSet,
    Feed,
    GrainBatches,
    known_ids,
    open_feed,
    positions,
    stage_evaluation,
)
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
from hydrax.errors import ArgumentError, DataError
from hydrax.results import Heads
from hydrax.step import HeadProgram, PerHead, Preflight, per_head_values
from hydrax.train.module import HydraModule
from hydrax.train.settings import Settings
from hydrax.trees import named_leaves

_STEPS = {"val": "validation", "test": "test", "predict": "predict", "held_out": "predict"}
_MAX_BATCHES = 256  # The most batches of one dispatch, so that their rows and masks stay small.
_MAX_BATCHES_PER_HEAD = 8  # The same if each head has its own rows.
_NAMED = 3  # Heads that a line of the table names at each end.


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation that is ready to run.

    Attributes:
      source: the checked rows of the data module.
      num_batches: batches to run, after the limit.
      empty: empty accumulators of one head.
      feed: gives the program its rows, once `open` was called.
    """

    source: EvaluationSet
    num_batches: int
    empty: dict[str, Any] = dataclasses.field(default_factory=dict)
    feed: Feed | None = None

    @property
    def data(self) -> Dataset:
        """The checked dataset."""
        return self.source.data

    @property
    def padding(self) -> str | None:
        """Why a slot of the last batch is padding, or None."""
        # Rows come in order, so if any batch has padding, the last one has.
        live = np.asarray(self.source.index[self.num_batches - 1]["mask"])
        least = live.sum(axis=-1).min()
        return None if live.all() else f"the last {self.source.stage} batch has {least} rows for {live.shape[-1]} slots"

    def open(self, layout: Layout, ids: np.ndarray) -> Evaluation:
        """Returns the same evaluation with its rows on the device, or with a feed that will send them there.

        Args:
          layout: the places of the heads.
          ids: int32[H], names of the heads for errors.
        """
        rows = self.source.batch_size * (len(ids) if self.source.per_head else 1)
        size = self._max_batches(rows)

        def batches(places: np.ndarray) -> GrainBatches:
            places_of_own = places if self.source.per_head else None
            return GrainBatches(self.source.index, num_rows=self.data.num_rows, places=places_of_own, max_steps=size)

        return dataclasses.replace(self, feed=open_feed(self.data, batches, layout, size * rows, ids))

    def set_layout(self, layout: Layout) -> None:
        """Passes the new layout of the heads to the feed."""
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
        """Returns what all heads log over the dataset, float[H] by name.

        Args:
          engine: the compiled programs.
          heads: the `(trainable, state)` of all heads.
          step: optimiser updates done.
          check: called before each dispatch; an error that it raises ends the evaluation.
          limit: the most batches to run; None runs all.
        """
        if not self.empty:
            return {}  # the step logs nothing and returns None
        accumulators = engine.broadcast(self.empty)
        for first, count, rows in self._walk(engine.num_heads, limit):
            check()  # between dispatches: one that runs cannot be interrupted
            accumulators = engine.evaluate(_STEPS[self.source.stage], accumulators, heads, rows, step, first, count)
        return engine.compute(accumulators)

    def predict(self, engine: Engine, heads: Blocks, step: int) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
        """Predicts with all heads, batch by batch.

        Yields:
          `(predictions, rows, mask)`: leaves `[H, B, ...]` on the device; base rows int32 and live slots bool, `[B]` or
          `[H, B]`.
        """
        for first, _, rows in self._walk(engine.num_heads):
            found = engine.predict(heads, rows, step, first)
            element = self.source.index[first]
            yield found, np.asarray(element["rows"]), np.asarray(element["mask"])

    def close(self) -> None:
        """Ends the threads that read rows and the pipeline of index batches."""
        self.data.close()  # first: the feed would wait for rows that are being read
        if self.feed is not None:
            self.feed.close()

    def _walk(self, num_heads: int, limit: int | None = None) -> Iterator[tuple[int, int, SuperstepRows]]:
        """Yields, for each dispatch, its first batch, its number of batches, and its rows."""
        assert self.feed is not None
        size = self._max_batches(self.source.batch_size * (num_heads if self.source.per_head else 1))
        end = self.num_batches if limit is None else min(limit, self.num_batches)
        counts = [min(size, end - first) for first in range(0, end, size)]
        for number, count in enumerate(counts):
            rows = self.feed.superstep(number * size, [1] * count)
            # The next rows are read while the device works on these.
            if number + 1 < len(counts):
                self.feed.prefetch((number + 1) * size, [1] * counts[number + 1])
            yield number * size, count, rows

    def _max_batches(self, rows: int) -> int:
        """Returns the batches of one dispatch, if each has this many rows."""
        if self.source.stage in ("predict", "held_out"):
            return 1  # each batch of predictions leaves the device at once; more of them would only take memory
        most = min(self.num_batches, _MAX_BATCHES_PER_HEAD if self.source.per_head else _MAX_BATCHES)
        row_bytes = self.data.fetched_row_bytes
        return most if row_bytes is None else max(1, min(most, FETCH_BYTES // (rows * row_bytes)))


def find_validation(
    settings: Settings, module: HydraModule, datamodule: DataModule, num_heads: int
) -> Evaluation | None:
    """Finds the validation of a fit; None if the module has no `validation_step` or the data module no rows for it."""
    if type(module).validation_step is HydraModule.validation_step:
        return None
    return _find(settings, datamodule, "val", num_heads)


def _find(
    settings: Settings,
    datamodule: DataModule,
    stage: str,
    num_heads: int,
    ids: np.ndarray | None = None,
    fitted: np.ndarray | None = None,
) -> Evaluation | None:
    """Returns the checked rows of a stage, limited as the user asked, or None; arguments as `stage_evaluation`."""
    if stage == "val" and settings.limit_val_batches == 0:
        return None
    rows = stage_evaluation(datamodule, stage, num_heads, wide=settings.precision == "64-true", ids=ids, fitted=fitted)
    if rows is None:
        return None
    # Held-out predictions promise every row, so limits do not apply.
    return Evaluation(rows, len(rows.index) if stage == "held_out" else settings.limit(stage, len(rows.index)))


def assemble_evaluation(
    settings: Settings,
    module: HydraModule,
    datamodule: DataModule,
    stage: str,
    heads: Heads,
    fitted: np.ndarray | None = None,
    choice: Choice = NO_CHOICE,
) -> tuple[Engine, Evaluation, Any]:
    """Checks everything that an evaluation needs, traces the user's step, and only then touches the device.

    Args:
      settings: the Trainer's arguments.
      module: the user's module.
      datamodule: the user's data module.
      stage: "val", "test", "predict" or "held_out".
      heads: the heads to evaluate.
      fitted: int32[], ids of the heads of the last fit, by which some of them find their own `PerHead` values.
      choice: what shaped the bits of that fit.

    Returns:
      The engine, the evaluation ready to run, and the heads' `(trainable, state)`.
    """
    evaluation = _find(settings, datamodule, stage, len(heads), heads.ids, fitted)
    if evaluation is None:
        raise DataError(
            f"No dataset to evaluate: {type(datamodule).__name__}.{stage}_dataset. Got None, expected a dataset. "
            f"Fix: return one from {stage}_dataset()."
        )
    with contextlib.ExitStack() as opened:
        opened.callback(evaluation.close)
        inputs = head_inputs(
            heads.ids, _per_head_of(module, heads.ids, known_ids(datamodule) if fitted is None else fitted)
        )
        program = HeadProgram(module, precision=settings.precision, padding={_STEPS[stage]: evaluation.padding})
        flight = Preflight.of_model(program, inputs)
        _check_heads(heads, flight.parts)
        if _STEPS[stage] == "predict":
            flight.prediction(evaluation.data.shapes, evaluation.source.batch_size)
        else:
            empty = flight.evaluation(_STEPS[stage], evaluation.data.shapes, evaluation.source.batch_size)
            evaluation = dataclasses.replace(evaluation, empty=empty)
        devices = find_devices(settings.devices)
        # One slot: the number of steps in a dispatch, which slots bound, plays no part here.
        how = {"num_heads": len(heads), "slots": 1, "backend": devices[0].platform, "devices": len(devices)}
        plan = make_plan(choice, **settings.of_plan, **how)
        # In one wave: neither optimiser states nor gradients have to fit.
        layout = lay_out(len(heads), plan.chunk, devices[: plan.devices])
        engine = Engine(dataclasses.replace(flight.program, lowering=plan.lowering), inputs, settings.seed, layout, {})
        # Only now are rows sent to the device: everything that can be wrong has been checked.
        ready = evaluation.open(layout, heads.ids)
        opened.pop_all()
    return engine, ready, engine.scatter((heads.trainable, heads.state))


def _per_head_of(module: HydraModule, ids: np.ndarray, known: np.ndarray | None) -> dict[str, PerHead]:
    """Picks the `PerHead` values of the heads with these ids: one for each known head, or in the order of the ids."""
    values, at = per_head_values(module), positions(ids, known)
    if at is None or known is None or any(len(value) != len(known) for value in values.values()):
        return check_per_head(module, len(ids))
    return {name: value[at] for name, value in values.items()}


def _check_heads(heads: Heads, parts: Any) -> None:
    """Refuses heads of another module, whose arrays differ from those of the model that this one configures."""
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
    """Formats mean, spread and the heads at both ends of each metric; never H columns.

    Whether high or low is good is for the reader to say: a name does not tell a loss from a score.

    Args:
      metrics: float[H] by name.
      ids: int32[H].
    """
    ends = f"{'lowest heads':<20}{'highest heads':<20}"
    lines = [f"{'metric':<24}{'mean':>10}{'std':>10}{'min':>10}{'max':>10}   {ends}".rstrip()]
    for name, value in metrics.items():
        finite = np.flatnonzero(np.isfinite(value))
        ranked = finite[np.argsort(value[finite], kind="stable")]
        lowest, highest = (", ".join(map(str, ids[places[:_NAMED]])) for places in (ranked, ranked[::-1]))
        lost = [f"not finite: {_some(ids[~np.isfinite(value)])}"] if finite.size < value.size else []
        spread = f"{value.mean():>10.4g}{value.std():>10.4g}{value.min():>10.4g}{value.max():>10.4g}"
        lines.append(f"{name:<24}{spread}   {lowest:<20}{highest:<20}{''.join(lost)}".rstrip())
    return "\n".join(lines)


def _some(ids: np.ndarray) -> str:
    """Formats the first few ids, and how many more there are."""
    more = f" and {ids.size - _NAMED} more" if ids.size > _NAMED else ""
    return ", ".join(map(str, ids[:_NAMED])) + more
