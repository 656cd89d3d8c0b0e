"""The rotation: the rows that each head meets at step t, and its live slots. A pure function: a resume needs only t.

A head of n rows walks its slice pass after pass without end. Slot j of batch t is place p = t * width + j of this walk,
which is offset p % n of pass p // n. The head meets the row at offset `permute(p % n; n, key(seed, head id, pass))` of
its slice. So each pass meets every row once, in an order of its own.

`cursor` and `slots_left` compute in 64 bits on the host where a batch begins. `slots` continues from there in 32 bits,
in NumPy or inside the compiled program.
"""

from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np

from hydrax.arguments import is_choice
from hydrax.errors import ArgumentError
from hydrax.slices.arguments import whole_number
from hydrax.slices.permutation import GOLDEN, Array, mix, permute, permute_two
from hydrax.slices.slices import Slices

SmallSlices = Literal["mask", "wrap"]

Order = Literal["whole", "one_end", "any"]
"""How passes and batches meet: each batch of each head is a whole pass; a pass ends at most once in a batch; any."""

_ZERO, _ONE = np.uint32(0), np.uint32(1)
_NO_END = np.uint32(2**31)  # Stands for "no last pass": one superstep never walks so many slots.

MOST_AHEAD = 2**31
"""Slots that a walk in 32 bits may be away from its cursor."""

# The head id of the walk that all heads share. Ids stay below 2**31, so no head has it.
EVERYBODY = np.array([2**32 - 1], np.uint32)


