"""Turns rows of any shape into vectors."""

import math

import jax

from hydrax.errors import ArgumentError


def flatten(x: jax.Array, size: int, where: str) -> jax.Array:
    """Flattens as many trailing axes as hold `size` numbers together, and keeps the axes before them.

    Args:
      x: one row, or any number of leading axes of rows.
      size: numbers of a row.
      where: the model, for the error message.

    Returns:
      An array `[..., size]`.

    Raises:
      ArgumentError: no trailing axes hold that many numbers.
    """
    for first in reversed(range(x.ndim)):
        if math.prod(x.shape[first:]) == size:
            return x.reshape(*x.shape[:first], size)
    raise ArgumentError(
        f"Rows of the wrong shape: {where}. Got {x.dtype}{list(x.shape)}, expected {size} numbers in the last "
        "axes. Fix: reshape the rows, or build the model for their size."
    )
