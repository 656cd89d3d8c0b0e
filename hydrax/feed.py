"""From the data module to the device: the dataset once, index batches superstep by superstep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grain
import jax
import numpy as np

from hydrax.errors import DataError


def upload(dataset: Any) -> Any:
    """A checked dataset on the device, from a private copy: the user may go on changing theirs."""
    # jax may alias a NumPy array on a CPU, or copy it late.
    return jax.tree.map(lambda column: jax.device_put(np.array(column, order="C")), dataset)


class Feed:
    """Stacks the elements of a Grain index dataset into the arrays of a superstep.

    Args:
      dataset: elements `{"rows", "mask"}`, `[B]` each, or `[H, B]`.
      num_rows: N; rows of live and of padding slots must lie below it.
      places: int[H padded], which head stands at each place of the program; None for elements `[B]`.
      max_steps: length of the leading axis, so that every superstep has the same shape.
      accumulate: micro-batches A of a step; 0: no such axis.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        *,
        num_rows: int,
        places: np.ndarray | None,
        max_steps: int,
        accumulate: int = 0,
    ) -> None:
        # One element is a whole step: threads and a buffer of 500 would cost ten times as much as they hide.
        self._iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
        self._position = 0
        self._num_rows, self._places, self._max_steps, self._accumulate = num_rows, places, max_steps, accumulate
        self._num_heads = None if places is None else int(places.max()) + 1
        self._batch_shape: tuple[int, ...] | None = None

    def take(self, first: int, counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
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
                    axes = (self._max_steps, *([self._accumulate] if self._accumulate else ()), *one_rows.shape)
                    rows, mask = np.zeros(axes, np.int32), np.zeros(axes, bool)
                place = (step, micro) if self._accumulate else (step,)
                rows[place], mask[place] = one_rows, one_mask
            if self._accumulate and rows is not None:
                # A missing micro-batch repeats the last one's rows: a head never sees rows that are not its own.
                rows[step, count:] = rows[step, count - 1]
        assert rows is not None and mask is not None
        return rows, mask

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
        return (rows, mask) if self._places is None else (rows[self._places], mask[self._places])

    def _check(self, element: Any) -> tuple[np.ndarray, np.ndarray]:
        where = f"index dataset, element {self._position}"
        if not isinstance(element, dict) or not {"rows", "mask"} <= element.keys():
            raise DataError(
                f'An index batch lacks its parts: {where}. Got {element!r:.60}, expected a dict with "rows" and '
                '"mask". '
                "Fix: return both from index_dataset()."
            )
        rows, mask = np.asarray(element["rows"]), np.asarray(element["mask"])
        self._batch_shape = self._batch_shape or rows.shape
        axes = 1 if self._places is None else 2
        heads_fit = self._num_heads is None or (rows.ndim == 2 and len(rows) == self._num_heads)
        if (
            rows.ndim != axes
            or not rows.size
            or not heads_fit
            or rows.shape != mask.shape
            or rows.shape != self._batch_shape
        ):
            expected = "[B]" if axes == 1 else f"[{self._num_heads}, B]"
            raise DataError(
                f"An index batch has the wrong shape: {where}. Got rows {list(rows.shape)} and mask "
                f"{list(mask.shape)}, expected both {expected}, the same in every element. Fix: pad with mask=False."
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
