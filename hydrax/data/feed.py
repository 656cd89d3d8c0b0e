"""From the data module to the device: the dataset once, then what the index batches of each superstep come from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from hydrax.data.columns import aligned_zeros
from hydrax.engine import Draw, HostBatches, Layout, OwnRotation, SharedRotation, SuperstepRows
from hydrax.errors import DataError
from hydrax.slices import rotation
from hydrax.step import DeviceRows
from hydrax.trees import tree_digest

if TYPE_CHECKING:
    import grain


class Feed(Protocol):
    """What a loop asks for each superstep."""

    @property
    def draw(self) -> Draw: ...

    def set_layout(self, layout: Layout) -> None:
        """Says where the heads stand from now on."""

    def superstep(self, first: int, counts: Sequence[int]) -> SuperstepRows:
        """For the steps that start at batch `first` and hold `counts` batches each."""

    def prefetch(self, first: int, counts: Sequence[int]) -> None:
        """Says what `superstep` will probably be asked for next, so that it can be got ready meanwhile."""

    def digest(self) -> str:
        """Tells datasets apart, for resuming."""

    def close(self) -> None:
        """Ends iterators, threads and processes."""


class Batches(Protocol):
    """The index batches alone.

    Attributes:
      draw: what the program does with them.
      fixed: names of the parts that `superstep` gives the same each time.
    """

    @property
    def fixed(self) -> Collection[str]: ...

    @property
    def draw(self) -> Draw: ...

    def superstep(self, first: int, counts: Sequence[int]) -> dict[str, Any]:
        """As `Feed.superstep`, for all places, on the host."""

    def close(self) -> None:
        """As `Feed.close`."""


class ResidentFeed:
    """The whole dataset on the device.

    Args:
      data: the checked dataset, on the host; it is copied.
      batches: the index batches for heads at these places.
      layout: where the heads stand.
    """

    def __init__(self, data: Any, batches: Callable[[np.ndarray], Batches], layout: Layout) -> None:
        # A private copy: the user may go on changing theirs, and jax may alias a NumPy array on a CPU, or copy it late.
        # All CPU devices alias this one.
        own = jax.tree.map(_copied, data)
        self._data = {device: DeviceRows(jax.device_put(own, device)) for device in layout.devices}
        self._make = batches
        self.set_layout(layout)

    def set_layout(self, layout: Layout) -> None:
        self._layout, self._batches = layout, self._make(layout.heads)
        self._fixed: list[dict[str, Any]] | None = None

    @property
    def draw(self) -> Draw:
        return self._batches.draw

    def superstep(self, first: int, counts: Sequence[int]) -> SuperstepRows:
        found = self._batches.superstep(first, counts)
        if self._fixed is None:
            self._fixed = self._send({name: found[name] for name in self._batches.fixed})
        fresh = self._send({name: part for name, part in found.items() if name not in self._batches.fixed})
        blocks = zip(self._layout.blocks, self._fixed, fresh, strict=True)
        return [(self._data[block.device], fixed | part) for block, fixed, part in blocks]

    def prefetch(self, first: int, counts: Sequence[int]) -> None:
        """Nothing to get ready: index batches are cheap."""

    def digest(self) -> str:
        return tree_digest(next(iter(self._data.values())).columns)

    def close(self) -> None:
        self._batches.close()

    def _send(self, parts: dict[str, Any]) -> list[dict[str, Any]]:
        return self._layout.send(parts, self.draw.axes)


def _copied(column: np.ndarray) -> np.ndarray:
    own = aligned_zeros(column.shape, column.dtype)
    own[...] = column
    return own


class RotationBatches:
    """Lets the program draw the index batches: the host only says where the walks stand.

    Args:
      draw: what draws them.
      fixed: the parts it draws from that never change.
      lengths: int32[W], rows of a pass of each walk: one for each place of the program, or one that all heads share.
      max_steps: length of the leading axis, so that every superstep has the same shape.
      accumulate: micro-batches A of a step.
      seed, small_slices, passes: as in `rotation.index_batch`.
      frozen: how many first batches come over and over; None: the walks go on.
    """

    def __init__(
        self,
        draw: OwnRotation | SharedRotation,
        fixed: dict[str, Any],
        lengths: np.ndarray,
        *,
        max_steps: int,
        accumulate: int,
        seed: int,
        small_slices: rotation.SmallSlices,
        passes: int | None,
        frozen: int | None = None,
    ) -> None:
        self.draw = draw
        self._frozen = frozen
        self._parts = {**fixed, "lengths": lengths, "seed": np.uint32(seed)}
        self.fixed = self._parts.keys()
        self._lengths, self._small_slices, self._passes = lengths, small_slices, passes
        self._max_steps, self._accumulate = max_steps, accumulate

    def superstep(self, first: int, counts: Sequence[int]) -> dict[str, Any]:
        start = first if self._frozen is None else 0
        here = rotation.cursor(start, self._lengths, self.draw.batch_size, self._small_slices)
        left = rotation.slots_left(start, self._lengths, here.width, self._passes)
        ahead = np.zeros((self._max_steps, self._accumulate), np.uint32)
        present = np.zeros(ahead.shape, bool)
        micro, starts = np.arange(self._accumulate), np.cumsum([0, *counts[:-1]])
        # A missing micro-batch repeats the last one's rows, with no live slot.
        ahead[: len(counts)] = starts[:, None] + np.minimum(micro, np.asarray(counts)[:, None] - 1)
        if self._frozen is not None:
            ahead[: len(counts)] = (first % self._frozen + ahead[: len(counts)]) % self._frozen
        present[: len(counts)] = micro < np.asarray(counts)[:, None]
        return {**self._parts, "cursor": here, "left": left, "ahead": ahead, "present": present}

    def close(self) -> None:
        """Nothing to end."""


class DrawnBatches:
    """Rows and mask as `IndexBatches` gives them, drawn by a compiled program on a CPU: for rows that must be fetched.

    NumPy would draw them step by step under Python's lock, which costs more than to read the rows.

    Args:
      batches: what draws them.
      head_ids: int32[H padded].
    """

    fixed = ()

    def __init__(self, batches: RotationBatches, head_ids: np.ndarray) -> None:
        self.draw = HostBatches(2, batches.draw.shared)
        self._batches, self._head_ids = batches, head_ids
        self._program = jax.jit(batches.draw.__call__)

    def superstep(self, first: int, counts: Sequence[int]) -> dict[str, Any]:
        parts = jax.device_put((self._batches.superstep(first, counts), self._head_ids))
        rows, mask = map(np.array, self._program(*parts))
        rows[len(counts) :] = 0
        return {"rows": rows, "mask": mask}

    def close(self) -> None:
        self._batches.close()


class IndexBatches:
    """Stacks the elements of a Grain index dataset into the arrays of a superstep.

    Args:
      dataset: elements `{"rows", "mask"}`: `[B]` each, `[H, B]` each, or with `shared` rows `[B]` and mask `[H, B]`.
      num_rows: N; rows of live and of padding slots must lie below it.
      places: int[H padded], which head stands at each place of the program; None for elements `[B]`.
      max_steps: length of the leading axis, so that every superstep has the same shape.
      accumulate: micro-batches A of a step; 0: no such axis.
      shared: whether all heads meet the same rows.
    """

    fixed = ()

    def __init__(
        self,
        dataset: grain.MapDataset,
        *,
        num_rows: int,
        places: np.ndarray | None,
        max_steps: int,
        accumulate: int = 0,
        shared: bool = False,
    ) -> None:
        import grain  # late, as in hydrax/data.py

        # One element is a whole step: threads and a buffer of 500 would cost ten times as much as they hide.
        self._iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
        self._position = 0
        self._num_rows, self._places, self._max_steps, self._accumulate = num_rows, places, max_steps, accumulate
        self._num_heads = None if places is None else int(places.max()) + 1
        self._shared = shared
        self._shapes: tuple[tuple[int, ...], ...] | None = None
        self.draw = HostBatches(None if places is None else 2 if accumulate else 1, shared)

    def superstep(self, first: int, counts: Sequence[int]) -> dict[str, Any]:
        """Rows and mask of the steps that start at element `first` and hold `counts` elements each.

        Returns:
          int32 and bool `[max_steps, (A,) (H padded,) B]`, fresh buffers; what no element fills is padding.
        """
        if first != self._position:
            self._iterator.set_state({"next_index": first})
            self._position = first
        rows = mask = None
        for step, count in enumerate(counts):
            for micro in range(count):
                one_rows, one_mask = self._next()
                if rows is None or mask is None:
                    axes = (self._max_steps, *([self._accumulate] if self._accumulate else ()))
                    rows, mask = np.zeros((*axes, *one_rows.shape), np.int32), np.zeros((*axes, *one_mask.shape), bool)
                place = (step, micro) if self._accumulate else (step,)
                rows[place], mask[place] = one_rows, one_mask
            if self._accumulate and rows is not None:
                # A missing micro-batch repeats the last one's rows: a head never sees rows that are not its own.
                rows[step, count:] = rows[step, count - 1]
        assert rows is not None and mask is not None
        return {"rows": rows, "mask": mask}

    def close(self) -> None:
        """Ends the iterator and whatever threads the user's pipeline started."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()

    def _next(self) -> tuple[np.ndarray, np.ndarray]:
        element = next(self._iterator, None)
        if element is None:
            raise DataError(
                f"The index batches end too soon: index dataset, element {self._position}. Got no more elements, "
                "expected one for each batch of the run. Fix: call .repeat() on it, or train fewer steps."
            )
        rows, mask = self._check(element)
        self._position += 1
        if self._places is None:
            return rows, mask
        return (rows if self._shared else rows[self._places]), mask[self._places]

    def _check(self, element: Any) -> tuple[np.ndarray, np.ndarray]:
        where = f"index dataset, element {self._position}"
        if not isinstance(element, dict) or not {"rows", "mask"} <= element.keys():
            raise DataError(
                f'An index batch lacks its parts: {where}. Got {element!r:.60}, expected a dict with "rows" and '
                '"mask". '
                "Fix: return both from index_dataset()."
            )
        rows, mask = np.asarray(element["rows"]), np.asarray(element["mask"])
        heads = () if self._num_heads is None else (self._num_heads,)
        shapes = (() if self._shared else heads) + rows.shape[-1:], heads + rows.shape[-1:]
        self._shapes = self._shapes or shapes
        if not rows.size or (rows.shape, mask.shape) != shapes or shapes != self._shapes:
            every = "" if not heads else f"{heads[0]}, "
            expected = f"rows [B] and mask [{every}B]" if self._shared else f"both [{every}B]"
            raise DataError(
                f"An index batch has the wrong shape: {where}. Got rows {list(rows.shape)} and mask "
                f"{list(mask.shape)}, expected {expected}, the same in every element. Fix: pad with mask=False."
            )
        if rows.dtype.kind not in "iu" or mask.dtype != bool:
            raise DataError(
                f"An index batch has the wrong dtype: {where}. Got rows {rows.dtype} and mask {mask.dtype}, expected "
                "int32 and bool. Fix: cast them in index_dataset()."
            )
        if rows.min() < 0 or rows.max() >= self._num_rows:
            at = tuple(map(int, np.argwhere((rows < 0) | (rows >= self._num_rows))[0]))
            raise DataError(
                f"An index batch names a row outside the dataset: {where}, place {at}. Got {rows[at]}, expected 0 <= "
                f"row < {self._num_rows}. Fix: padding slots need a row too; repeat one of the head's own."
            )
        return rows, mask
