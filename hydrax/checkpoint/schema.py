"""`meta.json`: one schema for the whole file, checked in full before memory is taken for anything it describes.

The file is one JSON object whose first field is a SHA-256 of all bytes behind it. `files` lists the other files of the
step with their sizes. Their names are random, so arrays of another save cannot take their place unnoticed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from hydrax.errors import CheckpointError, DamagedCheckpointError
from hydrax.step import Hyperparameters

# Raised whenever an older version could misread what a newer one writes.
FORMAT = 4
META = "meta.json"
ARRAYS = re.compile(r"arrays/(manifest\.ocdbt|d/[0-9a-f]{32})")
"""The files that tensorstore writes."""

_MAX_BYTES = 2**28  # enough for more than a million heads
DTYPES = {
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("int2", "int4", "bfloat16", "float16", "float32", "float64", "complex64", "complex128", "float4_e2m1fn"),
    *(f"float8_{kind}" for kind in ("e3m4", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")),
}
"""Names of the dtypes that tensorstore can write."""


def _is_any(value: Any) -> bool:
    return True


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63  # not bool, which is an int to Python


def _are_ids(value: Any) -> bool:
    return type(value) is list and bool(value) and all(type(i) is int and -(2**31) <= i < 2**31 for i in value)


def _is_hparam(value: Any) -> bool:
    Hyperparameters.from_json({"": value})
    return True


# What each field must be: `[form]` is a list of such values, `{str: form}` an object of such values with any keys, and
# any other dict an object with just these keys.
_HEADS = {
    "format": FORMAT.__eq__,
    "kind": _is_text,
    "run": _is_text,
    "step": _is_count,
    "ids": _are_ids,
    "hparams": {str: _is_hparam},
    "leaves": [
        {
            "path": [_is_text],
            "shape": [_is_count],
            "dtype": DTYPES.__contains__,
            "key": lambda value: value is None or _is_text(value),
        }
    ],
    "files": {str: _is_count},
}
_RUN = {
    **_HEADS,
    "plan": {"chunk": lambda value: _is_count(value) and value > 0, "lowering": {str: _is_any}, "line": _is_text},
    "fingerprint": {str: _is_any},
    "exactness": {str: _is_any},
    "callbacks": {str: {str: _is_any}},
    "datamodule": {str: _is_any},
    "metrics": [_is_text],
    "snapshots": [_is_text],
    "heard": [_is_text],
    "missed": {str: {"callbacks": [_is_text], "metrics": [_is_text]}},
    "faults": [{"head": _is_count, "step": _is_count, "leaf": _is_text}],
    "reasons": [{"head": _is_count, "reason": _is_text}],
}
_KINDS = {"heads": _HEADS, "run": _RUN}


def read_meta(step: Path) -> dict[str, Any]:
    """Reads the metadata of a step folder, and checks it against the schema and against the files beside it.

    Raises:
      DamagedCheckpointError: something is missing or differs from what was saved, or the folder holds links, named
        pipes or devices.
      CheckpointError: the checkpoint has another format.
    """
    try:
        meta = read_sealed(step / META)
    except _OtherFormatError as error:
        raise CheckpointError(
            f"A checkpoint has another format: {step}. Got format {error}, expected {FORMAT}. Fix: load it with the "
            "version of Hydrax that wrote it."
        ) from error
    except Exception as error:
        raise damaged(step / META, error) from error
    try:
        # In this order, since each check relies on the forms that the previous one found.
        _check(meta, _KINDS[meta["kind"]], "meta")
        _check_agreement(meta)
        _check_files(step, meta["files"])
    except Exception as error:
        raise damaged(step, error) from error
    return meta


def sealed(values: Mapping[str, Any]) -> bytes:
    """Formats values as JSON that carries its own checksum."""
    # The checksum comes first and covers all bytes behind it, so no field can be changed, added or cut off.
    body = json.dumps(values)[1:].encode()
    return _seal(body) + body


def read_sealed(file: Path) -> dict[str, Any]:
    """Reads what `sealed` formatted.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not a regular file, is too long, or holds other bytes.
    """
    info = file.lstat()
    if not stat.S_ISREG(info.st_mode):  # opening a named pipe would block forever
        raise ValueError("a link, named pipe or device")
    # The size is checked before the file is read: a damaged folder must not fill the memory.
    if info.st_size > _MAX_BYTES:
        raise ValueError(f"{info.st_size:,} bytes")
    data = file.read_bytes()
    size = len(_seal(b""))
    body = data[size:]
    if data[:size] != _seal(body):
        _refuse_old_format(data)  # their checksums differ, but they are not damaged
        raise ValueError("bytes with another checksum")
    values: dict[str, Any] = json.loads(b"{" + body)
    if values["format"] != FORMAT:
        raise _OtherFormatError(values["format"])
    return values


def form(leaf: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of a leaf as JAX sees it: PRNG keys are stored as their words."""
    stored = jax.ShapeDtypeStruct(tuple(leaf["shape"]), jnp.dtype(leaf["dtype"]))
    to_key = functools.partial(jax.random.wrap_key_data, impl=leaf["key"])
    found: jax.ShapeDtypeStruct = stored if leaf["key"] is None else jax.eval_shape(to_key, stored)
    return found


