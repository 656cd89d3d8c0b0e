"""Arrays in one folder: tensorstore writes and reads them as zarr3 arrays in one OCDBT store.

An array is named by a number, so no name needs escaping. Its chunks are cut along the first axis only, which for heads
is the axis of heads: a chunk holds the rows of one head, or of as many as it takes to reach 64 kB. Each chunk carries a
CRC-32C that every read checks; OCDBT protects its own index in the same way.

Why 64 kB: with one chunk for each head and leaf, 100,000 heads of 20 small leaves would make 2 million keys. Chunks of
64 kB make 16 keys per megabyte, whatever the size of a head, and a head of 20 leaves is still read from 1.3 MB. The
price: a damaged chunk takes along the few heads that share it. Every head in another chunk still reads.

Nothing is compressed. Parameters hardly compress, and a file that must hold at least the bytes of its arrays can be
checked before memory is taken.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_CHUNK_BYTES = 2**16  # a chunk holds at least these, or all rows
_BLOCK_BYTES = 2**28  # written or compared at a time, which bounds the memory that this takes

Form = tuple[Sequence[int], str]
"""Shape and name of the dtype."""


def write(folder: Path, arrays: Mapping[int, np.ndarray]) -> None:
    """Writes arrays, each with at least one element, and waits until they are on disk.

    Args:
      folder: the folder to create.
      arrays: by number.
    """
    folder.mkdir()
    with _plain(folder) as plain:
        _write(plain, arrays)


def _write(folder: Path, arrays: Mapping[int, np.ndarray]) -> None:
    stores = _open(folder, {number: (array.shape, str(array.dtype)) for number, array in arrays.items()}, create=True)
    pending: list[Any] = []
    size = 0
    try:
        for number, array in arrays.items():
            # In whole chunks: writing part of one would read the rest of it back first.
            for rows in _blocks(array):
                # Nothing changes the arrays until all writes have ended, so tensorstore need not copy them.
                pending.append(stores[number][rows].write(array[rows], can_reference_source_data_indefinitely=True))
                size += array[rows].nbytes
                if size >= _BLOCK_BYTES:
                    _wait(pending)
                    size = 0
        _wait(pending)
    finally:
        for write in pending:  # after an error nothing may still be on its way into a folder that is about to go
            write.exception()


def read(folder: Path, forms: Mapping[int, Form], row: int | None = None) -> Iterator[np.ndarray]:
    """Yields arrays one by one, in the order of `forms`.

    Args:
      folder: made by `write`.
      forms: shape and dtype of each array to read, by number; an array of another form is refused.
      row: reads only this row of each array, and only the chunk that holds it; None reads all rows.

    Raises:
      ValueError: an array has another form, or bytes differ from those that were written.
    """
    with _plain(folder) as plain:
        for store in _open(plain, forms, create=False).values():
            yield np.asarray((store if row is None else store[row]).read().result())


def first_difference(folder: Path, arrays: Mapping[int, np.ndarray]) -> int | None:
    """Returns the number of the first array in a folder whose bytes are not those of the array given, or None."""
    forms = {number: (array.shape, str(array.dtype)) for number, array in arrays.items()}
    with _plain(folder) as plain:
        stores = _open(plain, forms, create=False)
        for number, array in arrays.items():
            for rows in _blocks(array):
                if not np.array_equal(_words(stores[number][rows].read().result()), _words(array[rows])):
                    return number
    return None


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """Yields a path that tensorstore accepts: it needs UTF-8 and no `..`, and reads a backslash as a separator."""
    folder = folder.resolve()
    if folder.as_posix().isprintable() and "\\" not in folder.as_posix():
        yield folder
        return
    with tempfile.TemporaryDirectory() as beside:
        link = Path(beside, "arrays")
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _open(folder: Path, forms: Mapping[int, Form], *, create: bool) -> dict[int, Any]:
    """Opens or creates arrays, all at once: each waits for the disk."""
    import tensorstore

    # A new context has an empty cache, so everything is read from disk, whatever was read before.
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**24}})
    opening = {
        number: tensorstore.open(_spec(folder, number, form), open=not create, create=create, context=context)
        for number, form in forms.items()
    }
    return {number: opened.result() for number, opened in opening.items()}


def _spec(folder: Path, number: int, form: Form) -> dict[str, Any]:
    """Describes an array to tensorstore; what is on disk must agree with it."""
    shape, dtype = form
    return {
        "driver": "zarr3",
        "kvstore": {
            "driver": "ocdbt",
            "base": _kvstore(folder),
            # No chunk is kept inside the index, where one damaged byte would cost all chunks of an index node.
            "config": {"compression": None, "max_inline_value_bytes": 0},
            "path": f"{number}/",
        },
        "metadata": {
            "shape": list(shape),
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [*_chunk(form), *shape[1:]]}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        },
        # Zeros are stored like other values, so that a chunk that is missing is always an error.
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }


def _kvstore(folder: Path) -> dict[str, Any]:
    """Names the storage of a folder. Another kind of storage, such as gs:// or s3://, would be chosen here.

    A path, not a file:// URL: a URL gives `%`, `#`, `?` and `|` a meaning.
    """
    return {"driver": "file", "path": f"{folder.as_posix()}/"}


def _chunk(form: Form) -> list[int]:
    """Rows in a chunk, as the chunk's first axis; a scalar has none."""
    shape, dtype = form
    if not shape:
        return []
    row_bytes = math.prod(shape[1:]) * _itemsize(dtype)
    return [min(shape[0], math.ceil(_CHUNK_BYTES / row_bytes))]


def _itemsize(dtype: str) -> int:
    # NumPy alone does not know bfloat16 and the 8-bit floats.
    import jax.numpy as jnp

    return int(jnp.dtype(dtype).itemsize)


def _blocks(array: np.ndarray) -> Iterator[Any]:
    """Yields indices that cut an array into blocks of whole chunks."""
    if not array.ndim:
        yield ...
        return
    (chunk,) = _chunk((array.shape, str(array.dtype)))
    rows = chunk * max(1, _BLOCK_BYTES // (chunk * array[0].nbytes))
    for start in range(0, len(array), rows):
        yield slice(start, min(start + rows, len(array)))


def _wait(pending: list[Any]) -> None:
    for write in pending:
        write.result()
    pending.clear()


def _words(array: Any) -> np.ndarray:
    """An array's bytes in a form that compares fast, NaN included."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return raw.view(np.uint64) if raw.size % 8 == 0 else raw
