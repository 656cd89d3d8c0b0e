"""The summary of slices that `Slices.describe` returns."""

import numpy as np

from hydrax.slices.axes import Axes
from hydrax.slices.store import RowStore

_FEW_ROWS = 2**21  # At most this many rows are walked: half a second where a random subset draws them.


def summary(store: RowStore, axes: Axes, tests: RowStore | None) -> str:
    """Summarise the slices of all heads, one line for each property.

    Args:
      store: the rows of the heads.
      axes: the axes of a product.
      tests: the rows that they are tested on; None if these are all that they do not see.
    """
    lengths, num_rows = store.lengths, store.num_rows
    low, high, total = int(lengths.min()), int(lengths.max()), int(lengths.sum(dtype=np.int64))
    unused = store.num_unused_rows(_FEW_ROWS)
    size = store.size_bytes + sum(values.nbytes for values in axes.values()) + (tests.size_bytes if tests else 0)
    lines = {
        "recipes": ", ".join(f"{kind} x {count:,}" for kind, count in store.recipes.kinds().items()),
        "lengths": f"min {low:,}, median {np.median(lengths):,.0f}, max {high:,}, total {total:,}",
        "share": f"{low / num_rows:.2%} to {high / num_rows:.2%} of the dataset",
        "held out": f"test rows of their own, {tests.lengths.min():,} to {tests.lengths.max():,}" if tests else "",
        "rows in no slice": "not counted, there are many rows" if unused is None else f"{unused:,}",
        "repeats": "a head may hold a row more than once" if store.has_repeats else "no head holds a row twice",
        "axes": ", ".join(f"{name} ({np.unique(values).size})" for name, values in axes.items()),
        "memory": f"{size:,} bytes",
    }
    heads, rows = (
        f"{count:,} {word}{'s' * (count > 1)}" for count, word in ((lengths.size, "head"), (num_rows, "row"))
    )
    return "\n".join([f"Slices of {heads} on {rows}", *(f"  {name}: {text}" for name, text in lines.items() if text)])
