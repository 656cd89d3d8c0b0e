"""One head of a checkpoint, written so that it can be read, and trusted, without the others."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hydrax.errors import DamagedCheckpointError

_PREFIXES = ("heads.trainable.", "heads.state.")
_LEAST_BYTES = 2**16  # of a piece of a file: smaller ones cost more than they save
_DIGEST_BYTES = 8


def models_of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays `[H, ...]` that heads' models consist of, in the order in which their digests take them in."""
    return {name: arrays[name] for name in sorted(arrays) if f"{name}.".startswith(_PREFIXES)}


def piece_bytes(array: np.ndarray) -> int:
    """Bytes of the pieces to write an array in, along its axis of heads."""
    return max(_LEAST_BYTES, array.nbytes // max(1, len(array)))


def digests(arrays: Mapping[str, np.ndarray]) -> str:
    """A digest of each head's model, for JSON."""
    models = [np.ascontiguousarray(array) for array in models_of(arrays).values()]
    count = len(models[0]) if models else 0
    return base64.b64encode(b"".join(_digest([array[head] for array in models]) for head in range(count))).decode()


def read(path: Path, names: Sequence[str], head: int, digests: str) -> dict[str, np.ndarray]:
    """One head's arrays, by name.

    Args:
      path: folder of the arrays.
      names: of `[H, ...]` arrays that have elements.
      head: its place.
      digests: as the function of that name gave it.

    Raises:
      DamagedCheckpointError: something is missing, or differs from what was saved.
    """
    import tensorstore

    found = {}
    try:
        for name in names:
            store = {"driver": "ocdbt", "base": f"file://{path.absolute()}/", "path": f"{name}/"}
            array = tensorstore.open({"driver": "zarr", "kvstore": store}, open=True, read=True).result()
            found[name] = np.asarray(array[head].read().result())
    except Exception as error:
        raise DamagedCheckpointError(
            f"A checkpoint cannot be read: {path}, head {head}. Got {type(error).__name__}: {str(error)[:200]}, "
            "expected whole files. Fix: use an older step."
        ) from error
    known = base64.b64decode(digests)[head * _DIGEST_BYTES : (head + 1) * _DIGEST_BYTES]
    if _digest([found[name] for name in sorted(found)]) != known:
        raise DamagedCheckpointError(
            f"A checkpoint is damaged: {path}, head {head}. Got bytes with another digest, expected the ones that were "
            "saved. Fix: use an older step."
        )
    return found


def _digest(rows: Sequence[np.ndarray]) -> bytes:
    found = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for row in rows:
        found.update(row.tobytes())
    return found.digest()
