"""The format on disk: `<root>/<step>/` holds the arrays in `arrays/` and everything else in `meta.json`.

A leaf of a tree is identified by its path, a list of keys, so that a key may hold any character. Its position in the
list `leaves` is the number of its array.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.checkpoint import arrays as array_files
from hydrax.checkpoint import folders, schema
from hydrax.checkpoint.schema import read_meta
from hydrax.errors import CheckpointError, DamagedCheckpointError
from hydrax.files import write_bytes
from hydrax.trees import dotted, is_key, leaves_by_path, random_state, to_numpy

_ARRAYS = "arrays"
_Path = tuple[str, ...]


def save(root: Path, step: int, tree: Any, meta: Mapping[str, Any], *, run: str, keep: int | None = None) -> Path:
    """Writes a tree of arrays as the checkpoint of one step.

    Args:
      root: folder of the checkpoints; made if it is missing.
      step: names the checkpoint; an existing one of the same run and step is replaced.
      tree: pytree of arrays, with the heads' own below `heads`; PRNG keys keep the name of their implementation.
      meta: the other fields of `schema`, with `kind`, `ids` and `hparams`.
      run: id of the run, or "heads" for heads alone.
      keep: how many of the newest checkpoints of the run to keep; None keeps all.

    Returns:
      The folder of this step.

    Raises:
      CheckpointError: it cannot be written, it does not read back, or the folder holds something else.
    """
    root = root.absolute()
    given = leaves_by_path(tree)
    words = [to_numpy(leaf) for leaf in given.values()]
    leaves = [_describe(path, leaf, array) for (path, leaf), array in zip(given.items(), words, strict=True)]
    for leaf in leaves:
        if leaf["dtype"] not in schema.DTYPES:
            raise CheckpointError(
                f"A checkpoint cannot be written: {root / str(step)}, leaf {_name(leaf['path'])}. Got dtype "
                f"{leaf['dtype']}, expected one of {', '.join(sorted(schema.DTYPES))}. Fix: convert this array to one "
                "of them."
            )
    # zarr has no chunks without elements; the shape says all there is.
    filled = {number: array for number, array in enumerate(words) if array.size}

    def fill(draft: Path) -> None:
        array_files.write(draft / _ARRAYS, filled)
        known = {"format": schema.FORMAT, "run": run, "step": step, "leaves": leaves}
        # Last, because it lists the sizes and random names of the files that tensorstore has just written.
        whole = schema.sealed({**meta, **known, "files": schema.files_in(draft)})
        write_bytes(draft / schema.META, whole, sync=True)
        # All of it is read back before the draft gets its name: a disk that lies must not cost an older, sound step.
        read_meta(draft)
        other = array_files.first_difference(draft / _ARRAYS, filled)
        if other is not None:
            raise ValueError(f"leaf {_name(leaves[other]['path'])} did not read back as it was written")

    try:
        return folders.write(root, step, run, fill, keep)
    except Exception as error:  # tensorstore reports a full disk as ValueError
        # Damage here is of the draft just written, so the disk is at fault.
        if isinstance(error, CheckpointError | MemoryError) and not isinstance(error, DamagedCheckpointError):
            raise
        raise CheckpointError(
            f"A checkpoint cannot be written: {root / str(step)}. Got {type(error).__name__}: {str(error)[:200]}, "
            "expected a writable folder with enough space. Fix: free some space, or choose another folder."
        ) from error


def check(step: Path) -> Path:
    """Reads all arrays of a step, which checks every checksum; returns the path.

    Raises:
      DamagedCheckpointError: something is missing or differs from what was saved.
    """
    for _ in _read(step, _by_path(read_meta(step))):
        pass
    return step


def load(
    step: Path, like: Any, *, head: int | None = None, as_numpy: bool = False, meta: Mapping[str, Any] | None = None
) -> Any:
    """Reads arrays of a checkpoint into the structure of `like`.

    Args:
      step: the folder of a step.
      like: pytree of arrays or `jax.ShapeDtypeStruct`, such as `{"heads": ...}`; paths, shapes and dtypes must be those
        of the checkpoint, which may hold more.
      head: reads only this head, given by its place; `like` then has the shapes of one head. None reads all.
      as_numpy: whether to return NumPy arrays, which keep 64 bits whatever JAX is set to.
      meta: what `read_meta` returned for this step, to save reading it once more, 0.1 s for a million heads.

    Returns:
      A pytree of JAX arrays.

    Raises:
      CheckpointError: a leaf is missing, differs in shape or dtype, or is damaged.
    """
    # Compared by description first: a checkpoint that does not fit costs no read and no memory.
    saved = _by_path(read_meta(step) if meta is None else meta)
    expected = leaves_by_path(like)
    for path, leaf in expected.items():
        got = None if path not in saved else schema.form(saved[path][1])
        # With `head`, the saved shape loses its first axis, that of the heads.
        if got is None or (got.shape[head is not None :], got.dtype) != (tuple(leaf.shape), leaf.dtype):
            raise CheckpointError(
                f"A checkpoint does not fit: {step}, leaf {_name(path)}. Got "
                f"{'no such leaf' if got is None else _form(got)}, expected {_form(leaf)}. Fix: load it with the "
                "module, callbacks and number of heads that wrote it."
            )
    found = _read(step, {path: saved[path] for path in expected}, head)
    leaves = [array if as_numpy else _to_jax(array, saved[path][1]) for path, array in found]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def load_below(step: Path, *keys: str, meta: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads all arrays whose paths begin with some keys as NumPy arrays in nested dicts; `meta` is as in `load`."""
    found: dict[str, Any] = {}
    for path, array in _read(step, _below(read_meta(step) if meta is None else meta, keys)):
        node = found
        for key in path[len(keys) : -1]:
            node = node.setdefault(key, {})
        node[path[-1]] = array
    return found


