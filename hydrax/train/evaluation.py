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
    find_transform,
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
from hydrax.errors import ArgumentError, DataError, ModuleError
from hydrax.results import Heads
from hydrax.step import HeadProgram, PerHead, Preflight, is_whole, per_head_values, with_transform
from hydrax.train.module import HydraModule
from hydrax.train.settings import Settings
from hydrax.train.whole_sets import scores
from hydrax.trees import named_leaves, tree_bytes

_STEPS = {"val": "validation", "test": "test", "predict": "predict", "held_out": "predict"}
_MAX_BATCHES = 256  # The most batches of one dispatch, so that their rows and masks stay small.
_MAX_BATCHES_PER_HEAD = 8  # The same if each head has its own rows.
_GATHERED_BYTES = 2**26  # Most that a dispatch leaves on the device for metrics that the host computes.
_NAMED = 3  # Heads that a line of the table names at each end.


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation that is ready to run.

    Attributes:
      source: the checked rows of the data module.
      num_batches: batches to run, after the limit.
      empty: empty accumulators of one head, by name.
      whole: metrics that the host computes from all rows, by name, with the shapes of one batch of one head.
      suffix: what follows the names of metrics: "/" and the name of the set if there are several.
      feed: gives the program its rows, once `open` was called.
    """

    source: EvaluationSet
    num_batches: int
    empty: dict[str, Any] = dataclasses.field(default_factory=dict)
    whole: dict[str, Any] = dataclasses.field(default_factory=dict)
    suffix: str = ""
    feed: Feed | None = None

    @property
    def data(self) -> Dataset:
        """The checked dataset."""
        return self.source.data

    @property
    def padding(self) -> str | None:
        """Why a slot of a batch is padding, or None."""
        # Rows come in order, so if any batch has padding, the last one has; a user's own batches may differ.
        last = self.num_batches - 1
        for number in range(self.num_batches) if self.source.has_own_index else [last]:
            live = np.asarray(self.source.index[number]["mask"])
            if not live.all():
                which = (
                    f"the last {self.source.stage} batch" if number == last else f"{self.source.stage} batch {number}"
                )
                return f"{which} has {live.sum(axis=-1).min()} rows for {live.shape[-1]} slots"
        return None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The slots of the batches, each number once, that of a full batch last."""
        # The mistake of a step in a shorter last batch must show before the fit, not at its first validation.
        last = np.asarray(self.source.index[self.num_batches - 1]["mask"]).shape[-1]
        return (last, self.source.batch_size) if last < self.source.batch_size else (self.source.batch_size,)

    def traced(self, flight: Preflight) -> Evaluation:
        """Returns the same evaluation with what its step logs, after tracing it."""
        stage = _STEPS[self.source.stage]
        *shorter, found = [flight.evaluation(stage, self.data.shapes, slots) for slots in self.sizes]
        for short in shorter:
            if short.keys() != found.keys():
                method = f"{type(flight.program.module).__name__}.{stage}_step"
                raise ModuleError(
                    f"A step logs other values in a shorter batch: {method}. Got {', '.join(short) or 'nothing'} "
                    f"for the last batch of {self.sizes[0]} rows, expected "
                    f"{', '.join(found) or 'nothing'}, as for {self.sizes[-1]} rows. Fix: log the same in every batch."
                )
        whole = {name: value for name, value in found.items() if is_whole(value)}
        empty = {name: value for name, value in found.items() if name not in whole}
        return dataclasses.replace(self, empty=empty, whole=whole)

    def heads_with_rows(self, num_heads: int) -> np.ndarray:
        """Tells which heads have a row in the set, bool[H]."""
        # Rows come in order, so a head without one in the first batch has none.
        count = self.num_batches if self.source.has_own_index else 1
        live = [np.asarray(self.source.index[number]["mask"]).any(axis=-1) for number in range(count)]
        return np.broadcast_to(np.any(live, axis=0), num_heads)

    def open(self, layout: Layout, ids: np.ndarray) -> Evaluation:
        """Returns the same evaluation with its rows on the device, or with a feed that will send them there.

        Args:
          layout: the places of the heads.
          ids: int32[H], names of the heads for errors.
        """
        rows = self.source.batch_size * (len(ids) if self.source.per_head else 1)
        size = self._max_batches(len(ids))

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
        if not self.empty and not self.whole:
            return {}  # the step logs nothing and returns None
        accumulators, gathered = engine.broadcast(self.empty), []
        for first, count, rows in self._walk(engine.num_heads, limit):
            check()  # between dispatches: one that runs cannot be interrupted
            accumulators, values = engine.evaluate(
                _STEPS[self.source.stage], accumulators, heads, rows, step, first, count
            )
            if self.whole and limit is None:
                masks = [np.asarray(self.source.index[first + number]["mask"]) for number in range(count)]
                gathered.append((engine.read_batches(values, count), np.stack(masks)))
        found = engine.compute(accumulators) if self.empty else {}
        if gathered:
            found |= scores(self.whole, gathered, engine.runs(), engine.ids)
        return {name + self.suffix: value for name, value in found.items()}

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
        size = self._max_batches(num_heads)
        end = self.num_batches if limit is None else min(limit, self.num_batches)
        # A shorter last batch is a dispatch of its own, since slots are a shape of the program.
        last = np.asarray(self.source.index[end - 1]["mask"])
        full = end - (last.shape[-1] < self.source.batch_size)
        firsts = [*range(0, full, size), *range(full, end)]
        counts = np.diff([*firsts, end]).tolist()
        for number, (first, count) in enumerate(zip(firsts, counts, strict=True)):
            rows = self.feed.superstep(first, [1] * count)
            # The next rows are read while the device works on these.
            if number + 1 < len(counts):
                self.feed.prefetch(firsts[number + 1], [1] * counts[number + 1])
            yield first, count, rows

    def _max_batches(self, num_heads: int) -> int:
        """Returns the most batches of one dispatch."""
        if self.source.stage in ("predict", "held_out"):
            return 1  # each batch of predictions leaves the device at once; more of them would only take memory
        most = min(self.num_batches, _MAX_BATCHES_PER_HEAD if self.source.per_head else _MAX_BATCHES)
        rows = self.source.batch_size * (num_heads if self.source.per_head else 1)
        row_bytes = self.data.fetched_row_bytes
        most = most if row_bytes is None else min(most, FETCH_BYTES // (rows * row_bytes))
        gathered = num_heads * tree_bytes(self.whole)
        return max(1, most if not gathered else min(most, _GATHERED_BYTES // gathered))


@dataclasses.dataclass(frozen=True)
class Evaluations:
    """The sets of a stage: one without a name, or several of which each adds its name to those of its metrics."""

    sets: tuple[Evaluation, ...]

    @property
    def padding(self) -> str | None:
        """Why a slot of a batch is padding, or None."""
        return next(filter(None, (one.padding for one in self.sets)), None)

    def traced(self, flight: Preflight) -> Evaluations:
        """As for one set."""
        return Evaluations(tuple(one.traced(flight) for one in self.sets))

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What follows the names of metrics, for each set."""
        return tuple(one.suffix for one in self.sets)

    def heads_with_rows(self, num_heads: int) -> np.ndarray:
        """Tells which heads have a row in one of the sets, bool[H]."""
        found: np.ndarray = np.any([one.heads_with_rows(num_heads) for one in self.sets], axis=0)
        return found

    def open(self, layout: Layout, ids: np.ndarray) -> Evaluations:
        """As for one set."""
        return Evaluations(tuple(one.open(layout, ids) for one in self.sets))

    def set_layout(self, layout: Layout) -> None:
        """As for one set."""
        for one in self.sets:
            one.set_layout(layout)

    def run(self, *args: Any, **how: Any) -> dict[str, np.ndarray]:
        """Returns what all heads log over all sets, float[H] by name; arguments as for one set."""
        found: dict[str, np.ndarray] = {}
        for one in self.sets:
            found |= one.run(*args, **how)
        return found

    def close_feeds(self) -> None:
        """Ends what gives the program its rows; what reads them stays open."""
        for one in self.sets:
            if one.feed is not None:
                one.feed.close()

    def close(self) -> None:
        """As for one set."""
        for one in self.sets:
            one.close()


def find_validation(
    settings: Settings, module: HydraModule, datamodule: DataModule, num_heads: int
) -> Evaluations | None:
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
) -> Evaluations | None:
    """Returns the checked rows of a stage, limited as the user asked, or None; arguments as `stage_evaluation`."""
    if stage == "val" and settings.limit_val_batches == 0:
        return None
    sets = stage_evaluation(datamodule, stage, num_heads, wide=settings.precision == "64-true", ids=ids, fitted=fitted)
    # Held-out predictions promise every row, so limits do not apply.
    found = tuple(
        Evaluation(
            rows,
            len(rows.index) if stage == "held_out" else settings.limit(stage, len(rows.index)),
            suffix=f"/{name}" if name else "",
        )
        for name, rows in sets.items()
    )
    return Evaluations(found) if found else None


def assemble_evaluation(
    settings: Settings,
    module: HydraModule,
    datamodule: DataModule,
    stage: str,
    heads: Heads,
    fitted: np.ndarray | None = None,
    choice: Choice = NO_CHOICE,
) -> tuple[Engine, Evaluations, Any]:
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
        module = with_transform(module, find_transform(datamodule))
        inputs = head_inputs(
            heads.ids, _per_head_of(module, heads.ids, known_ids(datamodule) if fitted is None else fitted)
        )
        program = HeadProgram(module, precision=settings.precision, padding={_STEPS[stage]: evaluation.padding})
        flight = Preflight.of_model(program, inputs)
        _check_heads(heads, flight.parts)
        if _STEPS[stage] == "predict":
            [one] = evaluation.sets
            for slots in one.sizes:
                flight.prediction(one.data.shapes, slots)
        else:
            evaluation = evaluation.traced(flight)
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
    at = positions(ids, known)
    if at is None or known is None:
        return check_per_head(module, len(ids))
    # The values of a data module are those of all its heads, also beside a module of the picked heads alone.
    values = {name: value if len(value) != len(known) else value[at] for name, value in per_head_values(module).items()}
    return values if all(len(value) == len(ids) for value in values.values()) else check_per_head(module, len(ids))


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
        known = value[finite] if finite.size else np.full(1, np.nan)
        spread = f"{known.mean():>10.4g}{known.std():>10.4g}{known.min():>10.4g}{known.max():>10.4g}"
        lines.append(f"{name:<24}{spread}   {lowest:<20}{highest:<20}{''.join(lost)}".rstrip())
    return "\n".join(lines)


def _some(ids: np.ndarray) -> str:
    """Formats the first few ids, and how many more there are."""
    more = f" and {ids.size - _NAMED} more" if ids.size > _NAMED else ""
    return ", ".join(map(str, ids[:_NAMED])) + more
