"""DataModule: the datasets, the slices, and the Grain pipelines of index batches that walk them."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from hydrax import rotation
from hydrax.errors import ArgumentError, DataError, SliceError
from hydrax.slices import Slices

_INT32 = np.iinfo(np.int32)
_SETTINGS = (
    *("batch_size", "eval_batch_size", "small_slices", "check_finite"),
    *("residence", "read_threads", "read_processes"),
)


class DataModule:
    """Datasets and slices of a run. Override `train_dataset` and `slices`; the rest as needed.

    A dataset is a pytree of arrays (dict, tuple, one array) with the same leading length N; a batch has the same
    structure.

    Attributes:
      batch_size: slots B in a head's training batch.
      eval_batch_size: rows in a validation, test or predict batch; `batch_size` where None.
      small_slices: for slices of fewer than B rows, "mask" (each row once, the other slots padding) or "wrap" (rows
        repeat).
      check_finite: NaN or Inf in a dataset: "warn", "raise" or "off".
      residence: where a dataset lies while heads learn from it: "device" (all of it), "host" (the rows of a superstep
        are fetched when they are due), or "auto": the device, unless it has no room.
      read_threads: threads that read rows from the host.
      read_processes: processes that read rows from the host; 0: none, the threads read.
    """

    batch_size: int = 32
    eval_batch_size: int | None = None
    small_slices: str = "mask"
    check_finite: str = "warn"
    residence: str = "auto"
    read_threads: int = 4
    read_processes: int = 0

    def __init__(self, **settings: Any) -> None:
        """Sets some of the attributes above; a subclass that gives them as class attributes need not call it.

        Raises:
          ArgumentError: there is no such attribute.
        """
        for name, value in settings.items():
            if name not in _SETTINGS:
                near = difflib.get_close_matches(name, _SETTINGS, n=1, cutoff=0.0)[0]
                raise ArgumentError(
                    f"No such setting: {type(self).__name__}({name}=). Got {value!r:.60}, expected one of "
                    f"{', '.join(_SETTINGS)}. Fix: the nearest name is {near}."
                )
            setattr(self, name, value)

    def prepare_data(self) -> None:
        """Called before `setup` of each stage: downloads and unpacking, where they are not done yet."""

    def setup(self, stage: str) -> None:
        """Called before a stage ("fit", "validate", "test", "predict") starts."""

    def teardown(self, stage: str) -> None:
        """Called after a stage ended, also by an error."""

    def train_dataset(self) -> Any:
        """The rows that heads learn from."""
        raise DataError(
            f"A dataset is missing: {type(self).__name__}.train_dataset. Got none, expected a pytree of arrays. Fix: "
            "define `def train_dataset(self)` and return the arrays."
        )

    def slices(self) -> Slices:
        """Which rows of `train_dataset` each head may learn from."""
        raise DataError(
            f"The slices are missing: {type(self).__name__}.slices. Got none, expected hydrax.Slices. Fix: define `def "
            "slices(self)`, for example `return Slices.full(num_heads, num_rows)`."
        )

    def val_dataset(self) -> Any | None:
        """The rows that heads are validated on, or None."""
        return None

    def val_slices(self) -> Slices | None:
        """Which rows of `val_dataset` each head is validated on; None: all heads see them all."""
        return None

    def test_dataset(self) -> Any | None:
        """The rows that heads are tested on, or None."""
        return None

    def predict_dataset(self) -> Any | None:
        """The rows that heads predict, or None."""
        return None

    def dataset(self, stage: str) -> Any | None:
        """The dataset of "train", "val", "test" or "predict"."""
        return getattr(self, f"{stage}_dataset")()

    def index_dataset(self, seed: int = 0) -> grain.MapDataset:
        """The training batches as row numbers, by batch number.

        Args:
          seed: of the rotation; the Trainer passes its own.

        Returns:
          A MapDataset whose element t is `{"step": t, "rows": int32[H, B], "mask": bool[H, B]}`. It is the law of
          `hydrax.rotation`: each row of a slice once per pass, whatever else is trained beside a head. Under
          `accumulate_grad_batches` one optimiser step takes several elements.
        """
        return grain.MapDataset.source(_Rotation(self.slices(), self.batch_size, seed, self.small_slices))

    def eval_index_dataset(self, stage: str, num_rows: int) -> grain.MapDataset:
        """The batches of "val", "test" or "predict" as row numbers, in order, each row once.

        Args:
          stage: which dataset.
          num_rows: its length.

        Returns:
          A MapDataset of `{"step", "rows", "mask"}`; int32[B] and bool[B] where all heads see the same rows, else [H,
          B].
        """
        slices = self.val_slices() if stage == "val" else None
        return grain.MapDataset.source(_InOrder(num_rows, self.eval_batch_size or self.batch_size, slices))


class _Rotation:
    """Grain source of training index batches; random access, so a resumed run needs the batch number only."""

    def __init__(self, slices: Slices, batch_size: int, seed: int, small_slices: str) -> None:
        self._slices, self._batch_size, self._seed, self._small_slices = slices, batch_size, seed, small_slices

    def __len__(self) -> int:
        return sys.maxsize  # the rotation never ends

    def __getitem__(self, step: int) -> dict[str, Any]:
        rows, mask = rotation.index_batch(
            self._slices,
            step,
            batch_size=self._batch_size,
            seed=self._seed,
            small_slices=self._small_slices,  # type: ignore[arg-type]
        )
        return {"step": step, "rows": rows, "mask": mask}


class _InOrder:
    """Grain source of evaluation index batches: rows in order, the last batch filled with padding."""

    def __init__(self, num_rows: int, batch_size: int, slices: Slices | None) -> None:
        self._lengths = np.asarray(num_rows) if slices is None else np.asarray(slices.lengths)[:, None]
        self._batch_size = min(batch_size, int(self._lengths.max()))
        self._slices = slices

    def __len__(self) -> int:
        return -(-int(self._lengths.max()) // self._batch_size)

    def __getitem__(self, step: int) -> dict[str, Any]:
        offsets = step * self._batch_size + np.arange(self._batch_size)
        mask = offsets < self._lengths
        offsets = np.minimum(offsets, self._lengths - 1)
        rows = offsets.astype(np.int32) if self._slices is None else self._slices.lookup(offsets)
        return {"step": step, "rows": rows, "mask": mask}


def check_settings(datamodule: DataModule) -> None:
    """Checks a data module's own attributes."""
    where = type(datamodule).__name__
    for name, value in (("batch_size", datamodule.batch_size), ("eval_batch_size", datamodule.eval_batch_size)):
        optional = name == "eval_batch_size" and value is None
        if not optional and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
            raise ArgumentError(
                f"A batch has no such size: {where}.{name}. Got {value!r}, expected an int of 1 or more. Fix: set "
                f"{name}=32."
            )
    for name, least in (("read_threads", 1), ("read_processes", 0)):
        value = getattr(datamodule, name)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= 1024:
            raise ArgumentError(
                f"Rows cannot be read by so many: {where}.{name}. Got {value!r}, expected an int, {least} to 1024. "
                f"Fix: set {name}={4 * least}."
            )
    for name, allowed in (
        ("small_slices", ("mask", "wrap")),
        ("check_finite", ("warn", "raise", "off")),
        ("residence", ("auto", "device", "host")),
    ):
        if getattr(datamodule, name) not in allowed:
            raise ArgumentError(
                f"No such setting: {where}.{name}. Got {getattr(datamodule, name)!r}, expected one of "
                f"{', '.join(allowed)}. "
                f'Fix: set {name}="{allowed[0]}".'
            )


