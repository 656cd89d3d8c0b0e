"""The cases: what is trained, on which rows, by how many heads; the same for Hydrax and for every opponent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from peers import count
from peers.models import Cnn, Perceptron, Transformer

WEIGHT_DECAY = 1e-4  # of AdamW in all libraries, because the defaults of Optax and PyTorch differ
TOKENS, VOCABULARY = 64, 256


@dataclasses.dataclass(frozen=True)
class Rows:
    """Which rows each head learns from: `length` rows in base order, with a gap of `gap` rows left out at `gap_at`.

    A prefix has no gap, a window has it in front, and the training rows of a fold have it in place of the fold.
    All three are int[H].
    """

    length: np.ndarray
    gap_at: np.ndarray
    gap: np.ndarray


def prefixes(lengths: Any) -> Rows:
    lengths = np.asarray(lengths)
    return Rows(lengths, np.zeros_like(lengths), np.zeros_like(lengths))


def windows(num_heads: int, length: int, num_rows: int) -> Rows:
    starts = np.arange(num_heads) * 7 % (num_rows - length + 1)
    return Rows(np.full(num_heads, length), np.zeros_like(starts), starts)


def folds(num_heads: int, num_rows: int) -> Rows:
    """Splits rows as `sklearn.model_selection.KFold` does."""
    sizes = num_rows // num_heads + (np.arange(num_heads) < num_rows % num_heads)
    return Rows(num_rows - sizes, np.cumsum(sizes) - sizes, sizes)


@dataclasses.dataclass(frozen=True)
class Case:
    """One job.

    Attributes:
      letter, title: its names.
      num_heads: H.
      num_rows: N.
      batch_size: B.
      steps_per_call: K, the steps per dispatch, for Hydrax and for every opponent that has dispatches.
      make_model: makes the model of one head.
      make_data: makes the dataset from N.
      make_rows: returns the rows that each head learns from, given H and N.
      row_loss: returns the loss of each row, [B], given a model and a batch.
      optimizer: "adam" or "adamw".
      learning_rate: of the optimiser.
      torch_model: name of the model in torch_models.py, and its arguments.
      counted: FLOPs and bytes of one step of one head.
      chunks: chunk widths that the program by hand tries.
      opponents: the keys of the opponents that take part.
      steps_per_unit: steps of the unit that is timed, by sampling; None if the unit is one step.
      warm_calls: calls of K steps before the first turn; the losses are compared after them.
      chunk: argument of the Trainer; the tiny form sets it, so that no plans are timed.
      small_heads: H of a smaller fit whose time per head is compared, or None.
    """

    letter: str
    title: str
    num_heads: int
    num_rows: int
    batch_size: int
    steps_per_call: int
    make_model: Callable[[nnx.Rngs], nnx.Module]
    make_data: Callable[[int], dict[str, np.ndarray]]
    make_rows: Callable[[int, int], Rows]
    row_loss: Callable[[Any, Mapping[str, jax.Array]], jax.Array]
    optimizer: str
    learning_rate: float
    torch_model: tuple[str, tuple[Any, ...]]
    counted: count.Counted
    chunks: tuple[int, ...] = (1, 2, 4, 8)
    opponents: tuple[str, ...] = ("vmap", "chunks", "one by one", "torch vmap", "torch one by one")
    steps_per_unit: Mapping[str, int] | None = None
    warm_calls: int = 3
    small_heads: int | None = None
    chunk: int | str = "auto"

    def make_optimizer(self) -> optax.GradientTransformation:
        if self.optimizer == "adam":
            return optax.adam(self.learning_rate)
        return optax.adamw(self.learning_rate, weight_decay=WEIGHT_DECAY)

    def rows(self) -> Rows:
        return self.make_rows(self.num_heads, self.num_rows)

    def tiny(self) -> Case:
        """Returns the form for CI: few heads and short calls. Every slice has exactly B rows, so that equal initial
        values give equal updates, whatever the order of the rows."""
        heads = min(self.num_heads, 3 if self.small_heads is None else 4)
        small = None if self.small_heads is None else 2
        make_rows = lambda num_heads, num_rows: windows(num_heads, self.batch_size, num_rows)  # noqa: E731
        chunks = (2,)
        num_rows = min(self.num_rows, 256)
        sizes: dict[str, Any] = {
            "num_heads": heads,
            "num_rows": num_rows,
            "steps_per_call": 1,
            "small_heads": small,
            "chunk": 2,
        }
        title = f"{self.title}, tiny"
        return dataclasses.replace(self, title=title, **sizes, make_rows=make_rows, chunks=chunks, warm_calls=8)


def classify(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])


def next_byte(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    tokens = batch["tokens"].astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(model(tokens[:, :-1]), tokens[:, 1:]).mean(-1)


def vectors(width: int, classes: int, num_rows: int) -> dict[str, np.ndarray]:
    """Makes random rows, labelled by a random linear map."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_rows, width)).astype(np.float32)
    return {"x": x, "y": (x @ rng.normal(size=(width, classes))).argmax(1).astype(np.int32)}


