"""Checks of what users pass to slices and rotation. They run on the host, before anything else, and name the head."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrax.arguments import is_choice, is_int, is_number
from hydrax.errors import ArgumentError, SliceError

MAX_ROWS = 2**31 - 1  # Rows are int32.
# More heads than any machine trains, and few enough for 32 bytes of each to fit into memory: a mistyped number is
# refused before it takes the machine down.
MAX_HEADS = 10**8


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """Check for a whole number, low <= value <= high."""
    if not is_int(value, low) or value > high:
        raise ArgumentError(
            f"Not a whole number in range: argument {name}. Got {value!r:.60}, expected {low} <= {name} <= {high}. "
            f"Fix: pass {name} as an int."
        )
    return int(value)


def array_of(name: str, values: Any) -> NDArray[Any]:
    """Convert values to an array; lists of unequal lengths are refused."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ArgumentError(
            f"Lists of unequal lengths: argument {name}. Got {values!r:.60}, expected a plain array. "
            "Fix: make all lists the same length."
        ) from error
    except Exception as error:  # such as JAX's typed keys, which NumPy cannot hold
        raise ArgumentError(
            f"Not an array: argument {name}. Got {values!r:.60} ({type(error).__name__}), expected what numpy.asarray "
            "takes. Fix: pass a list of numbers."
        ) from error


def entries(name: str, values: Any, fix: str) -> Iterable[Any]:
    """Check that values can be iterated over, without consuming a generator."""
    # An array without axes has the method of an iterable, but nothing to iterate over.
    if not isinstance(values, Iterable) or (hasattr(values, "ndim") and values.ndim == 0):
        raise ArgumentError(
            f"Not iterable: argument {name}. Got {values!r:.60}, expected a list or a generator. Fix: {fix}."
        )
    return values


def is_mixed(values: Any, array: NDArray[Any]) -> bool:
    """Tell whether NumPy turned numbers into text, because they came in one list with text."""
    kind = {"U": str, "S": bytes}.get(array.dtype.kind)
    return kind is not None and isinstance(values, list | tuple) and not all(isinstance(v, kind) for v in values)


def _fault(array: NDArray[Any]) -> str | None:
    """Describe why an array is not a list of whole numbers, for use after "Got"; None if it is one."""
    if array.ndim > 1:
        return f"an array of shape {list(array.shape)}"
    if array.dtype.kind in "iu" or not array.size:
        return None
    if array.dtype.kind == "f":
        first = np.argmax(array.ravel() != np.rint(array.ravel()))
        return f"{array.ravel()[first]} ({array.dtype}) at position {first}"
    return f"{array.ravel()[0]!r:.60} ({array.dtype}) at position 0"


def column(name: str, values: Any) -> NDArray[np.int64]:
    """Check for one whole number, or one for each head."""
    array = array_of(name, values)
    if array.dtype.kind == "O" and array.size and all(isinstance(one, int) for one in array.ravel()):
        raise _too_large(name, max(array.ravel(), key=abs))
    fault = _fault(array)
    if fault:
        raise ArgumentError(
            f"Not whole numbers: argument {name}. Got {fault}, expected an int or int[heads]. "
            f"Fix: pass {name} as one flat list of ints."
        )
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise _too_large(name, array.max())  # int64 would wrap around to a negative number
    return array.astype(np.int64)


def _too_large(name: str, value: int) -> ArgumentError:
    return ArgumentError(
        f"Number out of range: argument {name}. Got {value}, expected an int of 64 bits. Fix: pass a smaller {name}."
    )


def in_range(name: str, values: NDArray[np.int64], low: int, high: int, hint: str) -> NDArray[np.int64]:
    """Check that every value is low <= value < high."""
    outside = np.flatnonzero((values < low) | (values >= high))
    if outside.size:
        at = outside[0]
        raise ArgumentError(
            f"Number out of range: argument {name} at position {at}. Got {values.ravel()[at]}, "
            f"expected {low} <= {name} < {high}. Fix: {hint}."
        )
    return values