def check_slices(make: Callable[[], Any], num_rows: int, num_heads: int | None = None) -> Slices:
    """Checks that slices are Slices, count the dataset's rows, and have one entry for each head.

    Args:
      make: the data module's method; it is called twice, since it must give the same slices whenever it is asked.
      num_rows: N.
      num_heads: H, if it is known already.
    """
    slices, name = make(), make.__name__
    if not isinstance(slices, Slices):
        raise SliceError(
            f"Slices have the wrong type: DataModule.{name}. Got {type(slices).__name__}, expected hydrax.Slices. Fix: "
            "build them with a constructor such as Slices.from_indices(lists, num_rows)."
        )
    if slices.num_rows != num_rows:
        raise SliceError(
            f"Slices and dataset differ in rows: DataModule.{name}. Got slices of {slices.num_rows} rows, expected "
            f"{num_rows}, the dataset's length. Fix: pass num_rows={num_rows} when you build the slices."
        )
    if num_heads is not None and slices.num_heads != num_heads:
        raise SliceError(
            f"Slices differ in heads: DataModule.{name}. Got {slices.num_heads} heads, expected {num_heads}, as "
            "slices() has. Fix: give one slice for each head."
        )
    again = make()
    if again is not slices and again != slices:
        raise SliceError(
            f"Slices change from call to call: DataModule.{name}. Got other rows at the second call, expected the "
            "same. Fix: give the splitter or the generator a seed, or make the slices once in setup()."
        )
    return slices


