"""Pytrees of arrays: their names, sizes and digests."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by dotted path, such as `heads.trainable.linear.kernel`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def tree_digest(tree: Any) -> str:
    """One digest of all arrays of a tree, on the host or on the device."""
    return digest(np.array([digest(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)]))


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes."""
    # By its buffer: a copy of all heads on disk would not fit into memory.
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def is_key(array: Any) -> bool:
    """Whether an array holds PRNG keys."""
    return bool(jnp.issubdtype(array.dtype, jax.dtypes.prng_key))


def tree_bytes(tree: Any) -> int:
    """Bytes of the arrays of a tree, or of shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
