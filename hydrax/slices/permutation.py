"""Keyed bijections and bit mixing: a shuffled order is computed from a key, never stored.

Windows, strata, draws, weights and the rotation all build on these functions. They take uint32 arrays of NumPy or JAX,
as `xp` says, and give the same integers from both. JAX without x64 has no 64-bit integers, so every step fits into 32.

Every constant in this file is part of the file format: changing one changes the rows of each stored seed and of each
resumed run. The version number in `Slices.digest` must then go up.
"""

import functools
import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or jax.Array, whichever `xp` makes.

# Enough rounds that the measurement cannot tell the shuffle from a uniform one. Chi-square over 1,500,000 keys (1,500
# heads of 1,000 passes), in standard deviations from its mean, of all n! orders of n = 2, 3, 4, 5 rows and of the
# positions of two neighbours among 8 and 50: 8 rounds give 14 to 271, 12 rounds up to 3.5, 16 and 20 rounds at most
# 2.0. The last four rounds are a safety margin.
ROUNDS = 20

# NumPy scalars, because JAX without x64 refuses Python ints above 2**31.
GOLDEN = np.uint32(0x9E3779B1)  # A prime near 2**32 / golden ratio: a product with it spreads neighbours apart.
_STEP = np.uint32(0x2C9277B5)  # Multiplier of the round keys: O'Neill, PCG, 2014. With GOLDEN its period is 2**32.
_STEP_BACK = np.uint32(0xCC2BFE9D)  # Its inverse: _STEP * _STEP_BACK = 1 modulo 2**32.
_MIX_1, _MIX_2 = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)  # lowbias32, see `mix`.
_U15, _U16, _U31 = np.uint32(15), np.uint32(16), np.uint32(31)
_LOW_HALF, _ALL_ONES = np.uint32(0xFFFF), np.uint32(0xFFFFFFFF)


# NumPy warns when a scalar overflows, never for arrays. Here wrapping modulo 2**32 is meant.
@np.errstate(over="ignore")
def permute(offset: Array, *, length: Array, key: Array, xp: ModuleType) -> Array:
    """Shuffle offsets: map each to another by a keyed bijection on [0, length).

    It needs no table and no cycle walking, so one call serves heads of unequal length. In each round a key K in
    [0, length) pairs every x with K - x (mod length). The two swap places or stay: a bit decides, hashed from the
    larger of the two, so that both come to the same decision.

    Args:
      offset: positions to shuffle, 0 <= offset < length; integers of any shape.
      length: size of the range, 1 <= length < 2**31; broadcasts against `offset`.
      key: uint32, one key for each order; broadcasts against `offset`.
      xp: `numpy` or `jax.numpy`; both give the same integers.

    Returns:
      The shuffled offsets, uint32, in the shape that the arguments broadcast to.

    Source: Hoang, Morris, Rogaway, "An Enciphering Scheme Based on a Card Shuffle", CRYPTO 2012.
    """
    x, n, state = (xp.asarray(part).astype(xp.uint32) for part in (offset, length, key))
    if xp is not np and (axes := _lines(x, n, state)) is not None:
        return _permute_lines(axes, x, n, (state,), None)
    halves = n >> _U16, n & _LOW_HALF
    swap_or_not = _swap_or_not if xp is np else _traced_once()
    for _ in range(ROUNDS):
        # A linear congruential step is cheaper than a hash. Its low bits are poor, but K is made of the high ones.
        state = state * _STEP + GOLDEN
        x = swap_or_not(x, n, multiply_high(state, *halves), state, xp)
    return x


