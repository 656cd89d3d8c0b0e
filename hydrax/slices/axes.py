"""Named axes: what a head of a product stands for, as one label per head and axis."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrax.errors import ArgumentError
from hydrax.slices.arguments import MAX_ROWS, array_of, is_mixed

Axes = dict[str, NDArray[Any]]

SLICE = "slice"  # The axis that every product has.
# Columns of the ledger that no axis may fill; one called "seed" may.
LEDGER_COLUMNS = ("head", "recipe", "length", "score", "step", "status", "reason", "slice_seed")
_LEDGER_PREFIXES = ("axis.", "hparams.", "module.")  # What tells columns of equal name apart there.


def crossed(num_slices: int, kept: Axes, axes: Mapping[str, Any]) -> tuple[NDArray[np.int64], Axes]:
    """The product of slices with axes, the last axis fastest.

    Args:
      num_slices: H of the slices.
      kept: axes that the slices have already.
      axes: by name, a count or a sequence of values.

    Returns:
      `(position of its slice of each head, int64[H], axes of the product)`.

    Raises:
      ArgumentError: a name is empty or taken, by an axis or the ledger, or an axis is neither a count nor values of one
        type.
    """
    others, prefixes = {SLICE, *kept, *LEDGER_COLUMNS}, " or ".join(map(repr, _LEDGER_PREFIXES))
    taken = [name for name in axes if not name or name in others or name.startswith(_LEDGER_PREFIXES)]
    if taken:
        raise ArgumentError(
            f"Name of an axis is empty or taken: argument {taken[0]}. Got {taken[0]!r}, expected none of "
            f"{sorted(others)}, nor one that begins with {prefixes}. Fix: choose another name."
        )
    values = {name: _values(name, given) for name, given in axes.items()}
    sizes = (num_slices, *(column.size for column in values.values()))
    num_heads = int(np.prod(sizes, dtype=object))
    if num_heads > MAX_ROWS:
        raise ArgumentError(
            f"Product of too many heads: argument axes. Got {num_heads}, expected at most {MAX_ROWS}. "
            "Fix: give fewer values."
        )
    at, *places = np.unravel_index(np.arange(num_heads), sizes)
    product = {name: column[at] for name, column in ({SLICE: np.arange(num_slices)} | kept).items()}
    product |= {name: column[place] for (name, column), place in zip(values.items(), places, strict=True)}
    return at.astype(np.int64), product


def joined(parts: Sequence[Axes]) -> Axes:
    """The axes of all parts, one after the other.

    Raises:
      ArgumentError: the parts have other axes, or text on an axis where another has numbers.
    """
    for number, axes in enumerate(parts):
        if set(axes) != set(parts[0]):
            raise ArgumentError(
                f"Slices have other axes: argument parts, part {number}. Got {sorted(axes)}, expected "
                f"{sorted(parts[0])} as in part 0. Fix: give each part the same axes, one value is enough: "
                "`Slices.product(part, lr=[1e-3])`."
            )
        for name, values in axes.items():
            if (values.dtype.kind == "U") != (parts[0][name].dtype.kind == "U"):
                raise ArgumentError(
                    f"Axis {name!r} has values of two types: argument parts, part {number}. Got {values.dtype}, "
                    f"expected {parts[0][name].dtype} as in part 0. Fix: give all parts numbers, or all text."
                )
    return {name: np.concatenate([axes[name] for axes in parts]) for name in parts[0]}


def _values(name: str, given: Any) -> NDArray[Any]:
    """Values of an axis: 0..n-1 of a count n, or the values themselves."""
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        if not 1 <= given <= MAX_ROWS:
            raise ArgumentError(
                f"Axis of no length: argument {name}. Got {given}, expected a count of 1 or more. "
                f"Fix: `{name}=5` stands for 0, 1, 2, 3, 4."
            )
        return np.arange(given)
    values = array_of(name, list(given) if isinstance(given, range | tuple) else given)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "iufbU" or is_mixed(given, values):
        raise ArgumentError(
            f"Not the values of an axis: argument {name}. Got {given!r:.60}, expected a count, or a list of numbers, "
            f"strings or bools. Fix: `{name}=5`, or `{name}=[0.1, 0.2]`."
        )
    return values
