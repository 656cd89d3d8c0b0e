"""Tables in memory, of pandas, polars or PyArrow, as columns of NumPy arrays. None of these packages is imported."""

from __future__ import annotations

from typing import Any

import numpy as np

from hydrax.errors import DataError


def is_frame(value: Any) -> bool:
    """Whether a value is a table with named columns, and not one column of it."""
    # All three export themselves to Arrow, as a column of them does, but a column has no columns.
    return hasattr(value, "__arrow_c_stream__") and hasattr(value, "columns") and not isinstance(value, type)


def frame_columns(frame: Any, stage: str) -> dict[Any, np.ndarray]:
    """Returns the columns of a table by name, as its own package makes NumPy arrays of them; an index is left out.

    Args:
      frame: the table.
      stage: names the dataset in errors.

    Raises:
      DataError: two columns have the same name.
    """
    names = list(getattr(frame, "column_names", None) or frame.columns)
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise DataError(
            f"Two columns have the same name: {stage} dataset. Got {twice!r} twice, expected a different name for each "
            "column. Fix: rename one of them."
        )
    return {name: frame[name].to_numpy() for name in names}