def num_bytes(leaf: Mapping[str, Any]) -> int:
    """Returns the bytes of a leaf's array."""
    size: int = math.prod(leaf["shape"]) * jnp.dtype(leaf["dtype"]).itemsize
    return size


def files_in(folder: Path) -> dict[str, int]:
    """Returns the sizes of all files below a folder, by path relative to it.

    Raises:
      OSError: the folder cannot be read.
      ValueError: something in it is a link, a named pipe or a device.
    """
    found = {}
    for parent, folders, names in os.walk(folder, onerror=_raise):
        for name in (*folders, *names):
            path = Path(parent, name)
            info = path.lstat()
            if stat.S_ISREG(info.st_mode):
                found[path.relative_to(folder).as_posix()] = info.st_size
            elif not stat.S_ISDIR(info.st_mode):
                raise ValueError(f"a link, named pipe or device: {path.relative_to(folder)}")
    return found


def damaged(where: Path, error: Exception, what: str = "") -> DamagedCheckpointError:
    """Returns the error for a step that does not hold what was saved."""
    return DamagedCheckpointError(
        f"A checkpoint is damaged: {where}{what}. Got {type(error).__name__}: {str(error)[:200]}, expected the files "
        "that were saved. Fix: use an older step."
    )


class _OtherFormatError(Exception):
    """The number of another format."""


def _seal(body: bytes) -> bytes:
    return f'{{"sha256": "{hashlib.sha256(body).hexdigest()}", '.encode()


def _refuse_old_format(data: bytes) -> None:
    """Formats 1 to 3 had their checksum at the end, and another one."""
    if not data.startswith(_seal(b"")[:12]):
        values = json.loads(data)
        if values["format"] in (1, 2, 3):
            raise _OtherFormatError(values["format"])


def _raise(error: OSError) -> None:
    raise error


def _check(value: Any, wanted: Any, where: str) -> None:
    """Raises ValueError, naming the place, if a value has another form than `wanted`."""
    if isinstance(wanted, dict) and type(value) is dict and (str in wanted or value.keys() == wanted.keys()):
        for name, part in value.items():
            _check(part, wanted[str if str in wanted else name], f"{where}.{name}")
    elif isinstance(wanted, list) and type(value) is list:
        for number, part in enumerate(value):
            _check(part, wanted[0], f"{where}[{number}]")
    # `__eq__` may return NotImplemented, which counts as true.
    elif isinstance(wanted, dict | list) or wanted(value) is not True:
        raise ValueError(f"{where} is {value!r:.60}")


def _check_agreement(meta: Mapping[str, Any]) -> None:
    """Raises ValueError if fields of the right form contradict one another."""
    count, leaves = len(meta["ids"]), meta["leaves"]
    paths = {tuple(leaf["path"]) for leaf in leaves}
    if len(paths) < len(leaves):
        raise ValueError("two leaves have one path")
    for leaf in leaves:
        if not leaf["path"] or (leaf["path"][0] == "heads" and leaf["shape"][:1] != [count]):
            raise ValueError(f"leaf {leaf['path']} has shape {leaf['shape']} for {count} heads")
        form(leaf)  # raises where a key's implementation is unknown, or its words do not fit
    # Nothing is compressed, so the files must hold at least the bytes of the arrays. A shape with a flipped bit is
    # noticed here, before memory is taken for it.
    needed, there = sum(map(num_bytes, leaves)), sum(meta["files"].values())
    if needed > there:
        raise ValueError(f"arrays of {needed:,} bytes in files of {there:,}")
    if meta["kind"] == "run":
        if {("metrics", name) for name in meta["metrics"]} != {path for path in paths if path[0] == "metrics"}:
            raise ValueError("the metrics and their arrays differ")
        if any(entry["head"] >= count for entry in (*meta["faults"], *meta["reasons"])):
            raise ValueError(f"a head beyond {count}")


def _check_files(step: Path, files: Mapping[str, int]) -> None:
    """Raises ValueError if a saved file is missing or has another size, or if anything is not a regular file."""
    found = files_in(step)
    for name, size in files.items():
        if not ARRAYS.fullmatch(name) or found.get(name) != size:
            raise ValueError(f"{name} has {found.get(name)} bytes, not {size}")
