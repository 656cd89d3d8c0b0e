"""Columns in memory-mapped files: detects truncated files, and releases pages after a read."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from hydrax.data.columns import BadRow
from hydrax.errors import DataError


@dataclass(frozen=True, eq=False)
class MappedColumn:
    """A column in a memory-mapped file.

    Attributes:
      name: for errors.
      array: the column, [N, ...].
      map: the memory map that `array` is a view of.
    """

    name: str
    array: np.ndarray
    map: np.memmap

    @property
    def _file(self) -> mmap.mmap:
        base: Any = self.map.base  # NumPy's type stubs call it an array
        assert isinstance(base, mmap.mmap)
        return base

    def check(self, rows: np.ndarray) -> None:
        """Checks that the file was not cut short: reading beyond its end would kill the process (SIGBUS).

        Raises:
          BadRow: it was cut short, and one of these rows, int[U], lies beyond its end.
          DataError: it was cut short, but none of these rows is affected.
        """
        expected, found = self.map.offset + self.map.nbytes, self._file.size()
        if found >= expected:
            return
        problem, where = "A memory map is longer than its file", f"{self.name}, {self.map.filename}"
        outcome = (
            f"Got a file of {found} bytes, expected at least {expected}. Fix: write the file again; it was cut short "
            "after it was mapped."
        )
        end_of_row_0 = self.map.offset + byte_bounds(self.array[:1])[1] - self.map.ctypes.data
        lost = rows[end_of_row_0 + rows.astype(np.int64) * self.array.strides[0] > found]
        if lost.size:
            raise BadRow(int(lost[0]), problem, where, outcome)
        raise DataError(f"{problem}: {where}. {outcome}")

    def release(self, rows: np.ndarray) -> None:
        """Releases the pages from the first to the last of these rows; the system's page cache may keep them.

        Otherwise each row would count as resident memory of this process once it was read, in the end the whole file.
        """
        # In mode "c" the pages that the user changed exist nowhere else.
        if self.map.mode == "c" or not hasattr(mmap, "MADV_DONTNEED"):
            return
        edges = [edge for row in (rows.min(), rows.max()) for edge in byte_bounds(self.array[row : row + 1])]
        start_of_map = self.map.ctypes.data - self.map.offset % mmap.ALLOCATIONGRANULARITY
        low, high = min(edges) - start_of_map, max(edges) - start_of_map
        low -= low % mmap.PAGESIZE
        self._file.madvise(mmap.MADV_DONTNEED, low, high - low)


def memory_map(array: np.ndarray) -> np.memmap | None:
    """Returns the memory map that an array is a view of, or None; a copy of a map has its type, but no file."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and isinstance(base.base, mmap.mmap):
            return base
        base = base.base
    return None
