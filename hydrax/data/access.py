"""How rows are read off a dataset that stays on the host: from arrays, or item by item from a source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.data.bad_row import BadRow
from hydrax.data.columns import INT32, check_column, check_dataset
from hydrax.data.maps import MappedColumn, memory_map
from hydrax.errors import DataError

_PART_BYTES = 2**20  # Of arrays read at once: what it takes to narrow and check them stays in a core's cache.
_PART_ITEMS = 32  # Of a source read at once: many times what a task costs, and small enough to share out evenly.


@dataclass(frozen=True)
class Column:
    """One leaf of the dataset.

    Attributes:
      name: for errors, such as `train dataset['image']`.
      shape: of a row.
      stored: dtype in the dataset.
      dtype: dtype the device will hold.
    """

    name: str
    shape: tuple[int, ...]
    stored: np.dtype
    dtype: np.dtype

    @property
    def is_inexact(self) -> bool:
        """Whether it can hold NaN or Inf."""
        return bool(jnp.issubdtype(self.dtype, np.inexact))

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def store(self, values: np.ndarray, rows: np.ndarray, out: np.ndarray, check: bool) -> list[int]:
        """Puts values [U, ...] into `out`, narrowed where need be.

        Returns:
          The rows among `rows` that hold NaN or Inf, if `check`.

        Raises:
          BadRow: an integer does not fit 32 bits.
        """
        if values is not out:
            if self.stored.kind in "iu" and self.dtype.itemsize < self.stored.itemsize:
                self._check_range(values, rows)
            with np.errstate(over="ignore"):  # a number beyond float32 becomes Inf, which `check` finds
                np.copyto(out, values, casting="unsafe")
        if not check or np.isfinite(out).all():
            return []
        bad: list[int] = rows[~np.isfinite(out).reshape(len(out), -1).all(axis=1)].tolist()
        return bad

    def _check_range(self, values: np.ndarray, rows: np.ndarray) -> None:
        outside = (values > INT32.max) | (values < INT32.min)
        if outside.any():
            at = int(np.argmax(outside.reshape(len(values), -1).any(axis=1)))
            raise BadRow(
                int(rows[at]),
                "An integer does not fit 32 bits",
                self.name,
                f"Got {values[at][outside[at]].flat[0]} of {self.stored}, expected {INT32.min} to {INT32.max}. Fix: "
                're-number the column, or train with precision="64-true".',
            )


class ArrayRows:
    """Rows of arrays, memory maps among them; no column is ever copied or checked as a whole."""

    def __init__(self, dataset: Any, stage: str, wide: bool) -> None:
        leaves, self.structure = jax.tree.flatten(dataset)
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
        """Reads rows int[U] into arrays [U, ...], one for each column; gives back the rows that are not finite."""
        for mapped in self._maps:
            mapped.check(rows)
        found = [
            column.store(_take(array, rows, values if array.dtype == column.dtype else None), rows, values, one_check)
            for column, array, values, one_check in zip(self.columns, self._arrays, out, check, strict=True)
        ]
        for mapped in self._maps:
            mapped.release(rows)
        return found

    def in_memory(self) -> Iterator[np.ndarray]:
        """The columns that are no maps, one after the other, in parts [U, ...] of the dtype the device will hold."""
        for column, array in self._in_memory:
            for start in range(0, self.num_rows, self.part_rows):
                with np.errstate(over="ignore"):
                    yield array[start : start + self.part_rows].astype(column.dtype, copy=False)


class SourceRows:
    """Rows of a random-access source, each an item of its own; row 0 says what all others must look like."""

    part_rows = _PART_ITEMS

    def __init__(self, source: Any, stage: str, wide: bool) -> None:
        self._source, self._name = source, f"{stage} dataset"
        self.num_rows = self._length()
        _check_lengths([self.num_rows], jax.tree.structure(0), stage)  # before row 0 is asked for
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
        at: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """Reads rows int[U] into arrays [U, ...], one for each column; gives back the rows that are not finite.

        Args:
          rows: which.
          out: where to.
          check: per column, whether to look for NaN and Inf.
          at: hears each row before it is read; rows are then read one by one, though the source could do many.
        """
        values = [
            one_out if column.stored == column.dtype else np.empty((len(rows), *column.shape), column.stored)
            for column, one_out in zip(self.columns, out, strict=True)
        ]
        for place, (row, item) in enumerate(self._items(rows.tolist(), at)):
            for column, one_values, leaf in zip(self.columns, values, self._leaves(row, item), strict=True):
                if leaf.shape != column.shape or leaf.dtype != column.stored:
                    raise self._other_than_first(
                        row,
                        f"{column.name} {leaf.dtype}{list(leaf.shape)}",
                        f"{column.stored}{list(column.shape)}",
                    )
                one_values[place] = leaf
        return [
            column.store(one_values, rows, one_out, one_check)
            for column, one_values, one_out, one_check in zip(self.columns, values, out, check, strict=True)
        ]

    def in_memory(self) -> Iterator[np.ndarray]:
        """Nothing: where a source keeps its rows, only it knows."""
        return iter(())

    def _length(self) -> int:
        try:
            return len(self._source)
        except Exception as error:
            raise DataError(
                f"A source has no usable length: {self._name}. Got {_short(error)}, expected an int of 1 to "
                f"{INT32.max}. Fix: return the number of rows from __len__."
            ) from error

    def _items(self, rows: list[int], at: Callable[[int], None] | None) -> Iterable[tuple[int, Any]]:
        if at is not None:
            for row in rows:
                at(row)
                yield row, self._item(row)
        elif not hasattr(self._source, "__getitems__"):
            yield from ((row, self._item(row)) for row in rows)
        else:
            yield from zip(rows, self._many_items(rows), strict=True)

    def _many_items(self, rows: list[int]) -> Sequence[Any]:
        try:
            items: Sequence[Any] = self._source.__getitems__(rows)
            count = len(items)
        except Exception as error:
            for row in rows:
                self._item(row)  # one by one, the row that is to blame raises by its own name
            raise self._unreadable(rows[0], error, "mend __getitems__: __getitem__ reads these rows") from error
        if count != len(rows):
            raise BadRow(
                rows[0],
                "A source's __getitems__ skips rows",
                self._name,
                f"Got {count} items, expected {len(rows)}, one for each row asked for. Fix: return them in that order.",
            )
        for row, item in zip(rows, items, strict=True):
            self._check_there(row, item)
        return items

    def _item(self, row: int) -> Any:
        try:
            item = self._source[row]
        except (IndexError, StopIteration) as error:
            raise self._missing(row, _short(error)) from error
        except Exception as error:
            raise self._unreadable(row, error, "mend that row, or leave it out of the source") from error
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
            "A source's length lies",
            self._name,
            f"Got {got}, expected a row wherever 0 <= row < {self.num_rows}, its length. Fix: return the true number "
            "of rows from __len__; a filter must be applied beforehand.",
        )

    def _unreadable(self, row: int, error: Exception, fix: str) -> BadRow:
        outcome = f"Got {_short(error)}, expected a pytree of arrays and numbers. Fix: {fix}."
        return BadRow(row, "A row cannot be read", self._name, outcome)

    def _other_than_first(self, row: int, got: str, expected: str) -> BadRow:
        outcome = f"Got {got}, expected {expected}, as row 0 has. Fix: give all rows one structure, shape and dtype."
        return BadRow(row, "A row differs from row 0", self._name, outcome)


def is_source(dataset: Any) -> bool:
    """Whether a dataset is a random-access source, and not a pytree of arrays.

    A source has `__len__` and `__getitem__(int)`, and is no array, dict, tuple, list, string or other pytree.
    """
    is_container = isinstance(dataset, Mapping | str | bytes | bytearray) or not jax.tree_util.all_leaves([dataset])
    is_array = hasattr(dataset, "__array__")
    return not (is_container or is_array) and hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


def _take(array: np.ndarray, rows: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    # np.take is 3 to 6 times faster than indexing, but first copies all of an array that is not in C order.
    if array.flags.c_contiguous and array.flags.aligned:
        return np.take(array, rows, axis=0, out=out, mode="clip")
    taken: np.ndarray = array[rows]
    return taken


def _columns(empty: Any, stage: str, wide: bool) -> list[Column]:
    """The columns of a dataset that is given with its dtypes and shapes, but without a row."""
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
    # Stand-ins of one byte have the checks of resident columns made, and their words, without a look at the data.
    check_dataset(jax.tree.unflatten(structure, [np.broadcast_to(np.False_, (length,)) for length in lengths]), stage)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error!s:.80}" if str(error) else type(error).__name__