def index_batch(
    slices: Slices,
    batch: int,
    *,
    batch_size: int,
    seed: int,
    small_slices: SmallSlices = "mask",
    passes: int | None = None,
    shared: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the rows that every head meets in one batch, and the mask of its live slots.

    A head's rows depend on the seed, its id, its own slice and the batch number, never on the heads beside it. Shared
    rows depend on the seed, the length of the dataset and the batch number, and on no slice and no head.

    Args:
      slices: the slices of the heads.
      batch: number of the batch since the start of training, counted from 0.
      batch_size: slots of each head, B.
      seed: seed of the rotation, 0 <= seed < 2**32.
      small_slices: what a slice of n < B rows does. With "mask" it has n live slots and padding; with "wrap" its next
        passes fill the batch.
      passes: number of passes after which a head has padding only. If None, the walk never ends.
      shared: whether all heads walk the whole dataset together; a pass is then one over the dataset.

    Returns:
      `(rows int32[H, B], mask bool[H, B])`. Padding slots, too, hold rows of the head's own slice. Shared rows are
      int32[B], and a slot is live for the heads whose slice holds its row.

    Raises:
      ArgumentError: an argument is out of range.
    """
    lengths, ids = (np.array([slices.num_rows], np.int32), EVERYBODY) if shared else (slices.lengths, slices.ids)
    seed = whole_number("seed", seed, 0, 2**32 - 1)
    here = cursor(batch, lengths, batch_size, small_slices)
    left = slots_left(batch, lengths, here.width, passes)
    offsets, live = slots(here, lengths, ids, seed, batch_size, np, left=left)
    if not shared:
        return slices.lookup(offsets), live
    rows = offsets[0].astype(np.int32)  # An offset inside the whole dataset is a row.
    return rows, slices.contains(slice(None), rows) & live


class Cursor(NamedTuple):
    """The position of each head when a batch begins.

    Attributes:
      first_pass: uint32[H], the number of its pass, modulo 2**32.
      offset: uint32[H], the offset inside this pass.
      width: int32[H], live slots of a batch, which is how far the head moves on in each.
    """

    first_pass: Array
    offset: Array
    width: Array


def cursor(batch: int, lengths: np.ndarray, batch_size: int, small_slices: SmallSlices = "mask") -> Cursor:
    """Compute the position of each head when a batch begins.

    Args:
      batch: number of the batch since the start of training, 0 <= batch <= 2**40.
      lengths: int32[H], rows of each slice, n.
      batch_size: slots of each head, B, 1 <= B <= 2**22.
      small_slices: with "mask" a head moves on by min(n, B) rows a batch, with "wrap" by B.

    Raises:
      ArgumentError: an argument is out of range.
    """
    # The two limits keep batch * width <= 2**62, inside int64.
    batch = whole_number("batch", batch, 0, 2**40)
    batch_size = whole_number("batch_size", batch_size, 1, 2**22)
    if not is_choice(small_slices, ("mask", "wrap")):
        raise ArgumentError(
            f"Unknown mode for small slices: argument small_slices. Got {small_slices!r}, expected 'mask' or 'wrap'. "
            "Fix: 'mask' pads the batch, 'wrap' fills it from the next passes."
        )
    rows = lengths.astype(np.int64)
    width = np.minimum(rows, batch_size) if small_slices == "mask" else np.full_like(rows, batch_size)
    passes, offset = np.divmod(batch * width, rows)
    # A pass only keys an order, so passes may repeat after 2**32: that is never reached.
    return Cursor((passes & 0xFFFFFFFF).astype(np.uint32), offset.astype(np.uint32), width.astype(np.int32))


def order(lengths: np.ndarray, batch_size: int, small_slices: SmallSlices = "mask") -> Order:
    """Tell how the passes and the batches of these heads meet; arguments are as in `cursor`."""
    width = cursor(0, lengths, batch_size, small_slices).width
    return "whole" if (width == lengths).all() else "one_end" if (width <= lengths).all() else "any"


def batches_of(passes: int, lengths: np.ndarray, batch_size: int, small_slices: SmallSlices = "mask") -> np.ndarray:
    """Count the batches in which each head completes `passes` passes over its slice, int64[H].

    The last of them may end with padding. Arguments are as in `index_batch` and `cursor`.
    """
    passes, width = whole_number("passes", passes, 1, 2**31), cursor(0, lengths, batch_size, small_slices).width
    batches: np.ndarray = -(-passes * lengths.astype(np.int64) // width)  # Rounded up.
    return batches


def slots_left(batch: int, lengths: np.ndarray, width: np.ndarray, passes: int | None) -> np.ndarray:
    """Count the live slots that each head still has when a batch begins, uint32[H].

    Args:
      batch: number of the batch since the start of training, counted from 0.
      lengths: int32[H], rows of each slice.
      width: int32[H], as in `Cursor`.
      passes: number of passes that each head makes. If None, the count is 2**31, which means no end to `slots`.
    """
    if passes is None:
        return np.full(lengths.shape, _NO_END)
    passes = whole_number("passes", passes, 1, 2**31)
    left = passes * lengths.astype(np.int64) - batch * width.astype(np.int64)
    return np.asarray(np.clip(left, 0, _NO_END), np.uint32)


def slots(
    cursor: Cursor,
    lengths: Array,
    head_ids: Array,
    seed: Array,
    batch_size: int,
    xp: ModuleType,
    *,
    ahead: Array = _ZERO,
    left: Array = _NO_END,
    order: Order = "any",
) -> tuple[Array, Array]:
    """Compute the offsets inside its slice that each head meets in some batches, and the mask of its live slots.

    Args:
      cursor: the positions of the heads, from the function `cursor`.
      lengths: int32[H], rows of each slice.
      head_ids: int32[H], the ids of the heads.
      seed: uint32[] or int, seed of the rotation, 0 <= seed < 2**32.
      batch_size: slots of each head, B.
      xp: `numpy` or `jax.numpy`; both give the same integers.
      ahead: uint32[...], how many batches after the cursor each of these is; ahead * B < `MOST_AHEAD`.
      left: uint32[H], live slots left at the cursor, from `slots_left`.
      order: how passes and batches meet, from the function `order`; it saves work and changes no integer.

    Returns:
      `(offsets uint32[..., H, B], mask bool[..., H, B])`. Padding slots hold offsets of the same pass.
    """
    ahead = xp.asarray(ahead, dtype=xp.uint32)
    column = (1,) * ahead.ndim + (-1, 1)
    first_pass, first_offset, width, length, head_id, left = (
        xp.asarray(part).astype(xp.uint32).reshape(column) for part in (*cursor, lengths, head_ids, left)
    )
    slot = xp.arange(batch_size, dtype=xp.uint32).reshape((1,) * (ahead.ndim + 1) + (-1,))
    walked = ahead[..., None, None] * width
    mask = slot < width
    # After the last pass a head's slots are padding as well.
    mask = mask & (walked + slot < left)
    # Padding (slot >= width) repeats the live slots of the batch, so it holds no row of a later pass.
    step = slot % width
    if order == "whole":
        return xp.broadcast_to(step, mask.shape), mask
    # Where the batch begins is found once, as a division for each slot would cost as much as the shuffle.
    begin = first_offset + walked
    turns = begin // length
    place, first_pass = begin - turns * length + step, first_pass + turns
    if order == "one_end":
        # A batch in which a pass ends continues with the next pass.
        second = place >= length
        keys = tuple(pass_key(seed, head_id, first_pass + turn, xp) for turn in (_ZERO, _ONE))
        shuffled = permute_two(xp.minimum(place, place - length), second, length=length, keys=keys, xp=xp)
    else:
        turns = place // length
        key = pass_key(seed, head_id, first_pass + turns, xp)
        shuffled = permute(place - turns * length, length=length, key=key, xp=xp)
    # A batch that holds a whole pass has nothing to shuffle.
    return xp.where(width == length, step, shuffled), mask


@np.errstate(over="ignore")  # Only NumPy scalars warn; wrapping around is meant.
def pass_key(seed: Array, head_id: Array, pass_: Array, xp: ModuleType) -> Array:
    """Compute the key of one pass of one head: uint32, in the shape that its arguments broadcast to.

    Args:
      seed: uint32, seed of the rotation.
      head_id: int32 or uint32, id of the head.
      pass_: uint32, number of the pass modulo 2**32.
      xp: `numpy` or `jax.numpy`; both give the same integers.
    """
    head_key = mix(mix(xp.asarray(seed, xp.uint32), xp) ^ xp.asarray(head_id).astype(xp.uint32), xp)
    # The pass is mixed before the two are joined. Otherwise two heads whose keys differ in a few low bits would meet
    # the same orders, only with the passes swapped.
    return mix(head_key ^ mix(xp.asarray(pass_, xp.uint32) ^ GOLDEN, xp), xp)