def permute_two(offset: Array, second: Array, *, length: Array, keys: tuple[Array, Array], xp: ModuleType) -> Array:
    """Shuffle offsets by one of two orders: `permute` with the second key where `second`, and with the first elsewhere.

    It is faster than `permute` with a key for each offset if lengths and keys are the same along the last axis.

    Args:
      offset: as in `permute`.
      second: bool, in the shape of `offset`.
      length, keys, xp: as in `permute`; there are two keys.
    """
    x, n, *both = (xp.asarray(part).astype(xp.uint32) for part in (offset, length, *keys))
    if xp is not np and (axes := _lines(x, n, *both)) is not None:
        return _permute_lines(axes, x, n, tuple(both), second)
    return permute(x, length=n, key=xp.where(second, both[1], both[0]), xp=xp)


@np.errstate(over="ignore")
def unpermute(place: Array, *, length: Array, key: Array, xp: ModuleType) -> Array:
    """Find the offsets that `permute` sends to the given places.

    Each round is its own inverse, so this runs the rounds of `permute` backwards.

    Args:
      place: shuffled offsets, 0 <= place < length; integers of any shape.
      length, key, xp: as in `permute`.

    Returns:
      The offsets, uint32, in the shape that the arguments broadcast to.
    """
    x, n, state = (xp.asarray(part).astype(xp.uint32) for part in (place, length, key))
    halves = n >> _U16, n & _LOW_HALF
    swap_or_not = _swap_or_not if xp is np else _traced_once()
    for _ in range(ROUNDS):
        state = state * _STEP + GOLDEN
    for _ in range(ROUNDS):
        x = swap_or_not(x, n, multiply_high(state, *halves), state, xp)
        state = (state - GOLDEN) * _STEP_BACK
    return x


def _swap_or_not(x: Array, n: Array, far: Array, state: Array, xp: ModuleType) -> Array:
    """Run one round: return x, or its partner K - x (mod n); `far` is K."""
    # Augmented assignments work in place on NumPy arrays and rebind JAX arrays. So one text serves both, and NumPy,
    # whose time goes into memory traffic, allocates few temporaries.
    partner = far - x
    # If K < x, the difference has wrapped to above 2**31, and adding n brings it back into [0, n). If not, adding n
    # only makes it larger. So the minimum is the remainder, without a division.
    partner = xp.minimum(partner, partner + n)
    bit = xp.maximum(x, partner)
    bit = bit * GOLDEN
    bit ^= state
    bit ^= bit >> _U15
    bit *= _MIX_2
    # Spread the top bit over the word: all ones or all zeros. As a mask it selects in place; np.where would allocate.
    bit >>= _U31
    bit *= _ALL_ONES
    partner ^= x
    partner &= bit
    return x ^ partner


@functools.cache
def _traced_once() -> Callable[..., Array]:
    """Return `_swap_or_not` for JAX, so wrapped that JAX traces it once instead of in every round.

    The rounds would otherwise take most of the time of tracing a superstep. Inlining keeps the program the same.
    """
    traced: Callable[..., Array] = _jax().jit(_swap_or_not, static_argnames="xp", inline=True)
    return traced


# The same rounds for a CPU, where XLA makes slow code of them as they are written above. A line is a set of offsets
# that have one key: what depends on the key alone is computed once for each line. Lines, or the offsets of a line, fill
# the vector registers. That takes a third of the time. A GPU runs the rounds best as one kernel.

_REGISTER = 16  # Words of the widest vector register.


def _lines(x: Array, *others: Array) -> tuple[int, ...] | None:
    """Return the axes of x that tell lines apart, if the fast form serves lengths and keys; None if it does not."""
    by_line = all(one.ndim in (0, x.ndim) and one.shape[-1:] in ((), (1,)) for one in others)
    if not by_line or x.ndim < 2 or _jax().default_backend() != "cpu":
        return None
    axes = tuple(axis for axis in range(x.ndim - 1) if any(one.ndim and one.shape[axis] > 1 for one in others))
    every = tuple(range(x.ndim - 1))
    # If there are few lines, each is cut into several.
    for some in (axes, every):
        if math.prod(x.shape[axis] for axis in some) >= _REGISTER:
            return some
    return axes if x.size >= _REGISTER * math.prod(x.shape[axis] for axis in axes) else None


