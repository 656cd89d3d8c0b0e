"""Calls of the public API drawn at random, and the rule that each must keep: a right result, or an error of Hydrax.

An error of Hydrax has the form of all its messages and comes before a program runs. A right result is compared with
NumPy, or with a reference fit. `run(seed, number)` makes one draw again; as a script this file makes many:

    python tests/fuzzing.py --seed 7 --draws 5000
    python tests/fuzzing.py --seed 7 --only 123
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import inspect
import os
import re
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import hydrax as hx
from hydrax import callbacks
from hydrax.data import stage_training
from hydrax.datamodules import ArrayDataModule
from hydrax.engine.engine import Engine

ROWS, HEADS, SLOTS = 12, 3, 4
SECS = 60  # a draw that takes longer hangs
FORM = re.compile(r"\S.*\. Got .+, expected .+\. Fix: .+\.", re.DOTALL)
# Errors that only a run can find.
LATE = (hx.CallbackError, hx.NonFiniteError, hx.MemoryLimitError, hx.CheckpointError)

Rng = np.random.Generator


class Broken(AssertionError):
    """A draw that does not keep the rule."""


def odd(rng: Rng) -> Any:
    """A value that somebody may pass by mistake, made anew so that no draw sees another's."""
    makers: list[Callable[[], Any]] = [
        *(functools.partial(lambda value: value, value) for value in PLAIN),
        *(object, list, dict, set, lambda: iter([1, 2]), lambda: (i for i in range(2)), lambda: range(3)),
        *(lambda: [1], lambda: [0, 1], lambda: [0.5, 0.2], lambda: ["a", "b"], lambda: [None], lambda: [[1], [1, 2]]),
        *(lambda: (1, 2), lambda: {"a": 1}, lambda: {1: 2}, lambda: {1}, lambda: [True, False, True]),
        *(lambda: np.array(3), lambda: np.array([1, 2]), lambda: np.array([]), lambda: np.array(["a"])),
        *(lambda: np.zeros((2, 3)), lambda: np.ones(3, bool), lambda: np.array([2**63], np.uint64)),
        *(lambda: np.array([1, 2], "m8[s]"), lambda: np.array(["2020-01-01"], "M8[D]"), lambda: np.array([1, None])),
        *(
            lambda: jnp.ones(2),
            lambda: jnp.arange(3),
            lambda: jax.random.key(0),
            lambda: np.ma.array([1, 2], mask=[1, 0]),
        ),
        *(lambda: hx.PerHead([1, 2, 3]), lambda: hx.Slices.full(2, 3), lambda: Path("x"), lambda: slice(0, 2)),
        *(lambda: slice(None, None, 0), lambda: datetime.timedelta(seconds=1), lambda: hx.Slices, lambda: len),
    ]
    return makers[rng.integers(len(makers))]()


PLAIN = (
    *(
        None,
        True,
        False,
        0,
        1,
        2,
        3,
        -1,
        -4,
        7,
        12,
        0.0,
        0.5,
        1.0,
        3.5,
        -0.5,
        float("nan"),
        float("inf"),
        -float("inf"),
    ),
    *("", "a", "auto", "last", "best", "mask", "val_loss", "00:00:01:00", "\ud800", "x\x00y", b"x", 1j, ..., 10**30),
    *(-(10**30), 2**31 - 1, 2**31, 2**63, 1e300, 1e-320, np.int64(3), np.uint8(2), np.float32(2), np.bool_(True)),
)


def pick(rng: Rng, values: Any) -> Any:
    return values[rng.integers(len(values))]


def or_odd(rng: Rng, value: Any, chance: float = 0.3) -> Any:
    return odd(rng) if rng.random() < chance else value


def check(holds: Any, what: str) -> None:
    if not holds:
        raise Broken(what)


# ---- slices


