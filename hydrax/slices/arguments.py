"""Checks what users hand to slices and rotation: on the host, before anything else, and each refusal names the head."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrax.errors import ArgumentError, SliceError

MAX_ROWS = 2**31 - 1  # Rows are int32.


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """A whole number, low <= value <= high."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise ArgumentError(
            f"Not a whole number in range: argument {name}. Got {value!r:.60}, expected {low} <= {name} <= {high}. "
            f"Fix: pass {name} as an int."
        )
    return int(value)


def array_of(name: str, values: Any) -> NDArray[Any]:
    """The values as an array; NumPy refuses lists of unequal lengths."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ArgumentError(
            f"Lists of unequal lengths: argument {name}. Got {values!r:.60}, expected a plain array. "
            "Fix: give all lists the same length."
        ) from error


def entries(name: str, values: Any, fix: str) -> Iterable[Any]:
    """The values, if they can be gone through; a generator is not emptied."""
    if not isinstance(values, Iterable):
        raise ArgumentError(
            f"Nothing to go through: argument {name}. Got {values!r:.60}, expected a list or a generator. Fix: {fix}."
        )
    return values


def is_mixed(values: Any, array: NDArray[Any]) -> bool:
    """Whether NumPy made text of numbers that stand beside text: of `values` that it made `array` of."""
    kind = {"U": str, "S": bytes}.get(array.dtype.kind)
    return kind is not None and isinstance(values, list | tuple) and not all(isinstance(v, kind) for v in values)


def _fault(array: NDArray[Any]) -> str | None:
    """What keeps an array from being a list of whole numbers, as "Got ..."; None if it is one."""
    if array.ndim > 1:
        return f"an array of shape {list(array.shape)}"
    if array.dtype.kind in "iu" or not array.size:
        return None
    if array.dtype.kind == "f":
        first = np.argmax(array.ravel() != np.rint(array.ravel()))
        return f"{array.ravel()[first]} ({array.dtype}) at position {first}"
    return f"{array.ravel()[0]!r:.60} ({array.dtype}) at position 0"


def column(name: str, values: Any) -> NDArray[np.int64]:
    """A whole number, or one for each head."""
    array = array_of(name, values)
    fault = _fault(array)
    if fault:
        raise ArgumentError(
            f"Not whole numbers: argument {name}. Got {fault}, expected an int or int[heads]. "
            f"Fix: pass {name} as one flat list of ints."
        )
    return array.astype(np.int64)


def in_range(name: str, values: NDArray[np.int64], low: int, high: int, hint: str) -> NDArray[np.int64]:
    """The values, where each is low <= value < high."""
    outside = np.flatnonzero((values < low) | (values >= high))
    if outside.size:
        at = outside[0]
        raise ArgumentError(
            f"Number out of range: argument {name} at position {at}. Got {values.ravel()[at]}, "
            f"expected {low} <= {name} < {high}. Fix: {hint}."
        )
    return values


def seed_per_head(seed: Any, num_heads: int) -> NDArray[np.int64]:
    """A seed for each head: of a single one `seed + h`, so that every head has its own."""
    seeds = column("seed", seed)
    return seeds + np.arange(num_heads) if seeds.ndim == 0 else seeds


def one_per_head(**columns: Any) -> list[NDArray[np.int64]]:
    """Columns of one common length; single numbers are repeated."""
    lengths = {name: np.size(part) for name, part in columns.items() if np.ndim(part)}
    if len(set(lengths.values())) > 1:
        raise ArgumentError(
            f"Arguments disagree on the number of heads: {' and '.join(lengths)}. Got {lengths}, "
            "expected equal lengths. Fix: give each one entry per head, or a single number."
        )
    return [np.atleast_1d(part) for part in np.broadcast_arrays(*columns.values())]


def _empty(head: int | np.integer[Any], length: int | np.integer[Any]) -> SliceError:
    return SliceError(
        f"Slice of head {head} is empty: a head cannot learn from nothing. Got length {length}, expected 1 or more. "
        "Fix: drop the head, or give it a row."
    )


def checked_lengths(lengths: NDArray[np.int64], num_rows: int = MAX_ROWS) -> NDArray[np.int64]:
    """Lengths of at least one head, each 1 <= length <= num_rows; lists, with their duplicates, may be longer."""
    if not lengths.size:
        raise SliceError("No head at all: there is no slice. Got 0 slices, expected 1 or more. Fix: give one per head.")
    empty = np.flatnonzero(lengths < 1)
    if empty.size:
        raise _empty(empty[0], lengths.ravel()[empty[0]])
    long = np.flatnonzero(lengths > num_rows)
    if long.size:
        raise SliceError(
            f"Slice of head {long[0]} is longer than the dataset: argument lengths. Got {lengths.ravel()[long[0]]}, "
            f"expected 1 <= length <= {num_rows}. Fix: shorten it, or pass the longer dataset's num_rows."
        )
    return lengths


def sizes_in_rows(lengths: Any, num_rows: int) -> NDArray[np.int64]:
    """Numbers of rows from exact sizes (ints) or fractions (floats)."""
    array = array_of("lengths", lengths)
    if array.dtype.kind != "f" or array.ndim > 1 or not array.size:
        return column("lengths", lengths)
    mixed = isinstance(lengths, list | tuple) and any(isinstance(length, int | np.integer) for length in lengths)
    outside = np.flatnonzero(~((array > 0) & (array <= 1)))
    if mixed or outside.size:
        head = outside[0] if outside.size else 0
        raise ArgumentError(
            f"Neither sizes nor fractions: argument lengths, head {head}. Got {array.ravel()[head]}, expected ints "
            "1 <= length <= num_rows, or floats 0 < fraction <= 1. Fix: do not mix the two; 1 is one row, 1.0 is all."
        )
    return np.maximum(np.rint(array.astype(np.float64) * num_rows), 1).astype(np.int64)


def rows_of_head(head: int, rows: Any, num_rows: int) -> NDArray[np.int32]:
    """The rows listed for one head: at least one, each 0 <= row < num_rows."""
    array = array_of(f"indices, head {head}", rows)
    fault = _fault(array) or ("a single number" if array.ndim == 0 else None)
    if fault:
        raise SliceError(
            f"Slice of head {head} is not a list of row numbers. Got {fault}, expected int[rows]. "
            "Fix: list whole row numbers; masks go to Slices.from_mask."
        )
    if not array.size:
        raise _empty(head, 0)
    outside = np.flatnonzero((array < 0) | (array >= num_rows))
    if outside.size:
        at, row = outside[0], array[outside[0]]
        raise SliceError(
            f"Slice of head {head} holds row {row} at position {at}. Got {row}, expected 0 <= row < {num_rows}. "
            "Fix: rows count from 0; drop it, or pass the longer dataset."
        )
    return array.astype(np.int32)


def set_of_head(head: int, rows: Any, num_rows: int) -> NDArray[np.int32]:
    """The rows listed for one head, sorted; none may be listed twice."""
    listed = rows_of_head(head, rows, num_rows)
    if (np.diff(listed) > 0).all():
        return listed
    listed.sort()
    twice = np.flatnonzero(np.diff(listed) == 0)
    if twice.size:
        raise SliceError(
            f"Slice of head {head} holds a row twice: a split is a set. Got row {listed[twice[0]]} more than once, "
            "expected distinct rows. Fix: Slices.from_indices keeps copies and order."
        )
    return listed


def joined_lists(lists: Iterable[Any], num_rows: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Lists of rows as (all rows one after the other, length of each list)."""
    arrays = [rows_of_head(head, rows, num_rows) for head, rows in enumerate(lists)]
    lengths = checked_lengths(np.fromiter(map(len, arrays), np.int64, len(arrays)))
    return np.concatenate(arrays), lengths


