"""A few lines on some slices, for a reader."""

import numpy as np

from hydrax.slices.axes import Axes
from hydrax.slices.store import RowStore

_FEW_ROWS = 2**24  # Rows that are walked to count those in no slice: a second at most.


def description(store: RowStore, axes: Axes) -> str:
    """Recipes, lengths, coverage, axes and memory of some slices, a line each."""
    lengths, num_rows = store.lengths, store.num_rows
    total = int(lengths.sum(dtype=np.int64))
    low, high = int(lengths.min()), int(lengths.max())
    lines = {
        "recipes": ", ".join(f"{maker} x {count:,}" for maker, count in store.recipes.makers().items()),
        "lengths": f"min {low:,}, median {np.median(lengths):,.0f}, max {high:,}, total {total:,}",
        "share": f"{low / num_rows:.2%} to {high / num_rows:.2%} of the dataset",
        "rows in no slice": _rows_in_no_slice(store) if total <= _FEW_ROWS else "not counted, there are many rows",
        "repeats": "a head may hold a row more than once" if store.has_repeats else "no head holds a row twice",
        "axes": ", ".join(f"{name} ({np.unique(values).size})" for name, values in axes.items()),
        "memory": f"{store.size_bytes + sum(values.nbytes for values in axes.values()):,} bytes",
    }
    title = f"Slices of {_counted(lengths.size, 'head')} on {_counted(num_rows, 'row')}"
    return "\n".join([title, *(f"  {name}: {text}" for name, text in lines.items() if text)])


def _rows_in_no_slice(store: RowStore) -> str:
    nothing = np.empty(0, np.int32)  # All slices of a complement may be empty.
    rows = [np.unique(rows) for _, rows in store.walk()]
    return f"{store.num_rows - np.unique(np.concatenate([nothing, *rows])).size:,}"


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
