"""Writes arrays by name to one file that other programs can read."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from hydrax.errors import ArgumentError
from hydrax.files import draft
from hydrax.trees import to_numpy

SUFFIXES = (".npz", ".safetensors")


def export(arrays: Mapping[str, Any], path: Path) -> Path:
    """Writes arrays by name; a reader sees the old file or the whole new one.

    Args:
      arrays: NumPy or JAX arrays. PRNG keys are written as their words. A .npz file has no bfloat16 and holds such
        numbers as float32.
      path: the file; it must end in one of `SUFFIXES`.

    Returns:
      The file.

    Raises:
      ArgumentError: the path ends in something else, or safetensors is not installed.
    """
    check_suffix(path)
    whole = {name or "array": np.asarray(to_numpy(array), order="C") for name, array in arrays.items()}
    with draft(path, sync=True) as beside:
        if path.suffix == ".npz":
            # Not np.savez, which takes names as keyword arguments: an array could not be called "file".
            with zipfile.ZipFile(beside, "w") as archive:
                for name, array in whole.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, _known_to_numpy(array), allow_pickle=False)
        else:
            _safetensors().save_file(whole, beside)
    return path


def check_suffix(path: Path) -> Path:
    """Returns the path if it ends in one of `SUFFIXES`, and raises ArgumentError otherwise."""
    if path.suffix not in SUFFIXES:
        raise ArgumentError(
            f"Unknown export format: {path}. Got {path.suffix!r}, expected {' or '.join(SUFFIXES)}. Fix: end the file "
            "name in one of these."
        )
    return path


def _known_to_numpy(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ArgumentError(
            "Cannot write a .safetensors file: export. Got no safetensors package, expected it to be installed. Fix: "
            "pip install 'hydrax-heads[export]', or write .npz."
        ) from error
    return safetensors.numpy
