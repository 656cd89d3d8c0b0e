"""Names, sizes and digests of pytrees of arrays."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.errors import ArgumentError


def leaves_by_path(tree: Any) -> dict[tuple[str, ...], Any]:
    """Lists the leaves of a tree by path, such as `("heads", "trainable", "linear", "kernel")`.

    Raises:
      ArgumentError: two leaves have the same path.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    found = {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf for path, leaf in flat}
    if len(found) < len(flat):
        raise ArgumentError(
            f"Two leaves of a tree have the same path. Got {len(flat)} leaves with {len(found)} paths, expected one "
            "path for each. Fix: give the keys of every dict and custom node different str()."
        )
    return found


def dotted(paths: Iterable[Sequence[str]]) -> list[str]:
    """Joins the keys of paths by dots.

    A key that contains a dot is escaped, but only in names that would otherwise stand for two leaves.

    >>> dotted([("c1", "kernel"), ("c1.bias",)])
    ['c1.kernel', 'c1.bias']
    >>> print(*dotted([("a.b",), ("a", "b"), ("c.d",)]))
    a\\.b a.b c.d
    """
    paths = list(paths)
    plain = [".".join(path) for path in paths]
    counts = collections.Counter(plain)
    escaped = [".".join(key.replace("\\", "\\\\").replace(".", "\\.") for key in path) for path in paths]
    names = [short if counts[short] == 1 else long for short, long in zip(plain, escaped, strict=True)]
    # An escaped name can only equal a plain one that contains backslashes.
    return names if len(set(names)) == len(names) else escaped


def named_leaves(tree: Any) -> dict[str, Any]:
    """Lists the leaves of a tree by dotted path; see `dotted`.

    >>> named_leaves({"linear": {"kernel": 1, "bias": 2}, "steps": [3, 4]})
    {'linear.bias': 2, 'linear.kernel': 1, 'steps.0': 3, 'steps.1': 4}
    """
    leaves = leaves_by_path(tree)
    return dict(zip(dotted(leaves), leaves.values(), strict=True))


def random_state(keys: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Returns these paths of PRNG keys, and those of the counters that Flax keeps beside them.

    >>> sorted(random_state([("dropout", "rngs", "key")]))
    [('dropout', 'rngs', 'count'), ('dropout', 'rngs', 'key')]
    """
    keys = set(keys)
    return keys | {(*path[:-1], "count") for path in keys if path[-1] == "key"}


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


def to_numpy(array: Any) -> np.ndarray:
    """Copies an array to the host; PRNG keys become their words, since only JAX knows keys."""
    return np.asarray(jax.random.key_data(array) if is_key(array) else array)


def tree_bytes(tree: Any) -> int:
    """Counts the bytes of the arrays of a tree, which may also be shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
