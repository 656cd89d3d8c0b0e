"""The format on disk: `<root>/<step>/` holds `arrays` (Orbax, no pickle) and `meta` (JSON), a digest of every leaf."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from hydrax import checkpoint_rows
from hydrax.errors import CheckpointError, DamagedCheckpointError

FORMAT = 2

_log = logging.getLogger("hydrax")
_T = TypeVar("_T")


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
    if (folder / "meta").is_dir():
        _check_heads_are_the_same(folder, leaves)
        return folder
    whole = {**meta, "format": FORMAT, "leaves": leaves, "row_digests": checkpoint_rows.digests(filled)}
    items = {"arrays": filled, "meta": {**whole, "sha256": _meta_digest(whole)}}
    try:
        _write(root, step, items, keep)
    except Exception as error:  # Orbax reports a full disk as ValueError
        raise CheckpointError(
            f"A checkpoint cannot be written: {folder}. Got {type(error).__name__}: {str(error)[:200]}, expected room "
            "and permission to write. Fix: free some, or choose another folder."
        ) from error
    return folder


def find(path: Path) -> Path:
    """The folder of one step: `path` itself, or the newest step in it, in its `last`, or in its `checkpoints/last`."""
    steps = _steps(path)
    return next((step for step in steps if (step / "meta").is_dir()), steps[0])


def first_sound(path: Path, read: Callable[[Path], _T]) -> _T:
    """What `read` makes of the newest step below a path; one that is damaged is renamed, and the one before is read.

    Args:
      path: as for `find`; of a folder of one step there is none before.
      read: takes the folder of a step.

    Raises:
      DamagedCheckpointError: none is left.
    """
    steps = _steps(path)
    for number, step in enumerate(steps):
        try:
            return read(step)
        except DamagedCheckpointError as error:
            if number + 1 == len(steps):
                raise
            _log.warning("%s Instead: %s.", error, steps[number + 1])
            _set_aside(step)
    raise AssertionError("there is at least one step")


def check(path: Path) -> Path:
    """Reads all of a step and compares digests; returns the path.

    Raises:
      DamagedCheckpointError: something is missing, or differs from what was saved.
    """
    saved = read_meta(path)["leaves"]
    arrays = _read_arrays(path, [name for name, leaf in saved.items() if leaf["size"]])
    for name, array in arrays.items():
        _check_digest(path, name, array, saved[name])
    return path


def read_meta(path: Path) -> dict[str, Any]:
    """The `meta` of the checkpoint in a step folder."""
    ocp = _orbax()
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            meta: dict[str, Any] = reader.restore(path.absolute() / "meta")
        form, sha256 = meta["format"], meta.pop("sha256", None)
    except Exception as error:
        raise DamagedCheckpointError(
            f"A checkpoint cannot be read: {path / 'meta'}. Got {type(error).__name__}, expected JSON. Fix: use an "
            "older step."
        ) from error
    whole = sha256 == _meta_digest(meta)
    if form != FORMAT and (whole or (form, sha256) == (1, None)):
        raise CheckpointError(
            f"A checkpoint has another format: {path}. Got format {form}, expected {FORMAT}. Fix: load it with the "
            "version of Hydrax that wrote it."
        )
    if not whole:
        raise DamagedCheckpointError(
            f"A checkpoint is damaged: {path / 'meta'}. Got bytes with another digest, expected the ones that were "
            "saved. Fix: use an older step."
        )
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
    arrays = _read_arrays(path, [name for name in expected if saved[name]["size"]])
    leaves = [_restore(path, name, arrays.get(name), saved[name], as_numpy) for name in expected]
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
    names = [name for name in expected if saved[name]["size"]]
    rows = checkpoint_rows.read(path / "arrays", names, head, meta["row_digests"])
    leaves = []
    for name in expected:
        row = rows.get(name, np.zeros(saved[name]["shape"][1:], np.float32))
        leaves.append(_to_jax(row, saved[name]))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by dotted path, such as `heads.trainable.linear.kernel`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def tree_digest(tree: Any) -> str:
    """One digest of all arrays of a tree, on the host or on the device."""
    return digest(np.array([digest(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)]))


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes."""
    # By its buffer: a copy of all heads on disk would not fit into memory.
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def check_same(path: Path, saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuses a checkpoint whose fingerprint differs from the present run's, naming the first difference."""
    for name, value in present.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"A checkpoint belongs to another run: {path}, {name}. Got {saved.get(name)!r} there, expected "
                f"{value!r} as here. Fix: resume with the {name} it was written with, or start afresh without "
                "ckpt_path."
            )


