"""Checks of the arguments that users pass."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import numpy as np

from hydrax.errors import ArgumentError


def is_int(value: Any, least: int | None = None) -> TypeGuard[int]:
    """Tells whether a value is a whole number, of Python or NumPy; a bool is not, although Python counts it as an int.

    Args:
      value: the value.
      least: the smallest number to accept; None accepts all.

    >>> is_int(3), is_int(np.int32(3)), is_int(3.0), is_int(True), is_int(0, least=1)
    (True, True, False, False, False)
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and (least is None or bool(value >= least))


def is_number(value: Any) -> TypeGuard[float]:
    """Tells whether a value is a number, of Python or NumPy; neither a bool nor NaN is one.

    >>> is_number(3), is_number(0.5), is_number(float("nan")), is_number(True)
    (True, True, False, False)
    """
    known = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return known and not math.isnan(value)


def require(holds: bool, where: str, got: object, expected: str, fix: str) -> None:
    """Raises an error about an argument unless a condition holds.

    Args:
      holds: the condition.
      where: the argument, such as `Timer(duration=...)`.
      got: the value that was passed.
      expected: a phrase that names the values to accept.
      fix: a phrase that tells the user what to do.

    Raises:
      ArgumentError: the condition does not hold.
    """
    if not holds:
        raise ArgumentError(f"Invalid argument: {where}. Got {got!r:.500}, expected {expected}. Fix: {fix}.")
