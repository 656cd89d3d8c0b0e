"""Whether the arrays of one head are free of NaN and infinity."""

from __future__ import annotations

import collections
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


def all_finite(tree: Any) -> jax.Array:
    """Whether all arrays of a tree are finite, a bool scalar."""
    return jnp.stack([*_by_shape(tree).values(), jnp.array(True)]).all()


def stays_finite(old: Any, new: Any) -> jax.Array:
    """The same for arrays that may hold infinity from the start, as those of some optimisers do.

    Arrays of one shape count as one: what was not finite among them before may be so after.
    """
    before, after = _by_shape(old), _by_shape(new)
    return jnp.stack([*(after[form] | ~before[form] for form in after), jnp.array(True)]).all()


def _by_shape(tree: Any) -> dict[Any, jax.Array]:
    """Whether all arrays of a shape are finite, by shape and dtype: one operation to compile for many arrays."""
    groups = collections.defaultdict(list)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            groups[leaf.shape, leaf.dtype].append(leaf * 0)
    return {form: is_finite(sum(leaves[1:], leaves[0])) for form, leaves in groups.items()}