def seed_per_head(seed: Any, num_heads: int) -> NDArray[np.int64]:
    """Return the seeds as given; a single seed becomes `seed + h`, so that every head has its own."""
    seeds = column("seed", seed)
    return seeds + np.arange(num_heads) if seeds.ndim == 0 else seeds


def one_per_head(**columns: Any) -> list[NDArray[np.int64]]:
    """Bring columns to one common length; single numbers are repeated."""
    lengths = {name: np.size(part) for name, part in columns.items() if np.ndim(part)}
    if len(set(lengths.values())) > 1:
        raise ArgumentError(
            f"Arguments disagree on the number of heads: {' and '.join(lengths)}. Got {lengths}, "
            "expected equal lengths. Fix: pass one entry per head, or a single number, for each."
        )
    return [np.atleast_1d(part) for part in np.broadcast_arrays(*columns.values())]


def lengths_and_keys(
    lengths: NDArray[np.int64], seeds: NDArray[np.int64], **others: Any
) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    """Bring lengths and seeds to one per head, as many as the other columns have, in the types that parts keep."""
    *_, lengths, seeds = one_per_head(**others, lengths=lengths, seed=seeds)
    in_range("seed", seeds, 0, 2**32, "pass a whole number that fits into 32 bits")
    return lengths.astype(np.int32), seeds.astype(np.uint32)


def positions(heads: Any, num_heads: int) -> NDArray[np.int64]:
    """Convert an int, slice, list, int array or bool mask to distinct positions 0..H-1, at least one."""
    if isinstance(heads, slice):
        try:
            at = np.arange(num_heads)[heads]
        except (TypeError, ValueError) as error:  # bounds that are no ints, or a step of 0
            raise ArgumentError(
                f"Not a range of heads: argument heads. Got {heads!r:.60} ({error}), expected ints and a step other "
                f"than 0. Fix: pass for example slices[0:{num_heads}:2]."
            ) from error
    else:
        given = array_of("heads", heads)
        if given.dtype == np.bool_ and given.shape == (num_heads,):
            at = np.flatnonzero(given)
        else:
            at = in_range("heads", column("heads", given), -num_heads, num_heads, f"there are {num_heads} heads")
            at = np.atleast_1d(at % num_heads)
    if np.unique(at).size != at.size or not at.size:
        raise SliceError(
            f"A head is selected twice, or none is selected: argument heads. Got {at.size} positions, "
            f"{np.unique(at).size} of them distinct, expected one or more distinct positions. "
            "Fix: select each head once; Slices.concatenate makes copies with ids of their own."
        )
    return at


def offsets_inside(offsets: Any, lengths: NDArray[np.int32]) -> NDArray[np.uint32]:
    """Check offsets[H, B], each 0 <= offset < length of its slice."""
    array = array_of("offsets", offsets)
    if array.ndim != 2 or len(array) != lengths.size or array.dtype.kind not in "iu":
        raise ArgumentError(
            f"Offsets of the wrong shape or type: argument offsets. Got {array.dtype}{list(array.shape)}, "
            f"expected integers[{lengths.size}, slots]. Fix: pass one list of whole numbers for each head."
        )
    outside = (array < 0) | (array >= lengths[:, None])
    if outside.any():
        head, slot = np.argwhere(outside)[0]
        raise ArgumentError(
            f"Offset outside its slice: head {head}, slot {slot}. Got {array[head, slot]}, expected "
            f"0 <= offset < {lengths[head]}. Fix: offsets count inside the slice, not inside the dataset."
        )
    return array.astype(np.uint32)


def _empty(head: int | np.integer[Any], length: int | np.integer[Any]) -> SliceError:
    return SliceError(
        f"Slice of head {head} is empty: a head needs a row to learn from. Got length {length}, expected 1 or more. "
        "Fix: leave the head out, or give it a row."
    )


