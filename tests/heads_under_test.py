"""Small models, data and fits that the promise tests share; every array of a run as NumPy, by name."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

NUM_ROWS, NUM_CLASSES, CHUNK = 40, 3, 4
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class Perceptron(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(6, 8, rngs=rngs)
        self.out = nnx.Linear(8, NUM_CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.hidden(x)))


class NormAndDropout(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.out = nnx.Linear(8, NUM_CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


class Convolution(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.out = nnx.Linear(4, NUM_CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.conv(x)).mean(axis=(1, 2)))


class TinyNet(nnx.Module):
    """Parameters, batch statistics and dropout keys, as small as it goes: 4 inputs, 2 outputs."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


MODELS: dict[str, type[nnx.Module]] = {
    "mlp": Perceptron,
    "norm_dropout": NormAndDropout,
    "cnn": Convolution,
}
SHAPES = {"mlp": (6,), "norm_dropout": (6,), "cnn": (8, 8, 1)}


class Classifier(hx.HydraModule):
    """AdamW on one of `MODELS`, with metrics of every kind: by step, by epoch, of validation and test."""

    def __init__(self, kind: str = "mlp", lr: Any = 1e-2) -> None:
        self.save_hyperparameters()

    def configure_model(self, key: jax.Array) -> nnx.Module:
        return MODELS[self.hparams.kind](nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adamw(self.hparams.lr)

    def training_step(self, model: Any, batch: Any, ctx: hx.Context) -> jax.Array:
        logits = self.logits(model, batch["x"])
        self.log("accuracy", logits.argmax(-1) == batch["y"], on_step=True, on_epoch=True)
        self.log("noise", jax.random.uniform(ctx.key))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])

    def validation_step(self, model: Any, batch: Any, ctx: hx.Context) -> jax.Array:
        self.log("val_noise", jax.random.uniform(ctx.key))
        return optax.softmax_cross_entropy_with_integer_labels(self.logits(model, batch["x"]), batch["y"])

    def test_step(self, model: Any, batch: Any, ctx: hx.Context) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(self.logits(model, batch["x"]), batch["y"])

    def predict_step(self, model: Any, batch: Any, ctx: hx.Context) -> jax.Array:
        return self.logits(model, batch["x"])

    def logits(self, model: Any, x: jax.Array) -> jax.Array:
        return model(x)


class PlainClassifier(Classifier):
    """The same on a pytree of two arrays: cheap to trace and to compile, where the model does not matter."""

    def configure_model(self, key: jax.Array) -> dict[str, jax.Array]:
        return {"kernel": 0.1 * jax.random.uniform(key, (6, NUM_CLASSES)), "bias": jnp.zeros(NUM_CLASSES)}

    def logits(self, model: Any, x: jax.Array) -> jax.Array:
        return x @ model["kernel"] + model["bias"][None]


def rows_of(kind: str = "mlp", num_rows: int = NUM_ROWS, seed: int = 0) -> dict[str, np.ndarray]:
    """A dataset with something to learn in it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_rows, *SHAPES[kind])).astype(np.float32)
    flat = x.reshape(num_rows, -1)
    return {"x": x, "y": ((flat[:, 0] > 0).astype(np.int32) + (flat[:, 1] > 0.3)).astype(np.int32)}


def data_of(slices: hx.Slices, kind: str = "mlp", train: Any = None, **how: Any) -> ArrayDataModule:
    """Training rows, and as many again to validate, test and predict."""
    held_out = rows_of(kind, 21, seed=1)
    sets = {"train": rows_of(kind) if train is None else train, "val": held_out, "test": held_out, "predict": held_out}
    return ArrayDataModule(**{**sets, "slices": slices, "batch_size": 8, **how})


class Curves(hx.Callback):
    """Keeps what every step logged."""

    def __init__(self) -> None:
        self.parts: dict[str, list[np.ndarray]] = {}
        self.steps: list[int] = []

    def on_train_steps_end(self, event: hx.Event) -> None:
        self.steps += event.steps.tolist()
        for name, values in event.metrics.items():
            self.parts.setdefault(name, []).append(values)

    def by_name(self) -> dict[str, np.ndarray]:
        """`[H, steps]` by name."""
        return {name: np.concatenate(parts).T for name, parts in self.parts.items()}


@dataclasses.dataclass(frozen=True)
class Run:
    """A fit that is over.

    Attributes:
      trainer: its Trainer.
      result: what `fit` gave.
      arrays: every array of the run, `[H, ...]` by name: parameters, model state, optimiser state, accumulators,
        what was logged.
    """

    trainer: hx.Trainer
    result: hx.FitResult
    arrays: Mapping[str, np.ndarray]

    def of(self, heads: Any) -> dict[str, np.ndarray]:
        """The same of some heads, by position."""
        return {name: array[np.atleast_1d(heads)] for name, array in self.arrays.items()}


def run(module: hx.HydraModule, data: hx.DataModule, ckpt_path: Any = None, callbacks: Any = (), **how: Any) -> Run:
    """Fits, also until Ctrl-C ends the fit in order, and takes down every array."""
    curves = Curves()
    with tempfile.TemporaryDirectory() as root:
        settings = {**QUIET, "chunk": CHUNK, "default_root_dir": root, **how}
        trainer = hx.Trainer(**settings, callbacks=[*callbacks, curves])
        try:
            result = trainer.fit(module, data, ckpt_path)
        except KeyboardInterrupt:
            if not trainer._has_result:
                raise
            result = trainer.result
    logged = {f"step.{name}": values for name, values in curves.by_name().items()}
    logged |= {f"latest.{name}": values for name, values in result.metrics.items()}
    return Run(trainer, result, {**state_of(trainer), **logged})


def state_of(trainer: hx.Trainer) -> dict[str, np.ndarray]:
    """Every leaf of a run's state, `[H, ...]` by dotted path; PRNG keys as the words they are made of."""
    state = trainer._run.planned.engine.gather(trainer._run.state.heads)
    return named_arrays(state)


def named_arrays(tree: Any) -> dict[str, np.ndarray]:
    """Leaves of a pytree as NumPy arrays, by dotted path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): _to_numpy(leaf) for path, leaf in leaves}


def differing(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the arrays that are not the same bytes; NaN equals the same NaN."""
    assert a.keys() == b.keys() and a
    return [name for name in a if _bytes(a[name]) != _bytes(b[name])]


def _bytes(array: np.ndarray) -> tuple[tuple[int, ...], str, bytes]:
    return array.shape, str(array.dtype), np.ascontiguousarray(array).tobytes()


def _to_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
