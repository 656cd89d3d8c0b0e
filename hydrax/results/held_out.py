"""Collects the predictions of all heads: for one set of rows, or for the rows that each head did not learn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.arguments import checked_calls, is_choice
from hydrax.errors import ArgumentError

Batch = tuple[Any, np.ndarray, np.ndarray]  # Predictions [H, B, ...], rows and live slots, [B] or [H, B].


def stacked(batches: Iterable[Batch], reduce: str | None) -> Any:
    """Joins the predictions for the same rows: NumPy `[H, rows, ...]`, or `[rows, ...]` with a reduction."""

    def to_host(array: jax.Array, live: np.ndarray) -> np.ndarray:
        # The mean is taken on the device, so that H times fewer bytes are copied to the host.
        return np.asarray(array)[:, live] if reduce is None else np.asarray(_reduced(array, reduce))[live]

    parts = [jax.tree.map(lambda leaf, live=live: to_host(leaf, live), found) for found, _, live in batches]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1 if reduce is None else 0), *parts)


def check_reduction(reduce: Any, where: str) -> None:
    """Refuses an unknown reduction over heads."""
    if not is_choice(reduce, (None, "mean", "mean_probability")):
        raise ArgumentError(
            f"Unknown reduction: {where}(reduce=). Got {reduce!r}, expected None, 'mean' or 'mean_probability'. Fix: "
            "leave it out for the predictions of all heads."
        )


def _reduced(array: jax.Array, reduce: str) -> jax.Array:
    """Averages predictions `[H, B, ...]` over heads."""
    if reduce == "mean":
        return array.mean(axis=0)
    where = 'predict(reduce="mean_probability")'
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ArgumentError(
            f"Predictions are no logits: {where}. Got {array.dtype}, expected a float dtype. Fix: return the logits "
            'from predict_step, or pass reduce="mean".'
        )
    binary = array.ndim == 2 or array.shape[-1] == 1
    # Numbers between 0 and 1 could also be logits, but not those that add up to 1 in every row.
    if not binary and bool((array >= 0).all() & (jnp.abs(array.sum(axis=-1) - 1) < 1e-3).all()):
        raise ArgumentError(
            f"Predictions are no logits: {where}. Got numbers that already are probabilities, expected logits. Fix: "
            'pass reduce="mean".'
        )
    return (jax.nn.sigmoid(array) if binary else jax.nn.softmax(array)).mean(axis=0)


@checked_calls
@dataclasses.dataclass(frozen=True, repr=False)
class HeldOut:
    """Predictions for the training rows that a head did not learn from: out of fold, out of bag, left out.

    There is one entry for each pair of a head and a row held out from it, T in all. Nothing of size H x N is made until
    a method needs it. The order of the pairs is not specified.

    Attributes:
      heads: int32[T], position of the head.
      rows: int32[T], the row.
      predictions: what `predict_step` returned, leaves `[T, ...]`.
      num_heads: H.
      num_rows: N.
    """

    heads: np.ndarray
    rows: np.ndarray
    predictions: Any
    num_heads: int
    num_rows: int

    @property
    def mask(self) -> np.ndarray:
        """bool[H, N], True where a row is held out from a head."""
        mask = np.zeros((self.num_heads, self.num_rows), bool)
        mask[self.heads, self.rows] = True
        return mask

    @property
    def counts(self) -> np.ndarray:
        """int64[N], the number of heads that each row is held out from."""
        return np.bincount(self.rows, minlength=self.num_rows)

    def per_head(self) -> Any:
        """Spreads the predictions to float leaves `[H, N, ...]`, NaN where a row is not held out."""

        def spread(leaf: np.ndarray) -> np.ndarray:
            full = np.full((self.num_heads, self.num_rows, *leaf.shape[1:]), np.nan, np.result_type(leaf, np.float32))
            full[self.heads, self.rows] = leaf
            return full

        return jax.tree.map(spread, self.predictions)

    def per_row(self) -> Any:
        """Averages over the heads that a row is held out from: leaves `[N, ...]`, NaN if there are none."""

        def mean(leaf: np.ndarray) -> np.ndarray:
            flat = leaf.reshape(len(leaf), -1)
            width = flat.shape[1]
            cells = self.rows.astype(np.int64)[:, None] * width + np.arange(width)
            total = np.bincount(cells.ravel(), flat.ravel(), self.num_rows * width).reshape(self.num_rows, width)
            with np.errstate(invalid="ignore"):  # 0 / 0 gives the NaN that is wanted
                found: np.ndarray = total / self.counts[:, None]
            return found.reshape(self.num_rows, *leaf.shape[1:]).astype(np.result_type(leaf, np.float32))

        return jax.tree.map(mean, self.predictions)

    def __repr__(self) -> str:
        seen = np.count_nonzero(self.counts)
        return f"HeldOut(pairs={self.rows.size}, heads={self.num_heads}, rows held out={seen} of {self.num_rows})"


def held_out(batches: Iterable[Batch], num_heads: int, num_rows: int) -> HeldOut:
    """Joins the predictions of each head for its own held-out rows."""
    heads, rows, parts = [], [], []
    for found, batch_rows, live in batches:
        heads.append(np.nonzero(live)[0].astype(np.int32))
        rows.append(batch_rows[live])
        parts.append(jax.tree.map(lambda leaf, live=live: np.asarray(leaf)[live], found))
    predictions = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return HeldOut(np.concatenate(heads), np.concatenate(rows), predictions, num_heads, num_rows)
