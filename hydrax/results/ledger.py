"""The ledger: one row per head, with its settings and its outcome, kept in columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from hydrax.files import columns_text, draft, encoded
from hydrax.slices import LEDGER_COLUMNS, Slices
from hydrax.step import HeadModule, chosen_per_head

_OWN = ("head", "recipe", "seed", "length")
_BLOCK_ROWS = 2**14  # rows that exist as Python objects at a time


class Ledger(Sequence[dict[str, Any]]):
    """The table of heads. It reads like a list of dicts of plain values, which are made when they are asked for.

    >>> ledger = Ledger({"head": np.array([3, 4]), "score": np.array([0.1, 0.2], np.float32)})
    >>> ledger[1]
    {'head': 4, 'score': 0.2}
    >>> ledger.columns["head"]
    array([3, 4])

    Args:
      columns: by name, arrays [H, ...]. A value that a head does not have is masked; its row holds None.

    Attributes:
      columns: the same.
    """

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @overload
    def __getitem__(self, heads: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, heads: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, heads: Any) -> Any:
        if isinstance(heads, slice):
            return self._as_rows(self._cells(heads))
        head = range(len(self))[heads]
        return self._as_rows(self._cells(slice(head, head + 1)))[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for cells in self.blocks():
            yield from self._as_rows(cells)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ledger):  # by columns, so that a head without a score equals itself
            names = list(self.columns)
            return names == list(other.columns) and all(_equal(self.columns[n], other.columns[n]) for n in names)
        return isinstance(other, list) and list(self) == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ledger(heads={len(self)}, columns={', '.join(self.columns)})"

    def blocks(self) -> Iterator[list[list[Any]]]:
        """Yields the plain values of some rows at a time, as one list per column."""
        return (self._cells(slice(start, start + _BLOCK_ROWS)) for start in range(0, len(self), _BLOCK_ROWS))

    def _cells(self, heads: slice) -> list[list[Any]]:
        return [_plain(column[heads]) for column in self.columns.values()]

    def _as_rows(self, cells: list[list[Any]]) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*cells, strict=True)]

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the columns as arrays [H] of the rows' values: a missing value is NaN, an array an object."""
        return {name: _unmasked(column) for name, column in self.columns.items()}

    def with_outcome(
        self,
        *,
        score: np.ndarray | None,
        live: np.ndarray,
        finite: np.ndarray,
        lost: np.ndarray,
        reasons: Mapping[int, str],
        origins: Sequence[str] = (),
        more: Mapping[str, np.ndarray] | None = None,
    ) -> Ledger:
        """Adds to the settings of heads what became of them; arguments and columns are those of `ledger`."""
        status = np.select([lost, ~finite, live], [0, 1, 2], 3)
        reason = np.full(len(self), "", np.object_)
        reason[list(reasons)] = list(reasons.values())
        became = {
            "score": np.ma.array(np.zeros(len(self)), mask=True) if score is None else np.asarray(score),
            **{name: np.asarray(column) for name, column in (more or {}).items()},
            "status": np.array(["quarantined", "not finite", "ok", "stopped"], np.object_)[status],
            "reason": reason,
            **({"init_from": np.array(origins, np.object_)} if origins else {}),
        }
        own = {name: self.columns[name] for name in _OWN}
        return Ledger(own | became | self.columns)


def head_settings(slices: Slices, module: HeadModule) -> Ledger:
    """Lists the settings of each head: head, recipe, seed, length, axes of its slices, `PerHead` values.

    If the slices have an axis `seed`, that is the head's seed, and the seed of its slice is in `slice_seed`. An axis
    and a `PerHead` with the same name and equal values share a column; otherwise each name is prefixed with its origin,
    as in `axis.lr` and `hparams.lr`. A `PerHead` named like one of the ledger's own columns is prefixed too.

    Returns:
      One row per head. `head` is its id; `seed`, unless it is an axis, is the seed of its slice, or None if the rows
      of the slice depend on no seed.
    """
    of_slices = np.ma.masked_less(slices.seeds, 0)
    own = {
        "head": slices.ids,
        "recipe": np.array(slices.recipes(), np.object_),
        "seed": slices.axes.get("seed", of_slices),
        "length": slices.lengths,
        **({"slice_seed": of_slices} if "seed" in slices.axes else {}),
    }
    values = {f"axis.{name}": column for name, column in slices.axes.items() if name != "seed"} | {
        name if "." in name else f"module.{name}": per_head.values for name, per_head in chosen_per_head(module).items()
    }
    return Ledger({name: _widened(column) for name, column in {**own, **_named(values)}.items()})


