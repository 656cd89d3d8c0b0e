"""Predictions of all heads, brought together: of one set for all, or of the rows that each head did not learn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

Batch = tuple[Any, np.ndarray, np.ndarray]  # Predictions [H, B, ...], rows and live slots, [B] or [H, B].


def stacked(batches: Iterable[Batch], reduce: str | None) -> Any:
    """All heads' predictions of the same rows: NumPy `[H, rows, ...]`, or `[rows, ...]` with `reduce="mean"`."""

    def to_host(array: jax.Array, live: np.ndarray) -> np.ndarray:
        # The mean is taken on the device: H times fewer bytes come back.
        return np.asarray(array)[:, live] if reduce is None else np.asarray(array.mean(axis=0))[live]

    parts = [jax.tree.map(lambda leaf, live=live: to_host(leaf, live), found) for found, _, live in batches]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1 if reduce is None else 0), *parts)


@dataclasses.dataclass(frozen=True, repr=False)
class HeldOut:
    """Predictions for the training rows that a head did not learn from: out of fold, out of bag, left out.

    One entry for each pair of a head and a row held out from it, T in all; nothing of H times N is made unless asked
    for. Pairs are in no promised order.

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
        """bool[H, N], which rows are held out from which head."""
        mask = np.zeros((self.num_heads, self.num_rows), bool)
        mask[self.heads, self.rows] = True
        return mask

    @property
    def counts(self) -> np.ndarray:
        """int64[N], from how many heads each row is held out."""
        return np.bincount(self.rows, minlength=self.num_rows)

    def per_head(self) -> Any:
        """Leaves `[H, N, ...]`, NaN where a row is not held out; integers and bools become floats for it."""

        def spread(leaf: np.ndarray) -> np.ndarray:
            full = np.full((self.num_heads, self.num_rows, *leaf.shape[1:]), np.nan, np.result_type(leaf, np.float32))
            full[self.heads, self.rows] = leaf
            return full

        return jax.tree.map(spread, self.predictions)

    def per_row(self) -> Any:
        """Leaves `[N, ...]`: the mean over the heads that a row is held out from; NaN where it is from none."""

        def mean(leaf: np.ndarray) -> np.ndarray:
            flat = leaf.reshape(len(leaf), -1)
            width = flat.shape[1]
            cells = self.rows.astype(np.int64)[:, None] * width + np.arange(width)
            total = np.bincount(cells.ravel(), flat.ravel(), self.num_rows * width).reshape(self.num_rows, width)
            with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is meant
                found: np.ndarray = total / self.counts[:, None]
            return found.reshape(self.num_rows, *leaf.shape[1:]).astype(np.result_type(leaf, np.float32))

        return jax.tree.map(mean, self.predictions)

    def __repr__(self) -> str:
        seen = np.count_nonzero(self.counts)
        return f"HeldOut(pairs={self.rows.size}, heads={self.num_heads}, rows held out={seen} of {self.num_rows})"


def held_out(batches: Iterable[Batch], num_heads: int, num_rows: int) -> HeldOut:
    """Brings the predictions of each head's own rows together."""
    heads, rows, parts = [], [], []
    for found, batch_rows, live in batches:
        heads.append(np.nonzero(live)[0].astype(np.int32))
        rows.append(batch_rows[live])
        parts.append(jax.tree.map(lambda leaf, live=live: np.asarray(leaf)[live], found))
    predictions = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return HeldOut(np.concatenate(heads), np.concatenate(rows), predictions, num_heads, num_rows)
