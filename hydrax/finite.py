"""Whether the arrays of one head are free of NaN and infinity."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

_LANES = 128  # Sums side by side: one sum after the other cannot use the processor's wide registers.


def is_finite(leaf: jax.Array) -> jax.Array:
    """Whether no number of an array is NaN or infinite, a bool scalar; True for what holds no fractions."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.array(True)
    width = math.gcd(leaf.size, _LANES)
    if width < 8:
        return jnp.isfinite(leaf).all()
    # Zero times a finite number is zero, and times any other NaN.
    return ((leaf * 0).reshape(-1, width).sum(axis=0) == 0).all()


def stays_finite(old: Any, new: Any) -> jax.Array:
    """Whether each array of a tree is finite that was so before: some optimisers start from infinity."""
    leaves = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    return jnp.stack([is_finite(after) | ~is_finite(before) for before, after in leaves]).all()