def ledger(slices: Slices, module: HeadModule, **outcome: Any) -> Ledger:
    """Lists the settings of each head, as `head_settings` does, and its outcome: score, status, reason.

    Args:
      slices: the heads' slices.
      module: the module, for its `PerHead` values.
      score: float[H], or None if there is no score yet.
      live: bool[H], False for heads that a callback stopped.
      finite: bool[H], False for heads with a parameter that is NaN or infinite.
      lost: bool[H], True for heads in quarantine.
      reasons: why heads no longer learn, by place.
      origins: for each head where its first weights were from, for a column `init_from`; empty if they were fresh.
      more: further columns [H] by name, placed after the score.

    Returns:
      `status` is "ok", "stopped", "quarantined" or "not finite".
    """
    return head_settings(slices, module).with_outcome(**outcome)


def column_of(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Returns one column of a ledger, or of any rows, as an array [H]."""
    return rows.columns[name] if isinstance(rows, Ledger) else np.array([row[name] for row in rows])


def write_csv(path: Path, rows: Ledger) -> None:
    """Writes a ledger; a reader sees the old file or the whole new one."""
    with draft(path, sync=True) as beside, beside.open("wb") as file:
        file.write(encoded(columns_text([[name] for name in rows.columns])))
        for cells in rows.blocks():
            file.write(encoded(columns_text(cells)))


def _named(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops the origin from the names of columns, unless columns of the same bare name differ."""
    bare = {name: name.partition(".")[2] for name in values}
    named = {}
    for name, column in values.items():
        others = [values[other] for other in values if bare[other] == bare[name] and other != name]
        equal = all(np.array_equal(column, other) for other in others)
        named[bare[name] if equal and bare[name] not in (*LEDGER_COLUMNS, "seed") else name] = column
    return named


def _widened(column: np.ndarray) -> np.ndarray:
    """Gives numbers [H] the width that Python has for them, so that they are shown as they were given."""
    if column.ndim > 1 or column.dtype.kind not in "fiu" or np.ma.isMaskedArray(column):
        return column
    return np.array(column.tolist())


def _plain(column: np.ndarray) -> list[Any]:
    if column.ndim > 1:
        return list(column)
    cells: list[Any] = (shortest(column) if _is_narrow(column) else column).tolist()
    return cells


def _unmasked(column: np.ndarray) -> np.ndarray:
    if column.ndim > 1:
        objects = np.empty(len(column), np.object_)
        objects[:] = list(column)
        return objects
    missing = np.ma.getmaskarray(column)
    if missing.any():
        return np.where(missing, np.nan, np.ma.getdata(column))
    return shortest(column) if _is_narrow(column) else np.ma.getdata(column)


def _is_narrow(column: np.ndarray) -> bool:
    return column.dtype.kind in "fV" and column.dtype.itemsize < 8  # V: bfloat16 and the 8-bit floats


def shortest(column: np.ndarray) -> np.ndarray:
    """Rounds floats to the fewest digits that still identify them in their own type, which keeps tables readable.

    >>> shortest(np.array([0.1, 1 / 3], np.float32)).tolist()
    [0.1, 0.33333334]

    Returns:
      float64, `float(str(value))` of each value; a million take 0.1 s.
    """
    wide = column.astype(np.float64)
    with np.errstate(divide="ignore"):
        exponents = np.floor(np.log10(np.abs(wide)))
    at = np.flatnonzero(np.isfinite(exponents))  # zeros and what is not finite stay as they are
    # Six digits never suffice for two decimals of one float32, nine always identify one. Powers of ten below 10^22 are
    # exact in float64, so that one rounding gives the float64 nearest to the decimal. Around a power of two the nearest
    # decimal need not be the shortest.
    easy = (np.abs(exponents[at]) < 13) & (np.abs(np.frexp(wide[at])[0]) != 0.5) & (column.dtype == np.float32)
    left, at = at[~easy], at[easy]
    for digits in (6, 7, 8, 9):
        value, shift = wide[at], digits - 1 - exponents[at]
        scale = 10.0 ** np.abs(shift)
        rounded = np.where(shift < 0, np.rint(value / scale) * scale, np.rint(value * scale) / scale)
        same = rounded.astype(np.float32) == column[at]
        wide[at[same]], at = rounded[same], at[~same]
    for place in (*left.tolist(), *at.tolist()):
        wide[place] = float(str(column[place]))
    return wide


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    one, other = _unmasked(one), _unmasked(other)
    return np.array_equal(one, other, equal_nan=one.dtype.kind == other.dtype.kind == "f")
