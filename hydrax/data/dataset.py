"""Dataset: a dataset of a run, checked, with the answer to where its rows lie."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import jax
import numpy as np

from hydrax.data.access import is_source
from hydrax.data.columns import check_dataset, num_rows
from hydrax.data.datamodule import DataModule
from hydrax.data.reader import RowReader
from hydrax.trees import named_leaves


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A checked dataset.

    Attributes:
      stage: "train", "val", "test" or "predict".
      shapes: its columns with the shapes `[N, ...]` and dtypes of the device: the arrays themselves if they go to the
        device as a whole, otherwise `jax.ShapeDtypeStruct`.
      reader: reads the rows if they stay on the host; otherwise None.
    """

    stage: str
    shapes: Any
    reader: RowReader | None = None

    @property
    def num_rows(self) -> int:
        """N."""
        return num_rows(self.shapes)

    def __str__(self) -> str:
        columns = (f"{name or 'array'} {c.dtype}{list(c.shape[1:])}" for name, c in named_leaves(self.shapes).items())
        return f"{self.num_rows} rows of {', '.join(columns)}"

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on the device."""
        return sum(math.prod(c.shape[1:]) * np.dtype(c.dtype).itemsize for c in jax.tree.leaves(self.shapes))

    @property
    def fetched_row_bytes(self) -> int | None:
        """Bytes of one row that must be fetched; None if the whole dataset is on the device."""
        return None if self.reader is None else self.reader.row_bytes

    def close(self) -> None:
        """Ends the threads and processes that read rows; a feed that waits for rows gets an error."""
        if self.reader is not None:
            self.reader.close()


def open_dataset(datamodule: DataModule, stage: str, wide: bool, found: Any) -> Dataset:
    """Returns a dataset of a data module, checked.

    Args:
      datamodule: the user's data module; its attributes say where the rows lie.
      stage: "train", "val", "test" or "predict".
      wide: keep 64-bit columns (precision "64-true").
      found: what the data module returned for this stage.
    """
    if _stays_on_host(datamodule.residence, found):
        reader = RowReader(
            found,
            stage,
            threads=datamodule.read_threads,
            processes=datamodule.read_processes,
            check_finite=datamodule.check_finite,
            wide=wide,
        )
        return Dataset(stage, reader.shapes, reader)
    return Dataset(stage, check_dataset(found, stage, datamodule.check_finite, wide))


def _stays_on_host(residence: str, dataset: Any) -> bool:
    if is_source(dataset):  # whatever the residence: a source is read row by row, and may not fit into memory
        return True
    if residence == "auto":
        # What has no `nbytes` is not an array, and is refused by the checks that follow.
        return sum(getattr(column, "nbytes", 0) for column in jax.tree.leaves(dataset)) > _device_room()
    return residence == "host"


def _device_room() -> int:
    """Returns the bytes that a dataset may take: half of the device; on a CPU, where it is a copy, a quarter of RAM."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