def rows_by_hand(name: str, given: dict[str, Any]) -> list[np.ndarray] | None:
    """The rows of a constructor whose rows follow from its arguments alone, in the order of the slice."""
    n = int(given["num_rows"]) if "num_rows" in given else None
    if name == "full":
        return [np.arange(n)] * int(given["num_heads"])
    if name == "prefix" and given.get("seed") is None:
        return [np.arange(length) for length in np.atleast_1d(np.asarray(given["lengths"]))]
    if name == "window":
        pairs = np.broadcast_arrays(*(np.atleast_1d(np.asarray(given[key])) for key in ("starts", "lengths")))
        return [np.arange(start, start + length) for start, length in zip(*pairs, strict=True)]
    if name == "expanding_window":
        ends = range(int(given["initial"]), n - int(given["horizon"]) + 1, int(given["step"]))
        return [np.arange(end) for end in ends]
    if name == "from_mask":
        return [np.flatnonzero(line) for line in np.asarray(given["mask"])]
    if name == "from_weights" and given.get("lengths") is None:
        return [np.repeat(np.arange(len(line)), np.asarray(line)) for line in np.asarray(given["weights"])]
    if name in ("partition_by", "leave_group_out"):
        groups = np.asarray(given["groups"])
        sides = [groups == group for group in np.unique(groups)]
        return [np.flatnonzero(side if name == "partition_by" else ~side) for side in sides]
    return None