def checked_lengths(lengths: NDArray[np.int64], num_rows: int = MAX_ROWS) -> NDArray[np.int64]:
    """Check the lengths of at least one head, each 1 <= length <= num_rows."""
    if not lengths.size:
        raise SliceError("No slices: a fit needs at least one head. Got 0, expected 1 or more. Fix: add a head.")
    empty = np.flatnonzero(lengths < 1)
    if empty.size:
        raise _empty(empty[0], lengths.ravel()[empty[0]])
    long = np.flatnonzero(lengths > num_rows)
    if long.size:
        raise SliceError(
            f"Slice of head {long[0]} is longer than the dataset: argument lengths. Got {lengths.ravel()[long[0]]}, "
            f"expected 1 <= length <= {num_rows}. Fix: shorten it, or pass the num_rows of the longer dataset."
        )
    return lengths


def windows_inside(starts: Any, lengths: Any, num_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Check windows, and return starts and lengths, one per head each."""
    rows, first = checked_lengths(column("lengths", lengths), num_rows), column("starts", starts)
    first, rows = one_per_head(starts=first, lengths=rows)
    past = np.flatnonzero((first < 0) | (first > num_rows - rows))
    if past.size:
        head = past[0]
        raise SliceError(
            f"Window outside the dataset: slice of head {head}. Got start {first[head]}, length {rows[head]}, "
            f"expected 0 <= start <= {num_rows} - length. Fix: move the window, or shorten it."
        )
    return first, rows


def expanding_ends(initial: int, step: int, last: int) -> NDArray[np.int64]:
    """Return the ends initial, initial + step, ... up to last, unless they are too many."""
    num_heads = len(range(initial, last + 1, step))
    if num_heads > MAX_HEADS:
        raise ArgumentError(
            f"Too many heads: argument step. Got {step}, which makes {num_heads} heads, expected at most {MAX_HEADS}. "
            "Fix: pass a larger step."
        )
    return np.arange(initial, last + 1, step)


def sizes_in_rows(lengths: Any, num_rows: int) -> NDArray[np.int64]:
    """Convert exact sizes (ints) or fractions of the dataset (floats) to numbers of rows."""
    array = array_of("lengths", lengths)
    if array.dtype.kind != "f" or array.ndim > 1 or not array.size:
        return column("lengths", lengths)
    # NumPy makes floats of [0.5, 1]. The 1 could mean one row or the whole dataset, so the mixture is refused.
    mixed = isinstance(lengths, list | tuple) and any(map(is_int, lengths))
    outside = np.flatnonzero(~((array > 0) & (array <= 1)))
    if mixed or outside.size:
        head = outside[0] if outside.size else 0
        raise ArgumentError(
            f"Neither sizes nor fractions: argument lengths, head {head}. Got {array.ravel()[head]}, expected ints "
            "1 <= length <= num_rows, or floats 0 < fraction <= 1. Fix: do not mix the two; 1 is one row, 1.0 is all."
        )
    return np.maximum(np.rint(array.astype(np.float64) * num_rows), 1).astype(np.int64)


def rows_of_head(head: int, rows: Any, num_rows: int) -> NDArray[np.int32]:
    """Check the rows listed for one head: at least one, each 0 <= row < num_rows."""
    array = array_of(f"indices, head {head}", rows)
    fault = _fault(array) or ("a single number" if array.ndim == 0 else None)
    if fault:
        raise SliceError(
            f"Slice of head {head} is not a list of row numbers. Got {fault}, expected int[rows]. "
            "Fix: list whole row numbers; pass masks to Slices.from_mask."
        )
    if not array.size:
        raise _empty(head, 0)
    outside = np.flatnonzero((array < 0) | (array >= num_rows))
    if outside.size:
        at, row = outside[0], array[outside[0]]
        raise SliceError(
            f"Slice of head {head} holds row {row} at position {at}. Got {row}, expected 0 <= row < {num_rows}. "
            "Fix: drop the row (rows count from 0), or pass the num_rows of the longer dataset."
        )
    return array.astype(np.int32)


def ends_of_windows(initial: Any, step: Any, num_rows: Any, horizon: Any) -> tuple[int, NDArray[np.int64]]:
    """Check the arguments of `Slices.expanding_window` and return N and the length of each window, int64[H]."""
    num_rows = whole_number("num_rows", num_rows, 1, MAX_ROWS)
    initial, step = whole_number("initial", initial, 1, MAX_ROWS), whole_number("step", step, 1, MAX_ROWS)
    horizon = whole_number("horizon", horizon, 0, MAX_ROWS)
    if initial + horizon > num_rows:
        raise SliceError(
            f"Window outside the dataset: slice of head 0. Got initial {initial}, horizon {horizon}, expected "
            f"initial + horizon <= {num_rows}. Fix: shorten one of them."
        )
    return num_rows, expanding_ends(initial, step, num_rows - horizon)


def set_of_head(head: int, rows: Any, num_rows: int) -> NDArray[np.int32]:
    """Check and sort the rows listed for one head; none may be listed twice."""
    listed = rows_of_head(head, rows, num_rows)
    if (np.diff(listed) > 0).all():
        return listed
    listed.sort()
    twice = np.flatnonzero(np.diff(listed) == 0)
    if twice.size:
        raise SliceError(
            f"Slice of head {head} holds a row twice: a split is a set. Got row {listed[twice[0]]} more than once, "
            "expected distinct rows. Fix: use Slices.from_indices, which keeps copies and order."
        )
    return listed


def parts_of_splits(
    splits: Iterable[Any], num_rows: int, part: str
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Yield the named part of every split, "train" or "test", and then the other: sorted and distinct rows."""
    if not is_choice(part, ("train", "test")):
        raise ArgumentError(
            f"Unknown part of a split: argument part. Got {part!r}, expected 'train' or 'test'. "
            "Fix: pass 'train' for the rows to learn from, or 'test' for those held out."
        )
    number = -1
    for number, split in enumerate(splits):
        if not isinstance(split, tuple | list) or len(split) != 2:
            raise SliceError(
                f"Not a split: head {number}. Got {split!r:.60}, expected a pair (train rows, test rows). "
                "Fix: pass what `splitter.split(X, y)` yields."
            )
        rows, other = split if part == "train" else reversed(split)
        rows = set_of_head(number, rows, num_rows)
        # A head needs rows to learn from, but not to be tested on.
        other = set_of_head(number, other, num_rows) if np.size(other) else np.empty(0, np.int32)
        both = other[rows[np.searchsorted(rows, other).clip(max=rows.size - 1)] == other]
        if both.size:
            raise SliceError(
                f"Train and test rows of a split overlap: head {number}. Got row {both[0]} in both, expected it in one "
                "of them. Fix: use Slices.from_indices for lists of rows that are no splits."
            )
        yield rows, other
    checked_lengths(np.ones(number + 1, np.int64))  # A generator shows only at its end that it was empty.


def joined_lists(lists: Iterable[Any], num_rows: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Check lists of rows and return (all rows one after the other, length of each list)."""
    arrays = [rows_of_head(head, rows, num_rows) for head, rows in enumerate(lists)]
    lengths = checked_lengths(np.fromiter(map(len, arrays), np.int64, len(arrays)))
    return np.concatenate(arrays), lengths


def labels_of_rows(name: str, labels: Any, num_rows: int | None = None) -> NDArray[Any]:
    """Check for one label per row: ints, strings or bools, [N]."""
    array = array_of(name, labels)
    if array.dtype == object and array.ndim == 1 and all(isinstance(label, str) for label in array):
        array = array.astype(str)  # A column of text from pandas.
    mixed = is_mixed(labels, array)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iubUS" or mixed:
        got = f"{labels!r:.60}" if mixed else f"{array.dtype}{list(array.shape)}"
        raise ArgumentError(
            f"Not one label per row, all of one type: argument {name}. Got {got}, expected ints, strings or "
            f"bools[rows]. Fix: pass {name} as one flat array; convert whole floats by `{name}.astype(int)`."
        )
    if num_rows not in (None, array.size):
        raise ArgumentError(
            f"Labels and dataset differ in rows: argument {name}. Got {array.size} labels, expected {num_rows}. "
            "Fix: pass one label for every row of the dataset."
        )
    whole_number("num_rows", array.size, 1, MAX_ROWS)
    return array


def concentration(alpha: Any) -> float:
    """Check the parameter of a symmetric Dirichlet distribution."""
    if not is_number(alpha) or not 0 < alpha <= 1e9:
        raise ArgumentError(
            f"Invalid concentration: argument alpha. Got {alpha!r:.60}, expected a number 0 < alpha <= 1e9. "
            "Fix: pass 0.1 for few classes per head, or 100 for the same mixture in all."
        )
    return float(alpha)


def weight_table(weights: Any) -> NDArray[Any]:
    """Check weights[heads, rows]: ints or floats, finite, none below 0, some above 0 in each head."""
    table = array_of("weights", weights)
    if table.ndim != 2 or table.dtype.kind not in "iuf":
        raise ArgumentError(
            f"Invalid weights: argument weights. Got {table.dtype}{list(table.shape)}, expected ints or floats[heads, "
            "rows]. Fix: pass one number per head and row; pass masks to Slices.from_mask."
        )
    checked_lengths(np.ones(len(table), np.int64))  # a table without a line has no heads
    for head, line in enumerate(table):
        wrong = np.flatnonzero(~((line >= 0) & (line < np.inf)))
        if wrong.size:
            raise SliceError(
                f"A weight is negative or not finite: head {head}, row {wrong[0]}. Got {line[wrong[0]]}, expected "
                "0 <= weight < inf. Fix: use 0 to leave a row out."
            )
        if not line.any():
            raise SliceError(
                f"Slice of head {head} is empty: all its weights are 0. Got 0 in {line.size} rows, expected a weight "
                "above 0. Fix: leave the head out, or give a row a weight."
            )
    return table


def lengths_of_copies(weights: NDArray[Any]) -> NDArray[np.int64]:
    """Sum copies of rows, ints[H, N], to the length of each slice, int64[H], at most MAX_ROWS."""
    if weights.dtype.kind == "f":
        raise ArgumentError(
            "Float weights without lengths: argument lengths. Got None, expected int[heads]. "
            "Fix: pass the length of each slice, or numbers of copies as ints."
        )
    # Floats cannot wrap around, and up to MAX_ROWS they are exact.
    totals: NDArray[np.float64] = weights.sum(axis=1, dtype=np.float64)
    long = np.flatnonzero(totals > MAX_ROWS)
    if long.size:
        raise SliceError(
            f"Slice of head {long[0]} has too many rows: argument weights, read as copies. Got "
            f"{totals[long[0]]:.0f} in all, expected a sum <= {MAX_ROWS}. "
            "Fix: pass lengths as well; weights are then proportions."
        )
    return totals.astype(np.int64)


def mask_table(mask: Any) -> NDArray[np.bool_]:
    """Check for bool[heads, rows]."""
    if isinstance(mask, list | tuple):
        lengths = [array_of("mask", line).size for line in mask]
        other = [head for head, size in enumerate(lengths) if size != lengths[0]]
        if other:
            raise SliceError(
                f"Mask of head {other[0]} differs in length from that of head 0. Got {lengths[other[0]]}, "
                f"expected {lengths[0]}. Fix: pass one boolean per head and row of the dataset."
            )
    table = array_of("mask", mask)
    if table.dtype != np.bool_ or table.ndim != 2:
        raise ArgumentError(
            f"Invalid mask: argument mask. Got {table.dtype}{list(table.shape)}, expected bool[heads, rows]. "
            "Fix: pass one boolean per head and row; pass row numbers to Slices.from_indices."
        )
    return table
