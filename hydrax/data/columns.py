"""Columns of a dataset: the dtypes they may have, the dtypes the device holds, and the checks of their values."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.data.frames import frame_columns, is_frame
from hydrax.errors import DataError

INT32 = np.iinfo(np.int32)
# On a CPU, JAX adopts a buffer without a copy only if it starts at a multiple of this; most of NumPy's do not.
_ALIGNMENT = 64


def check_dataset(dataset: Any, stage: str, check_finite: str = "off", wide: bool = False) -> Any:
    """Checks a dataset in memory and converts it to the dtypes that the device holds.

    Args:
      dataset: pytree of arrays.
      stage: names the dataset in errors.
      check_finite: reaction to NaN or Inf: "warn", "raise" or "off".
      wide: keep 64-bit columns (precision "64-true").

    Returns:
      The same pytree of NumPy arrays. 64-bit columns are narrowed to 32 bits, integers only if every value fits.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(dataset)
    if not leaves:
        raise DataError(
            f"A dataset has no columns: {stage} dataset. Got {dataset!r}, expected at least one array. Fix: return a "
            "dict of arrays."
        )
    names = [f"{stage} dataset{jax.tree_util.keystr(path)}" for path, _ in leaves]
    columns = [check_column(name, leaf, wide) for name, (_, leaf) in zip(names, leaves, strict=True)]
    length = len(columns[0])
    for name, column in zip(names, columns, strict=True):
        if len(column) != length:
            raise DataError(
                f"Columns differ in length: {name}. Got {len(column)} rows, expected {length}, as {names[0]} has. "
                "Fix: give every column one entry per row."
            )
    if not 1 <= length <= INT32.max:
        raise DataError(
            f"Invalid number of rows: {names[0]}. Got {length}, expected 1 to {INT32.max}. Fix: check how the "
            "dataset was loaded."
        )
    for name, column in zip(names, columns, strict=True):
        if check_finite != "off" and jnp.issubdtype(column.dtype, np.inexact):
            report_not_finite(name, _rows_not_finite(column).tolist(), raises=check_finite == "raise")
    return jax.tree.unflatten(treedef, columns)


def check_form(dataset: Any, stage: str) -> Any:
    """Returns a dataset as a pytree of columns: a table of pandas, polars or PyArrow becomes a dict of its columns.

    Args:
      dataset: what a method of the data module returned, not None.
      stage: names the dataset in errors.

    Raises:
      DataError: it is not a pytree, or NumPy would read a column as something else than what it holds.
    """
    if is_frame(dataset):
        dataset = frame_columns(dataset, stage)
    try:
        columns = jax.tree_util.tree_flatten_with_path(dataset, is_leaf=_is_sparse)[0]
    except Exception as error:  # keys that cannot be sorted, or a node of the user's own
        raise DataError(
            f"A dataset is not a pytree: {stage} dataset. Got {type(error).__name__} "
            f"({str(error).strip().splitlines()[0].rstrip('.')}), expected the same type for all keys of a dict. Fix: "
            "name every column by a string."
        ) from error
    for path, column in columns:
        _check_readable(f"{stage} dataset{jax.tree_util.keystr(path)}", column)
    return dataset


def num_rows(dataset: Any) -> int:
    """Returns N, the leading length of a checked dataset."""
    return len(jax.tree.leaves(dataset)[0])


def check_column(name: str, leaf: Any, wide: bool) -> np.ndarray:
    """Returns a column as an array of a dtype that the device holds; `name` names it in errors."""
    if not hasattr(leaf, "__array__") or np.ndim(leaf) == 0:
        raise DataError(
            f"A column is not an array: {name}. Got {type(leaf).__name__} {str(leaf)[:40]!r}, expected an array with "
            "one entry per row. Fix: wrap it in numpy.asarray; JAX reads a list as a pytree of scalars."
        )
    column = np.asarray(leaf)
    # Some file formats hold big-endian numbers, which JAX does not take.
    column = column if column.dtype.isnative else column.astype(column.dtype.newbyteorder("="))
    # NumPy reports the bfloat16 and float8 of ml_dtypes as void ("V"); jnp knows that they are numbers.
    if column.dtype.kind not in "fiubc" and (column.dtype.kind != "V" or not jnp.issubdtype(column.dtype, jnp.number)):
        raise DataError(
            f"A column has an unsupported dtype: {name}. Got {column.dtype}, expected floats, integers or bools. Fix: "
            "encode it as numbers; pad ragged rows to one shape."
        )
    # JAX would narrow 64-bit numbers as well, but silently: an integer beyond 32 bits would wrap around.
    narrow = column.dtype.itemsize < (16 if column.dtype.kind == "c" else 8) or column.dtype.kind not in "fiuc"
    if narrow or (wide and column.dtype in (np.int64, np.uint64, np.float64, np.complex128)):
        return column
    if column.dtype.kind in "iu":
        if (found := _beyond_int32(column)) is not None:
            raise DataError(f"An integer does not fit in 32 bits: {name}, row {found[0]}. {found[1]}")
        return column.astype(np.int32)
    with np.errstate(over="ignore"):  # a number beyond float32 becomes Inf, which check_finite reports
        floats = {"c": np.complex128, "f": np.float64} if wide else {"c": np.complex64, "f": np.float32}
        return column.astype(floats[column.dtype.kind])


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a dataset that stays on the host.

    Attributes:
      name: for errors, such as `train dataset['image']`.
      shape: shape of one row.
      stored: dtype in the dataset.
      dtype: dtype on the device.
    """

    name: str
    shape: tuple[int, ...]
    stored: np.dtype
    dtype: np.dtype

    @property
    def is_inexact(self) -> bool:
        """Whether the column can hold NaN or Inf."""
        return bool(jnp.issubdtype(self.dtype, np.inexact))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on the device."""
        return math.prod(self.shape) * self.dtype.itemsize

    def store(self, values: np.ndarray, rows: np.ndarray, out: np.ndarray, check: bool) -> list[int]:
        """Copies the values [U, ...] of these rows into `out`, and narrows them if need be.

        Returns:
          The rows among `rows` that hold NaN or Inf; empty unless `check`.

        Raises:
          BadRow: an integer does not fit in 32 bits.
        """
        # A column that needs no conversion was read into `out` directly.
        if values is not out:
            if self.stored.kind in "iu" and self.dtype.itemsize < self.stored.itemsize:
                if (found := _beyond_int32(values)) is not None:
                    raise BadRow(int(rows[found[0]]), "An integer does not fit in 32 bits", self.name, found[1])
            with np.errstate(over="ignore"):  # a number beyond float32 becomes Inf, which `check` finds
                np.copyto(out, values, casting="unsafe")
        bad: list[int] = rows[_rows_not_finite(out)].tolist() if check else []
        return bad


