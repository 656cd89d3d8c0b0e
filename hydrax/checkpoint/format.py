"""The format on disk: `<root>/<step>/` holds `arrays` (Orbax, no pickle) and `meta.json`: a digest of every leaf."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.checkpoint import arrays as array_files
from hydrax.checkpoint import folders
from hydrax.checkpoint import rows as head_rows
from hydrax.errors import CheckpointError, DamagedCheckpointError
from hydrax.trees import digest, named_leaves

FORMAT = 3

_META_BYTES = 2**28  # More than a million heads take.


def save(root: Path, step: int, tree: Any, meta: Mapping[str, Any], keep: int | None = None) -> Path:
    """Writes a tree of arrays as the checkpoint of one step; where it is there already nothing is written.

    Args:
      root: folder of the checkpoints; made if it is not there.
      step: names the checkpoint.
      tree: pytree of arrays; PRNG keys are kept with the name of their implementation.
      meta: what JSON can hold.
      keep: how many of the newest to keep; None keeps all.

    Returns:
      The folder of this step.

    Raises:
      CheckpointError: it cannot be written, or the folder holds this step of other heads.
    """
    arrays = {name: _to_numpy(leaf) for name, leaf in named_leaves(tree).items()}
    leaves = {name: _describe(name, leaf, arrays[name]) for name, leaf in named_leaves(tree).items()}
    # Orbax cannot write arrays without elements; their shape says all there is.
    filled = {name: array for name, array in arrays.items() if array.size}
    folder = root / str(step)
    if folders.is_whole(folder):
        _check_heads_are_the_same(folder, leaves)
        return folder
    whole = {**meta, "format": FORMAT, "leaves": leaves, "row_digests": head_rows.digests(filled)}

    def fill(draft: Path) -> None:
        array_files.write(draft / "arrays", filled, head_rows.piece_bytes(filled))
        _write_meta(draft, {**whole, "sha256": _meta_digest(whole)})

    try:
        return folders.write(root, step, fill, keep)
    except Exception as error:  # Orbax reports a full disk as ValueError
        raise CheckpointError(
            f"A checkpoint cannot be written: {folder}. Got {type(error).__name__}: {str(error)[:200]}, expected room "
            "and permission to write. Fix: free some, or choose another folder."
        ) from error


def check(path: Path) -> Path:
    """Reads all of a step, array by array, and compares digests; returns the path.

    Raises:
      DamagedCheckpointError: something is missing, or differs from what was saved.
    """
    saved = read_meta(path)["leaves"]
    _check_sizes(path, saved, saved)
    for name, leaf in saved.items():
        _read(path, name, leaf)
    return path


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata of the checkpoint in a step folder.

    Raises:
      DamagedCheckpointError: it holds no metadata, other than were saved, or links, which may lead anywhere.
      CheckpointError: it has another format.
    """
    file = path / folders.META
    try:
        if links := array_files.links(path):
            raise ValueError(f"a link, {links[0].relative_to(path)}")
        if file.stat().st_size > _META_BYTES:
            raise ValueError(f"{file.stat().st_size:,} bytes")
        meta: dict[str, Any] = json.loads(file.read_bytes())
        form, sha256 = meta["format"], meta.pop("sha256", None)
        whole = sha256 == _meta_digest(meta)
    except Exception as error:
        raise DamagedCheckpointError(
            f"A checkpoint cannot be read: {file}. Got {type(error).__name__}: {str(error)[:200]}, expected JSON. Fix: "
            "use an older step."
        ) from error
    if whole and form != FORMAT:
        raise CheckpointError(
            f"A checkpoint has another format: {path}. Got format {form}, expected {FORMAT}. Fix: load it with the "
            "version of Hydrax that wrote it."
        )
    if not whole:
        raise DamagedCheckpointError(
            f"A checkpoint is damaged: {file}. Got bytes with another digest, expected the ones that were saved. Fix: "
            "use an older step."
        )
    if not _are_leaves(meta.get("leaves")):
        raise _unreadable(file, ValueError("leaves without their form"))
    return meta


