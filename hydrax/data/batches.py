"""Index batches, the rows that each head meets in each step: drawn by the compiled program or by the host."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hydrax.engine import Draw, HostBatches, OwnRotation, SharedRotation
from hydrax.errors import DataError
from hydrax.slices import rotation

if TYPE_CHECKING:
    import grain


class Batches(Protocol):
    """The index batches of a run, superstep by superstep.

    Attributes:
      draw: how the program makes rows and masks of the parts that `superstep` returns.
      fixed: names of the parts that rarely change; a part that changes becomes a new object.
    """

    @property
    def fixed(self) -> Collection[str]: ...

    @property
    def draw(self) -> Draw: ...

    def superstep(self, first: int, counts: Sequence[int]) -> dict[str, Any]:
        """Returns the parts for the steps that start at batch `first` and hold `counts` batches each, on the host."""

    def close(self) -> None:
        """Ends iterators and threads."""


class ProgramBatches:
    """Index batches that the compiled program draws; the host sends how far each step is from a known position.

    Args:
      draw: how the program draws them.
      fixed: the parts it draws from that never change.
      lengths: int32[W], rows per pass of each rotation: one for each place of the program, or one for all heads.
      max_steps: length of the leading axis, the same for every superstep so that nothing compiles twice.
      accumulate: micro-batches A per step.
      seed, small_slices, passes: as in `rotation.index_batch`.
      frozen: repeats this many first batches over and over; None continues the rotation.
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
        self._parts: dict[str, Any] = {**fixed, "lengths": lengths, "seed": np.uint32(seed)}
        self.fixed = (*self._parts, "cursor", "left")
        self._base: int | None = None  # the batch at which the cursor stands
        self._lengths, self._small_slices, self._passes = lengths, small_slices, passes
        self._max_steps, self._accumulate = max_steps, accumulate

    def superstep(self, first: int, counts: Sequence[int]) -> dict[str, Any]:
        start = first if self._frozen is None else 0
        # The program adds 32-bit steps to a cursor, which the host computes with the 64 bits that a long run needs. One
        # cursor serves many supersteps, so that the host's work does not grow with the number of heads.
        end, base = start + (self._frozen or sum(counts)), self._base
        if base is None or start < base or (end - base) * self.draw.batch_size >= rotation.MOST_AHEAD:
            self._base = base = start
            here = rotation.cursor(start, self._lengths, self.draw.batch_size, self._small_slices)
            left = rotation.slots_left(start, self._lengths, here.width, self._passes)
            self._parts |= {"cursor": here, "left": left}
        ahead = np.zeros((self._max_steps, self._accumulate), np.uint32)
        present = np.zeros(ahead.shape, bool)
        micro, starts = np.arange(self._accumulate), np.cumsum([0, *counts[:-1]])
        # The last step of an epoch may have fewer micro-batches. A missing one repeats the rows of the last, with no
        # live slot.
        ahead[: len(counts)] = starts[:, None] + np.minimum(micro, np.asarray(counts)[:, None] - 1)
        if self._frozen is not None:
            ahead[: len(counts)] = (first % self._frozen + ahead[: len(counts)]) % self._frozen
        else:
            ahead[: len(counts)] += np.uint32(start - base)
        present[: len(counts)] = micro < np.asarray(counts)[:, None]
        return {**self._parts, "ahead": ahead, "present": present}

    def close(self) -> None:
        """Does nothing: there is no iterator and no thread."""


class GrainBatches:
    """Index batches that the host draws: elements of a Grain dataset, stacked into the arrays of a superstep.

    Args:
      dataset: elements `{"rows", "mask"}`: `[B]` each, `[H, B]` each, or with `shared` rows `[B]` and mask `[H, B]`.
      num_rows: N; every row must be below it, in live and in padding slots.
      places: int[H padded], the head at each place of the program; None for elements `[B]`.
      max_steps: length of the leading axis, the same for every superstep so that nothing compiles twice.
      accumulate: micro-batches A per step; with 0, there is no such axis.
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
        import grain  # late, as in datamodule.py

        # One element is a whole step: threads and a buffer of 500 elements would cost ten times what they hide.
        self._iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
        self._position = 0
        self._num_rows, self._places, self._max_steps, self._accumulate = num_rows, places, max_steps, accumulate
        self._num_heads = None if places is None else int(places.max()) + 1
        self._shared = shared
        self._shapes: tuple[tuple[int, ...], ...] | None = None  # of rows and mask, set by the first element
        self.draw = HostBatches(None if places is None else 2 if accumulate else 1, shared)

    def superstep(self, first: int, counts: Sequence[int]) -> dict[str, Any]:
        """Returns rows and mask, int32 and bool `[max_steps, (A,) (H padded,) B]`; what no element fills is padding."""
        if first != self._position:
            # After a resume, or when a prefetched superstep was dropped: Grain finds any element at once.
            self._iterator.set_state({"next_index": first})
            self._position = first
        if self._places is None:
            self._shapes = None  # the last batch of rows that all heads share may be shorter than the others
        axes = (self._max_steps, self._accumulate) if self._accumulate else (self._max_steps,)
        # The first element is drawn before the buffers are made, because it tells their shape.
        drawn = (self._next() for _ in range(sum(counts)))
        first_rows, first_mask = next(drawn)
        elements = itertools.chain([(first_rows, first_mask)], drawn)
        # Fresh buffers: JAX on a CPU may adopt them, and the superstep before may still be reading its own.
        rows, mask = np.zeros((*axes, *first_rows.shape), np.int32), np.zeros((*axes, *first_mask.shape), bool)
        for step, count in enumerate(counts):
            for micro in range(count):
                place = (step, micro) if self._accumulate else step
                rows[place], mask[place] = next(elements)
            if self._accumulate:
                # A missing micro-batch repeats the rows of the last one: no head ever sees a row of another's.
                rows[step, count:] = rows[step, count - 1]
        return {"rows": rows, "mask": mask}

    def close(self) -> None:
        """Ends the iterator and any threads of the user's pipeline."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()

    def _next(self) -> tuple[np.ndarray, np.ndarray]:
        element = next(self._iterator, None)
        if element is None:
            raise DataError(
                f"The index dataset is too short: element {self._position}. Got no more elements, expected one for "
                "each batch of the run. Fix: call .repeat() on it, or train fewer steps."
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
                f"An index batch lacks rows or mask: {where}. Got {element!r:.60}, expected a dict with "
                '"rows" and "mask". Fix: return both from index_dataset().'
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
        # JAX does not complain: it clips such a row, or reads another one.
        if rows.min() < 0 or rows.max() >= self._num_rows:
            place = tuple(map(int, np.argwhere((rows < 0) | (rows >= self._num_rows))[0]))
            raise DataError(
                f"An index batch contains a row outside the dataset: {where}, place {place}. Got {rows[place]}, "
                f"expected 0 <= row < {self._num_rows}. Fix: padding slots need a valid row too; repeat one of the "
                "head's own."
            )
        return rows, mask
