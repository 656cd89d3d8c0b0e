"""How a program gets its index batches: the host drew them, or the program computes the rotation itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

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

    @property
    def axes(self) -> Mapping[str, int | None]:
        """By name of a part, the axis of its heads, or None if it is the same for all heads."""
        return {"rows": None if self.shared else self.heads_axis, "mask": self.heads_axis}

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
    """

    take: Callable[..., Any]
    batch_size: int

    shared = False
    axes = {"cursor": 0, "lengths": 0, "left": 0, "columns": 0} | dict.fromkeys(("seed", "ahead", "present", "tables"))

    def __call__(self, batches: Mapping[str, Any], head_ids: Any) -> tuple[Any, Any]:
        """Draws rows, int32[K, A, H, B], and mask, bool[K, A, H, B], of the given heads."""

        def batch(ahead: Any, present: Any) -> tuple[Any, Any]:
            offsets, mask = _slots(batches, head_ids, self.batch_size, ahead)
            # The same functions run on the host with NumPy, so tests can compare every integer.
            return self.take(batches["columns"], batches["tables"], offsets, jnp), mask & present

        return jax.vmap(jax.vmap(batch))(batches["ahead"], batches["present"])


@dataclasses.dataclass(frozen=True)
class SharedRotation:
    """Index batches of shared sampling, as `rotation.index_batch(shared=True)` gives them: all heads see the same rows.

    The parts are those of `OwnRotation`, but "cursor", "lengths" and "left" describe the one rotation of all heads; and
    instead of "columns" and "tables" there is "members", uint8[H, N / 8], the rows of each head as bits, lowest bit
    first.

    Attributes:
      batch_size: slots B of a batch.
    """

    batch_size: int

    shared = True
    axes = {"members": 0} | dict.fromkeys(("cursor", "lengths", "left", "seed", "ahead", "present"))

    def __call__(self, batches: Mapping[str, Any], head_ids: Any) -> tuple[Any, Any]:
        """Draws rows, int32[K, A, B], and mask, bool[K, A, H, B], of the given heads."""

        def batch(ahead: Any, present: Any) -> tuple[Any, Any]:
            # One walk through the whole dataset: offsets are rows, and a bit tells whether a head owns one.
            offsets, live = _slots(batches, jnp.asarray(rotation.EVERYBODY), self.batch_size, ahead)
            rows = offsets[0].astype(jnp.int32)
            bits = batches["members"][:, rows >> 3] >> (rows & 7).astype(jnp.uint8)[None]
            return rows, (bits & 1 == 1) & live & present

        return jax.vmap(jax.vmap(batch))(batches["ahead"], batches["present"])


Draw = HostBatches | OwnRotation | SharedRotation

SuperstepRows = list[tuple[DeviceRows, dict[str, Any]]]
"""For each block of a layout: its rows on the device, and the parts that the program draws its index batches from."""


def _slots(batches: Mapping[str, Any], head_ids: Any, batch_size: int, ahead: Any) -> tuple[Any, Any]:
    here = batches["cursor"], batches["lengths"], head_ids, batches["seed"], batch_size, jnp
    return rotation.slots(*here, ahead=ahead, left=batches["left"])