def _permute_lines(axes: tuple[int, ...], x: Array, n: Array, keys: tuple[Array, ...], second: Array | None) -> Array:
    """Run `permute` or, with two keys, `permute_two` in JAX, with lines that these axes tell apart."""
    jnp, scan = _jax().numpy, _jax().lax.scan
    others = tuple(axis for axis in range(x.ndim) if axis not in axes)
    num_lines = math.prod(x.shape[axis] for axis in axes)
    # What fills the registers comes last.
    lines_last = num_lines >= _REGISTER
    order = (*others, *axes) if lines_last else (*axes, *others)

    def by_line(part: Array) -> Array:  # [1, lines] or [lines, 1]
        whole = part if part.ndim else part.reshape((1,) * x.ndim)
        wanted = [x.shape[axis] if axis in axes else 1 for axis in range(x.ndim)]
        return jnp.broadcast_to(whole, wanted).reshape((1, num_lines) if lines_last else (num_lines, 1))

    def by_slot(part: Array) -> Array:  # [slots, lines] or [lines, slots]
        return part.transpose(*order).reshape((-1, num_lines) if lines_last else (num_lines, -1))

    n = by_line(n)
    halves = n >> _U16, n & _LOW_HALF

    def next_state(states: list[Array], _: None) -> tuple[list[Array], list[Array]]:
        states = [state * _STEP + GOLDEN for state in states]
        state, far, *others = [part for state in states for part in (state, multiply_high(state, *halves))]
        # The difference of two values: a mask adds it in fewer operations than it takes to select one of the two.
        return states, [state, far, *(part ^ other for part, other in zip((state, far), others, strict=False))]

    tables = scan(next_state, [by_line(key) for key in keys], None, length=ROUNDS)[1]
    chosen = None if second is None else by_slot(second).astype(jnp.uint32) * _ALL_ONES

    def shuffle(x: Array, tables: list[Array]) -> tuple[Array, None]:
        state, far, *differ = tables
        if chosen is not None:
            state, far = (part ^ (chosen & other) for part, other in zip((state, far), differ, strict=True))
        return _swap_or_not(x, n, far, state, jnp), None

    x = scan(shuffle, by_slot(x), tables)[0].reshape([x.shape[axis] for axis in order])
    return x.transpose(*np.argsort(order).tolist())


def _jax() -> Any:
    # Whoever passes jax.numpy has imported JAX. Slices alone must not: they are pure NumPy.
    return sys.modules["jax"]


@np.errstate(over="ignore")
def mix(x: Array, xp: ModuleType) -> Array:
    """Hash a 32-bit word: a bijection on uint32 under which every input bit affects every output bit (avalanche).

    Args:
      x: uint32 of any shape.
      xp: `numpy` or `jax.numpy`; both give the same integers.

    Source: Wellons, "Prospecting for Hash Functions", 2018 (lowbias32).
    """
    x = xp.asarray(x, xp.uint32)
    x = x ^ (x >> _U16)  # Not in place: the caller's array must not change.
    x *= _MIX_1
    x ^= x >> _U15
    x *= _MIX_2
    x ^= x >> _U16
    return x


def multiply_high(x: Array, n_high: Array, n_low: Array) -> Array:
    """Compute floor(x * n / 2**32) exactly, which scales a hash x to [0, n).

    The product has 64 bits, so it is put together from products of 16-bit halves, which fit into 32. A remainder x % n
    would be slower.

    Args:
      x: uint32 of any shape.
      n_high, n_low: n >> 16 and n & 0xFFFF. `permute` computes them once for all rounds.
    """
    high, low = x >> _U16, x & _LOW_HALF
    middle = low * n_low
    middle >>= _U16
    middle = middle + high * n_low
    carry = low * n_high + (middle & _LOW_HALF)
    carry >>= _U16
    return high * n_high + (middle >> _U16) + carry
