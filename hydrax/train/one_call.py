"""The one-call form: trains models on growing prefixes of one dataset; a thin layer over the Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from hydrax.arguments import checked_call
from hydrax.data import DataModule
from hydrax.errors import ArgumentError, DataError
from hydrax.loss import loss as cross_entropy
from hydrax.loss import losses as cross_entropies
from hydrax.results import Heads
from hydrax.slices import Slices
from hydrax.step import Context
from hydrax.train.module import HydraModule
from hydrax.train.trainer import Trainer


@checked_call
def get_trained_models(
    x_train: Any,
    y_train: Any,
    num_models: int,
    model_type: Callable[[jax.Array], Any],
    verbose: bool = False,
    start_slice: str | None = None,
    loss: Callable[[Any, Any, Any], jax.Array] = cross_entropy,
    *,
    steps: int = 300,
    batch_size: int = 32,
    learning_rate: float = 3e-4,
    seed: int = 0,
) -> Heads:
    """Trains `num_models` models with AdamW, each on a prefix of one slice of the rows.

    Model k (k = 1 .. num_models) learns from rows a to a + k - 1 of `start_slice` "a_b".

    Args:
      x_train: inputs, `[N, ...]`.
      y_train: integer labels, `[N]`.
      num_models: H, at most b - a.
      model_type: any callable that takes a PRNG key and returns a model of one row.
      verbose: whether to show progress.
      start_slice: "a_b", the rows to learn from, 0 <= a < b <= N; None means all of them, "0_N".
      loss: `loss(model, x, y)`, a mean over the rows of its batch; a batch can have fewer than `batch_size` rows.
      steps: optimiser updates of every model.
      batch_size: rows of a batch.
      learning_rate: the learning rate of AdamW.
      seed: seed of initial parameters and batches.

    Returns:
      One batch of models: a pytree with leaves `[H, ...]`; `unbatch_model(models, i)` and `models[i]` return model i.

    Raises:
      ArgumentError: `start_slice` and `num_models` do not fit each other or the data, or the loss is no mean over rows.
      DataError: a label is no class of the model.
    """
    x, y = np.asarray(x_train), np.asarray(y_train)
    start, end = (0, len(x)) if start_slice is None and x.ndim else _parse(start_slice)
    _check(x, y, num_models, start, end)
    _check_labels(x, y[start:end], start, model_type, loss)
    _check_mean(x[start:end], y[start:end], model_type, loss)
    slices = Slices.window(start, np.arange(1, num_models + 1), num_rows=len(x))
    trainer = Trainer(max_steps=steps, seed=seed, logger=False, enable_checkpointing=False, barebones=not verbose)
    return trainer.fit(_OneCall(model_type, loss, learning_rate), _Pairs(x, y, slices, batch_size)).heads


@checked_call
def unbatch_model(models: Heads, i: int) -> Any:
    """Returns model i of a batch of models, with all its arrays.

    Args:
      models: what `get_trained_models` returned.
      i: the number of the model, counted from 0.

    Raises:
      ArgumentError: there is no such model.
    """
    return models[i]


class _OneCall(HydraModule):
    def __init__(
        self, model_type: Callable[[jax.Array], Any], loss: Callable[..., jax.Array], learning_rate: float
    ) -> None:
        self.model_type, self.loss, self.learning_rate = model_type, loss, learning_rate

    def configure_model(self, key: jax.Array) -> Any:
        return self.model_type(key)

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adamw(self.learning_rate)

    def training_step(self, model: Any, batch: Any, ctx: Context) -> jax.Array:
        x, y = batch
        if self.loss is cross_entropy:
            return cross_entropies(model, x, y)
        # The user's loss is a mean over a batch. Computed row by row it gives [B], so padding can be left out.
        return jax.vmap(lambda a, b: self.loss(model, a[None], b[None]))(x, y)


class _Pairs(DataModule):
    def __init__(self, x: np.ndarray, y: np.ndarray, slices: Slices, batch_size: int) -> None:
        super().__init__(slices=slices, batch_size=batch_size)
        self._data = x, y

    def train_dataset(self) -> tuple[np.ndarray, np.ndarray]:
        return self._data


def _parse(start_slice: Any) -> tuple[int, int]:
    parts = start_slice.split("_") if isinstance(start_slice, str) else []
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or int(parts[0]) >= int(parts[1]):
        raise ArgumentError(
            f'A slice is not of the form "a_b": start_slice. Got {start_slice!r}, expected two row numbers with a < b. '
            'Fix: pass for example "0_784".'
        )
    return int(parts[0]), int(parts[1])


def _check(x: np.ndarray, y: np.ndarray, num_models: int, start: int, end: int) -> None:
    if isinstance(num_models, bool) or not isinstance(num_models, int) or not 1 <= num_models <= end - start:
        raise ArgumentError(
            f"Too many models for the slice: num_models. Got {num_models!r}, expected 1 to {end - start}, the rows of "
            "start_slice "
            f'"{start}_{end}". Fix: ask for fewer models, or a longer slice.'
        )
    if x.ndim == 0 or len(x) < end:
        raise ArgumentError(
            f"The slice exceeds the data: x_train. Got {len(x) if x.ndim else 0} rows, expected at "
            f"least {end}, the end "
            f'of start_slice "{start}_{end}". Fix: pass more rows, or a slice that ends sooner.'
        )
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise DataError(
            f"Labels do not fit the rows: y_train. Got {y.dtype}{list(y.shape)}, expected integers [{len(x)}], one "
            "label for each row of x_train. Fix: pass class numbers."
        )


def _check_labels(x: np.ndarray, y: np.ndarray, start: int, model_type: Callable[..., Any], loss: Any) -> None:
    """Refuses labels outside the logits, for which JAX computes a finite loss; other losses have their own labels."""
    if loss is not cross_entropy:
        return
    # By shape alone: the model is not built, only traced.
    row = jax.ShapeDtypeStruct(x.shape[1:], jax.dtypes.canonicalize_dtype(x.dtype))
    try:
        classes = jax.eval_shape(lambda key, a: model_type(key)(a), jax.random.key(0), row).shape[-1]
    except Exception:  # noqa: BLE001  tracing the step reports what is wrong with the model, and why
        return
    outside = (y < 0) | (y >= classes)
    if outside.any():
        at = start + int(np.argmax(outside))
        raise DataError(
            f"Label outside the model's classes: y_train, row {at}. Got {int(y[at - start])}, expected 0 to "
            f"{classes - 1}, since the model has {classes} logits. Fix: renumber the labels, or use a model with more "
            "outputs."
        )


def _check_mean(x: np.ndarray, y: np.ndarray, model_type: Callable[..., Any], loss: Callable[..., Any]) -> None:
    """Refuses losses that are sums or that mix rows: taken row by row, as here, they would be other losses."""
    if loss is cross_entropy or len(x) < 2:
        return
    try:
        model = model_type(jax.random.key(0))
        if hasattr(model, "eval"):
            model.eval()  # an nnx model: dropout would differ from call to call
        both, first, second = (float(loss(model, x[rows], y[rows])) for rows in (slice(2), slice(1), slice(1, 2)))
    except Exception:  # noqa: BLE001  tracing the step reports what is wrong with the model or the loss, and why
        return
    mean = (first + second) / 2
    if not np.isclose(both, mean, rtol=1e-2, equal_nan=True):
        raise ArgumentError(
            f"The loss is not a mean over rows: get_trained_models(loss=). Got {both:.6g} for two rows that have "
            f"{first:.6g} and {second:.6g} alone, expected {mean:.6g}. Fix: return the mean over the batch, or write a "
            "HydraModule, whose training_step sees the whole batch."
        )
