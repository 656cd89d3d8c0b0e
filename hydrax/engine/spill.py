"""Spill: keeps waiting heads on disk, so that the number of heads is limited by the disk and not by memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hydrax.trees import is_key


class Spill:
    """Stores arrays in temporary files that have no name.

    The system frees their space when the arrays are deleted or the process ends, even if it is killed.

    Args:
      folder: a folder on the disk to use; created when it is first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, tree: Any, into: Any = None) -> Any:
        """Moves a tree to disk; its arrays become memory maps. PRNG keys stay as they are, as NumPy has none.

        Args:
          tree: arrays on a device or on the host; waits for them.
          into: a tree of the spill to overwrite; None for new files.
        """
        if into is None:
            return jax.tree.map(self._written, tree)
        return jax.tree.map(_overwritten, tree, into)

    def blank(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Makes an array of zeros on disk."""
        if 0 in shape:
            return np.zeros(shape, dtype)
        self._folder.mkdir(parents=True, exist_ok=True)
        # The map keeps the file alive after it is closed. It has no name, so nothing is left behind to clean up.
        with tempfile.TemporaryFile(dir=self._folder) as file:
            return np.memmap(file, dtype, "w+", shape=shape or (1,)).reshape(shape)

    def _written(self, array: Any) -> Any:
        if is_key(array):
            return array
        # `blank` writes nothing: a new file reads as zeros, so each byte is written once.
        return _overwritten(array, self.blank(array.shape, array.dtype))


def _overwritten(array: Any, place: Any) -> Any:
    if is_key(array):
        return array
    place[...] = np.asarray(array)
    return place
