"""A dataset of a run: checked, and on the device or left where it lies."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from hydrax.data.columns import check_dataset, num_rows
from hydrax.data.datamodule import DataModule
from hydrax.data.feed import Batches, Feed, ResidentFeed
from hydrax.data.reader import RowReader, is_source
from hydrax.data.stream import StreamFeed
from hydrax.engine import Layout
from hydrax.trees import named_leaves


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A checked dataset.

    Attributes:
      stage: "train", "val", "test" or "predict".
      shapes: its columns as the device sees them, leaves with shape `[N, ...]` and dtype.
      reader: reads rows where they stay on the host; None where the device holds them all.
    """

    stage: str
    shapes: Any
    reader: RowReader | None = None

    @property
    def num_rows(self) -> int:
        """N."""
        return num_rows(self.shapes) if self.reader is None else self.reader.num_rows

    def __str__(self) -> str:
        columns = (f"{name or 'array'} {c.dtype}{list(c.shape[1:])}" for name, c in named_leaves(self.shapes).items())
        return f"{self.num_rows} rows of {', '.join(columns)}"

    @property
    def row_bytes(self) -> int:
        """Bytes of a row on the device."""
        return sum(math.prod(c.shape[1:]) * np.dtype(c.dtype).itemsize for c in jax.tree.leaves(self.shapes))

    @property
    def fetched_row_bytes(self) -> int | None:
        """Bytes of a row that must be fetched; None where the device holds them all."""
        return None if self.reader is None else self.reader.row_bytes

    def feed(self, batches: Callable[[np.ndarray], Batches], layout: Layout, max_rows: int, ids: np.ndarray) -> Feed:
        """What gives the program its rows.

        Args:
          batches: the index batches for heads at these places.
          layout: where the heads stand.
          max_rows: most distinct rows of a superstep, where they are fetched.
          ids: int32[H], names the heads in errors.
        """
        if self.reader is None:
            return ResidentFeed(self.shapes, batches, layout)
        return StreamFeed(self.reader, batches, layout, min(max_rows, self.num_rows), ids)

    def close(self) -> None:
        """Ends what reads the rows; a feed does it too."""
        if self.reader is not None:
            self.reader.close()


def open_dataset(datamodule: DataModule, stage: str, wide: bool) -> Dataset | None:
    """The checked dataset of a data module; None where it has none.

    Args:
      stage: "train", "val", "test" or "predict".
      wide: keep 64-bit columns (precision "64-true").
    """
    found = datamodule.dataset(stage)
    if found is None:
        return None
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
    if is_source(dataset):
        return True
    if residence == "auto":
        return sum(getattr(column, "nbytes", 0) for column in jax.tree.leaves(dataset)) > _device_room()
    return residence == "host"


def _device_room() -> int:
    """Bytes that a dataset may take on the device: half of it; on a CPU a quarter of memory, as there it is a copy."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
