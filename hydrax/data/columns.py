"""Checks the columns of a dataset that is in memory, and gives them the dtypes the device will hold."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.errors import DataError

INT32 = np.iinfo(np.int32)
# On a CPU jax takes a buffer that starts at a multiple of this as it is; it copies others, so nearly all of NumPy's.
_ALIGNMENT = 64


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
    columns = [check_column(name, leaf, wide) for name, leaf in named]
    first_name, first = named[0][0], columns[0]
    for (name, _), column in zip(named, columns, strict=True):
        if len(column) != len(first):
            raise DataError(
                f"Columns differ in length: {name}. Got {len(column)} rows, expected {len(first)}, as {first_name} "
                "has. Fix: give every column one entry for each row."
            )
    if len(first) == 0 or len(first) > INT32.max:
        raise DataError(
            f"A dataset has no usable number of rows: {first_name}. Got {len(first)}, expected 1 to {INT32.max}. Fix: "
            "check how it was loaded."
        )
    for (name, _), column in zip(named, columns, strict=True):
        _check_finite(name, column, check_finite)
    return jax.tree.unflatten(treedef, columns)


def num_rows(dataset: Any) -> int:
    """Leading length N of a checked dataset."""
    return len(jax.tree.leaves(dataset)[0])


def check_column(name: str, leaf: Any, wide: bool) -> np.ndarray:
    """A column as an array in a dtype that the device can hold; `name` names it in errors."""
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
        outside = (column > INT32.max) | (column < INT32.min)
        if outside.any():
            row = int(np.argmax(outside.reshape(len(column), -1).any(axis=1)))
            raise DataError(
                f"An integer does not fit 32 bits: {name}, row {row}. Got {column[row]} of {column.dtype}, "
                f'expected {INT32.min} to {INT32.max}. Fix: re-number the column, or train with precision="64-true".'
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


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros in a buffer that jax on a CPU takes without a copy."""
    num_bytes = math.prod(shape) * dtype.itemsize
    buffer = np.zeros(num_bytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + num_bytes].view(dtype).reshape(shape)
