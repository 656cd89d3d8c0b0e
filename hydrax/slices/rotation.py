"""Which rows each head meets at step t, and which of its slots are live: a pure function, so resuming needs only t.

Slot j of batch t of a head of n rows stands at place p = t * width + j of an endless walk; it lies in pass p // n at
offset p % n, and meets the row at offset `permute(p % n; n, key(seed, head id, pass))` of the head's slice.
"""

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from hydrax.errors import ArgumentError
from hydrax.slices.arguments import whole_number

SmallSlices = Literal["mask", "wrap"]
Array = Any  # numpy.ndarray or jax.Array, whichever the argument xp makes.

# Flat to the limit of the measurement. Chi-square over 1,500,000 keys (1,500 heads of 1,000 passes), in standard
# deviations from its mean, of all n! orders of n = 2, 3, 4, 5 rows and of the places of two neighbours of 8 and 50:
# 8 rounds 14 to 271, 12 rounds up to 3.5, 16 and 20 rounds at most 2.0. Four rounds above the need are the margin.
ROUNDS = 20

# NumPy scalars, not Python ints: they keep uint32 in NumPy and in JAX without x64.
_LOW_HALF, _ALL_ONES = np.uint32(0xFFFF), np.uint32(0xFFFFFFFF)
_ZERO, _U15, _U16, _U31 = np.uint32(0), np.uint32(15), np.uint32(16), np.uint32(31)
_NO_END = np.uint32(2**31)  # More slots than a superstep walks.
_MIX_1, _MIX_2 = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_STEP, _GOLDEN = np.uint32(0x2C9277B5), np.uint32(0x9E3779B1)
_STEP_BACK = np.uint32(0xCC2BFE9D)  # _STEP * _STEP_BACK = 1 modulo 2**32.


# The walk that all heads make together has the key of a head that cannot be: ids stay below 2**31.
EVERYBODY = np.array([2**32 - 1], np.uint32)


class RowSource(Protocol):
    """What the rotation asks of `Slices`."""

    @property
    def ids(self) -> np.ndarray: ...
    @property
    def lengths(self) -> np.ndarray: ...
    @property
    def num_rows(self) -> int: ...
    def lookup(self, offsets: np.ndarray) -> np.ndarray: ...
    def contains(self, heads: Any, rows: Any) -> np.ndarray: ...


