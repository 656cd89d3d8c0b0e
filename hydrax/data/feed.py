"""Feeds: give the heads their rows from a dataset on the device (`DeviceFeed`) or on the host (`HostFeed`)."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from hydrax.data.batches import Batches
from hydrax.data.columns import aligned_zeros
from hydrax.data.dataset import Dataset
from hydrax.data.reader import RowReader
from hydrax.engine import Draw, HostBatches, Layout, SuperstepRows
from hydrax.step import DeviceRows
from hydrax.trees import tree_digest

MakeBatches = Callable[[np.ndarray], Batches]
"""Makes the index batches for the heads at these places, int[places]."""


class Feed(Protocol):
    """Gives a loop the rows and index batches of each superstep."""

    @property
    def draw(self) -> Draw: ...

    def set_layout(self, layout: Layout) -> None:
        """Sets the layout of the heads for the supersteps to come."""

    def superstep(self, first: int, counts: Sequence[int]) -> SuperstepRows:
        """Returns what the steps need that start at batch `first` and hold `counts` batches each."""

    def prefetch(self, first: int, counts: Sequence[int]) -> None:
        """Starts to prepare the superstep that will probably be requested next."""

    def digest(self) -> str:
        """Returns a digest of the dataset; a resumed run must find the same."""

    def close(self) -> None:
        """Ends iterators and threads. What reads the rows belongs to the dataset, and stays open."""


def open_feed(data: Dataset, make: MakeBatches, layout: Layout, max_rows: int, ids: np.ndarray) -> Feed:
    """Returns the feed for a dataset, by where its rows are kept.

    Args:
      data: the dataset.
      make: makes the index batches.
      layout: layout of the heads.
      max_rows: most distinct rows of a superstep, if rows are fetched.
      ids: int32[H], the heads' ids.
    """
    if data.reader is None:
        return DeviceFeed(data.shapes, make, layout)
    return HostFeed(data.reader, make, layout, min(max_rows, data.num_rows), ids)


class DeviceFeed:
    """Holds the whole dataset on the device.

    Args:
      data: the checked dataset, on the host; it is copied.
      make: makes the index batches.
      layout: layout of the heads.
    """

    def __init__(self, data: Any, make: MakeBatches, layout: Layout) -> None:
        # A private copy, which all CPU devices share: the user may go on changing their arrays, and JAX on a CPU may
        # adopt a NumPy array without a copy, or copy it late.
        own = jax.tree.map(_copied, data)
        self._data = {device: DeviceRows(jax.device_put(own, device)) for device in layout.devices}
        self._make = make
        self.set_layout(layout)

    def set_layout(self, layout: Layout) -> None:
        self._layout, self._batches = layout, self._make(layout.heads)
        self._known: dict[str, Any] = {}
        self._fixed: list[dict[str, Any]] = [{} for _ in layout.blocks]

    @property
    def draw(self) -> Draw:
        return self._batches.draw

    def superstep(self, first: int, counts: Sequence[int]) -> SuperstepRows:
        parts = self._batches.superstep(first, counts)
        known = {name: parts[name] for name in self._batches.fixed}
        if any(known[name] is not self._known.get(name) for name in known):
            # Sent once, as a rule: tables of slices may be large.
            self._known, self._fixed = known, self._send(known)
        fresh = self._send({name: part for name, part in parts.items() if name not in self._batches.fixed})
        blocks = zip(self._layout.blocks, self._fixed, fresh, strict=True)
        return [(self._data[block.device], fixed | part) for block, fixed, part in blocks]

    def prefetch(self, first: int, counts: Sequence[int]) -> None:
        """Does nothing: the rows are there, and index batches are cheap."""

    def digest(self) -> str:
        # Of what is on the device and not of the user's arrays, which may have changed since.
        return tree_digest(next(iter(self._data.values())).columns)

    def close(self) -> None:
        self._batches.close()

    def _send(self, parts: dict[str, Any]) -> list[dict[str, Any]]:
        return self._layout.send(parts, self.draw.axes)


def _copied(column: np.ndarray) -> np.ndarray:
    own = aligned_zeros(column.shape, column.dtype)
    own[...] = column
    return own


class HostFeed:
    """Fetches the distinct rows of one superstep at a time, each once, however many heads need it.

    One thread works ahead: it draws the index batches of the superstep that `prefetch` names, has their rows read, and
    sends both to the device, while the device computes the superstep before.

    Args:
      reader: reads the rows.
      make: makes the index batches.
      layout: layout of the heads.
      max_rows: most distinct rows of a superstep; the device always gets this many, so that nothing compiles twice.
      ids: int32[H], the heads' ids.
    """

    def __init__(self, reader: RowReader, make: MakeBatches, layout: Layout, max_rows: int, ids: np.ndarray) -> None:
        self._reader, self._make, self._max_rows, self._ids = reader, make, max_rows, ids
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "hydrax-fetch")
        self._ahead: tuple[tuple[int, tuple[int, ...]], concurrent.futures.Future[SuperstepRows]] | None = None
        self.set_layout(layout)

    def set_layout(self, layout: Layout) -> None:
        if self._ahead is not None:  # it was fetched for the previous layout
            self._ahead[1].cancel()
            concurrent.futures.wait([self._ahead[1]])
        self._ahead = None
        self._layout, self._batches = layout, self._make(layout.heads)
        draw = self._batches.draw
        if isinstance(draw, HostBatches):
            self.draw, self._program = draw, None
        else:
            # The host must know which rows to fetch, so a separate program draws ahead what the superstep would have
            # drawn. NumPy would draw step by step under Python's lock, which costs more than reading the rows.
            self.draw, self._program = HostBatches(2, draw.shared), jax.jit(draw.__call__)

    def superstep(self, first: int, counts: Sequence[int]) -> SuperstepRows:
        """Returns the rows, and index batches that hold places in them; waits until they have arrived."""
        asked, ahead = (first, tuple(counts)), self._ahead
        self._ahead = None
        if ahead is None or ahead[0] != asked:
            # A callback or the end of an epoch cut the superstep differently: what was prefetched is dropped.
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
        """Waits for the rows that are being read, and ends the thread."""
        self._ahead = None
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._batches.close()

    def _fetch(self, first: int, counts: Sequence[int]) -> SuperstepRows:
        batches = self._index_batches(first, counts)
        drawn = batches["rows"][: len(counts)]  # the steps beyond are padding, all of row 0
        numbers, places = np.unique(drawn, return_inverse=True)
        columns = self._reader.read(numbers, lambda row: self._owners(row, batches), size=self._max_rows)
        padded = np.zeros(self._max_rows, np.int32)
        padded[: numbers.size] = numbers
        # The program gathers from the fetched rows, so it gets their places there instead of their row numbers.
        drawn[...] = places.reshape(drawn.shape)
        # JAX's 64-bit setting belongs to the thread that asks; the reader has already decided which columns stay wide.
        with jax.enable_x64(True):
            rows = {device: DeviceRows(*jax.device_put((columns, padded), device)) for device in self._layout.devices}
            parts = self._layout.send(batches, self.draw.axes)
        return [(rows[block.device], part) for block, part in zip(self._layout.blocks, parts, strict=True)]

    def _index_batches(self, first: int, counts: Sequence[int]) -> dict[str, Any]:
        parts = self._batches.superstep(first, counts)
        if self._program is None:
            return parts
        rows, mask = map(np.array, self._program(*jax.device_put((parts, self._ids[self._layout.heads]))))
        rows[len(counts) :] = 0  # a row that is not fetched would have no place
        return {"rows": rows, "mask": mask}

    def _owners(self, row: int, batches: Mapping[str, np.ndarray]) -> str:
        """Says who needs a row, such as "wanted by heads 3, 7 and 12 more"."""
        axis = self.draw.heads_axis
        if axis is None:
            return "wanted by all heads"
        rows = np.expand_dims(batches["rows"], axis) if self.draw.shared else batches["rows"]
        places = np.unique(np.nonzero((rows == row) & batches["mask"])[axis])
        heads = [str(head) for head in self._ids[np.unique(self._layout.heads[places])]]
        if not heads:
            return "wanted by no head, for a padding slot"
        return f"wanted by heads {', '.join(heads[:3])}" + (f" and {len(heads) - 3} more" if len(heads) > 3 else "")
