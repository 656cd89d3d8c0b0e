"""Windows: slices whose rows are computed from where they start and how long they are, 8 to 12 bytes per head."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hydrax.slices.law import Array, Figures, Part, RowLaw, add_mod, per_head, sub_mod
from hydrax.slices.permutation import mix, permute, unpermute

# Separates the order that makes a subset from the orders in which the rotation walks it: both are keyed by user seeds,
# and equal seeds must not give related orders.
_SALT = np.uint32(0x51A1CE5)


@dataclass(frozen=True, eq=False)
class Windows(Part):
    """Windows on the base order.

    The base order is taken as a ring, so the complement of a window is again a window, one that may pass the end.

    Attributes:
      starts: int32[L], the first row.
    """

    code: ClassVar[int] = 0
    per_line: ClassVar[tuple[str, ...]] = ("lengths", "starts")
    marks: ClassVar[tuple[str | None, str | None]] = ("starts", None)

    starts: NDArray[np.int32]

    @staticmethod
    def of(
        num_rows: int, starts: Any, lengths: NDArray[np.integer], keys: NDArray[np.uint32] | None = None
    ) -> "Windows":
        """Make windows on the base order or, given keys, on its keyed permutations; a single start serves all."""
        starts, rows = (part.astype(np.int32) for part in np.broadcast_arrays(starts, np.atleast_1d(lengths)))
        return Windows(num_rows, rows, starts) if keys is None else KeyedWindows(num_rows, rows, starts, keys)

    def law(self) -> RowLaw:
        return RowLaw(
            {"starts": self.starts}, {"num_rows": np.asarray(self.num_rows, np.uint32)}, _take_window, is_cheap=True
        )

    def contains(self, at: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self._spans(at, rows.astype(np.uint32)[None])

    def _spans(self, at: NDArray[np.int64], places: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Tell whether the windows at `at` [K] span the places [K, B] or [1, B] of the ring."""
        starts, lengths = (column[at].astype(np.uint32)[:, None] for column in (self.starts, self.lengths))
        offsets: NDArray[np.uint32] = sub_mod(places, starts, np.uint32(self.num_rows), np)
        return offsets < lengths

    def complement(self) -> Self:
        ends = (self.starts.astype(np.int64) + self.lengths) % self.num_rows
        return replace(self, starts=ends.astype(np.int32), lengths=np.int32(self.num_rows) - self.lengths)

    def figures(self, at: NDArray[np.int64]) -> Figures:
        starts = self.starts[at].astype(np.int64)
        return super().figures(at) | {"start": starts, "end": (starts + self.lengths[at]) % self.num_rows}


@dataclass(frozen=True, eq=False)
class KeyedWindows(Windows):
    """Windows on permutations of the base order, each keyed by a seed; the permutations are computed, never stored.

    Attributes:
      keys: uint32[L], the seeds.
    """

    code: ClassVar[int] = 1
    per_line: ClassVar[tuple[str, ...]] = ("lengths", "starts", "keys")
    marks: ClassVar[tuple[str | None, str | None]] = ("starts", "keys")

    keys: NDArray[np.uint32]

    def law(self) -> RowLaw:
        law = super().law()
        return RowLaw({**law.columns, "keys": self.keys}, law.tables, _take_keyed)

    def contains(self, at: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        # The way back from row to place costs the same as the way there, so no slice has to be walked.
        key = mix(self.keys[at] ^ _SALT, np)[:, None]
        return self._spans(at, unpermute(rows[None], length=self.num_rows, key=key, xp=np))


def _place(columns: Mapping[str, Array], tables: Mapping[str, Array], offsets: Array, xp: ModuleType) -> Array:
    return add_mod(per_head(columns["starts"], offsets).astype(xp.uint32), offsets, tables["num_rows"], xp)


def _take_window(columns: Mapping[str, Array], tables: Mapping[str, Array], offsets: Array, xp: ModuleType) -> Array:
    return _place(columns, tables, offsets, xp).astype(xp.int32)


def _take_keyed(columns: Mapping[str, Array], tables: Mapping[str, Array], offsets: Array, xp: ModuleType) -> Array:
    # Seeds are small neighbouring numbers; mixing makes unrelated keys of them.
    key = mix(per_head(columns["keys"], offsets) ^ _SALT, xp)
    place = _place(columns, tables, offsets, xp)
    return permute(place, length=tables["num_rows"], key=key, xp=xp).astype(xp.int32)
