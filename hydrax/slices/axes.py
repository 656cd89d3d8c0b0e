"""Named axes: what each head of a product stands for, as one value per head and axis."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrax.arguments import is_int
from hydrax.errors import ArgumentError
from hydrax.slices.arguments import MAX_HEADS, array_of, is_mixed

Axes = dict[str, NDArray[Any]]

SLICE = "slice"  # The axis that every product has.
# Columns of the ledger (heads.csv), which no axis may fill. "seed" is not among them: sweeps of seeds need that name.
LEDGER_COLUMNS = ("head", "recipe", "length", "score", "step", "status", "reason", "init_from", "slice_seed")
_LEDGER_PREFIXES = ("axis.", "hparams.", "module.")  # Prefixes by which the ledger tells columns of equal name apart.


def crossed(num_slices: int, kept: Axes, axes: Mapping[str, Any]) -> tuple[NDArray[np.int64], Axes]:
    """Cross slices with axes, the last axis fastest.

    Args:
      num_slices: number of slices.
      kept: axes that the slices have already.
      axes: by name, a count or a sequence of values.

    Returns:
      `(for each head of the product the position of its slice, int64[H]; axes of the product)`.

    Raises:
      ArgumentError: a name is empty or taken, or an axis is neither a count nor a list of values of one type.
    """
    others, prefixes = {SLICE, *kept, *LEDGER_COLUMNS}, " or ".join(map(repr, _LEDGER_PREFIXES))
    taken = [name for name in axes if not name or name in others or name.startswith(_LEDGER_PREFIXES)]
    if taken:
        raise ArgumentError(
            f"Axis name is empty or taken: argument {taken[0]}. Got {taken[0]!r}, expected none of "
            f"{sorted(others)} and nothing that begins with {prefixes}. Fix: choose another name."
        )
    values = {name: _values(name, given) for name, given in axes.items()}
    sizes = (num_slices, *(column.size for column in values.values()))
    num_heads = int(np.prod(sizes, dtype=object))  # As Python ints, which cannot overflow.
    if num_heads > MAX_HEADS:
        raise ArgumentError(
            f"Product has too many heads: argument axes. Got {num_heads}, expected at most {MAX_HEADS}. "
            "Fix: pass fewer values."
        )
    at, *places = np.unravel_index(np.arange(num_heads), sizes)
    product = {name: column[at] for name, column in ({SLICE: np.arange(num_slices)} | kept).items()}
    product |= {name: column[place] for (name, column), place in zip(values.items(), places, strict=True)}
    return at.astype(np.int64), product


def joined(parts: Sequence[Axes]) -> Axes:
    """Concatenate the axes of all parts.

    Raises:
      ArgumentError: the parts have different axes, or an axis has text in one part and numbers in another.
    """
    for number, axes in enumerate(parts):
        if set(axes) != set(parts[0]):
            raise ArgumentError(
                f"Slices have different axes: argument parts, part {number}. Got {sorted(axes)}, expected "
                f"{sorted(parts[0])} as in part 0. Fix: add the missing axes, if only with one value, as in "
                "`Slices.product(part, lr=[1e-3])`."
            )
        for name, values in axes.items():
            # NumPy would silently turn the numbers into text.
            if (values.dtype.kind == "U") != (parts[0][name].dtype.kind == "U"):
                raise ArgumentError(
                    f"Axis {name!r} has values of two types: argument parts, part {number}. Got {values.dtype}, "
                    f"expected {parts[0][name].dtype} as in part 0. Fix: use numbers in all parts, or text in all."
                )
    return {name: np.concatenate([axes[name] for axes in parts]) for name in parts[0]}


def _values(name: str, given: Any) -> NDArray[Any]:
    """Return the values of an axis: 0..n-1 for a count n, otherwise the values given."""
    if is_int(given):
        if not 1 <= given <= MAX_HEADS:
            raise ArgumentError(
                f"Axis without values: argument {name}. Got {given}, expected a count from 1 to {MAX_HEADS}. "
                f"Fix: pass a count such as `{name}=5`, which stands for 0, 1, 2, 3, 4."
            )
        return np.arange(given)
    values = array_of(name, list(given) if isinstance(given, range | tuple) else given)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "iufbU" or is_mixed(given, values):
        raise ArgumentError(
            f"Invalid axis values: argument {name}. Got {given!r:.60}, expected a count, or a list of numbers, strings "
            f"or bools. Fix: pass `{name}=5` or `{name}=[0.1, 0.2]`."
        )
    return values
