"""Access to the rows of a dataset on the host: of arrays (`ArrayRows`) or of a random-access source (`SourceRows`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hydrax.data.columns import INT32, BadRow, Column, check_column, check_dataset
from hydrax.data.maps import MappedColumn, memory_map
from hydrax.errors import DataError

_PART_BYTES = 2**20  # Read from arrays at once: while it is narrowed and checked, it stays in a core's cache.
_PART_ITEMS = 32  # Read from a source at once: enough to outweigh starting a task, few enough to share evenly.


class ArrayRows:
    """Rows of arrays and memory maps; no column is ever copied or checked as a whole."""

    def __init__(self, dataset: Any, stage: str, wide: bool) -> None:
        leaves, self.structure = jax.tree.flatten(dataset)
        # Checked without rows: a check of all values would read a whole memory map.
        self.columns = _columns(jax.tree.map(_no_rows, dataset), stage, wide)
        self._arrays = [np.asarray(leaf) for leaf in leaves]
        _check_lengths([len(array) for array in self._arrays], self.structure, stage)
        self.num_rows = len(self._arrays[0])
        self._maps, self._in_memory = [], []
        for column, array in zip(self.columns, self._arrays, strict=True):
            if (found := memory_map(array)) is None:
                self._in_memory.append((column, array))
            else:
                self._maps.append(MappedColumn(column.name, array, found))
        self.part_rows = max(1, _PART_BYTES // max(1, sum(column.row_bytes for column in self.columns)))
        for mapped in self._maps:
            mapped.check(np.zeros(0, np.int64))

    def fill(self, rows: np.ndarray, out: Sequence[np.ndarray], check: Sequence[bool]) -> list[list[int]]:
        """Reads rows int[U] into one array [U, ...] per column.

        Args:
          rows: the rows to read.
          out: the arrays to fill, one per column.
          check: for each column, whether to look for NaN and Inf.

        Returns:
          For each column, the rows that hold NaN or Inf.
        """
        for mapped in self._maps:
            mapped.check(rows)  # at each read, since the file may be cut short at any time
        found = [
            column.store(_take(array, rows, values if array.dtype == column.dtype else None), rows, values, one_check)
            for column, array, values, one_check in zip(self.columns, self._arrays, out, check, strict=True)
        ]
        # Pages that were read need not stay in memory: the map may be larger than the machine.
        for mapped in self._maps:
            mapped.release(rows)
        return found

    def in_memory(self) -> Iterator[np.ndarray]:
        """Yields the columns that are not memory maps in parts [U, ...], in the dtype of the device."""
        for column, array in self._in_memory:
            for start in range(0, self.num_rows, self.part_rows):
                # A number that float32 cannot hold becomes infinite here as it does on the device.
                with np.errstate(over="ignore"):
                    yield array[start : start + self.part_rows].astype(column.dtype, copy=False)


class SourceRows:
    """Rows of a random-access source, one item per row. Row 0 sets the structure, shapes and dtypes of all rows."""

    part_rows = _PART_ITEMS

    def __init__(self, source: Any, stage: str, wide: bool) -> None:
        self._source, self._name = source, f"{stage} dataset"
        self.num_rows = self._length()
        _check_lengths([self.num_rows], jax.tree.structure(0), stage)  # before row 0 is read: there may be none
        item = self._item(0)
        self.structure: Any = jax.tree.structure(item)
        empty = [np.empty((0, *leaf.shape), leaf.dtype) for leaf in self._leaves(0, item)]
        self.columns = _columns(jax.tree.unflatten(self.structure, empty), stage, wide)
        _check_lengths([self.num_rows] * len(self.columns), self.structure, stage)

    def fill(
        self,
        rows: np.ndarray,
        out: Sequence[np.ndarray],
        check: Sequence[bool],
        before_row: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """Does what `ArrayRows.fill` does.

        Args:
          before_row: called with each row before it is read. Rows are then read one by one, even if the source can read
            many at once.
        """
        # Items go straight into `out` unless their dtype must change first.
        values = [
            one_out if column.stored == column.dtype else np.empty((len(rows), *column.shape), column.stored)
            for column, one_out in zip(self.columns, out, strict=True)
        ]
        for place, (row, item) in enumerate(self._items(rows.tolist(), before_row)):
            for column, one_values, leaf in zip(self.columns, values, self._leaves(row, item), strict=True):
                if leaf.shape != column.shape or leaf.dtype != column.stored:
                    got = f"{column.name} {leaf.dtype}{list(leaf.shape)}"
                    raise self._other_than_first(row, got, f"{column.stored}{list(column.shape)}")
                one_values[place] = leaf
        return [
            column.store(one_values, rows, one_out, one_check)
            for column, one_values, one_out, one_check in zip(self.columns, values, out, check, strict=True)
        ]

    def in_memory(self) -> Iterator[np.ndarray]:
        """Yields nothing: only the source knows where its rows are."""
        return iter(())

    def _length(self) -> int:
        try:
            return len(self._source)
        except Exception as error:
            raise DataError(
                f"A source has no valid length: {self._name}. Got {_short(error)}, expected an int from 1 to "
                f"{INT32.max}. Fix: return the number of rows from __len__."
            ) from error

    def _items(self, rows: list[int], before_row: Callable[[int], None] | None) -> Iterable[tuple[int, Any]]:
        if before_row is not None:
            # One by one: if the process dies, the row to blame is known.
            for row in rows:
                before_row(row)
                yield row, self._item(row)
        elif not hasattr(self._source, "__getitems__"):
            yield from ((row, self._item(row)) for row in rows)
        else:
            yield from zip(rows, self._many_items(rows), strict=True)

    def _many_items(self, rows: list[int]) -> Sequence[Any]:
        try:
            # The whole list in one call lets a source sort its reads, or fetch them in parallel.
            items: Sequence[Any] = self._source.__getitems__(rows)
            count = len(items)
        except Exception as error:
            for row in rows:
                self._item(row)  # read one by one, the row to blame raises an error that names it
            raise self._unreadable(rows[0], error, "correct __getitems__: __getitem__ reads these rows") from error
        if count != len(rows):
            raise BadRow(
                rows[0],
                "A source's __getitems__ returned the wrong number of items",
                self._name,
                f"Got {count}, expected {len(rows)}, one per row. Fix: return one item per row, in the order given.",
            )
        for row, item in zip(rows, items, strict=True):
            self._check_there(row, item)
        return items

    def _item(self, row: int) -> Any:
        try:
            item = self._source[row]
        except (IndexError, StopIteration) as error:  # what a source raises beyond its end
            raise self._missing(row, _short(error)) from error
        except Exception as error:
            raise self._unreadable(row, error, "correct that row, or leave it out of the source") from error
        self._check_there(row, item)
        return item

    def _check_there(self, row: int, item: Any) -> None:
        if item is None:
            raise self._missing(row, "None")

    def _leaves(self, row: int, item: Any) -> list[np.ndarray]:
        leaves, structure = jax.tree.flatten(item)
        if structure != self.structure:
            raise self._other_than_first(row, f"{structure!s:.80}", f"{self.structure!s:.80}")
        try:
            return [np.asarray(leaf) for leaf in leaves]
        except Exception as error:
            raise self._unreadable(row, error, "return arrays and numbers") from error

    def _missing(self, row: int, got: str) -> BadRow:
        return BadRow(
            row,
            "The source reports the wrong length",
            self._name,
            f"Got {got}, expected a row for 0 <= row < {self.num_rows}, the reported length. Fix: return the true "
            "number of rows from __len__; apply filters beforehand.",
        )

    def _unreadable(self, row: int, error: Exception, fix: str) -> BadRow:
        outcome = f"Got {_short(error)}, expected a pytree of arrays and numbers. Fix: {fix}."
        return BadRow(row, "A row cannot be read", self._name, outcome)

    def _other_than_first(self, row: int, got: str, expected: str) -> BadRow:
        outcome = f"Got {got}, expected {expected}, as in row 0. Fix: give all rows one structure, shape and dtype."
        return BadRow(row, "A row differs from row 0", self._name, outcome)


def is_source(dataset: Any) -> bool:
    """Whether a dataset is a random-access source, and not a pytree of arrays.

    A source has `__len__` and `__getitem__(int)`, and is not an array, dict, tuple, list, string or other pytree.
    """
    # Registered pytrees, such as dataclasses, are datasets whose leaves are columns.
    is_container = isinstance(dataset, Mapping | str | bytes | bytearray) or not jax.tree_util.all_leaves([dataset])
    is_array = hasattr(dataset, "__array__")
    return not (is_container or is_array) and hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


def _take(array: np.ndarray, rows: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    # np.take is 3 to 6 times faster than indexing, but first copies the whole of an array that is not in C order.
    if array.flags.c_contiguous and array.flags.aligned:
        return np.take(array, rows, axis=0, out=out, mode="clip")
    chosen: np.ndarray = array[rows]
    return chosen


def _columns(empty: Any, stage: str, wide: bool) -> list[Column]:
    """Describes the columns of a dataset, given with its dtypes and shapes but without rows."""
    columns = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(empty)[0]:
        name = f"{stage} dataset{jax.tree_util.keystr(path)}"
        dtype = check_column(name, leaf, wide).dtype
        columns.append(Column(name, leaf.shape[1:], leaf.dtype, dtype))
    return columns


def _no_rows(leaf: Any) -> Any:
    is_column = hasattr(leaf, "__array__") and np.ndim(leaf) > 0
    return np.asarray(leaf[:0]) if is_column else leaf


def _check_lengths(lengths: Sequence[int], structure: Any, stage: str) -> None:
    # Arrays of one byte with the same lengths go through the checks of a dataset in memory, which reads no data.
    check_dataset(jax.tree.unflatten(structure, [np.broadcast_to(np.False_, (length,)) for length in lengths]), stage)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error!s:.80}" if str(error) else type(error).__name__
