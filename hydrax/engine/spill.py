"""Keeps arrays on disk while their heads wait for their turn, so that H is bounded by disk and not by memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hydrax.trees import is_key


class Spill:
    """Arrays in files without a name: their room is free again when the arrays are gone, or the process is.

    Args:
      folder: on the disk to use.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, tree: Any, into: Any = None) -> Any:
        """The tree with its arrays on disk, as NumPy arrays; PRNG keys, which NumPy does not know, stay as they are.

        Args:
          tree: arrays on a device or on the host; waits for them.
          into: a tree of the spill that they overwrite; None: they get files of their own.
        """
        if into is None:
            return jax.tree.map(self._written, tree)
        return jax.tree.map(_overwritten, tree, into)

    def blank(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Zeros on disk."""
        if 0 in shape:
            return np.zeros(shape, dtype)
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            return np.memmap(file, dtype, "w+", shape=shape or (1,)).reshape(shape)

    def _written(self, array: Any) -> Any:
        if is_key(array):
            return array
        # Explicit zeros would write the file twice; a new file reads as zeros.
        return _overwritten(array, self.blank(array.shape, array.dtype))


def _overwritten(array: Any, place: Any) -> Any:
    if is_key(array):
        return array
    place[...] = np.asarray(array)
    return place