class BadRow(Exception):
    """An unusable row of a dataset that stays on the host.

    It is raised in reader threads and processes, which do not know the heads; the reader turns it into a DataError that
    names them.
    """

    def __init__(self, row: int, problem: str, where: str, outcome: str) -> None:
        super().__init__(row, problem, where, outcome)
        self.row, self._problem, self._where, self._outcome = row, problem, where, outcome

    def message(self, wanted: str) -> str:
        """Returns the message; `wanted` names the heads that need the row, and is empty or begins with a comma."""
        return f"{self._problem}: {self._where}, row {self.row}{wanted}. {self._outcome}"

    def __str__(self) -> str:
        return self.message("")


def report_not_finite(where: str, rows: list[int], raises: bool, among: str = "") -> None:
    """Warns of rows that hold NaN or Inf, or raises a DataError; does nothing if there are none."""
    if not rows:
        return
    message = (
        f"A column holds NaN or Inf: {where}. Got {len(rows)} such rows{among} (first: "
        f"{', '.join(map(str, rows[:5]))}), expected finite numbers. Fix: clean them, or set "
        'check_finite="off" on the data module.'
    )
    if raises:
        raise DataError(message)
    warnings.warn(message, stacklevel=3)


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns zeros in a buffer that JAX adopts without a copy on a CPU."""
    num_bytes = math.prod(shape) * dtype.itemsize
    # NumPy has no argument for alignment, so the buffer is longer and its start is moved.
    buffer = np.zeros(num_bytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + num_bytes].view(dtype).reshape(shape)


def _beyond_int32(values: np.ndarray) -> tuple[int, str] | None:
    """Finds the first row with an integer outside int32: its place, and what the error says about it."""
    outside = (values > INT32.max) | (values < INT32.min)
    if not outside.any():
        return None
    place = int(np.argmax(outside.reshape(len(values), -1).any(axis=1)))
    return place, (
        f"Got {values[place][outside[place]].flat[0]} of {values.dtype}, expected {INT32.min} to {INT32.max}. Fix: "
        're-number the column, or train with precision="64-true".'
    )


def _is_sparse(value: Any) -> bool:
    """Whether a value is a sparse matrix of SciPy or JAX; those of JAX are pytrees."""
    return not isinstance(value, np.ndarray) and hasattr(value, "todense") and hasattr(value, "shape")


def _check_readable(name: str, column: Any) -> None:
    """Refuses what `numpy.asarray` cannot read or reads wrongly; reads no rows."""
    if _is_sparse(column):
        dense = "toarray()" if hasattr(column, "toarray") else "todense()"
        raise DataError(
            f"A column is a sparse matrix: {name}. Got {type(column).__name__}{list(column.shape)}, expected an array "
            f"with one entry per row. Fix: pass {dense} of it; for rows that do not fit into memory, write a source "
            "whose __getitem__ returns one dense row."
        )
    masked = isinstance(column, np.ma.MaskedArray) and column.dtype.names is None and np.ma.is_masked(column)
    if masked:  # NumPy would drop the mask, and heads would learn from what it hides
        count = np.count_nonzero(np.ma.getmaskarray(column))
        raise DataError(
            f"A column is masked: {name}. Got {count} masked values, expected an array without a "
            "mask. Fix: pass filled(value) of it, or drop the rows."
        )
    if hasattr(column, "__array__") and np.ndim(column) > 0:
        try:
            np.asarray(column[:0])
        except Exception as error:  # such as JAX's typed keys, or a tensor that requires a gradient
            raise DataError(
                f"A column cannot be read as an array: {name}. Got {type(error).__name__}: "
                f"{str(error).rstrip('.'):.200}, expected what numpy.asarray takes. Fix: convert it to a NumPy array."
            ) from error


def _rows_not_finite(values: np.ndarray) -> np.ndarray:
    finite = np.isfinite(values)
    if finite.all():  # one look at all values is several times faster than one per row
        return np.zeros(0, np.int64)
    return np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1))