def load(path: Path, like: Any, as_numpy: bool = False) -> Any:
    """Reads the arrays of a checkpoint into the structure of `like`.

    Args:
      path: a step folder, as `find` gives it.
      like: pytree of arrays or `jax.ShapeDtypeStruct`; names, shapes and dtypes must be those of the checkpoint.
      as_numpy: whether to give NumPy arrays, which keep 64 bits whatever jax is set to.

    Returns:
      A pytree of jax arrays.

    Raises:
      CheckpointError: a leaf is missing, differs in shape or dtype, or is damaged.
    """
    saved = read_meta(path)["leaves"]
    expected = named_leaves(like)
    for name, leaf in expected.items():
        if name not in saved:
            raise _mismatch(path, name, "no such leaf", _form(leaf))
        if (saved[name]["shape"], saved[name]["dtype"]) != (list(leaf.shape), str(leaf.dtype)):
            raise _mismatch(path, name, f"{saved[name]['dtype']}{saved[name]['shape']}", _form(leaf))
    _check_sizes(path, saved, expected)
    found = (_read(path, name, saved[name]) for name in expected)
    leaves = [array if as_numpy else _to_jax(array, saved[name]) for name, array in zip(expected, found, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def load_head(path: Path, like: Any, head: int) -> Any:
    """Reads one head's model, and nothing of the others.

    Args:
      path: a step folder, as `find` gives it.
      like: `{"heads": {"trainable": ..., "state": ...}}` of one head, arrays or shapes.
      head: its place.

    Raises:
      CheckpointError: as `load`.
    """
    meta = read_meta(path)
    saved, expected = meta["leaves"], named_leaves(like)
    for name, leaf in expected.items():
        if name not in saved:
            raise _mismatch(path, name, "no such leaf", _form(leaf))
        if (saved[name]["shape"][1:], saved[name]["dtype"]) != (list(leaf.shape), str(leaf.dtype)):
            raise _mismatch(path, name, f"{saved[name]['dtype']}{saved[name]['shape'][1:]}", _form(leaf))
    _check_sizes(path, saved, expected)
    forms = {name: (saved[name]["size"], _stored_dtype(saved[name])) for name in expected if saved[name]["size"]}
    found = head_rows.read(path / "arrays", forms, head, meta["row_digests"])
    leaves = []
    for name in expected:
        row = found.get(name, np.zeros(saved[name]["shape"][1:], _stored_dtype(saved[name])))
        leaves.append(_to_jax(row, saved[name]))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def load_models(path: Path, head: int | None = None) -> dict[str, np.ndarray]:
    """The heads' models as arrays by name, of keys their words; without the module that built them.

    Args:
      path: a step folder, as `find` gives it.
      head: the place of one, of which nothing else is read; None: all, `[H, ...]`.

    Raises:
      CheckpointError: it is damaged.
    """
    meta = read_meta(path)
    saved = {name: leaf for name, leaf in meta["leaves"].items() if f"{name}.".startswith(head_rows.PREFIXES)}
    _check_sizes(path, saved, saved)
    if head is None:
        found = {name: _read(path, name, leaf) for name, leaf in saved.items()}
    else:
        forms = {name: (leaf["size"], _stored_dtype(leaf)) for name, leaf in saved.items() if leaf["size"]}
        found = head_rows.read(path / "arrays", forms, head, meta["row_digests"])
    return {name.split(".", 2)[2] if name.count(".") > 1 else "array": array for name, array in found.items()}


def check_same(path: Path, saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuses a checkpoint whose fingerprint differs from the present run's, naming the first difference."""
    for name, value in present.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"A checkpoint belongs to another run: {path}, {name}. Got {saved.get(name)!r} there, expected "
                f"{value!r} as here. Fix: resume with the {name} it was written with, or start afresh without "
                "ckpt_path."
            )


def _write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    with (folder / folders.META).open("w") as file:
        json.dump(meta, file)
        file.flush()
        os.fsync(file.fileno())


def _check_heads_are_the_same(folder: Path, leaves: Mapping[str, Any]) -> None:
    """Refuses to pass another run's checkpoint off as this one's."""
    saved = read_meta(folder)["leaves"]
    for name, leaf in leaves.items():
        if name.startswith("heads.") and saved.get(name) != leaf:
            raise CheckpointError(
                f"A folder holds this step of another run: {folder}, leaf {name}. Got other values there, expected the "
                "present ones or none. Fix: choose another folder, or move that one away."
            )


def _check_sizes(path: Path, saved: Mapping[str, Any], names: Mapping[str, Any]) -> None:
    """Refuses arrays that their files cannot hold, before memory is taken for them."""
    try:
        array_files.check_sizes(
            path / "arrays", sum(saved[name]["size"] * _stored_dtype(saved[name]).itemsize for name in names)
        )
    except Exception as error:
        raise _unreadable(path / "arrays", error) from error


def _read(path: Path, name: str, saved: Mapping[str, Any]) -> np.ndarray:
    """One leaf as NumPy, of keys their words; its digest is that of what was saved."""
    if not saved["size"]:
        return np.zeros(saved["shape"], _stored_dtype(saved))
    try:
        array = array_files.read(path / "arrays", name, saved["size"], _stored_dtype(saved))
    except Exception as error:
        raise _unreadable(path / "arrays", error) from error
    if digest(array) != saved["sha256"]:
        raise DamagedCheckpointError(
            f"A checkpoint is damaged: {path}, leaf {name}. Got bytes with another digest, expected the ones that were "
            "saved. Fix: use an older step."
        )
    return array if saved["key"] else array.reshape(saved["shape"])


def _unreadable(path: Path, error: Exception) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"A checkpoint cannot be read: {path}. Got {type(error).__name__}: {str(error)[:200]}, expected whole files. "
        "Fix: use an older step."
    )


def _to_jax(array: np.ndarray, saved: Mapping[str, Any]) -> jax.Array:
    return jax.random.wrap_key_data(jnp.asarray(array), impl=saved["key"]) if saved["key"] else jnp.array(array)


def _stored_dtype(saved: Mapping[str, Any]) -> np.dtype:
    return np.dtype(np.uint32) if saved["key"] else jnp.dtype(saved["dtype"])


def _are_leaves(leaves: Any) -> bool:
    """Whether metadata says of each leaf what `_describe` does."""
    return isinstance(leaves, dict) and all(map(_is_leaf, leaves.values()))


def _is_leaf(leaf: Any) -> bool:
    kinds = {"shape": list, "dtype": str, "size": int, "key": str | None, "sha256": str}
    if not isinstance(leaf, dict) or not all(isinstance(leaf.get(name, ...), kind) for name, kind in kinds.items()):
        return False
    counts = [*leaf["shape"], leaf["size"]]
    return all(type(n) is int and n >= 0 for n in counts) and (
        bool(leaf["key"]) or leaf["size"] == math.prod(counts[:-1])
    )


def _meta_digest(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _to_numpy(leaf: Any) -> np.ndarray:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _describe(name: str, leaf: Any, array: np.ndarray) -> dict[str, Any]:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return {
        "shape": list(leaf.shape),
        "dtype": str(leaf.dtype),
        "size": array.size,
        "key": str(jax.random.key_impl(leaf)) if is_key else None,
        "sha256": digest(array),
    }


def _form(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _mismatch(path: Path, name: str, got: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"A checkpoint does not fit: {path}, leaf {name}. Got {got}, expected {expected}. Fix: load it with the "
        "module, callbacks and number of heads that wrote it."
    )
