"""Saves the state of a run in a checkpoint, and restores it."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from hydrax import checkpoint
from hydrax.data import DataModule
from hydrax.engine import Choice, Engine, Fault, Plan, environment
from hydrax.errors import CallbackError, CheckpointError, DataError, HydraxError
from hydrax.loop import Callback, Kept, RunState, naming, owner_of, read_live
from hydrax.step import Lowering

_log = logging.getLogger("hydrax")
_ORIGINS = "init_from"
_MARKS = ("validated", "in_epoch", "restored")  # fields of `RunState`, bool[H]


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
      state: the state of the run.
      engine: holds the heads.
      plan: how they are laid out.
      callbacks: those whose state is saved, by key.
      datamodule: its state is saved too.
      fingerprint: what a resumed run must share with this one.
      meta: what else to keep, as JSON can hold it.
      keep: how many of the newest steps to keep; None keeps all.
    """
    # The user's code comes first: if it raises, no array has been copied from the device.
    given = {key: _state_of(key, callback, state.step) for key, callback in callbacks.items()}
    of_data = _savable(datamodule.state_dict(), "data module", type(datamodule).__name__, DataError)
    tree = {
        "heads": engine.read(state.heads),
        # Readers of models take these, and a resumed run the heads; they are mostly the same.
        "evaluated": {"trainable": engine.read(tuple(trainable for trainable, _ in state.models(engine)))}
        if engine.may_evaluate_others
        else {},
        "snapshots": {name: engine.read(kept) for name, kept in state.snapshots.items()},
        "kept": {name: vars(kept) for name, kept in state.kept.items()},
        "marks": {name: getattr(state, name) for name in _MARKS},
        "callbacks": {key: _arrays(values) for key, values in given.items()},
        "datamodule": _arrays(of_data),
        "metrics": state.metrics,
    }
    whole = {
        **meta,
        "kind": "run",
        "plan": {"chunk": plan.chunk, "lowering": dataclasses.asdict(plan.lowering), "line": str(plan)},
        # Beside what is compared: a resumed run takes it from here, and is given no weights to begin with.
        "fingerprint": {**fingerprint, _ORIGINS: state.origins},
        "exactness": environment(engine.layout.blocks[0].device),
        "callbacks": {key: _plain(values) for key, values in given.items()},
        "datamodule": _plain(of_data),
        "metrics": list(state.metrics),
        "snapshots": list(state.snapshots),
        "heard": state.heard,
        "missed": state.missed,
        # Lists, because the keys of a JSON object are strings.
        "faults": [{"head": head, "step": fault.step, "leaf": fault.leaf} for head, fault in state.faults.items()],
        "reasons": [{"head": head, "reason": reason} for head, reason in state.reasons.items()],
    }
    return checkpoint.save(root, state.step, tree, whole, run=state.run_id, keep=keep)