def images(num_rows: int) -> dict[str, np.ndarray]:
    """Makes random images with a faint pattern for each of 10 classes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, num_rows).astype(np.int32)
    x = rng.normal(size=(num_rows, 32, 32, 3)) + rng.normal(size=(10, 1, 1, 3))[y]
    return {"x": x.astype(np.float32), "y": y}


def text(num_rows: int) -> dict[str, np.ndarray]:
    """Makes rows of bytes in which each byte predicts the next."""
    rng = np.random.default_rng(0)
    after = rng.integers(0, VOCABULARY, (VOCABULARY, 4))
    tokens = np.empty((num_rows, TOKENS + 1), np.uint8)
    tokens[:, 0] = rng.integers(0, VOCABULARY, num_rows)
    for at in range(TOKENS):
        tokens[:, at + 1] = after[tokens[:, at], rng.integers(0, 4, num_rows)]
    return {"tokens": tokens}


def digits(num_rows: int) -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))[:num_rows]
    return {"x": (x[order] / 16).astype(np.float32), "y": y[order].astype(np.int32)}


def perceptrons(letter: str, title: str, widths: tuple[int, ...], **fields: Any) -> Case:
    """Makes a case of perceptrons and derives the rest from their widths."""
    defaults: dict[str, Any] = {
        "batch_size": 32,
        "make_model": lambda rngs: Perceptron(widths, rngs),
        "make_data": lambda num_rows: vectors(widths[0], widths[-1], num_rows),
        "row_loss": classify,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "torch_model": ("Perceptron", (widths,)),
        "counted": count.perceptron(widths, 32),
    }
    return Case(letter, title, **(defaults | fields))


def make_cases() -> dict[str, Case]:
    """Returns all cases that take one process, by letter; growth.py has the case that takes many."""
    curve = lambda num_heads, num_rows: prefixes(np.linspace(1, num_rows, num_heads).astype(int))  # noqa: E731
    full = lambda num_heads, num_rows: prefixes(np.full(num_heads, num_rows))  # noqa: E731
    channels = (3, 16, 32, 64)
    found = [
        perceptrons(
            "a", "784 prefixes, linear 784-2, AdamW", (784, 2), num_heads=784, num_rows=784, steps_per_call=25,
            make_rows=curve,
        ),
        perceptrons(
            "b", "784 prefixes, MLP 784-128-10, AdamW", (784, 128, 10), num_heads=784, num_rows=784, steps_per_call=5,
            make_rows=curve,
        ),
        Case(
            "c", "32 heads, CNN 16-32-64, 32 x 32 x 3, Adam", num_heads=32, num_rows=2048, batch_size=32,
            steps_per_call=2, make_model=lambda rngs: Cnn(channels, 10, rngs), make_data=images, make_rows=full,
            row_loss=classify, optimizer="adam", learning_rate=1e-3, torch_model=("Cnn", (channels, 10)),
            counted=count.cnn(channels, 10, 32, 32), warm_calls=2,
            opponents=("vmap", "chunks", "one by one", "torch vmap", "torch one by one"),
        ),
        Case(
            "d", "64 heads, transformer of 2 layers, width 64, 64 tokens, AdamW", num_heads=64, num_rows=2048,
            batch_size=8, steps_per_call=2, make_model=lambda rngs: Transformer(VOCABULARY, TOKENS, 64, 4, 2, rngs),
            make_data=text, make_rows=full, row_loss=next_byte, optimizer="adamw", learning_rate=1e-3,
            torch_model=("Transformer", (VOCABULARY, TOKENS, 64, 4, 2)), warm_calls=2,
            counted=count.transformer(VOCABULARY, TOKENS, 64, 4, 2, 8),
        ),
        perceptrons(
            "e", "5-fold, MLP 64-256-10, digits, Adam", (64, 256, 10), num_heads=5, num_rows=1797, steps_per_call=45,
            make_data=digits, make_rows=folds, optimizer="adam", steps_per_unit={"own": 45, "shared": 57},
            opponents=(
                "hydrax shared", "vmap", "chunks", "vmap shared", "chunks shared", "one by one", "torch vmap",
                "torch one by one", "sklearn",
            ),
        ),
        perceptrons(
            "f", "16,384 heads, linear 64-10, AdamW", (64, 10), num_heads=16_384, num_rows=1_600, steps_per_call=5,
            make_rows=full, small_heads=1_024, chunks=(1, 2, 4, 8, 32, 128),
        ),
    ]  # fmt: skip
    return {case.letter: case for case in found}
