"""Arrays by name in one folder: written by Orbax, read one by one, and nothing of it believed unchecked."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_SLACK_BYTES = 2**24  # Small arrays lie packed inside an index.


def write(folder: Path, arrays: Mapping[str, np.ndarray], piece_bytes: Mapping[str, int]) -> None:
    """Writes arrays.

    Args:
      folder: made.
      arrays: that have elements.
      piece_bytes: of arrays that will be read in part: bytes of the pieces along their first axis.
    """
    ocp = _orbax()
    pieces = {
        name: ocp.SaveArgs(chunk_byte_size=piece_bytes[name], shard_axes=(0,))
        if name in piece_bytes
        else ocp.SaveArgs()
        for name in arrays
    }
    # Parameters hardly compress; and what is not compressed cannot grow beyond its file when it is read.
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as writer:
        writer.save(folder.absolute(), args=ocp.args.PyTreeSave(dict(arrays), pieces))
    # For file systems without renames; it names this machine's folders.
    (folder / "commit_success.txt").unlink(missing_ok=True)


def check_sizes(folder: Path, num_bytes: int) -> None:
    """Raises ValueError where arrays of so many bytes cannot lie in a folder: before memory is taken for them."""
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if num_bytes > there + _SLACK_BYTES:
        raise ValueError(f"arrays of {num_bytes:,} bytes in files of {there:,}")


def read(folder: Path, name: str, size: int, dtype: np.dtype, row: int | None = None) -> np.ndarray:
    """Reads one array, or one row of it.

    Args:
      folder: that `write` made.
      size: elements that the whole array must have.
      dtype: what they must be.

    Raises:
      ValueError: it has another form, or its bytes cannot be read.
    """
    import tensorstore

    store = {"driver": "ocdbt", "base": f"file://{folder.absolute()}/", "path": f"{name}/"}
    array = tensorstore.open({"driver": "zarr", "kvstore": store}, open=True, read=True).result()
    form = array.spec().to_json()["metadata"]
    if form["compressor"] is not None or math.prod(form["chunks"]) > max(1, math.prod(form["shape"])):
        raise ValueError(f"{name} lies in a form that was not written")
    if (math.prod(array.shape), array.dtype.numpy_dtype) != (size, dtype):
        raise ValueError(f"{name} is {array.dtype.name}{list(array.shape)}, not {size} of {dtype}")
    return np.asarray((array if row is None else array[row]).read().result())


def links(folder: Path) -> Sequence[Path]:
    """What in a folder leads out of it."""
    return [path for path in folder.rglob("*") if path.is_symlink()]


def _orbax() -> Any:
    """Orbax, imported when it is first needed, and kept from writing 70 lines for each save."""
    import orbax.checkpoint as ocp

    log = logging.getLogger("absl")
    log.setLevel(max(logging.WARNING, log.level))
    log.addFilter(_is_no_advice)
    return ocp


def _is_no_advice(record: logging.LogRecord) -> bool:
    """False for what Orbax says of pieces that are small on purpose."""
    return "target_byte_size" not in record.getMessage()
