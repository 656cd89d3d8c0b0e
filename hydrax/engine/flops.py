"""Counts the least work of a step, in floating-point operations and bytes, from the jaxpr of the user's step.

XLA's own cost analysis counts the body of a loop once, and twice what a fusion happens to compute twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

# These move or create numbers, without arithmetic on floats.
_FREE = {
    *("broadcast_in_dim", "reshape", "transpose", "slice", "dynamic_slice", "dynamic_update_slice", "concatenate"),
    *("gather", "scatter", "pad", "rev", "squeeze", "convert_element_type", "bitcast_convert_type", "iota", "copy"),
    *("select_n", "stop_gradient", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "optimization_barrier"),
    *("device_put", "expand_dims", "split", "copy_p"),
}


class StepCost(NamedTuple):
    """The least that one step has to do.

    Attributes:
      flops: floating-point operations: two for a multiply-add, one for every other computed value, even an exponential.
      bytes: what is read and written if nothing stays in a cache: the state twice, and the rows once.
    """

    flops: float
    bytes: float

    def times(self, heads: int) -> StepCost:
        """Returns the cost for several heads."""
        return StepCost(self.flops * heads, self.bytes * heads)


def count_flops(jaxpr: Any) -> float:
    """Counts the floating-point operations of a jaxpr.

    A `while` of unknown length counts as one turn, and a `cond` as its most expensive branch.

    >>> import jax
    >>> count_flops(jax.make_jaxpr(lambda x: x @ x + 1)(jnp.ones((3, 3))).jaxpr)  # 9 sums of 3 products, 9 additions
    63.0
    """
    return sum(_flops(equation) for equation in jaxpr.eqns)


def count_bytes(jaxpr: Any) -> int:
    """Adds up the bytes of all values that a jaxpr computes: more than it needs, as they do not all exist at once.

    >>> import jax
    >>> count_bytes(jax.make_jaxpr(lambda x: x @ x + 1)(jnp.ones((3, 3))).jaxpr)  # two matrices of 9 float32
    72
    """
    found = 0
    for equation in jaxpr.eqns:
        found += sum(_size(var) * getattr(var.aval.dtype, "itemsize", 8) for var in equation.outvars if _is_array(var))
        found += sum(map(count_bytes, _bodies(equation.params)))
    return found


def _bodies(params: Any) -> list[Any]:
    """The jaxprs among the parameters of an equation, those of calls, loops and the like, open or closed."""
    values = [one for value in params.values() for one in (value if isinstance(value, tuple | list) else (value,))]
    found = [getattr(value, "jaxpr", value) for value in values if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
    return [one for one in found if hasattr(one, "eqns")]


def _flops(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name in _COUNTED:
        return _COUNTED[name](equation)
    if name == "cond":
        return max(count_flops(branch.jaxpr) for branch in params["branches"])
    if bodies := _bodies(params):
        return sum(map(count_flops, bodies)) * (params["length"] if name == "scan" else 1)
    # `jax.debug.print` and other callbacks need not return anything.
    if name in _FREE or not equation.outvars or not _is_float(equation.outvars[0]):
        return 0.0
    # A reduction works on what it reads, everything else on what it writes.
    reads = name.startswith(("reduce", "cum", "arg", "scatter"))
    return float(max(_size(var) for var in (equation.invars if reads else equation.outvars)))


def _product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return float(2 * _size(equation.outvars[0]) * math.prod(shape[axis] for axis in contracted))


def _convolution(equation: Any) -> float:
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
    taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])  # input channels of a group, and the window
    return float(2 * _size(equation.outvars[0]) * taps)


def _window(equation: Any) -> float:
    return float(_size(equation.outvars[0]) * math.prod(equation.params["window_dimensions"]))


_COUNTED: dict[str, Callable[[Any], float]] = {
    "dot_general": _product,
    "conv_general_dilated": _convolution,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "reduce_window_sum": _window,
    "select_and_scatter_add": lambda equation: float(_size(equation.invars[0])),
}


def _size(var: Any) -> int:
    return math.prod(var.aval.shape)


def _is_array(var: Any) -> bool:
    return hasattr(var.aval, "shape") and hasattr(var.aval, "dtype")


def _is_float(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.inexact)
