"""What a run writes into a checkpoint, and how it takes it back."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from hydrax import checkpoint
from hydrax.checkpoint import folders
from hydrax.data import DataModule
from hydrax.engine import Blocks, Choice, Engine, Fault, Plan, environment
from hydrax.errors import CallbackError, CheckpointError, DataError, HydraxError
from hydrax.loop import Callback, naming, owner_of
from hydrax.step import Lowering

_log = logging.getLogger("hydrax")


class Resumed(NamedTuple):
    """What a checkpoint gives back.

    Attributes:
      state: the heads.
      step: updates done.
      snapshots: `(trainable, state)` that `Control.snapshot` kept, by `dispatch.snapshot_name`.
      metrics: the latest value of everything logged, float[H] by name.
      heard: the hooks that callbacks had heard at this step.
      missed: those of them that some callbacks raised at, as in FitLoop.
      faults: of heads that became NaN or infinite, how, by place.
      reasons: of heads that a callback stopped, why, by place.
    """

    state: Blocks
    step: int
    snapshots: dict[str, Blocks]
    metrics: dict[str, np.ndarray]
    heard: list[str]
    missed: dict[str, dict[str, list[str]]]
    faults: dict[int, Fault]
    reasons: dict[int, str]


def save(
    root: Path,
    *,
    step: int,
    plan: Plan,
    engine: Engine,
    state: Blocks,
    snapshots: Mapping[str, Blocks],
    metrics: Mapping[str, np.ndarray],
    callbacks: Mapping[str, Callback],
    datamodule: DataModule,
    fingerprint: Mapping[str, Any],
    meta: Mapping[str, Any],
    keep: int | None,
) -> Path:
    """Writes everything a run needs to go on as if it had never stopped; without the padding heads."""
    given = {key: _state_of(key, callback, step) for key, callback in callbacks.items()}
    arrays = {key: _arrays(values) for key, values in given.items()}
    of_data = _savable(datamodule.state_dict(), "data module", type(datamodule).__name__, DataError)
    tree = {"heads": engine.read(state), "callbacks": arrays, "metrics": list(metrics.values())}
    tree |= {"snapshots": {key: engine.read(kept) for key, kept in snapshots.items()}, "datamodule": _arrays(of_data)}
    return checkpoint.save(
        root,
        step,
        tree,
        {
            **meta,
            "kind": "run",
            "plan": {"chunk": plan.chunk, "lowering": dataclasses.asdict(plan.lowering), "line": str(plan)},
            "step": step,
            "num_heads": engine.num_heads,
            "fingerprint": dict(fingerprint),
            "exactness": environment(engine.layout.blocks[0].device),
            "callbacks": {key: _plain(values) for key, values in given.items()},
            "callback_arrays": {key: _forms(values) for key, values in arrays.items()},
            "datamodule": _plain(of_data),
            "datamodule_arrays": _forms(_arrays(of_data)),
            "metrics": _forms(metrics),
            "snapshots": list(snapshots),
        },
        keep,
    )


def load(path: Path, *, engine: Engine, callbacks: Mapping[str, Callback], fingerprint: Mapping[str, Any]) -> Resumed:
    """Reads a run's checkpoint; callbacks take their state back.

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
    return Resumed(
        state=engine.scatter(found["heads"]),
        step=int(meta["step"]),
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