def _write(root: Path, step: int, items: Mapping[str, Any], keep: int | None) -> None:
    ocp = _orbax()
    root.mkdir(parents=True, exist_ok=True)
    arrays = items["arrays"]
    models = checkpoint_rows.models_of(arrays)
    pieces = {
        name: ocp.SaveArgs(chunk_byte_size=checkpoint_rows.piece_bytes(array), shard_axes=(0,))
        if name in models
        else ocp.SaveArgs()
        for name, array in arrays.items()
    }
    with _manager(root, keep) as manager:
        args = ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays, pieces), meta=ocp.args.JsonSave(items["meta"]))
        manager.save(step, args=args, force=True)
        manager.wait_until_finished()


def _check_heads_are_the_same(folder: Path, leaves: Mapping[str, Any]) -> None:
    """Refuses to pass another run's checkpoint off as this one's."""
    saved = read_meta(folder)["leaves"]
    for name, leaf in leaves.items():
        if name.startswith("heads.") and saved.get(name) != leaf:
            raise CheckpointError(
                f"A folder holds this step of another run: {folder}, leaf {name}. Got other values there, expected the "
                "present ones or none. Fix: choose another folder, or move that one away."
            )


def _read_arrays(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    ocp = _orbax()
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            found: dict[str, np.ndarray] = reader.restore(
                path.absolute() / "arrays",
                args=ocp.args.PyTreeRestore(
                    item=dict.fromkeys(names, 0),
                    restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names},
                    partial_restore=True,
                ),
            )
    except Exception as error:
        raise DamagedCheckpointError(
            f"A checkpoint cannot be read: {path / 'arrays'}. Got {type(error).__name__}: {str(error)[:200]}, expected "
            "whole files. Fix: use an older step."
        ) from error
    return found


def _restore(path: Path, name: str, array: np.ndarray | None, saved: Mapping[str, Any], as_numpy: bool) -> Any:
    if array is None:
        return (np if as_numpy else jnp).zeros(saved["shape"], saved["dtype"])
    _check_digest(path, name, array, saved)
    if as_numpy:
        return array
    return _to_jax(array, saved)


def _to_jax(array: np.ndarray, saved: Mapping[str, Any]) -> jax.Array:
    return jax.random.wrap_key_data(jnp.asarray(array), impl=saved["key"]) if saved["key"] else jnp.array(array)


def _check_digest(path: Path, name: str, array: np.ndarray, saved: Mapping[str, Any]) -> None:
    if digest(array) != saved["sha256"]:
        raise DamagedCheckpointError(
            f"A checkpoint is damaged: {path}, leaf {name}. Got bytes with another digest, expected the ones that were "
            "saved. Fix: use an older step."
        )


def _meta_digest(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _steps(path: Path) -> list[Path]:
    """The step folders below a path, the newest first; the path itself where it is one."""
    if path.name.isdigit() and path.is_dir():
        return [path]
    for folder in (path, path / "last", path / "checkpoints" / "last"):
        steps = [p for p in folder.glob("*") if p.name.isdigit() and p.is_dir()]
        if steps:
            return sorted(steps, key=lambda p: int(p.name), reverse=True)
    raise CheckpointError(
        f"There is no checkpoint: {path}. Got no step folder, expected one written by ModelCheckpoint, save_checkpoint "
        'or Heads.save. Fix: check the path; ckpt_path="auto" starts afresh where there is none.'
    )


def _set_aside(step: Path) -> None:
    """Renames a damaged step, so that no later run takes it for the newest; where that cannot be, it stays."""
    names = (step.with_name(f"{step.name}.damaged-{number}") for number in itertools.count(1))
    with contextlib.suppress(OSError):
        step.rename(next(name for name in names if not name.exists()))


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


def _manager(root: Path, keep: int | None) -> Any:
    ocp = _orbax()
    from orbax.checkpoint.checkpoint_managers import preservation_policy

    # Not `max_to_keep`: with a metric it deletes the newest.
    policy = None if keep is None else preservation_policy.LatestN(keep)
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, enable_async_checkpointing=False)
    return ocp.CheckpointManager(root.absolute(), options=options)


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
