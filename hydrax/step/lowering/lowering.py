"""How operations of a user's model are computed under the head axis: a rewrite of one head's program.

XLA computes some operations far slower than the machine can once `jax.vmap` has given them a head axis, and some even
for one head. `lower` traces a function of one head, gradient included, and runs its operations one by one; those that a
rule knows a faster form for run in that form, all others as they came. The rules see single primitives after
differentiation: none needs a derivative of its own, and models of any library pass through unmodified.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core as jex

from hydrax.step.lowering import convolutions, pooling, products, reductions

Rule = Callable[..., Any]

# Their bodies run in place: after differentiation and inside one program, a call means nothing but its body.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "call_jaxpr",
}
# Their bodies are lowered where they stand.
_BODIES = {
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
    "checkpoint": ("jaxpr",),
    "remat2": ("jaxpr",),
}


@dataclasses.dataclass(frozen=True)
class Lowering:
    """Which kinds of operations run in Hydrax's form; it shapes a head's bits.

    Attributes:
      convolutions: convolutions of any kind, and their gradients.
      pooling: windowed maxima and sums, and their gradients.
      products: skinny matrix products.
      reductions: sums over many rows.
    """

    convolutions: bool = False
    pooling: bool = False
    products: bool = False
    reductions: bool = False

    @classmethod
    def auto(cls, backend: str) -> Lowering:
        """The lowering for "cpu", "gpu" or "tpu": the rules were measured on CPUs, elsewhere XLA's own forms stay."""
        return cls(True, True, True, True) if backend == "cpu" else cls()

    def __str__(self) -> str:
        kinds = [field.name for field in dataclasses.fields(self) if getattr(self, field.name)]
        return "+".join(kinds) or "plain"

    def rules(self) -> Mapping[str, Rule]:
        """Primitive name to `rule(*operands, **params) -> result`, or `NotImplemented` for what it leaves as it is."""
        kinds = {
            "convolutions": convolutions.RULES,
            "pooling": pooling.RULES,
            "products": products.RULES,
            "reductions": reductions.RULES,
        }
        return {name: rule for kind, rules in kinds.items() if getattr(self, kind) for name, rule in rules.items()}


def lower(fun: Callable[..., Any], lowering: Lowering) -> Callable[..., Any]:
    """`fun` with its operations in the forms that `lowering` names; the same values but for rounding.

    Lower what is differentiated, not before: `lower(jax.value_and_grad(f), lowering)`. The result cannot be
    differentiated itself. Map it over heads afterwards: `jax.vmap(lower(...))`.

    Args:
      fun: a function of pytrees of arrays; it is traced once per call, and what it raises comes through as it is.
      lowering: what to replace.
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
        return jax.tree.unflatten(out_tree, _Interpreter(rules).run(closed.jaxpr, closed.consts, leaves))

    return lowered


class _Interpreter:
    """Runs a jaxpr's equations one by one, each under its rule.

    Source: "Writing custom Jaxpr interpreters in JAX", docs.jax.dev.
    """

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = rules
        self._concerned: dict[int, bool] = {}

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        read: Callable[[Any], Any] = lambda atom: atom.val if isinstance(atom, jex.Literal) else values[atom]  # noqa: E731
        for equation in jaxpr.eqns:
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
        # A dict in JAX 0.10.2, a pair in other versions.
        bound = primitive.get_bind_params(params)
        functions, bound = bound if isinstance(bound, tuple) else ((), bound)
        results = primitive.bind(*functions, *operands, **bound)
        return results if primitive.multiple_results else [results]

    def _lowered_bodies(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters with every body lowered."""
        new = dict(params)
        for key in _BODIES[name]:
            value = params[key]
            if isinstance(value, tuple):
                new[key] = tuple(self._lowered(body) for body in value)
            elif isinstance(value, jex.ClosedJaxpr):
                new[key] = self._lowered(value)
            else:
                # An open body takes all it needs as operands; rules make scalars only, which stand in the body itself.
                closed = self._lowered(jex.ClosedJaxpr(value, ()))
                assert not closed.consts
                new[key] = closed.jaxpr
        return new

    def _lowered(self, body: Any) -> Any:
        run = lambda *args: self.run(body.jaxpr, body.consts, args)  # noqa: E731
        return jax.make_jaxpr(run)(*(_shape(aval) for aval in body.in_avals))

    def _concerns(self, body: Any) -> bool:
        """Whether a rule may apply somewhere inside."""
        jaxpr = _opened(body)[0]
        if id(jaxpr) not in self._concerned:
            self._concerned[id(jaxpr)] = any(
                equation.primitive.name in self._rules or any(map(self._concerns, _bodies(equation.params)))
                for equation in jaxpr.eqns
            )
        return self._concerned[id(jaxpr)]


def _bodies(params: Mapping[str, Any]) -> list[Any]:
    """The jaxprs among an equation's parameters."""
    values = [v for value in params.values() for v in (value if isinstance(value, tuple) else (value,))]
    return [value for value in values if isinstance(value, jex.Jaxpr | jex.ClosedJaxpr)]


def _opened(body: Any) -> tuple[Any, Sequence[Any]]:
    return (body.jaxpr, body.consts) if isinstance(body, jex.ClosedJaxpr) else (body, ())


def _shape(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))
