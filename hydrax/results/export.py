"""Writes arrays by name to one file that other programs can read."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.errors import ArgumentError
from hydrax.files import draft

SUFFIXES = (".npz", ".safetensors")


def export(arrays: Mapping[str, Any], path: Path) -> Path:
    """Writes arrays by name; a reader sees the old file or the whole new one.

    Args:
      arrays: NumPy or jax arrays; of PRNG keys their words are written. NumPy's form has no bfloat16: it holds those
        numbers as float32.
      path: ends in one of `SUFFIXES`.

    Returns:
      The file.

    Raises:
      ArgumentError: it ends in something else, or safetensors is not installed.
    """
    check_suffix(path)
    whole = {name or "array": np.asarray(_to_numpy(array), order="C") for name, array in arrays.items()}
    with draft(path, sync=True) as beside:
        if path.suffix == ".npz":
            # np.savez takes names as its own arguments, of which it has some: "file" could not be one.
            with zipfile.ZipFile(beside, "w") as archive:
                for name, array in whole.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, _known_to_numpy(array), allow_pickle=False)
        else:
            _safetensors().save_file(whole, beside)
    return path


def check_suffix(path: Path) -> Path:
    """The path, if it ends in one of `SUFFIXES`."""
    if path.suffix not in SUFFIXES:
        raise ArgumentError(
            f"A file has no such form: {path}. Got {path.suffix!r}, expected {' or '.join(SUFFIXES)}. Fix: give the "
            "name one of these endings."
        )
    return path


def _to_numpy(array: Any) -> np.ndarray:
    is_key = isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if is_key else array)


def _known_to_numpy(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ArgumentError(
            "A file of safetensors cannot be written: export. Got no safetensors, expected it to be installed. Fix: "
            "pip install 'hydrax-heads[export]', or write .npz."
        ) from error
    return safetensors.numpy
