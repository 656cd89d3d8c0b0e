"""What a run writes into a checkpoint, and how it takes it back."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from hydrax import checkpoint
from hydrax.checkpoint import folders
from hydrax.data import DataModule
from hydrax.engine import Choice, Engine, Fault, Plan, environment
from hydrax.errors import CallbackError, CheckpointError, DataError, HydraxError
from hydrax.loop import Callback, RunState, naming, owner_of, read_live
from hydrax.step import Lowering

_log = logging.getLogger("hydrax")


def save(
    root: Path,
    state: RunState,
    *,
    engine: Engine,
    plan: Plan,
    callbacks: Mapping[str, Callback],
    datamodule: DataModule,
    fingerprint: Mapping[str, Any],
    meta: Mapping[str, Any],
    keep: int | None,
) -> Path:
    """Writes everything that a run needs to continue as if it had never stopped, without the padding heads.

    Args:
      root: folder of the checkpoints.
      state: where the run stands.
      engine: holds the heads.
      plan: how they are laid out.
      callbacks: those whose state is saved, by key.
      datamodule: its state is saved too.
      fingerprint: what a resumed run must share with this one.
      meta: what else to keep, as JSON can hold it.
      keep: how many of the newest steps to keep; None keeps all.
    """
    given = {key: _state_of(key, callback, state.step) for key, callback in callbacks.items()}
    arrays = {key: _arrays(values) for key, values in given.items()}
    of_data = _savable(datamodule.state_dict(), "data module", type(datamodule).__name__, DataError)
    tree = {"heads": engine.read(state.heads), "callbacks": arrays, "metrics": list(state.metrics.values())}
    tree |= {
        "snapshots": {key: engine.read(kept) for key, kept in state.snapshots.items()},
        "datamodule": _arrays(of_data),
    }
    return checkpoint.save(
        root,
        state.step,
        tree,
        {
            **meta,
            "kind": "run",
            "plan": {"chunk": plan.chunk, "lowering": dataclasses.asdict(plan.lowering), "line": str(plan)},
            "step": state.step,
            "num_heads": engine.num_heads,
            "fingerprint": dict(fingerprint),
            "exactness": environment(engine.layout.blocks[0].device),
            "callbacks": {key: _plain(values) for key, values in given.items()},
            "callback_arrays": {key: _forms(values) for key, values in arrays.items()},
            "datamodule": _plain(of_data),
            "datamodule_arrays": _forms(_arrays(of_data)),
            "metrics": _forms(state.metrics),
            "snapshots": list(state.snapshots),
            "heard": state.heard,
            "missed": state.missed,
            "faults": {str(head): list(fault) for head, fault in state.faults.items()},
            "reasons": {str(head): reason for head, reason in state.reasons.items()},
        },
        keep,
    )


def load(path: Path, *, engine: Engine, callbacks: Mapping[str, Callback], fingerprint: Mapping[str, Any]) -> RunState:
    """Reads a run's checkpoint and gives callbacks their state back.

    Raises:
      CheckpointError: it is none, is damaged, or belongs to another run.
    """
    step_dir = folders.find(path)
    meta = checkpoint.read_meta(step_dir)
    if meta["kind"] != "run":
        raise CheckpointError(
            f"A checkpoint holds no run: {step_dir}. Got {meta['kind']!r}, expected 'run'. Fix: to go on training pass "
            "the folder ModelCheckpoint calls `last`; read this one with Heads.load."
        )
    checkpoint.check_same(step_dir, meta["fingerprint"], fingerprint)
    here = environment(engine.layout.blocks[0].device)
    if meta["exactness"] != here:
        _log.info(
            "resumed on another machine or version: bits may differ from here on: %s then, %s now",
            meta["exactness"],
            here,
        )
    shapes = engine.state_shapes()
    kept = [name for name in meta["snapshots"] if owner_of(name) in callbacks]
    like = {"heads": shapes, "snapshots": dict.fromkeys(kept, (shapes.trainable, shapes.state))}
    found = checkpoint.load(step_dir, like)
    known = {key: meta["callback_arrays"][key] for key in callbacks if key in meta["callback_arrays"]}
    host_like = {
        "callbacks": {key: _blanks(forms) for key, forms in known.items()},
        "metrics": list(_blanks(meta["metrics"]).values()),
    }
    on_host = checkpoint.load(step_dir, host_like, as_numpy=True)
    for key in known:
        with naming(callbacks[key], "load_state_dict", int(meta["step"])):
            callbacks[key].load_state_dict({**meta["callbacks"][key], **on_host["callbacks"][key]})
    heads = engine.scatter(found["heads"])
    return RunState(
        heads,
        step=int(meta["step"]),
        live=read_live(engine, heads),
        snapshots={name: engine.scatter(found["snapshots"][name]) for name in kept},
        metrics=dict(zip(meta["metrics"], on_host["metrics"], strict=True)),
        heard=meta["heard"],
        missed=meta.get("missed", {}),
        faults={int(head): Fault(*fault) for head, fault in meta["faults"].items()},
        reasons={int(head): reason for head, reason in meta["reasons"].items()},
    )


def load_data_state(path: Path, datamodule: DataModule) -> None:
    """Gives a data module back what its `state_dict` gave when a checkpoint was written, if that was anything."""
    step_dir = folders.find(path)
    meta = checkpoint.read_meta(step_dir)
    like = {"datamodule": _blanks(meta.get("datamodule_arrays", {}))}
    state = {**meta.get("datamodule", {}), **checkpoint.load(step_dir, like, as_numpy=True)["datamodule"]}
    if state:
        datamodule.load_state_dict(state)


def read_choice(path: Path) -> Choice:
    """What of the plan shaped the bits of the run that a checkpoint belongs to."""
    step_dir = folders.find(path)
    plan = checkpoint.read_meta(step_dir).get("plan", {})
    lowering = plan.get("lowering", {})
    try:
        return Choice(plan.get("chunk"), Lowering(**lowering) if lowering else None)
    except TypeError as error:
        raise CheckpointError(
            f"A checkpoint was written with another set of fast operations: {step_dir}. Got {', '.join(lowering)}, "
            f"expected {', '.join(vars(Lowering()))}. Fix: go on with the version of Hydrax that wrote it."
        ) from error


def _state_of(key: str, callback: Callback, step: int) -> dict[str, Any]:
    with naming(callback, "state_dict", step):
        state = callback.state_dict()
    return _savable(state, "callback", key, CallbackError)


def _savable(state: Mapping[str, Any], what: str, name: str, kind: type[HydraxError]) -> dict[str, Any]:
    """What a `state_dict` gave, in a form that a checkpoint can hold: arrays, and what JSON can hold."""
    values = {n: v.item() if isinstance(v, np.generic) else v for n, v in state.items()}
    for n, value in values.items():
        if _is_array(value) and np.asarray(value).dtype.kind in "fiub":
            continue
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise kind(
                f"A {what}'s state cannot be saved: {name}.state_dict, {n!r}. Got {type(value).__name__}, expected an "
                "array of numbers, a number, a bool, a string, None, or lists and dicts of these. Fix: make it one."
            ) from error
    return values


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | jnp.ndarray)


def _arrays(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in state.items() if _is_array(value)}


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not _is_array(value)}


def _forms(arrays: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """Shapes and dtypes, for JSON."""
    return {name: [list(array.shape), str(array.dtype)] for name, array in arrays.items()}


def _blanks(forms: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """Arrays of these shapes and dtypes."""
    return {name: np.empty(shape, dtype) for name, (shape, dtype) in forms.items()}
