"""Builds the optimiser of one head, and calls it with all that an optimiser may ask for."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from hydrax.errors import ModuleError
from hydrax.step.explain import explained
from hydrax.step.module import HeadModule, bind, per_head_values


def build_optimizer(module: HeadModule, per_head: Mapping[str, Any], key: jax.Array) -> optax.GradientTransformation:
    """Calls `configure_optimizers` for one head.

    Args:
      module: the user's module.
      per_head: this head's scalars, by the names of `per_head_values`.
      key: PRNG key of this head, passed on if the method takes one.

    Raises:
      ModuleError: the method fails, or returns no optimiser.
    """

    def call(values: Mapping[str, Any]) -> Any:
        return configure(bind(module, values, "configure")[0], key)

    with explained(module, "configure_optimizers", "traced hyper-parameters"):
        try:
            optimizer = call(per_head)
        except jax.errors.TracerBoolConversionError as error:
            # A schedule may compare a PerHead with a constant: if the answer is the same for all heads, it is known.
            known = {name: value.values for name, value in per_head_values(module).items() if value.values.ndim == 1}
            try:
                optimizer = call({name: _Known(v, known[name]) if name in known else v for name, v in per_head.items()})
            except Exception:
                raise error from None
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ModuleError(
            f"configure_optimizers returned no optimiser: {type(module).__name__}.configure_optimizers. Got "
            f"{type(optimizer).__name__}, expected an optax.GradientTransformation. Fix: return for example "
            "optax.adamw(1e-3)."
        )
    return optimizer


def configure(bound: HeadModule, key: jax.Array) -> Any:
    """Calls `configure_optimizers` of a bound module, with the key if it takes one."""
    return bound.configure_optimizers(*[key] * _takes_key(bound))


def _takes_key(module: HeadModule) -> bool:
    every = inspect.signature(module.configure_optimizers).parameters.values()
    parameters = [one for one in every if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    needed = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    if len(needed) > 1:
        raise ModuleError(
            f"configure_optimizers has the wrong signature: {type(module).__name__}. Got the arguments "
            f"{', '.join(needed)}, expected none or a PRNG key. Fix: write `def configure_optimizers(self)` or `def "
            "configure_optimizers(self, key)`, and keep settings in self.hparams."
        )
    return len(needed) == 1 or bool(parameters) and parameters[0].name == "key"


def update_with(
    module: HeadModule, optimizer: optax.GradientTransformation, *args: Any, extra: Mapping[str, Any]
) -> Any:
    """Calls `optimizer.update(*args)`, and passes the extra arguments to an optimiser that takes them.

    Args:
      module: the user's module, for error messages.
      optimizer: the optimiser.
      args: gradients, state of the optimiser, parameters.
      extra: `value`, `grad` and `value_fn`, as optax names them.

    Returns:
      The updates, and the new state of the optimiser.

    Raises:
      ModuleError: the optimiser fails.
    """
    parameters = inspect.signature(optimizer.update).parameters.values()
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
        extra = {name: extra[name] for name in (parameter.name for parameter in parameters) if name in extra}
    with explained(module, "configure_optimizers", "gradients, in the update of its optimiser,"):
        try:
            return optimizer.update(*args, **extra)
        except TypeError as error:
            # A wrapper that passes everything on, around an optimiser that takes nothing more than gradients.
            if isinstance(optimizer, optax.GradientTransformationExtraArgs) or "unexpected keyword" not in str(error):
                raise
            return optimizer.update(*args)


class _Known:
    """A `PerHead` value of one head, a traced scalar, beside the values of all heads.

    It computes as the scalar does. Comparisons have a Python bool as their result if it is the same for all heads.
    """

    __array_priority__ = 1_000.0  # `numpy_scalar * self` is computed here, not element by element

    def __init__(self, traced: Any, values: np.ndarray) -> None:
        self._traced, self._values = traced, values

    def __jax_array__(self) -> Any:
        return self._traced

    def __getattr__(self, name: str) -> Any:
        return getattr(self._traced, name)

    def __bool__(self) -> bool:
        return self._decide(self._traced != 0, self._values != 0)  # type: ignore[no-any-return]

    def _decide(self, traced: Any, answers: Any) -> Any:
        return bool(answers.flat[0]) if (answers == answers.flat[0]).all() else traced


def _computed(function: Callable[..., Any], decides: bool) -> Callable[..., Any]:
    def method(self: _Known, *others: Any) -> Any:
        traced = function(self._traced, *(o._traced if isinstance(o, _Known) else o for o in others))
        if not all(isinstance(other, int | float | np.number | _Known) for other in others):
            return traced
        values = function(self._values, *(o._values if isinstance(o, _Known) else o for o in others))
        return self._decide(traced, values) if decides else _Known(traced, values)

    return method


def _swapped(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: function(b, a)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(_Known, f"__{_name}__", _computed(getattr(operator, _name), decides=False))
    setattr(_Known, f"__r{_name}__", _computed(_swapped(getattr(operator, _name)), decides=False))
for _name in ("neg", "abs"):
    setattr(_Known, f"__{_name}__", _computed(getattr(operator, _name), decides=False))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(_Known, f"__{_name}__", _computed(getattr(operator, _name), decides=True))
