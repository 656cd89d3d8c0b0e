"""Stage: the one place that asks the user's data module for datasets and slices, and checks what it returns.

What a stage needs is handed on as values, so no later code calls `train_dataset`, `val_dataset` and the like. Slices
are asked for twice, because they must be the same whenever they are asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrax.arguments import naming
from hydrax.data.columns import check_form
from hydrax.data.datamodule import DataModule, NamedSets, check_settings, check_slices
from hydrax.data.dataset import Dataset, open_dataset
from hydrax.errors import DataError, SliceError
from hydrax.slices import Slices, rotation

if TYPE_CHECKING:
    import grain


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """The training rows of a fit.

    Attributes:
      source: the data module's class, for messages.
      data: the checked dataset.
      slices: the heads' slices.
      batch_size: slots B of a head's batch.
      small_slices: how slices of fewer than B rows fill a batch, "mask" or "wrap".
      index_dataset: the data module's method that makes index batches.
      has_own_index: whether the user overrides it; else the rotation is Hydrax's, and the program can draw it.
    """

    source: str
    data: Dataset
    slices: Slices
    batch_size: int
    small_slices: rotation.SmallSlices
    index_dataset: Callable[..., grain.MapDataset]
    has_own_index: bool


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """The rows of a validation, test or predict stage, or the training rows held out from each head.

    Attributes:
      stage: "val", "test", "predict", or "held_out".
      data: the checked dataset.
      index: its index batches, in order.
      batch_size: rows of a batch.
      per_head: whether each head has rows of its own.
      has_own_index: whether the user overrides the method that makes the index batches.
    """

    stage: str
    data: Dataset
    index: grain.MapDataset
    batch_size: int
    per_head: bool
    has_own_index: bool


def stage_training(datamodule: DataModule, *, wide: bool) -> TrainingSet:
    """Reads the training data of a fit from a data module, and checks it.

    Args:
      datamodule: the user's.
      wide: whether to keep 64-bit columns (precision "64-true").

    Raises:
      DataError: there is no training dataset, or it cannot be trained on.
      SliceError: the slices do not fit the dataset.
    """
    check_settings(datamodule)
    found = datamodule.dataset("train")
    if found is None:
        raise DataError(
            f"A dataset is missing: {type(datamodule).__name__}.train_dataset. Got None, expected a pytree of arrays "
            "or a source. Fix: return the rows that heads learn from."
        )
    data = open_dataset(datamodule, "train", wide, found)
    with contextlib.ExitStack() as opened:
        # If a check fails, no reader thread or process may stay behind.
        opened.callback(data.close)
        slices = check_slices(_called(datamodule, "slices"), datamodule.slices, data.num_rows)
        opened.pop_all()
    return TrainingSet(
        source=type(datamodule).__name__,
        data=data,
        slices=slices,
        batch_size=datamodule.batch_size,
        small_slices=datamodule.small_slices,
        index_dataset=datamodule.index_dataset,
        has_own_index=type(datamodule).index_dataset is not DataModule.index_dataset,
    )


def stage_evaluation(
    datamodule: DataModule,
    stage: str,
    num_heads: int,
    *,
    wide: bool,
    ids: np.ndarray | None = None,
    fitted: np.ndarray | None = None,
) -> dict[str, EvaluationSet]:
    """Reads the rows of an evaluation from a data module, and checks them.

    Args:
      datamodule: the user's.
      stage: "val", "test", "predict" or "held_out".
      num_heads: H.
      wide: whether to keep 64-bit columns (precision "64-true").
      ids: int32[H], which of the data module's heads these are; None if they are all of them, in order.
      fitted: int32[], ids of the heads that were fitted together, if known.

    Returns:
      The sets by name; one set has the name "". Empty if the data module has no rows for this stage.

    Raises:
      DataError: the dataset cannot be used, or no row is held out.
      SliceError: the slices fit neither the dataset nor the heads.
    """
    check_settings(datamodule)
    of = "train" if stage == "held_out" else stage
    found = datamodule.dataset(of)
    if found is None:
        return {}
    named = isinstance(found, NamedSets)
    if named:
        _check_named(datamodule, stage, found)
    sets: dict[str, EvaluationSet] = {}
    with contextlib.ExitStack() as opened:
        for name, rows in found.items() if named else [("", found)]:
            data = open_dataset(datamodule, of, wide, check_form(rows, f"{of} {name}".rstrip()))
            opened.callback(data.close)
            sets[name] = _evaluation_set(datamodule, stage, data, (num_heads, ids, fitted))
        opened.pop_all()
    return sets


def find_transform(datamodule: DataModule) -> Callable[..., Any] | None:
    """Returns what a data module does to the batches of each head before a step sees them, or None.

    Raises:
      DataError: it is not a function.
    """
    with naming(f"{type(datamodule).__name__}.batch_transform", DataError):
        found = datamodule.batch_transform()
    if found is not None and not callable(found):
        raise DataError(
            f"A transformation of batches has the wrong type: {type(datamodule).__name__}.batch_transform. Got "
            f"{type(found).__name__}, expected a function of a batch, or None. Fix: return for example "
            "functools.partial(scale, mean=hx.PerHead([...]))."
        )
    return found


def _check_named(datamodule: DataModule, stage: str, sets: NamedSets) -> None:
    where = f"{type(datamodule).__name__}.{stage}_dataset"
    # Two sets without a name would overwrite each other's metrics, and no set would mean no validation.
    wrong = [name for name in sets if not isinstance(name, str) or not name]
    if wrong or not sets:
        raise DataError(
            f"Several sets need names: {where}. Got hydrax.NamedSets {f'with the name {wrong[0]!r}' if wrong else ''}"
            f"{'' if sets else 'without any set'}, expected a name in text for each. Fix: write "
            "hydrax.NamedSets(clean=..., shifted=...)."
        )
    if stage not in ("val", "test"):
        raise DataError(
            f"Several sets for a stage that takes one: {where}. Got hydrax.NamedSets, expected one dataset. Fix: "
            "predict one after the other."
        )
    if stage == "val" and datamodule.val_slices() is not None:
        raise DataError(
            f"Several validation sets with val_slices: {where}. Got hydrax.NamedSets, expected one dataset, whose rows "
            "val_slices select. Fix: leave val_slices out, or validate on one set."
        )


def _evaluation_set(datamodule: DataModule, stage: str, data: Dataset, heads: Any) -> EvaluationSet:
    at = _check_own_slices(datamodule, stage, data.num_rows, *heads)
    picked = {} if at is None else {"heads": at}
    index = datamodule.eval_index_dataset(stage, data.num_rows, **picked)
    # The form of the first batch tells whether heads have their own rows; `GrainBatches` checks the others.
    rows = np.asarray(index[0]["rows"])
    has_own = type(datamodule).eval_index_dataset is not DataModule.eval_index_dataset
    return EvaluationSet(stage, data, index, rows.shape[-1], per_head=rows.ndim == 2, has_own_index=has_own)


def _check_own_slices(
    datamodule: DataModule,
    stage: str,
    num_rows: int,
    num_heads: int,
    ids: np.ndarray | None,
    fitted: np.ndarray | None,
) -> np.ndarray | None:
    """Checks the slices that give each head its own rows, if the stage has any.

    Returns:
      int64[H], the places of the heads in these slices; None if there are no slices, or they come in the heads' order.
    """
    name = {"val": "val_slices", "held_out": "slices"}.get(stage)
    given = None if name is None else _called(datamodule, name)
    if name is None or (given is None and stage == "val"):
        return None
    # The heads that the data module knows: only heads picked out of them have to be looked up.
    known = None if ids is None else _ids(given) if stage == "held_out" else known_ids(datamodule)
    at = None if ids is None else positions(ids, known)
    # Heads picked out of many come with the slices of all of them, or with their own.
    whole = given.num_heads if at is not None and isinstance(given, Slices) else num_heads
    count = whole if fitted is None or whole == len(fitted) else num_heads
    check_slices(given, getattr(datamodule, name), num_rows, count, some_empty=stage == "val")
    if stage == "held_out" and at is None:
        raise SliceError(
            f"A head has no slice: {type(datamodule).__name__}.slices. Got heads of ids {ids}, expected ids among "
            f"{known}. Fix: pass the data module that the heads were trained with."
        )
    # Validation slices of these heads alone are in the order of the heads.
    return at if known is not None and whole == len(known) else None


def _called(datamodule: DataModule, name: str) -> Any:
    """Calls a method of the data module; an error of the user's code then names it."""
    with naming(f"{type(datamodule).__name__}.{name}", SliceError):
        return getattr(datamodule, name)()


def known_ids(datamodule: DataModule) -> np.ndarray | None:
    """Returns the ids of the heads that a data module has slices for, int32[H]; None if it has none."""
    try:
        return _ids(datamodule.slices())
    except DataError:
        return None


def _ids(slices: Any) -> np.ndarray | None:
    return slices.ids if isinstance(slices, Slices) else None


def positions(ids: np.ndarray, known: np.ndarray | None) -> np.ndarray | None:
    """Returns the positions of ids among the known ones, int64[H]; None if one of them is unknown."""
    if known is None:
        return None
    order = np.argsort(known)
    at: np.ndarray = order[np.searchsorted(known, ids, sorter=order).clip(max=known.size - 1)]
    return at if np.array_equal(known[at], ids) else None
