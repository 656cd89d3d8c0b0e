"""One head of a checkpoint, written so that it can be read, and trusted, without the others."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hydrax.checkpoint import arrays
from hydrax.errors import DamagedCheckpointError

PREFIXES = ("heads.trainable.", "heads.state.")
_LEAST_BYTES = 2**16  # of a piece of a file: smaller ones cost more than they save
_DIGEST_BYTES = 8


def models_of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays `[H, ...]` that heads' models consist of, in the order in which their digests take them in."""
    return {name: arrays[name] for name in sorted(arrays) if f"{name}.".startswith(PREFIXES)}


def piece_bytes(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Bytes of the pieces to write heads' models in, along their axis of heads, by name."""
    return {name: max(_LEAST_BYTES, a.nbytes // max(1, len(a))) for name, a in models_of(arrays).items()}


def digests(arrays: Mapping[str, np.ndarray]) -> str:
    """A digest of each head's model, for JSON."""
    models = [np.ascontiguousarray(array) for array in models_of(arrays).values()]
    count = len(models[0]) if models else 0
    return base64.b64encode(b"".join(_digest([array[head] for array in models]) for head in range(count))).decode()


def read(path: Path, forms: Mapping[str, tuple[int, np.dtype]], head: int, digests: str) -> dict[str, np.ndarray]:
    """One head's arrays, by name.

    Args:
      path: folder of the arrays.
      forms: size and dtype of the `[H, ...]` arrays, by name; they have elements.
      head: its place.
      digests: as the function of that name gave it.

    Raises:
      DamagedCheckpointError: something is missing, or differs from what was saved.
    """
    found = {}
    try:
        for name, (size, dtype) in forms.items():
            found[name] = arrays.read(path, name, size, dtype, row=head)
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
