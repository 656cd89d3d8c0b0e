"""Maxima and sums over windows, and their gradients, as arithmetic on strided slices.

XLA's CPU backend goes through windows element by element; the gradient of a 2 x 2 maximum takes 12 to 14 times as long.
Arithmetic on slices is fused into one vectorised loop with the operations around it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_MOST_PLACES = 32  # For larger windows XLA's own loop is cheaper than that many slices.


def _pool(combine: Callable[[Any, Any], Any], neutral: float) -> Callable[..., Any]:
    """Makes the rule for a `reduce_window_*` primitive."""

    def rule(
        x: jax.Array,
        *,
        window_dimensions: Sequence[int],
        window_strides: Sequence[int],
        padding: Sequence[tuple[int, int]],
        base_dilation: Sequence[int],
        window_dilation: Sequence[int],
        **others: Any,
    ) -> Any:
        if not _fits(x, window_dimensions, others):
            return NotImplemented
        config = [(low, high, d - 1) for (low, high), d in zip(padding, base_dilation, strict=True)]
        slices = _slices(
            lax.pad(x, jnp.array(neutral, x.dtype), config), window_dimensions, window_strides, window_dilation
        )
        return reduce(combine, slices)

    return rule


def _gradient_of_max(
    g: jax.Array,
    x: jax.Array,
    *,
    select_prim: Any,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **others: Any,
) -> Any:
    """The rule for `select_and_scatter_add`: the gradient of a window goes to its first maximum, as in XLA."""
    if select_prim.name != "ge" or not _fits(x, window_dimensions, others):
        return NotImplemented
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(low, high, 0) for low, high in padding])
    slices = _slices(padded, window_dimensions, window_strides, [1] * x.ndim)
    # Not `new > best`: with a NaN both comparisons are false, and select_and_scatter then moves on to the new value.
    best, winner = slices[0], jnp.zeros(g.shape, jnp.int32)
    for place, new in enumerate(slices[1:], 1):
        stays = best >= new
        best, winner = jnp.where(stays, best, new), jnp.where(stays, winner, place)
    # XLA would fuse the search for winners into every element of the result, and the result into everything that reads
    # it, and compute them again each time. The two barriers halve the backward pass of a CNN.
    winner = lax.optimization_barrier(winner)
    tiled = tuple(window_dimensions) == tuple(window_strides) and not any(map(any, padding))
    spread = _spread_tiles if tiled else _spread
    return lax.optimization_barrier(spread(g, winner, x.shape, window_dimensions, window_strides, padding))


def _spread(
    g: jax.Array,
    winner: jax.Array,
    shape: tuple[int, ...],
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """Adds the `g` of each window at the place inside the window that `winner` gives."""
    zero = jnp.zeros((), g.dtype)
    parts = []
    for place, offset in enumerate(itertools.product(*map(range, window))):
        config = [
            (at - low, size + low - at - (count - 1) * stride - 1, stride - 1)
            for at, (low, _), size, count, stride in zip(offset, padding, shape, g.shape, strides, strict=True)
        ]
        parts.append(lax.pad(jnp.where(winner == place, g, zero), zero, config))
    return reduce(lax.add, parts)


def _spread_tiles(
    g: jax.Array, winner: jax.Array, shape: tuple[int, ...], window: Sequence[int], strides: Any, padding: Any
) -> jax.Array:
    """Does the same for windows that do not overlap, in half the time: each place looks up its only window."""
    tiles = tuple(n for pair in zip(g.shape, window, strict=True) for n in pair)
    over = tuple(range(0, 2 * g.ndim, 2))
    own = jnp.arange(math.prod(window), dtype=winner.dtype).reshape(window)
    wins = lax.broadcast_in_dim(winner, tiles, over) == lax.broadcast_in_dim(own, tiles, [a + 1 for a in over])
    whole = jnp.where(wins, lax.broadcast_in_dim(g, tiles, over), jnp.zeros((), g.dtype))
    covered = whole.reshape([count * size for count, size in zip(g.shape, window, strict=True)])
    return lax.pad(covered, jnp.zeros((), g.dtype), [(0, n - m, 0) for n, m in zip(shape, covered.shape, strict=True)])


def _fits(x: jax.Array, window: Sequence[int], others: Mapping[str, Any]) -> bool:
    plain = all(value is None for value in others.values())
    return plain and jnp.issubdtype(x.dtype, jnp.floating) and x.size > 0 and math.prod(window) <= _MOST_PLACES


def _slices(x: jax.Array, window: Sequence[int], strides: Sequence[int], steps: Sequence[int]) -> list[jax.Array]:
    """For each place inside a window, in order: the elements that all windows have there."""
    ends = [size - (count - 1) * step for size, count, step in zip(x.shape, window, steps, strict=True)]
    offsets = [
        [i * step for i, step in zip(index, steps, strict=True)] for index in itertools.product(*map(range, window))
    ]
    return [lax.slice(x, low, [at + end for at, end in zip(low, ends, strict=True)], tuple(strides)) for low in offsets]


RULES: Mapping[str, Callable[..., Any]] = {
    "reduce_window_max": _pool(lax.max, -float("inf")),
    "reduce_window_sum": _pool(lax.add, 0.0),
    "select_and_scatter_add": _gradient_of_max,
}