def load_models(step: Path, head: int | None = None) -> dict[str, np.ndarray]:
    """Reads the heads' models as arrays by dotted name, without the module that built them and without random state.

    Args:
      step: the folder of a step.
      head: reads only this head, given by its place; None reads all, `[H, ...]`.

    Raises:
      CheckpointError: it is damaged.
    """
    meta = read_meta(step)
    trainable = _below(meta, ("evaluated", "trainable")) or _below(meta, ("heads", "trainable"))
    wanted = trainable | _below(meta, ("heads", "state"))
    drawn = random_state(path for path, (_, leaf) in wanted.items() if leaf["key"] is not None)
    found = list(_read(step, {path: known for path, known in wanted.items() if path not in drawn}, head))
    return dict(zip(dotted(path[2:] for path, _ in found), (array for _, array in found), strict=True))


def check_same(path: Path, saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuses a checkpoint whose fingerprint differs from the present run's, naming the first difference."""
    for name, value in present.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"A checkpoint belongs to another run: {path}, {name}. Got {saved.get(name)!r} there, expected "
                f"{value!r} as here. Fix: resume with the {name} it was written with, or start afresh without "
                "ckpt_path."
            )


_Numbered = dict[_Path, tuple[int, Mapping[str, Any]]]


def _by_path(meta: Mapping[str, Any]) -> _Numbered:
    """Number and description of each leaf."""
    return {tuple(leaf["path"]): (number, leaf) for number, leaf in enumerate(meta["leaves"])}


def _below(meta: Mapping[str, Any], keys: _Path) -> _Numbered:
    return {path: known for path, known in _by_path(meta).items() if path[: len(keys)] == keys}


def _read(step: Path, wanted: _Numbered, head: int | None = None) -> Iterator[tuple[_Path, np.ndarray]]:
    """Yields path and array of each leaf, one by one; PRNG keys as raw words."""
    at = "" if head is None else f", head {head}"
    forms = {number: (leaf["shape"], leaf["dtype"]) for number, leaf in wanted.values() if schema.num_bytes(leaf)}
    arrays = array_files.read(step / _ARRAYS, forms, head)
    for path, (number, leaf) in wanted.items():
        try:
            if number in forms:
                array = next(arrays)
            else:
                array = np.zeros(leaf["shape"][head is not None :], jnp.dtype(leaf["dtype"]))
        except MemoryError:
            raise  # says nothing about the checkpoint, which must not be renamed for it
        except Exception as error:
            raise schema.damaged(step, error, f", leaf {_name(path)}{at}") from error
        yield path, array


def _describe(path: _Path, leaf: Any, array: np.ndarray) -> dict[str, Any]:
    key = str(jax.random.key_impl(leaf)) if is_key(leaf) else None
    return {"path": list(path), "shape": list(array.shape), "dtype": str(array.dtype), "key": key}


def _to_jax(array: np.ndarray, saved: Mapping[str, Any]) -> jax.Array:
    # A copy, since the heads are donated later and this buffer belongs to tensorstore.
    return jax.random.wrap_key_data(jnp.asarray(array), impl=saved["key"]) if saved["key"] else jnp.array(array)


def _name(path: Sequence[str]) -> str:
    return ".".join(path)


def _form(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
