"""Fetches the rows of a superstep while the device computes the one before."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hydrax.draw import DeviceRows
from hydrax.feed import DrawnBatches, IndexBatches
from hydrax.row_reader import RowReader

_Fetched = tuple[DeviceRows, dict[str, Any]]


class StreamFeed:
    """The distinct rows of one superstep at a time on the device, each fetched once however many heads want it.

    One thread works ahead: it draws the index batches of the superstep that `expect` names, has their rows read, and
    sends them to the device.

    Args:
      reader: reads the rows.
      batches: the index batches.
      max_rows: most distinct rows of a superstep; the device always gets so many, so that nothing compiles twice.
      ids: int32[H], names the heads in errors.
    """

    def __init__(self, reader: RowReader, batches: IndexBatches | DrawnBatches, max_rows: int, ids: np.ndarray) -> None:
        self.draw = batches.draw
        self._reader, self._batches, self._max_rows, self._ids = reader, batches, max_rows, ids
        self._device = getattr(jax.config, "jax_default_device", None)  # a setting of the thread that asks
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "hydrax-fetch")
        self._ahead: tuple[tuple[int, tuple[int, ...]], concurrent.futures.Future[_Fetched]] | None = None

    def take(self, first: int, counts: Sequence[int]) -> _Fetched:
        """The rows and the index batches, whose rows are places in them; waits for what is still on its way."""
        asked, ahead = (first, tuple(counts)), self._ahead
        self._ahead = None
        if ahead is None or ahead[0] != asked:
            # What was got ready goes: a callback or the end of an epoch cut the superstep otherwise.
            if ahead is not None:
                ahead[1].cancel()
            ahead = asked, self._thread.submit(self._fetch, *asked)
        return ahead[1].result()

    def expect(self, first: int, counts: Sequence[int]) -> None:
        asked = first, tuple(counts)
        self._ahead = asked, self._thread.submit(self._fetch, *asked)

    def digest(self) -> str:
        return self._reader.digest()

    def close(self) -> None:
        """Ends the reader, then the thread that may be waiting for it."""
        self._ahead = None
        self._reader.close()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._batches.close()

    def _fetch(self, first: int, counts: Sequence[int]) -> _Fetched:
        batches = self._batches.take(first, counts)
        drawn = batches["rows"][: len(counts)]  # what lies beyond is padding, of row 0
        numbers, places = np.unique(drawn, return_inverse=True)
        columns = self._reader.read(numbers, lambda row: self._owners(row, batches), size=self._max_rows)
        padded = np.zeros(self._max_rows, np.int32)
        padded[: numbers.size] = numbers
        drawn[...] = places.reshape(drawn.shape)
        # Whether 64 bits stay is a setting of the thread that asks; the reader has decided it already.
        with jax.enable_x64(True), jax.default_device(self._device):
            return DeviceRows(*jax.device_put((columns, padded))), batches

    def _owners(self, row: int, batches: Mapping[str, np.ndarray]) -> str:
        """Such as "wanted by heads 3, 7 and 12 more"."""
        if not self._batches.has_heads:
            return "wanted by all heads"
        axis = self.draw.heads_axis
        rows = np.expand_dims(batches["rows"], axis) if self.draw.shared else batches["rows"]
        places = np.unique(np.nonzero((rows == row) & batches["mask"])[axis])
        heads = [str(head) for head in self._ids[places[places < self._ids.size]]]  # the places beyond are padding
        if not heads:
            return "wanted by no head, for a padding slot"
        return f"wanted by heads {', '.join(heads[:3])}" + (f" and {len(heads) - 3} more" if len(heads) > 3 else "")
