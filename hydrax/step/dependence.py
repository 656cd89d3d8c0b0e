"""Finds out which results of a traced step are computed from which of its inputs."""

from __future__ import annotations

from typing import Any

import jax
from jax.extend.core import Literal


def dependent(traced: Any, marks: Any, results: Any) -> Any:
    """Tells which results of a function are computed from some of its arguments.

    It is exact for operations at the top of the jaxpr. Inside a loop or another nested function, every result counts as
    computed from every operand.

    Args:
      traced: the function's jaxpr, as `jax.make_jaxpr` returns it.
      marks: its arguments as a pytree of bools, True for those that are asked about.
      results: its results as a pytree of anything.

    Returns:
      A pytree of bools, one for each result.
    """
    found = {var for var, marked in zip(traced.jaxpr.invars, jax.tree.leaves(marks), strict=True) if marked}

    def is_found(var: Any) -> bool:
        return not isinstance(var, Literal) and var in found  # literals have no hash

    for equation in traced.jaxpr.eqns:
        if any(map(is_found, equation.invars)):
            found.update(equation.outvars)
    return jax.tree.unflatten(jax.tree.structure(results), [is_found(var) for var in traced.jaxpr.outvars])
