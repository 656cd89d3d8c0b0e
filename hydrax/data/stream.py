"""Fetches the rows of a superstep while the device computes the one before."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from hydrax.data.feed import Batches
from hydrax.data.reader import RowReader
from hydrax.engine import Draw, HostBatches, Layout, SuperstepRows
from hydrax.step import DeviceRows


class StreamFeed:
    """The distinct rows of one superstep at a time on the device, each fetched once however many heads want it.

    One thread works ahead: it draws the index batches of the superstep that `prefetch` names, has their rows read, and
    sends them to the device.

    Args:
      reader: reads the rows.
      batches: the index batches for heads at these places.
      layout: where the heads stand.
      max_rows: most distinct rows of a superstep; the device always gets so many, so that nothing compiles twice.
      ids: int32[H], names the heads in errors.
    """

    def __init__(
        self,
        reader: RowReader,
        batches: Callable[[np.ndarray], Batches],
        layout: Layout,
        max_rows: int,
        ids: np.ndarray,
    ) -> None:
        self._reader, self._make, self._max_rows, self._ids = reader, batches, max_rows, ids
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "hydrax-fetch")
        self._ahead: tuple[tuple[int, tuple[int, ...]], concurrent.futures.Future[SuperstepRows]] | None = None
        self.set_layout(layout)

    def set_layout(self, layout: Layout) -> None:
        if self._ahead is not None:  # for other places
            self._ahead[1].cancel()
            concurrent.futures.wait([self._ahead[1]])
        self._ahead = None
        self._layout, self._batches = layout, self._make(layout.heads)

    @property
    def draw(self) -> Draw:
        return self._batches.draw

    def superstep(self, first: int, counts: Sequence[int]) -> SuperstepRows:
        """The rows and the index batches, whose rows are places in them; waits for what is still on its way."""
        asked, ahead = (first, tuple(counts)), self._ahead
        self._ahead = None
        if ahead is None or ahead[0] != asked:
            # What was got ready goes: a callback or the end of an epoch cut the superstep otherwise.
            if ahead is not None:
                ahead[1].cancel()
            ahead = asked, self._thread.submit(self._fetch, *asked)
        return ahead[1].result()

    def prefetch(self, first: int, counts: Sequence[int]) -> None:
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

    def _fetch(self, first: int, counts: Sequence[int]) -> SuperstepRows:
        batches = self._batches.superstep(first, counts)
        drawn = batches["rows"][: len(counts)]  # what lies beyond is padding, of row 0
        numbers, places = np.unique(drawn, return_inverse=True)
        columns = self._reader.read(numbers, lambda row: self._owners(row, batches), size=self._max_rows)
        padded = np.zeros(self._max_rows, np.int32)
        padded[: numbers.size] = numbers
        drawn[...] = places.reshape(drawn.shape)
        # Whether 64 bits stay is a setting of the thread that asks; the reader has decided it already.
        with jax.enable_x64(True):
            rows = {device: DeviceRows(*jax.device_put((columns, padded), device)) for device in self._layout.devices}
            parts = self._layout.send(batches, self.draw.axes)
        return [(rows[block.device], part) for block, part in zip(self._layout.blocks, parts, strict=True)]

    def _owners(self, row: int, batches: Mapping[str, np.ndarray]) -> str:
        """Such as "wanted by heads 3, 7 and 12 more"."""
        draw = self.draw
        assert isinstance(draw, HostBatches)
        if draw.heads_axis is None:
            return "wanted by all heads"
        axis = draw.heads_axis
        rows = np.expand_dims(batches["rows"], axis) if draw.shared else batches["rows"]
        places = np.unique(np.nonzero((rows == row) & batches["mask"])[axis])
        heads = [str(head) for head in self._ids[np.unique(self._layout.heads[places])]]
        if not heads:
            return "wanted by no head, for a padding slot"
        return f"wanted by heads {', '.join(heads[:3])}" + (f" and {len(heads) - 3} more" if len(heads) > 3 else "")
