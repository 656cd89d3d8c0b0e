"""What a run writes into a checkpoint, and how it takes it back."""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydrax import checkpoint
from hydrax.callback import Callback
from hydrax.engine import Engine
from hydrax.errors import CheckpointError
from hydrax.state import HeadsState

_log = logging.getLogger("hydrax")


def save(
    root: Path,
    *,
    step: int,
    engine: Engine,
    state: HeadsState,
    snapshots: Any,
    callbacks: Mapping[str, Callback],
    fingerprint: Mapping[str, Any],
    meta: Mapping[str, Any],
    keep: int | None,
) -> Path:
    """Writes everything a run needs to go on as if it had never stopped; without the padding heads."""
    given = {key: callback.state_dict() for key, callback in callbacks.items()}
    arrays = {key: {n: v for n, v in values.items() if _is_array(v)} for key, values in given.items()}
    plain = {key: {n: v for n, v in values.items() if not _is_array(v)} for key, values in given.items()}
    tree = {"heads": engine.unpad(state), "callbacks": arrays}
    if snapshots is not None:
        tree["snapshots"] = engine.unpad(snapshots)
    forms = {key: {n: [list(v.shape), str(v.dtype)] for n, v in values.items()} for key, values in arrays.items()}
    return checkpoint.save(
        root,
        step,
        tree,
        {
            **meta,
            "kind": "run",
            "step": step,
            "num_heads": engine.num_heads,
            "fingerprint": dict(fingerprint),
            "exactness": _exactness(),
            "callbacks": plain,
            "callback_arrays": forms,
            "has_snapshots": snapshots is not None,
        },
        keep,
    )


def load(
    path: Path, *, engine: Engine, callbacks: Mapping[str, Callback], fingerprint: Mapping[str, Any]
) -> tuple[HeadsState, int, Any, list[str]]:
    """Reads a run's checkpoint: padded state, step, padded snapshots, hooks heard; callbacks take their state back.

    Raises:
      CheckpointError: it is none, is damaged, or belongs to another run.
    """
    step_dir = checkpoint.find(path)
    meta = checkpoint.read_meta(step_dir)
    if meta["kind"] != "run":
        raise CheckpointError(
            f"A checkpoint holds no run: {step_dir}. Got {meta['kind']!r}, expected 'run'. Fix: to go on training pass "
            "the folder ModelCheckpoint calls `last`; read this one with Heads.load."
        )
    checkpoint.check_same(step_dir, meta["fingerprint"], fingerprint)
    if meta["exactness"] != _exactness():
        _log.info(
            "resumed on another machine or version: bits may differ from here on: %s then, %s now",
            meta["exactness"],
            _exactness(),
        )
    shapes = engine.state_shapes()
    like: dict[str, Any] = {"heads": shapes}
    forms = {key: values for key, values in meta["callback_arrays"].items() if key in callbacks}
    like["callbacks"] = {
        k: {n: jax.ShapeDtypeStruct(tuple(s), np.dtype(d)) for n, (s, d) in v.items()} for k, v in forms.items()
    }
    if meta["has_snapshots"]:
        like["snapshots"] = (shapes.trainable, shapes.state)
    found = checkpoint.load(step_dir, like)
    for key, callback in callbacks.items():
        if key in meta["callbacks"]:
            arrays = {name: np.asarray(value) for name, value in found["callbacks"].get(key, {}).items()}
            callback.load_state_dict({**meta["callbacks"][key], **arrays})
    snapshots = engine.pad(found["snapshots"]) if meta["has_snapshots"] else None
    return engine.pad(found["heads"]), int(meta["step"]), snapshots, meta["heard"]


def dataset_digest(dataset: Any) -> str:
    """One digest of all columns of a checked dataset."""
    return checkpoint.digest(np.array([checkpoint.digest(column) for column in jax.tree.leaves(dataset)]))


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | jnp.ndarray)


def _exactness() -> dict[str, Any]:
    """What bits may depend on besides the run's own settings: XLA shapes its loops by the number of cores."""
    device = jax.devices()[0]
    return {
        "jaxlib": importlib.metadata.version("jaxlib"),
        "backend": device.platform,
        "device": device.device_kind,
        "cores": os.cpu_count(),
    }