def slices_arguments(rng: Rng) -> tuple[str, dict[str, Any]]:
    n, heads = int(rng.integers(1, 20)), int(rng.integers(1, 5))
    lengths = rng.integers(1, n + 1, heads)
    labels = rng.integers(0, 3, n)
    known: dict[str, dict[str, Any]] = {
        "full": {"num_heads": heads, "num_rows": n},
        "prefix": {"lengths": lengths, "num_rows": n, "seed": pick(rng, (None, 1, list(range(heads))))},
        "window": {
            "starts": [int(rng.integers(0, n - length + 1)) for length in lengths],
            "lengths": lengths,
            "num_rows": n,
        },
        "expanding_window": {
            "initial": 1,
            "step": int(rng.integers(1, 4)),
            "num_rows": n,
            "horizon": int(rng.integers(0, n)),
        },
        "random_subset": {"lengths": lengths, "num_rows": n, "seed": 3, "stratify": pick(rng, (None, labels))},
        "bootstrap": {"num_heads": heads, "num_rows": n, "lengths": pick(rng, (None, 4, 0.5)), "seed": 2},
        "leave_one_out": {"num_rows": n},
        "from_indices": {"indices": [rng.integers(0, n, 3) for _ in range(heads)], "num_rows": n},
        "from_mask": {"mask": rng.random((heads, n)) < 0.6},
        "from_splits": {"splits": [(np.arange(n // 2 + 1), np.arange(n))] * heads, "num_rows": n, "part": "train"},
        "partition_by": {"groups": pick(rng, (labels, labels.astype(str), labels > 0))},
        "leave_group_out": {"groups": labels},
        "dirichlet": {"labels": labels, "alpha": 1.0, "num_heads": heads, "min_size": 1, "seed": 0},
        "from_weights": {"weights": rng.integers(0, 3, (heads, n)), "lengths": pick(rng, (None, 3)), "seed": 1},
    }
    name = pick(rng, sorted(known))
    return name, {key: or_odd(rng, value, 0.06) for key, value in known[name].items()}


def fuzz_slices(rng: Rng) -> None:
    name, given = slices_arguments(rng)
    expected = None
    slices = getattr(hx.Slices, name)(**given)
    with contextlib.suppress(TypeError, ValueError, OverflowError, MemoryError):  # an odd value that was taken
        if slices.num_rows * len(slices) < 10**6:
            expected = rows_by_hand(name, given)
    if max(slices.num_rows * len(slices), slices.lengths.sum(dtype=np.int64)) > 10**5:  # too many to look at
        check(slices.lengths.shape == (len(slices),), "lengths are not one per head")
        return
    rows = [slices.rows(head) for head in range(len(slices))]
    check([len(one) for one in rows] == slices.lengths.tolist(), "lengths and rows differ")
    check(all(((0 <= one) & (one < slices.num_rows)).all() for one in rows), "a row outside the dataset")
    if expected is not None:
        check(len(expected) == len(rows) and all(map(np.array_equal, expected, rows)), "other rows than by hand")
    mask = np.array([np.isin(np.arange(slices.num_rows), one) for one in rows])
    check(np.array_equal(slices.mask(), mask), "mask and rows differ")
    check(np.array_equal(slices.complement(allow_empty=True).mask(), ~mask), "the complement is not the rest")
    at = or_odd(rng, pick(rng, (0, -1, slice(None), [0], slice(0, 1), np.ones(len(slices), bool))), 0.2)
    picked = slices[at]
    check(np.array_equal(picked.mask(), np.atleast_2d(mask[_index(at)])), f"slices[{at!r}] holds other rows")
    check(hx.Slices.concatenate([picked]) == picked.with_ids(range(len(picked))), "concatenate changes the rows")
    rates = or_odd(rng, [0.1, 0.2], 0.2)
    crossed = hx.Slices.product(picked, lr=rates)
    values = rates if isinstance(rates, int | np.integer) else len(rates)
    check(len(crossed) == len(picked) * values, "the product has other heads")
    check(str(slices.describe()).startswith("Slices of"), "describe says nothing")
    asked = or_odd(rng, [0], 0.2)
    held = slices.contains(slice(None), asked)
    check(np.array_equal(held, mask[:, np.atleast_1d(np.asarray(asked)).astype(int)]), "contains differs")


def _index(at: Any) -> Any:
    """An index as NumPy takes it: ranges and tuples are lists to Slices."""
    return list(at) if isinstance(at, range | tuple) else np.asarray(at) if isinstance(at, list | jax.Array) else at


# ---- values per head, arguments of the Trainer and of callbacks


def fuzz_per_head(rng: Rng) -> None:
    values = or_odd(rng, pick(rng, ([1, 2, 3], [0.1, 0.2], np.ones((3, 2)), [True, False])), 0.7)
    made = hx.PerHead(values)
    array = np.asarray(values.values if isinstance(values, hx.PerHead) else values)
    check(len(made) == len(array), "other values")
    check(np.array_equal(np.asarray(made.values, array.dtype), array), "other values")
    at = or_odd(rng, 0, 0.8)
    found = made[at]
    found = found.values if isinstance(found, hx.PerHead) else found
    check(np.array_equal(found, made.values[at]), f"PerHead[{at!r}] is another value")


TRAINER: dict[str, tuple[Any, ...]] = {
    "max_steps": (None, 2, 1), "max_epochs": (None, 1), "min_steps": (None, 1), "min_epochs": (None, 1),
    "limit_train_batches": (1.0, 2, 0.5), "limit_val_batches": (0, 1.0, 1), "limit_test_batches": (1.0, 1),
    "limit_predict_batches": (1, 1.0), "overfit_batches": (0, 1, 0.5), "num_sanity_val_steps": (0, 2, -1),
    "fast_dev_run": (False, True, 2), "val_check_interval": (1.0, 1, 0.5), "check_val_every_n_epoch": (1, None, 2),
    "log_every_n_steps": (1, 50), "accumulate_grad_batches": (1, 2), "gradient_clip_val": (None, 1.0, 0.1),
    "gradient_clip_algorithm": ("norm", "value"), "precision": ("32-true", "bf16-mixed", "bf16-true", "64-true"),
    "matmul_precision": (None, "highest"), "seed": (0, 1, 2**32 - 1), "sampling": ("own", "shared"),
    "budget": ("steps", "passes"), "devices": ("auto", 1), "lowering": ("auto", "fast", "plain"),
    "device_memory": ("auto", 2**30), "deterministic": (False, True), "chunk": ("auto", 1),
    "steps_per_call": ("auto", 2),
    "on_nonfinite": ("quarantine", "raise", "ignore"), "profiler": (None, "simple"), "callbacks": (None, []),
    "logger": (True, False), "enable_checkpointing": (True, False), "enable_progress_bar": (True, False),
    "enable_model_summary": (True, False), "max_time": (None, "00:00:01:00", {"hours": 1}),
    "default_root_dir": (".", "runs"), "barebones": (True, False),
}  # fmt: skip
"""Arguments of the Trainer with values that are taken."""


def fuzz_trainer(rng: Rng) -> None:
    names = rng.choice(sorted(TRAINER), int(rng.integers(1, 5)), replace=False)
    given = {str(name): or_odd(rng, pick(rng, TRAINER[name]), 0.6) for name in names}
    if rng.random() < 0.1:
        given[pick(rng, ("max_step", "acelerator", "x", "strategy", "detect_anomal"))] = odd(rng)
    check(isinstance(hx.Trainer(**given), hx.Trainer), "no Trainer")


CALLBACKS = [
    kind
    for name, kind in sorted(vars(callbacks).items())
    if inspect.isclass(kind) and issubclass(kind, hx.Callback) and name not in ("WandbLogger", "MLflowLogger")
]


def fuzz_callback(rng: Rng) -> None:
    kind = pick(rng, CALLBACKS)
    names = [
        name
        for name, one in inspect.signature(kind).parameters.items()
        if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]
    chosen = [name for name in names if rng.random() < 0.5]
    made = kind(**{name: odd(rng) for name in chosen})
    check(isinstance(made, hx.Callback), "no callback")
    hx.Trainer(max_steps=1, callbacks=made)


# ---- data


def column(rng: Rng, n: int) -> Any:
    dtype = pick(
        rng, ("f4", "f8", "f2", "i8", "i4", "u1", "u8", "?", "c8", ">f4", "M8[s]", "m8[s]", "U3", "O", "S2", "i4,f4")
    )
    array = rng.integers(0, 3, (n, *pick(rng, ((), (1,), (4,), (0,), (2, 2))))).astype(dtype)
    wrapped = pick(rng, (np.asarray, np.asarray, np.asarray, list, jnp.asarray, np.asfortranarray, np.ma.array, iter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return wrapped(array)
        except (TypeError, ValueError):
            return array


def fuzz_data(rng: Rng) -> None:
    n = int(rng.integers(1, 9))
    names = [or_odd(rng, name, 0.1) for name in ("x", "y", "z")[: rng.integers(1, 4)]]
    columns = [or_odd(rng, column(rng, n if rng.random() < 0.9 else n + 1), 0.15) for _ in names]
    try:
        train: Any = dict(zip(names, columns, strict=True))
    except TypeError:  # a key that no dict takes
        train = columns
    train = or_odd(rng, pick(rng, (train, train, tuple(columns), columns[0])), 0.05)
    settings = {
        "slices": or_odd(rng, pick(rng, (hx.Slices.full(2, n), lambda rows: hx.Slices.full(2, n))), 0.1),
        "batch_size": or_odd(rng, 4, 0.15),
        "small_slices": or_odd(rng, pick(rng, ("mask", "wrap")), 0.1),
        "check_finite": or_odd(rng, pick(rng, ("off", "raise")), 0.1),
        "residence": or_odd(rng, pick(rng, ("auto", "device", "host")), 0.1),
        "read_threads": or_odd(rng, 2, 0.05),
    }
    data = ArrayDataModule(train, **settings)
    check(str(data).startswith("ArrayDataModule"), "no description")
    staged = stage_training(data, wide=False)
    try:
        check(staged.data.num_rows == n or not isinstance(train, dict), "another number of rows")
        if staged.data.reader is None:
            for found, given in zip(jax.tree.leaves(staged.data.shapes), jax.tree.leaves(train), strict=True):
                check(np.array_equal(np.asarray(found, "c16"), np.asarray(given).astype("c16")), "other values")
        batch = staged.index_dataset(seed=0)[0]
        check(batch["rows"].shape == (len(staged.slices), staged.batch_size), "another form of a batch")
    finally:
        staged.data.close()


# ---- fits


def arrays() -> dict[str, np.ndarray]:
    return {
        "image": np.linspace(-1, 1, ROWS * 4, dtype=np.float32).reshape(ROWS, 4),
        "label": np.arange(ROWS, dtype=np.int32) % 3,
    }


def data_of(**how: Any) -> ArrayDataModule:
    how = {"slices": hx.Slices.full(HEADS, ROWS), "batch_size": SLOTS, "val": arrays(), "test": arrays(), **how}
    return ArrayDataModule(how.pop("train", arrays()), **{"predict": arrays(), **how})


class Works(hx.HydraModule):
    def __init__(self, width: Any = 3) -> None:
        self.save_hyperparameters()

    def configure_model(self, key: jax.Array) -> nnx.Module:
        return nnx.Linear(4, 3, rngs=nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.sgd(0.1)

    def training_step(self, model: Any, batch: Any, ctx: hx.Context) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["label"])

    def validation_step(self, model: Any, batch: Any, ctx: hx.Context) -> Any:
        return Works.training_step(self, model, batch, ctx)

    def test_step(self, model: Any, batch: Any, ctx: hx.Context) -> Any:
        return Works.training_step(self, model, batch, ctx)

    def predict_step(self, model: Any, batch: Any, ctx: hx.Context) -> Any:
        return model(batch["image"])


def trainer_of(**how: Any) -> hx.Trainer:
    return hx.Trainer(**{"max_steps": 2, "barebones": True, **how})


@functools.cache
def reference() -> hx.FitResult:
    return trainer_of().fit(Works(), data_of())


def leaves(result: hx.FitResult) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result.heads.trainable)]


def check_fit(result: hx.FitResult, same_bits: bool) -> None:
    check(len(result.heads) == HEADS, "another number of heads")
    for name, values in result.metrics.items():
        check(values.shape == (HEADS,) and np.isfinite(values).all(), f"{name} is {values}")
    if same_bits:
        check(all(map(np.array_equal, leaves(result), leaves(reference()))), "other bits than the reference")


METHODS = (
    "configure_model",
    "configure_optimizers",
    "training_step",
    "validation_step",
    "predict_step",
    "update",
    "slices",
)


class Tier(hx.Callback):
    """A callback that counts inside the program, and asks for nothing outside of it."""

    def init(self, trainable: Any) -> Any:
        return jnp.zeros((), jnp.int32)

    def on_step(self, state: Any, info: Any) -> Any:
        return state + 1

    def metrics(self, state: Any, info: Any) -> Any:
        return {"count": state}

    def on_train_steps_end(self, event: hx.Event) -> Any:
        return None

    def on_validation_end(self, event: hx.Event) -> Any:
        return None

    def state_dict(self) -> Any:
        return {}

    def next_due(self, step: int) -> Any:
        return None


def returns(rng: Rng, kind: type, method: str) -> Callable[..., Any]:
    """A method that returns, raises or does something odd."""
    value = odd(rng)
    parts: dict[str, Callable[..., Any]] = {
        "value": lambda *args: value,
        "none": lambda *args: None,
        "raises": lambda *args: {}["missing"],
        "no arguments": lambda: None,
        "control flow": lambda self, *args: 1 if jax.tree.leaves(args)[-1].sum() > 0 else 0,
        "numpy": lambda self, *args: np.sin(jax.tree.leaves(args)[-1]),
        "sum": lambda self, *args: sum(leaf.sum() for leaf in jax.tree.leaves(args[1:2])),
        "wrapped": lambda self, *args: [getattr(kind, method)(self, *args)],
        "in a dict": lambda self, *args: {"loss": getattr(kind, method)(self, *args), "more": value},
        "longer": lambda self, *args: jnp.ones(SLOTS + 1),
        "two axes": lambda self, *args: jnp.ones((SLOTS, 2)),
        "integers": lambda self, *args: jnp.arange(SLOTS),
        "prints": lambda self, *args: (jax.debug.print("fuzz"), getattr(kind, method)(self, *args))[1],
        "logs": lambda self, *args: (self.log("odd", value), getattr(kind, method)(self, *args))[1],
        "sets": lambda self, *args: setattr(self, "kept", args),
        "control": lambda self, *args: hx.Control(stop=value, snapshot=or_odd(rng, None), reason="drawn"),
    }
    return parts[pick(rng, sorted(parts))]


def fuzz_module(rng: Rng) -> None:
    method = pick(rng, METHODS)
    made = type("Drawn", (Works,), {method: returns(rng, Works, method)})(or_odd(rng, 3))
    if method == "predict_step":
        found = trainer_of().predict(made, data_of(), heads=reference().heads)
        check(all(leaf.shape[:2] == (HEADS, ROWS) for leaf in jax.tree.leaves(found)), "predictions of another form")
        return
    result = trainer_of().fit(made, data_of())
    check(len(result.heads) == HEADS, "another number of heads")


def fuzz_hook(rng: Rng) -> None:
    hooks = ("on_train_steps_end", "on_validation_end", "state_dict", "next_due")
    method = pick(rng, ("init", "on_step", "metrics", *hooks))
    drawn = type("DrawnHook", (Tier,), {method: returns(rng, Tier, method)})()
    result = trainer_of(callbacks=drawn).fit(Works(), data_of())
    check_fit(result, same_bits=bool(result.live.all()))


# What changes no bit of a head, whatever else is drawn.
FREE: dict[str, tuple[Any, ...]] = {
    "steps_per_call": ("auto", 1, 3), "devices": ("auto", 1), "log_every_n_steps": (1, 50),
    "deterministic": (True, False), "num_sanity_val_steps": (0, -1), "limit_val_batches": (0, 1, 0.5, 1.0),
    "val_check_interval": (1, 1.0, 0.5), "on_nonfinite": ("quarantine", "raise", "ignore"), "callbacks": (None, []),
    "min_steps": (None, 1, 2), "max_time": (None, {"hours": 1}), "max_epochs": (None, 1),
}  # fmt: skip


def fuzz_fit(rng: Rng) -> None:
    names = rng.choice(sorted(FREE), 3, replace=False)
    how = {str(name): pick(rng, FREE[name]) for name in names}
    data = data_of(residence=pick(rng, ("device", "host")), eval_batch_size=pick(rng, (None, 5, 12)))
    check_fit(trainer_of(**how).fit(Works(), data), same_bits=True)


def fuzz_heads(rng: Rng) -> None:
    heads, x = reference().heads, arrays()["image"]
    everything = np.asarray(heads(x))
    what = pick(rng, ("index", "predict", "call", "save", "export", "load"))
    if what == "index":
        at = odd(rng)
        found = heads[at]
        expected = everything[_index(at)]
        check(np.allclose(np.asarray(found(x)), expected, rtol=1e-6), f"heads[{at!r}] are other heads")
    elif what == "predict":
        how = {"batch_size": or_odd(rng, 5), "reduce": or_odd(rng, pick(rng, (None, "mean")))}
        found = heads.predict(or_odd(rng, x, 0.2), **how)
        expected = everything if how["reduce"] is None else everything.mean(axis=0)
        check(found.shape == expected.shape and np.allclose(found, expected, rtol=1e-5, atol=1e-6), "other predictions")
    elif what == "call":
        found = heads(or_odd(rng, x, 0.0))
        check(np.array_equal(found, everything), "other outputs")
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = or_odd(rng, Path(folder, "a%b[1]"), 0.3) if what != "load" else Path(folder)
            path = Path(folder, "x") if isinstance(path, str | Path) and not Path(path).is_absolute() else path
            if what == "save":
                heads.save(path)
                check(
                    np.array_equal(np.asarray(hx.Heads.load(path, Works())(x)), everything), "other heads were loaded"
                )
            elif what == "export":
                heads.export(Path(folder, pick(rng, ("a.npz", "a.safetensors", "a.txt"))), head=or_odd(rng, None, 0.7))
            else:
                hx.Heads.load(path, Works(), head=or_odd(rng, 0, 0.5))


def fuzz_evaluation(rng: Rng) -> None:
    trainer = trainer_of()
    given = {"heads": or_odd(rng, reference().heads, 0.5), "ckpt_path": None if rng.random() < 0.8 else odd(rng)}
    data, module = or_odd(rng, data_of(), 0.2), or_odd(rng, Works(), 0.2)
    if rng.random() < 0.3:
        start = {"ckpt_path": or_odd(rng, None, 0.5), "init_from": or_odd(rng, None, 0.5)}
        check_fit(trainer.fit(module, data, **start), same_bits=start["init_from"] is None)
    elif rng.random() < 0.5:
        found = getattr(trainer, pick(rng, ("validate", "test")))(module, data, verbose=False, **given)
        check(all(values.shape == (HEADS,) and np.isfinite(values).all() for values in found.values()), "odd metrics")
    else:
        found = trainer.predict(module, data, reduce=or_odd(rng, None, 0.3), **given)
        check(np.allclose(found, np.asarray(reference().heads(arrays()["image"])), rtol=1e-5, atol=1e-6), "other rows")


FAMILIES: dict[Callable[[Rng], None], int] = {
    fuzz_slices: 40, fuzz_per_head: 10, fuzz_trainer: 17, fuzz_callback: 12, fuzz_data: 14, fuzz_heads: 4,
    fuzz_module: 1.5, fuzz_hook: 0.5, fuzz_fit: 0.5, fuzz_evaluation: 0.5,
}  # fmt: skip
"""Each kind of call with its share; those that compile are few."""


# ---- the rule


@contextlib.contextmanager
def programs_counted() -> Iterator[list[str]]:
    """Lists the programs of a run that were reached."""
    reached: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        inner = getattr(Engine, name)

        def call(self: Engine, *args: Any, **kwargs: Any) -> Any:
            out = inner(self, *args, **kwargs)
            reached.append(name)
            return out

        return call

    with contextlib.ExitStack() as stack:
        for name in ("superstep", "evaluate", "predict"):
            stack.enter_context(mock.patch.object(Engine, name, counted(name)))
        yield reached


def _too_long(*_: Any) -> None:
    raise Broken(f"took more than {SECS} s")


def run(seed: int, number: int, family: Callable[[Rng], None] | None = None) -> str:
    """Makes one draw; returns "right" or "refused", or raises Broken with what is needed to make it again."""
    rng = np.random.default_rng([seed, number])
    reference()
    shares = np.array(list(FAMILIES.values()))
    drawn = list(FAMILIES)[rng.choice(len(shares), p=shares / shares.sum())]
    family = family or drawn
    again = f"\n{family.__name__}, draw {number} of seed {seed}: python tests/fuzzing.py --seed {seed} --only {number}"
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECS)
    try:
        with programs_counted() as reached, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            family(rng)
        return "right"
    except hx.HydraxError as error:
        if not FORM.fullmatch(str(error)):
            raise Broken(f"A message of another form: {error}{again}") from error
        if reached and not isinstance(error, LATE):
            raise Broken(f"Refused after {reached[0]} had run: {error}{again}") from error
        return "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Broken(f"{type(error).__name__}: {error!s:.500}{again}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--only", type=int, help="make this draw alone, and show its traceback")
    parser.add_argument("--family", choices=[one.__name__ for one in FAMILIES], help="make only this kind of call")
    args = parser.parse_args()
    family = next((one for one in FAMILIES if one.__name__ == args.family), None)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    os.chdir(tempfile.mkdtemp())
    if args.only is not None:
        print(run(args.seed, args.only, family))
        return
    counts: dict[str, int] = {}
    started = time.perf_counter()
    for number in range(args.draws):
        began = time.perf_counter()
        try:
            outcome = run(args.seed, number, family)
        except Broken as error:
            outcome = "broken"
            print(error)
            print("".join(traceback.format_exception(error.__cause__)[-3:]) if error.__cause__ else "", flush=True)
        counts[outcome] = counts.get(outcome, 0) + 1
        if time.perf_counter() - began > 3:
            print(f"draw {number} took {time.perf_counter() - began:.1f} s", flush=True)
    print(counts, f"{time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
