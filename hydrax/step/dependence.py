"""Finds out which results of a traced function are computed from which of its arguments, or are one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import Literal


def dependent(traced: Any, marks: Any, results: Any) -> Any:
    """Tells which results of a function are computed from some of its arguments.

    It is exact for operations and for nested functions such as `jax.jit`. Of a loop or a branch every result counts as
    computed from every operand.

    Args:
      traced: the function's jaxpr, as `jax.make_jaxpr` returns it.
      marks: its arguments as a pytree of bools, True for those that are asked about.
      results: its results as a pytree of anything.

    Returns:
      A pytree of bools, one for each result.
    """
    return jax.tree.unflatten(jax.tree.structure(results), _dependent(traced.jaxpr, jax.tree.leaves(marks)))


def _dependent(jaxpr: Any, marks: Sequence[bool]) -> list[bool]:
    found = {var for var, marked in zip(jaxpr.invars, marks, strict=True) if marked}

    def is_found(var: Any) -> bool:
        return not isinstance(var, Literal) and var in found  # literals have no hash

    for equation in jaxpr.eqns:
        operands = [is_found(var) for var in equation.invars]
        inner = _function_of(equation) if any(operands) else None
        outs = [any(operands)] * len(equation.outvars) if inner is None else _dependent(inner, operands)
        found.update(var for var, marked in zip(equation.outvars, outs, strict=True) if marked)
    return [is_found(var) for var in jaxpr.outvars]


def passed_on(traced: Any) -> list[int | None]:
    """Tells which results of a function are one of its arguments, as it came in.

    It sees through nested functions, such as `jax.jit` and `jax.checkpoint`, and through loops and branches.

    Args:
      traced: the function's jaxpr, as `jax.make_jaxpr` returns it.

    Returns:
      For each result the place of that argument, or None.
    """
    jaxpr = getattr(traced, "jaxpr", traced)
    # The variable that each one is another name of.
    origin = {var: var for var in jaxpr.invars}
    for equation in jaxpr.eqns:
        for var, place in zip(equation.outvars, _operands_passed_on(equation), strict=True):
            operand = None if place is None else equation.invars[place]
            if operand is not None and not isinstance(operand, Literal) and operand in origin:
                origin[var] = origin[operand]
    places = {var: place for place, var in enumerate(jaxpr.invars)}
    return [None if isinstance(var, Literal) else places.get(origin.get(var)) for var in jaxpr.outvars]


def _operands_passed_on(equation: Any) -> list[int | None]:
    """Tells for each result of an equation which of its operands it is, or None."""
    name, given = equation.primitive.name, equation.params
    if name == "scan":
        consts, carried = given["num_consts"], given["num_carry"]

        def stays(number: int, place: int) -> bool:
            # A carry is passed on to its own place; a stacked result, from a stacked operand.
            return bool(place == consts + number if number < carried else place >= consts + carried)

        found = passed_on(given["jaxpr"])
        return [place if place is not None and stays(number, place) else None for number, place in enumerate(found)]
    if name == "while":
        before = given["body_nconsts"]
        found = passed_on(given["body_jaxpr"])
        return [place + given["cond_nconsts"] if place == before + n else None for n, place in enumerate(found)]
    if name == "cond":
        branches = [passed_on(branch) for branch in given["branches"]]
        return [one[0] + 1 if len({*one}) == 1 and one[0] is not None else None for one in zip(*branches, strict=True)]
    inner = _function_of(equation)
    return [None] * len(equation.outvars) if inner is None else passed_on(inner)


def _function_of(equation: Any) -> Any:
    """Returns the jaxpr of a nested function that gets the operands of an equation and makes its results, or None."""
    given = equation.params
    if equation.primitive.name in ("scan", "while", "cond"):
        return None
    inner = next((given[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in given), None)
    inner = getattr(inner, "jaxpr", inner)
    sizes = (len(equation.invars), len(equation.outvars))
    return inner if inner is not None and (len(inner.invars), len(inner.outvars)) == sizes else None