def load(step: Path, *, engine: Engine, callbacks: Mapping[str, Callback], fingerprint: Mapping[str, Any]) -> RunState:
    """Reads a run's checkpoint, and restores the state of its callbacks.

    Args:
      step: the folder of a step.
      engine: receives the heads.
      callbacks: the callbacks of the present run, by key; one that the checkpoint does not know starts afresh.
      fingerprint: what the checkpoint must share with the present run.

    Raises:
      CheckpointError: it holds no run, is damaged, or belongs to another run.
    """
    meta = _read_meta(step)
    checkpoint.check_same(step, meta["fingerprint"], fingerprint)
    # Another machine or version may change bits, but the run still means the same: it is logged and not refused.
    here = environment(engine.layout.blocks[0].device)
    if meta["exactness"] != here:
        _log.info(
            "Resumed on another machine or version, so bits may differ from here on. Checkpoint: %s; this run: %s.",
            meta["exactness"],
            here,
        )
    # Shapes are those of the present module: a checkpoint that does not fit is refused before any array is read.
    shapes = engine.state_shapes()
    # The snapshots of a callback that no longer takes part would only hold memory.
    kept = [name for name in meta["snapshots"] if owner_of(name) in callbacks]
    like = {"heads": shapes, "snapshots": dict.fromkeys(kept, (shapes.trainable, shapes.state))}
    found = checkpoint.load(step, like, meta=meta)
    # Read without a form to expect: only the callback itself knows that of its state.
    arrays = checkpoint.load_below(step, "callbacks", meta=meta)
    for key in (key for key in callbacks if key in meta["callbacks"]):
        with naming(callbacks[key], "load_state_dict", meta["step"]):
            callbacks[key].load_state_dict({**meta["callbacks"][key], **arrays.get(key, {})})
    metrics, marks = checkpoint.load_below(step, "metrics", meta=meta), checkpoint.load_below(step, "marks", meta=meta)
    heads = engine.scatter(found["heads"])
    return RunState(
        heads,
        step=meta["step"],
        live=read_live(engine, heads),
        # A checkpoint of an older version does not say: then heads are validated again, and the epoch counts.
        validated=marks.get("validated", np.zeros(engine.num_heads, bool)),
        in_epoch=marks.get("in_epoch", np.ones(engine.num_heads, bool)),
        restored=marks.get("restored", np.zeros(engine.num_heads, bool)),
        snapshots={name: engine.scatter(found["snapshots"][name]) for name in kept},
        kept={
            name: Kept(one["step"], one["validated"], one.get("metrics", {}))
            for name, one in checkpoint.load_below(step, "kept", meta=meta).items()
            if name in kept
        },
        metrics={name: metrics[name] for name in meta["metrics"]},
        heard=meta["heard"],
        missed=meta["missed"],
        faults={fault["head"]: Fault(fault["step"], fault["leaf"]) for fault in meta["faults"]},
        reasons={reason["head"]: reason["reason"] for reason in meta["reasons"]},
        origins=meta["fingerprint"].get(_ORIGINS, []),
        run_id=meta["run"],
    )


def load_data_state(step: Path, datamodule: DataModule) -> None:
    """Restores the state of a data module from a checkpoint, if it saved any."""
    meta = _read_meta(step)
    state = {**meta["datamodule"], **checkpoint.load_below(step, "datamodule", meta=meta)}
    if state:
        datamodule.load_state_dict(state)


def read_choice(step: Path) -> Choice:
    """Reads the parts of the plan that shaped the bits of the run that a checkpoint belongs to."""
    plan = _read_meta(step)["plan"]
    known = {field.name for field in dataclasses.fields(Lowering)}
    # Guessing a value for an operation that the checkpoint does not name could change bits silently.
    if plan["lowering"].keys() != known:
        raise CheckpointError(
            f"A checkpoint was written with another set of fast operations: {step}. Got {', '.join(plan['lowering'])}, "
            f"expected {', '.join(sorted(known))}. Fix: resume with the version of Hydrax that wrote it."
        )
    return Choice(plan["chunk"], Lowering(**plan["lowering"]))


def _read_meta(step: Path) -> dict[str, Any]:
    meta = checkpoint.read_meta(step)
    if meta["kind"] != "run":
        raise CheckpointError(
            f"A checkpoint holds no run: {step}. Got {meta['kind']!r}, expected 'run'. Fix: to resume training, pass "
            "the folder that ModelCheckpoint calls `last`; read this one with Heads.load."
        )
    return meta


def _state_of(key: str, callback: Callback, step: int) -> dict[str, Any]:
    with naming(callback, "state_dict", step):
        state = callback.state_dict()
    return _savable(state, "callback", key, CallbackError)


def _savable(state: Mapping[str, Any], what: str, name: str, kind: type[HydraxError]) -> dict[str, Any]:
    """Checks that what a `state_dict` returned can be saved: arrays of numbers, and what JSON can hold."""
    if not isinstance(state, Mapping) or not all(isinstance(n, str) for n in state):
        got = "other keys" if isinstance(state, Mapping) else type(state).__name__
        raise kind(
            f"A {what}'s state has the wrong form: {name}.state_dict. Got {got}, expected a dict with strings as keys. "
            "Fix: return a dict, {} if there is nothing to save."
        )
    # NumPy scalars are what metrics give; JSON does not know them.
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
    arrays = {name: np.asarray(value) for name, value in state.items() if _is_array(value)}
    # In this machine's byte order, the only one that the format names.
    return {name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in arrays.items()}


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not _is_array(value)}