def index_batch(
    slices: RowSource,
    batch: int,
    *,
    batch_size: int,
    seed: int,
    small_slices: SmallSlices = "mask",
    passes: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that every head meets in batch number `batch`, and the mask of its live slots.

    A head's rows depend on the seed, its id, its own slice and the batch number, never on the heads beside it.

    Args:
      slices: the heads' slices.
      batch: number of the batch since the start of training, counted from 0.
      batch_size: slots of each head, B.
      seed: seed of the rotation, 0 <= seed < 2**32.
      small_slices: what a slice of n < B rows does: "mask" gives n live slots, "wrap" goes on with its next passes.
      passes: how many passes a head makes; slots beyond them are padding. None: no end.

    Returns:
      `(rows int32[H, B], mask bool[H, B])`. Rows of padding slots lie in the head's own slice too.

    Raises:
      ArgumentError: an argument is out of its range.
    """
    seed = whole_number("seed", seed, 0, 2**32 - 1)
    here = cursor(batch, slices.lengths, batch_size, small_slices)
    left = slots_left(batch, slices.lengths, here.width, passes)
    offsets, mask = slots(here, slices.lengths, slices.ids, seed, batch_size, np, left=left)
    return slices.lookup(offsets), mask


def shared_index_batch(
    slices: RowSource,
    batch: int,
    *,
    batch_size: int,
    seed: int,
    small_slices: SmallSlices = "mask",
    passes: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that all heads meet together in batch number `batch`, and whose they are.

    They walk the whole dataset, so they depend on the seed, its length and the batch number, on no slice and no head.

    Args:
      As `index_batch`; a pass is one over the dataset.

    Returns:
      `(rows int32[B], mask bool[H, B])`: a slot is live for the heads whose slice holds its row.
    """
    seed = whole_number("seed", seed, 0, 2**32 - 1)
    length = np.array([slices.num_rows], np.int32)
    here = cursor(batch, length, batch_size, small_slices)
    left = slots_left(batch, length, here.width, passes)
    rows, live = slots(here, length, EVERYBODY, seed, batch_size, np, left=left)
    return rows[0].astype(np.int32), slices.contains(slice(None), rows[0]) & live


class Cursor(NamedTuple):
    """Where each head stands when a batch begins.

    Attributes:
      first_pass: uint32[H], the pass, modulo 2**32.
      offset: uint32[H], the offset inside it.
      width: int32[H], live slots of a batch: as far as the head moves on.
    """

    first_pass: Array
    offset: Array
    width: Array


def cursor(batch: int, lengths: np.ndarray, batch_size: int, small_slices: SmallSlices = "mask") -> Cursor:
    """Where each head stands when batch number `batch` begins. On the host, in 64 bits, so that no product overflows.

    Args:
      batch: number of the batch since the start of training, 0 <= batch <= 2**40.
      lengths: int32[H], rows of each slice, n.
      batch_size: slots of each head, B.
      small_slices: "mask": a head moves on by min(n, B) rows a batch; "wrap": by B.

    Raises:
      ArgumentError: an argument is out of its range.
    """
    batch = whole_number("batch", batch, 0, 2**40)
    batch_size = whole_number("batch_size", batch_size, 1, 2**22)
    if small_slices not in ("mask", "wrap"):
        raise ArgumentError(
            f"Unknown way with small slices: argument small_slices. Got {small_slices!r}, expected 'mask' or 'wrap'. "
            "Fix: 'mask' for live and padding slots, 'wrap' to fill the batch from the next passes."
        )
    rows = lengths.astype(np.int64)
    width = np.minimum(rows, batch_size) if small_slices == "mask" else np.full_like(rows, batch_size)
    passes, offset = np.divmod(batch * width, rows)
    return Cursor((passes & 0xFFFFFFFF).astype(np.uint32), offset.astype(np.uint32), width.astype(np.int32))


def batches_of(passes: int, lengths: np.ndarray, batch_size: int, small_slices: SmallSlices = "mask") -> np.ndarray:
    """int64[H], the batches in which each head makes so many passes over its slice; the last may have padding."""
    passes, width = whole_number("passes", passes, 1, 2**31), cursor(0, lengths, batch_size, small_slices).width
    batches: np.ndarray = -(-passes * lengths.astype(np.int64) // width)
    return batches


def slots_left(batch: int, lengths: np.ndarray, width: np.ndarray, passes: int | None) -> np.ndarray:
    """uint32[H], live slots each head has left of so many passes when batch number `batch` begins; 2**31 is no end."""
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
) -> tuple[Array, Array]:
    """Offsets inside its slice that each head meets in a batch, and the mask of live slots.

    Args:
      cursor: as `cursor` gives it.
      lengths: int32[H], rows of each slice.
      head_ids: int32[H], the heads' ids.
      seed: uint32[] or int, seed of the rotation, 0 <= seed < 2**32.
      batch_size: slots of each head, B.
      xp: `numpy` or `jax.numpy`; both give the same integers.
      ahead: uint32[], how many batches after the cursor; ahead * B < 2**31.
      left: uint32[H], live slots left at the cursor.

    Returns:
      `(offsets uint32[H, B], mask bool[H, B])`; padding slots hold offsets of the same pass.
    """
    first_pass, first_offset, width = (xp.asarray(part).astype(xp.uint32)[:, None] for part in cursor)
    length = lengths[:, None].astype(xp.uint32)
    slot = xp.arange(batch_size, dtype=xp.uint32)[None, :]
    walked = xp.asarray(ahead, dtype=xp.uint32) * width
    mask = slot < width
    # Live slots beyond the last pass are padding too.
    mask = mask & (walked + slot < xp.reshape(left, (-1, 1)))
    # Live slots walk on into later passes; padding (n < B) starts over in the pass at hand, at offset j % n.
    place = first_offset + walked + slot % width
    turns = place // length
    key = pass_key(seed, head_ids[:, None], first_pass + turns, xp)
    return permute(place - turns * length, length=length, key=key, xp=xp), mask


@np.errstate(over="ignore")  # Only NumPy scalars warn; wrapping around is meant.
def pass_key(seed: Array, head_id: Array, pass_: Array, xp: ModuleType) -> Array:
    """Key of one pass of one head: uint32, of the shape its arguments broadcast to.

    Args:
      seed: uint32, seed of the rotation.
      head_id: int32 or uint32, the head's id.
      pass_: uint32, the pass modulo 2**32.
      xp: `numpy` or `jax.numpy`; both give the same integers.
    """
    head_key = mix(mix(xp.asarray(seed, xp.uint32), xp) ^ xp.asarray(head_id).astype(xp.uint32), xp)
    # The pass is mixed before it is joined, else two heads of close keys would swap whole runs of passes.
    return mix(head_key ^ mix(xp.asarray(pass_, xp.uint32) ^ _GOLDEN, xp), xp)


@np.errstate(over="ignore")
def permute(offset: Array, *, length: Array, key: Array, xp: ModuleType) -> Array:
    """Maps offsets to offsets by a keyed bijection on [0, length).

    Needs no table and no cycle walking, so it vectorises over heads of unequal length. In round r with round key
    K in [0, length), x and its partner K - x (mod length) swap places or not, by one bit hashed from the larger.

    Args:
      offset: positions inside a pass, 0 <= offset < length; integers of any shape.
      length: rows of the slice the offset lies in, 1 <= length < 2**31; broadcasts against `offset`.
      key: one 32-bit key per (seed, head, pass), uint32; broadcasts against `offset`.
      xp: `numpy` or `jax.numpy`; both give the same integers.

    Returns:
      The permuted offsets, uint32; the shape that the arguments broadcast to.

    Source: Hoang, Morris, Rogaway, "An Enciphering Scheme Based on a Card Shuffle", CRYPTO 2012.
    """
    x, n, state = (xp.asarray(part).astype(xp.uint32) for part in (offset, length, key))
    halves = n >> _U16, n & _LOW_HALF
    swap_or_not = _swap_or_not if xp is np else _traced_once()
    for _ in range(ROUNDS):
        # A linear congruential step: cheaper than a hash, and its high bits, which make K, are the good ones.
        state = state * _STEP + _GOLDEN
        x = swap_or_not(x, n, halves, state, xp)
    return x


@np.errstate(over="ignore")
def unpermute(place: Array, *, length: Array, key: Array, xp: ModuleType) -> Array:
    """The offsets that `permute` sends to these places: each round is its own inverse, so the rounds run backwards.

    Args:
      place: permuted offsets, 0 <= place < length; integers of any shape.
      length, key, xp: as in `permute`.

    Returns:
      The offsets, uint32; the shape that the arguments broadcast to.
    """
    x, n, state = (xp.asarray(part).astype(xp.uint32) for part in (place, length, key))
    halves = n >> _U16, n & _LOW_HALF
    swap_or_not = _swap_or_not if xp is np else _traced_once()
    for _ in range(ROUNDS):
        state = state * _STEP + _GOLDEN
    for _ in range(ROUNDS):
        x = swap_or_not(x, n, halves, state, xp)
        state = (state - _GOLDEN) * _STEP_BACK
    return x


def _swap_or_not(x: Array, n: Array, halves: tuple[Array, Array], state: Array, xp: ModuleType) -> Array:
    """One round: x, or its partner K - x (mod n)."""
    # Augmented assignment works in place on NumPy arrays and rebinds JAX ones: one text, and no needless temporaries.
    partner = multiply_high(state, *halves) - x
    # Below zero it has wrapped around to above 2**31, and the sum with n is the smaller one.
    partner = xp.minimum(partner, partner + n)
    bit = xp.maximum(x, partner)
    bit = bit * _GOLDEN
    bit ^= state
    bit ^= bit >> _U15
    bit *= _MIX_2
    # All ones where the top bit is set, else zero: a select in place, where np.where would allocate.
    bit >>= _U31
    bit *= _ALL_ONES
    partner ^= x
    partner &= bit
    return x ^ partner


@functools.cache
def _traced_once() -> Callable[..., Array]:
    """`_swap_or_not` for JAX: traced once and not in each round, which is most of tracing a superstep; inlined, so the
    program is the same.
    """
    # This file does not import JAX; but whoever asks has its arrays.
    traced: Callable[..., Array] = sys.modules["jax"].jit(_swap_or_not, static_argnames="xp", inline=True)
    return traced


@np.errstate(over="ignore")
def mix(x: Array, xp: ModuleType) -> Array:
    """Scatters the bits of a 32-bit word: a bijection on uint32 under which every input bit sways every output bit.

    Args:
      x: uint32 of any shape.
      xp: `numpy` or `jax.numpy`; both give the same integers.

    Source: Wellons, "Prospecting for Hash Functions", 2018 (lowbias32).
    """
    x = xp.asarray(x, xp.uint32)
    x = x ^ (x >> _U16)
    x *= _MIX_1
    x ^= x >> _U15
    x *= _MIX_2
    x ^= x >> _U16
    return x


def multiply_high(x: Array, n_high: Array, n_low: Array) -> Array:
    """floor(x * n / 2**32), exactly, from 16-bit halves: a place in [0, n) without 64-bit types or a slow modulo."""
    high, low = x >> _U16, x & _LOW_HALF
    middle = low * n_low
    middle >>= _U16
    middle = middle + high * n_low
    carry = low * n_high + (middle & _LOW_HALF)
    carry >>= _U16
    return high * n_high + (middle >> _U16) + carry
