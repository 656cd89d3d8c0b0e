"""Names, sizes and digests of pytrees of arrays."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def named_leaves(tree: Any) -> dict[str, Any]:
    """Lists the leaves of a tree by dotted path.

    >>> named_leaves({"linear": {"kernel": 1, "bias": 2}, "steps": [3, 4]})
    {'linear.bias': 2, 'linear.kernel': 1, 'steps.0': 3, 'steps.1': 4}
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def tree_digest(tree: Any) -> str:
    """Computes one digest of all arrays of a tree, on the host or on a device. Names are not part of it."""
    return digest(np.array([digest(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)]))


def digest(array: np.ndarray) -> str:
    """Computes the SHA-256 of the bytes of an array."""
    # Through its buffer: a copy of heads that are kept on disk may not fit into memory.
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def is_key(array: Any) -> bool:
    """Whether an array holds PRNG keys."""
    return bool(jnp.issubdtype(array.dtype, jax.dtypes.prng_key))


def tree_bytes(tree: Any) -> int:
    """Counts the bytes of the arrays of a tree, which may also be shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
