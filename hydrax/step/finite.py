"""Checks whether the arrays of one head are free of NaN and infinity."""

from __future__ import annotations

import collections
import math
from typing import Any

import jax
import jax.numpy as jnp

_LANES = 128  # Partial sums side by side; a single running sum cannot use the processor's wide registers.


def is_finite(leaf: jax.Array) -> jax.Array:
    """Whether an array has no NaN and no infinity, a bool scalar; True for integers, bools and keys."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.array(True)
    width = math.gcd(leaf.size, _LANES)
    if width < 8:
        return jnp.isfinite(leaf).all()
    # 0 * x is 0 for a finite x and NaN otherwise, so a sum of zeros tells that all are finite.
    return ((leaf * 0).reshape(-1, width).sum(axis=0) == 0).all()


def all_finite(tree: Any) -> jax.Array:
    """Whether all arrays of a tree are finite, a bool scalar."""
    return jnp.stack([*_by_shape(tree).values(), jnp.array(True)]).all()


def stays_finite(old: Any, new: Any) -> jax.Array:
    """Whether no array became NaN or infinite, for trees that may hold infinities from the start.

    Some optimisers start with them, and an attention mask holds them for good. Arrays of one shape and dtype are
    checked together: if one of them was not finite before, the others are not checked either.
    """
    before, after = _by_shape(old), _by_shape(new)
    return jnp.stack([*(after[form] | ~before[form] for form in after), jnp.array(True)]).all()


def _by_shape(tree: Any) -> dict[Any, jax.Array]:
    """Whether all arrays of a shape and dtype are finite: one check to compile for each form, not for each array."""
    groups = collections.defaultdict(list)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            groups[leaf.shape, leaf.dtype].append(leaf * 0)
    return {form: is_finite(sum(leaves[1:], leaves[0])) for form, leaves in groups.items()}