def labels_of_rows(name: str, labels: Any, num_rows: int | None = None) -> NDArray[Any]:
    """One label per row: ints, strings or bools, [N]."""
    array = array_of(name, labels)
    if array.dtype == object and array.ndim == 1 and all(isinstance(label, str) for label in array):
        array = array.astype(str)
    mixed = is_mixed(labels, array)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iubUS" or mixed:
        got = f"{labels!r:.60}" if mixed else f"{array.dtype}{list(array.shape)}"
        raise ArgumentError(
            f"Not one label per row, all of one type: argument {name}. Got {got}, expected ints, strings or "
            f"bools[rows]. Fix: pass {name} as one flat array; of whole floats `{name}.astype(int)`."
        )
    if num_rows not in (None, array.size):
        raise ArgumentError(
            f"Labels and dataset differ in rows: argument {name}. Got {array.size} labels, expected {num_rows}. "
            "Fix: give every row of the dataset its label."
        )
    whole_number("num_rows", array.size, 1, MAX_ROWS)
    return array


def weight_table(weights: Any) -> NDArray[Any]:
    """Weights[heads, rows]: ints or floats, finite, none below 0, some above 0 in each head."""
    table = array_of("weights", weights)
    if table.ndim != 2 or table.dtype.kind not in "iuf":
        raise ArgumentError(
            f"Not weights: argument weights. Got {table.dtype}{list(table.shape)}, expected ints or floats[heads, "
            "rows]. Fix: give each head one number per row; masks go to Slices.from_mask."
        )
    for head, line in enumerate(table):
        wrong = np.flatnonzero(~((line >= 0) & (line < np.inf)))
        if wrong.size:
            raise SliceError(
                f"A weight is negative or not finite: head {head}, row {wrong[0]}. Got {line[wrong[0]]}, expected "
                "0 <= weight < inf. Fix: 0 leaves a row out."
            )
        if not line.any():
            raise SliceError(
                f"Slice of head {head} is empty: all its weights are 0. Got 0 in {line.size} rows, expected a weight "
                "above 0. Fix: drop the head, or give a row a weight."
            )
    return table


def lengths_of_copies(weights: NDArray[np.integer]) -> NDArray[np.int64]:
    """The length of each slice, int64[H], of the copies of every row, [H, N]; none is above MAX_ROWS."""
    # Floats cannot wrap around, and as far as a slice may go they are exact.
    totals: NDArray[np.float64] = weights.sum(axis=1, dtype=np.float64)
    long = np.flatnonzero(totals > MAX_ROWS)
    if long.size:
        raise SliceError(
            f"Slice of head {long[0]} has too many rows: argument weights, which are copies. Got "
            f"{totals[long[0]]:.0f} in all, expected a sum <= {MAX_ROWS}. "
            "Fix: pass the length of each slice, and the weights are proportions."
        )
    return totals.astype(np.int64)


def mask_table(mask: Any) -> NDArray[np.bool_]:
    """bool[heads, rows]."""
    if isinstance(mask, list | tuple):
        lengths = [array_of("mask", line).size for line in mask]
        other = [head for head, size in enumerate(lengths) if size != lengths[0]]
        if other:
            raise SliceError(
                f"Mask of head {other[0]} has another length than that of head 0. Got {lengths[other[0]]}, "
                f"expected {lengths[0]}. Fix: give each head one boolean per row of the dataset."
            )
    table = array_of("mask", mask)
    if table.dtype != np.bool_ or table.ndim != 2:
        raise ArgumentError(
            f"Not a mask: argument mask. Got {table.dtype}{list(table.shape)}, expected bool[heads, rows]. "
            "Fix: give each head one boolean per row; row numbers go to Slices.from_indices."
        )
    return table
