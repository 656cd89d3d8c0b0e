"""Rewrites the operations of a user's model into forms that are fast under the head axis.

Once `jax.vmap` has given them a head axis, XLA computes some operations far slower than the machine can, and some even
for a single head. `lower` traces a function of one head, including its gradient, and interprets the jaxpr: an operation
that a rule has a faster form for runs in that form, all others stay as they are. Rules see single primitives after
differentiation, so none needs a derivative of its own, and models of any library work unmodified.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from hydrax.step.lowering import convolutions, pooling, products, reductions

Rule = Callable[..., Any]

# Calls, with the parameter that holds the body. The body is interpreted in place of the call: after differentiation,
# and inside one program, a call has no other meaning.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "call_jaxpr",
}
# Control flow, with the parameters that hold bodies. Each body is rewritten and the operation itself stays.
_BODIES = {
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
    "checkpoint": ("jaxpr",),
    "remat2": ("jaxpr",),
}


@dataclasses.dataclass(frozen=True)
class Lowering:
    """Which kinds of operations run in Hydrax's own form. A head's bits depend on it.

    Attributes:
      convolutions: convolutions of any kind, and their gradients.
      pooling: maxima and sums over windows, and their gradients.
      products: matrix products with few columns, and gradients of weights.
      reductions: sums over many rows.
    """

    convolutions: bool = False
    pooling: bool = False
    products: bool = False
    reductions: bool = False

    @classmethod
    def auto(cls, backend: str) -> Lowering:
        """Chooses by backend: everything on "cpu", where the rules were measured, and nothing on others."""
        return cls(True, True, True, True) if backend == "cpu" else cls()

    def __str__(self) -> str:
        kinds = [field.name for field in dataclasses.fields(self) if getattr(self, field.name)]
        return "+".join(kinds) or "plain"

    def rules(self) -> Mapping[str, Rule]:
        """Returns the rules by name of their primitive.

        A rule is called as `rule(*operands, **params)`. It returns the result, or `NotImplemented` to leave the
        operation as it is.
        """
        kinds = {
            "convolutions": convolutions.RULES,
            "pooling": pooling.RULES,
            "products": products.RULES,
            "reductions": reductions.RULES,
        }
        return {name: rule for kind, rules in kinds.items() if getattr(self, kind) for name, rule in rules.items()}


def lower(fun: Callable[..., Any], lowering: Lowering) -> Callable[..., Any]:
    """Rewrites the operations of a function; the new function gives the same values up to rounding.

    Differentiate first, then lower, then map over heads: `jax.vmap(lower(jax.value_and_grad(f), lowering))`. The result
    cannot be differentiated.

    Args:
      fun: a function of pytrees of arrays. It is traced once per call; its exceptions are passed on.
      lowering: which operations to rewrite.
    """
    rules = lowering.rules()
    if not rules:
        return fun

    def lowered(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        out_tree: Any = None

        def flat(*leaves: Any) -> Any:
            nonlocal out_tree
            out, out_tree = jax.tree.flatten(fun(*jax.tree.unflatten(tree, leaves)))
            return out

        closed = jax.make_jaxpr(flat)(*leaves)
        found = _Interpreter(rules).run(closed.jaxpr, closed.consts, leaves)
        # A constant among the results is a Python number in the jaxpr.
        arrays = [
            value if isinstance(value, jax.Array) else jnp.asarray(value, aval.dtype)
            for value, aval in zip(found, closed.out_avals, strict=True)
        ]
        return jax.tree.unflatten(out_tree, arrays)

    return lowered


class _Interpreter:
    """Evaluates a jaxpr equation by equation, applying the rules.

    Source: "Writing custom Jaxpr interpreters in JAX", docs.jax.dev.
    """

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = rules
        # By id of a jaxpr, whether a rule may apply inside: nested bodies would otherwise be searched again and again.
        self._concerned: dict[int, bool] = {}

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        read: Callable[[Any], Any] = lambda atom: atom.val if isinstance(atom, jex.Literal) else values[atom]  # noqa: E731
        for equation in jaxpr.eqns:
            # The context holds settings of the place where the equation was traced, such as 64-bit mode.
            with equation.ctx.manager:
                results = self._equation(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        primitive, params = equation.primitive, equation.params
        rule = self._rules.get(primitive.name)
        if rule is not None:
            result = rule(*operands, **params)
            if result is not NotImplemented:
                return [result]
        elif any(self._concerns(body) for body in _bodies(params)):
            if primitive.name in _CALLS:
                return self.run(*_opened(params[_CALLS[primitive.name]]), operands)
            if primitive.name in _BODIES:
                params = self._lowered_bodies(primitive.name, params)
        # JAX 0.10.2 returns a dict here, other versions a pair.
        bound = primitive.get_bind_params(params)
        functions, bound = bound if isinstance(bound, tuple) else ((), bound)
        results = primitive.bind(*functions, *operands, **bound)
        return results if primitive.multiple_results else [results]

    def _lowered_bodies(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Rewrites every body among the parameters of a control flow operation."""
        new = dict(params)
        for key in _BODIES[name]:
            value = params[key]
            if isinstance(value, tuple):
                new[key] = tuple(self._lowered(body) for body in value)
            elif isinstance(value, jex.ClosedJaxpr):
                new[key] = self._lowered(value)
            else:
                # An open jaxpr has no place for constants. It needs none: it takes all arrays as operands, and rules
                # add only scalars, which become literals.
                closed = self._lowered(jex.ClosedJaxpr(value, ()))
                assert not closed.consts
                new[key] = closed.jaxpr
        return new

    def _lowered(self, body: Any) -> Any:
        run = lambda *args: self.run(body.jaxpr, body.consts, args)  # noqa: E731
        return jax.make_jaxpr(run)(*(_shape(aval) for aval in body.in_avals))

    def _concerns(self, body: Any) -> bool:
        """Whether a rule may apply somewhere inside a body."""
        jaxpr = _opened(body)[0]
        if id(jaxpr) not in self._concerned:
            self._concerned[id(jaxpr)] = any(
                equation.primitive.name in self._rules or any(map(self._concerns, _bodies(equation.params)))
                for equation in jaxpr.eqns
            )
        return self._concerned[id(jaxpr)]


def _bodies(params: Mapping[str, Any]) -> list[Any]:
    """Finds the jaxprs among an equation's parameters."""
    values = [v for value in params.values() for v in (value if isinstance(value, tuple) else (value,))]
    return [value for value in values if isinstance(value, jex.Jaxpr | jex.ClosedJaxpr)]


def _opened(body: Any) -> tuple[Any, Sequence[Any]]:
    return (body.jaxpr, body.consts) if isinstance(body, jex.ClosedJaxpr) else (body, ())


def _shape(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))
