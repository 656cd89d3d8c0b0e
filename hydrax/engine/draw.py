"""How a program gets its index batches: the host drew them, or the program computes the rotation itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from hydrax.slices import rotation
from hydrax.step import DeviceRows


@dataclasses.dataclass(frozen=True)
class HostBatches:
    """Index batches that the host drew: "rows", int32[K, ..., H, B], and "mask", bool of that shape.

    Attributes:
      heads_axis: the axis of H, or None if rows and mask are the same for all heads and have no such axis.
      shared: whether all heads see the same rows; "rows" then has no axis H.
    """

    heads_axis: int | None
    shared: bool

    by_step = ("rows", "mask")

    @property
    def axes(self) -> Mapping[str, int | None]:
        """By name of a part, the axis of its heads, or None if it is the same for all heads."""
        return {"rows": None if self.shared else self.heads_axis, "mask": self.heads_axis}

    def prepared(self, batches: dict[str, Any], head_ids: Any) -> dict[str, Any]:
        return batches

    def __call__(self, batches: Mapping[str, Any], head_ids: Any) -> tuple[Any, Any]:
        """Returns rows and mask of the given heads."""
        return batches["rows"], batches["mask"]


@dataclasses.dataclass(frozen=True)
class OwnRotation:
    """Index batches that the program draws itself: the same integers that `rotation.index_batch` gives on the host.

    It draws from these parts: "cursor", "lengths" and "left" as in `rotation.slots`; "seed"; "ahead", uint32[K, A], the
      number of batches after the cursor; "present", bool[K, A], False for a micro-batch that the last step of an epoch
      does not have; "columns" and "tables" as in `slices.RowLaw`.

    Attributes:
      take: from offsets inside the slices to rows, as in `slices.RowLaw`.
      batch_size: slots B of a batch.
      order: how passes and batches meet, from `rotation.order`.
      listed: how many offsets of each head `prepared` looks up in advance, at least the longest slice; None looks up
        the row of each slot when it is drawn.
    """

    take: Callable[..., Any]
    batch_size: int
    order: rotation.Order = "any"
    listed: int | None = None

    shared = False
    by_step = ("ahead", "present")
    axes = {"cursor": 0, "lengths": 0, "left": 0, "columns": 0} | dict.fromkeys(("seed", "ahead", "present", "tables"))

    def prepared(self, batches: dict[str, Any], head_ids: Any) -> dict[str, Any]:
        """Adds the rows of each head, int32[H, listed], which are the same for all K steps."""
        if self.listed is None:
            return batches
        offsets = jnp.broadcast_to(jnp.arange(self.listed, dtype=jnp.uint32), (len(head_ids), self.listed))
        return batches | {"list": self.take(batches["columns"], batches["tables"], offsets, jnp)}

    def __call__(self, batches: Mapping[str, Any], head_ids: Any) -> tuple[Any, Any]:
        """Draws rows, int32[K, A, H, B], and mask, bool[K, A, H, B], of the given heads."""
        offsets, mask = _slots(batches, head_ids, self.batch_size, self.order)
        # The same functions run on the host with NumPy, so tests can compare every integer.
        if "list" in batches:
            size = np.uint32(batches["list"].shape[1])
            firsts = (jnp.arange(len(head_ids), dtype=jnp.uint32) * size).reshape(1, 1, -1, 1)
            rows = batches["list"].ravel().at[firsts + offsets].get(mode="promise_in_bounds")
        else:
            rows = self.take(batches["columns"], batches["tables"], offsets, jnp)
        return rows, mask & batches["present"][..., None, None]


@dataclasses.dataclass(frozen=True)
class SharedRotation:
    """Index batches of shared sampling, as `rotation.index_batch(shared=True)` gives them: all heads see the same rows.

    The parts are those of `OwnRotation`, but "cursor", "lengths" and "left" describe the one rotation of all heads; and
    instead of "columns" and "tables" there is "members", uint8[H, N / 8], the rows of each head as bits, lowest bit
    first.

    Attributes:
      batch_size: slots B of a batch.
      order: how passes and batches meet, from `rotation.order`.
    """

    batch_size: int
    order: rotation.Order = "any"

    shared = True
    by_step = ("ahead", "present")
    axes = {"members": 0} | dict.fromkeys(("cursor", "lengths", "left", "seed", "ahead", "present"))

    def prepared(self, batches: dict[str, Any], head_ids: Any) -> dict[str, Any]:
        return batches

    def __call__(self, batches: Mapping[str, Any], head_ids: Any) -> tuple[Any, Any]:
        """Draws rows, int32[K, A, B], and mask, bool[K, A, H, B], of the given heads."""
        # One walk through the whole dataset: offsets are rows, and a bit tells whether a head owns one.
        offsets, live = _slots(batches, jnp.asarray(rotation.EVERYBODY), self.batch_size, self.order)
        rows = offsets[..., 0, :].astype(jnp.int32)
        bits = jnp.moveaxis(batches["members"][:, rows >> 3], 0, -2) >> (rows & 7).astype(jnp.uint8)[..., None, :]
        return rows, (bits & 1 == 1) & live & batches["present"][..., None, None]


Draw = HostBatches | OwnRotation | SharedRotation

SuperstepRows = list[tuple[DeviceRows, dict[str, Any]]]
"""For each block of a layout: its rows on the device, and the parts that the program draws its index batches from."""


def _slots(batches: Mapping[str, Any], head_ids: Any, batch_size: int, order: rotation.Order) -> tuple[Any, Any]:
    here = batches["cursor"], batches["lengths"], head_ids, batches["seed"], batch_size, jnp
    return rotation.slots(*here, ahead=batches["ahead"], left=batches["left"], order=order)