def check_dataset(dataset: Any, stage: str, check_finite: str = "off", wide: bool = False) -> Any:
    """Checks a dataset and gives it the dtypes the device will hold.

    Args:
      dataset: pytree of arrays.
      stage: names the dataset in errors.
      check_finite: what NaN or Inf leads to: "warn", "raise" or "off".
      wide: keep 64-bit columns (precision "64-true").

    Returns:
      The same pytree of NumPy arrays; 64-bit columns narrowed to 32 bits, integers only where every value fits.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(dataset)
    if not leaves:
        raise DataError(
            f"A dataset has no columns: {stage} dataset. Got {dataset!r}, expected at least one array. Fix: return a "
            "dict of arrays."
        )
    named = [(f"{stage} dataset{jax.tree_util.keystr(path)}", leaf) for path, leaf in leaves]
    columns = [_check_column(name, leaf, wide) for name, leaf in named]
    first_name, first = named[0][0], columns[0]
    for (name, _), column in zip(named, columns, strict=True):
        if len(column) != len(first):
            raise DataError(
                f"Columns differ in length: {name}. Got {len(column)} rows, expected {len(first)}, as {first_name} "
                "has. Fix: give every column one entry for each row."
            )
    if len(first) == 0 or len(first) > _INT32.max:
        raise DataError(
            f"A dataset has no usable number of rows: {first_name}. Got {len(first)}, expected 1 to {_INT32.max}. Fix: "
            "check how it was loaded."
        )
    for (name, _), column in zip(named, columns, strict=True):
        _check_finite(name, column, check_finite)
    return jax.tree.unflatten(treedef, columns)


def num_rows(dataset: Any) -> int:
    """Leading length N of a checked dataset."""
    return len(jax.tree.leaves(dataset)[0])


def _check_column(name: str, leaf: Any, wide: bool) -> np.ndarray:
    if not hasattr(leaf, "__array__") or np.ndim(leaf) == 0:
        raise DataError(
            f"A column is not an array: {name}. Got {type(leaf).__name__} {str(leaf)[:40]!r}, expected an array with "
            "one entry for each row. Fix: wrap it in numpy.asarray; a list counts as a pytree of scalars."
        )
    column = np.asarray(leaf)
    column = column if column.dtype.isnative else column.astype(column.dtype.newbyteorder("="))
    # "V" lets ml_dtypes' bfloat16 and float8 through, which NumPy reports as void.
    if column.dtype.kind not in "fiubc" and not jnp.issubdtype(column.dtype, jnp.number):
        raise DataError(
            f"A column has a dtype that no device holds: {name}. Got {column.dtype}, expected floats, integers or "
            "bools. Fix: encode it as numbers; ragged rows need padding to one shape."
        )
    narrow = column.dtype.itemsize < (16 if column.dtype.kind == "c" else 8) or column.dtype.kind not in "fiuc"
    if narrow or (wide and column.dtype in (np.int64, np.uint64, np.float64, np.complex128)):
        return column
    if column.dtype.kind in "iu":
        outside = (column > _INT32.max) | (column < _INT32.min)
        if outside.any():
            row = int(np.argmax(outside.reshape(len(column), -1).any(axis=1)))
            raise DataError(
                f"An integer does not fit 32 bits: {name}, row {row}. Got {column[row]} of {column.dtype}, "
                f'expected {_INT32.min} to {_INT32.max}. Fix: re-number the column, or train with precision="64-true".'
            )
        return column.astype(np.int32)
    with np.errstate(over="ignore"):  # a number beyond float32 becomes Inf, which check_finite reports
        floats = {"c": np.complex128, "f": np.float64} if wide else {"c": np.complex64, "f": np.float32}
        return column.astype(floats[column.dtype.kind])


def _check_finite(name: str, column: np.ndarray, mode: str) -> None:
    if mode == "off" or not jnp.issubdtype(column.dtype, np.inexact):
        return
    bad = ~np.isfinite(column).reshape(len(column), -1).all(axis=1)
    if not bad.any():
        return
    rows = ", ".join(map(str, np.flatnonzero(bad)[:5]))
    message = (
        f"A column holds NaN or Inf: {name}. Got {int(bad.sum())} such rows (first: {rows}), expected finite numbers. "
        'Fix: clean them, or set check_finite="off" on the data module.'
    )
    if mode == "raise":
        raise DataError(message)
    warnings.warn(message, stacklevel=2)
