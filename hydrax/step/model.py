"""Splits a model into parameters, other state and static structure, and merges them again.

This is the one place that knows kinds of models. Everywhere else a model is two pytrees of arrays and a hashable
structure, so nnx modules, Linen variables and plain pytrees run through the same program.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from flax import nnx


class Structure(Protocol):
    """What the models of all heads have in common: everything except the arrays.

    Attributes:
      has_batch_statistics: whether the model is known to compute statistics over the rows of a batch.
    """

    @property
    def has_batch_statistics(self) -> bool: ...

    def merge(self, trainable: Any, state: Any) -> Any:
        """Builds the ordinary model from these arrays."""

    def read_state(self, model: Any) -> Any:
        """Reads the arrays of a model that are not trained, in the form that `split` returned them."""

    def set_mode(self, model: Any, train: bool) -> None:
        """Switches dropout, batch statistics and the like to training or evaluation, if the model has such a switch."""


class Parts(NamedTuple):
    """A model in parts.

    Attributes:
      trainable: the arrays that are trained.
      state: the other arrays, such as batch statistics, dropout keys and counters.
      structure: the rest, hashable and the same for every head.
    """

    trainable: Any
    state: Any
    structure: Structure


def split(model: Any) -> Parts:
    """Splits a model into its parts.

    Args:
      model: an `nnx.Module` (Linen modules through `nnx.bridge.ToNNX`), a mapping of Linen variables with "params",
        or any pytree whose floating-point arrays are its parameters (Equinox modules, dicts, dataclasses).
    """
    # Flax takes a third of a second to import. A model can be an nnx.Module only if it is imported already.
    nnx: Any = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(model, nnx.Module):
        # Intermediates are what one call stored with `sow`, not state that the next call needs.
        _mark_arrays(model, nnx)
        graphdef, params, _, rest = nnx.split(model, nnx.Param, nnx.Intermediate, ...)
        statistics = bool(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
        # Pure dicts: merging nnx States of Variables under `grad` raises TraceContextError (flax#5050).
        return Parts(nnx.to_pure_dict(params), nnx.to_pure_dict(rest), NnxStructure(graphdef, statistics))
    if isinstance(model, Mapping) and "params" in model:
        state = {name: value for name, value in model.items() if name != "params"}
        return Parts(model["params"], state, LinenStructure("batch_stats" in state))
    leaves, treedef = jax.tree.flatten(model)
    kinds = tuple(_kind(leaf) for leaf in leaves)
    static = tuple(leaf if kind == "static" else None for leaf, kind in zip(leaves, kinds, strict=True))
    structure = PytreeStructure(treedef, kinds, tuple(map(_Static, static)))
    return Parts(structure.pick(leaves, "trainable"), structure.pick(leaves, "state"), structure)


@dataclasses.dataclass(frozen=True)
class NnxStructure:
    """An `nnx.Module` without its variables."""

    graphdef: Any
    has_batch_statistics: bool

    def merge(self, trainable: Any, state: Any) -> nnx.Module:
        from flax import nnx  # late, as in `split`

        model: nnx.Module = nnx.merge(self.graphdef, trainable, state)
        return model

    def read_state(self, model: nnx.Module) -> Any:
        from flax import nnx  # late, as in `split`

        return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.Intermediate))))

    def set_mode(self, model: nnx.Module, train: bool) -> None:
        # This changes the graphdef, so it is done inside the trace, on a merged model, and never kept.
        if train:
            model.train()
        else:
            model.eval()


@dataclasses.dataclass(frozen=True)
class LinenStructure:
    """Linen variables: "params" are trained, every other collection is state."""

    has_batch_statistics: bool

    def merge(self, trainable: Any, state: Any) -> dict[str, Any]:
        return {"params": trainable, **state}

    def read_state(self, model: Mapping[str, Any]) -> Any:
        return {name: value for name, value in model.items() if name != "params"}

    def set_mode(self, model: Any, train: bool) -> None:
        """Does nothing: Linen modules take the mode as an argument of `apply`, and the step has `ctx.train`."""


@dataclasses.dataclass(frozen=True)
class PytreeStructure:
    """Any pytree: its treedef, the kind of each leaf, and the leaves that are not arrays (functions, sizes)."""

    treedef: Any
    kinds: tuple[str, ...]
    static: tuple[_Static, ...]
    has_batch_statistics = False  # unknown: a plain pytree does not say

    def pick(self, leaves: list[Any], kind: str) -> Any:
        """Keeps the leaves of one kind, with None elsewhere, so that optimiser masks see the model's own paths."""
        return self.treedef.unflatten([leaf if k == kind else None for leaf, k in zip(leaves, self.kinds, strict=True)])

    def merge(self, trainable: Any, state: Any) -> Any:
        parts = {"trainable": iter(jax.tree.leaves(trainable)), "state": iter(jax.tree.leaves(state))}
        leaves = [
            fixed.value if kind == "static" else next(parts[kind])
            for kind, fixed in zip(self.kinds, self.static, strict=True)
        ]
        return self.treedef.unflatten(leaves)

    def read_state(self, model: Any) -> Any:
        return self.pick(jax.tree.leaves(model), "state")

    def set_mode(self, model: Any, train: bool) -> None:
        """Does nothing: a plain pytree has no switch, and the step has `ctx.train`."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Static:
    """A leaf that is not an array, made hashable, as a structure is part of the key of a compiled program."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and (self.value is other.value or bool(self.value == other.value))

    def __hash__(self) -> int:
        # Values without a hash share one for their type; `__eq__` tells them apart.
        return hash(self.value) if isinstance(self.value, Hashable) else hash(type(self.value))


def _mark_arrays(model: nnx.Module, nnx: Any) -> None:
    """Marks plain attributes that are or hold arrays as data.

    Flax does so itself, but not for arrays made under a trace, which would then leave it inside the graphdef.
    """
    for _, node in nnx.iter_graph(model):
        for name, value in list(vars(node).items()) if isinstance(node, nnx.Module) else ():
            parts = jax.tree.leaves(value) if isinstance(value, list | tuple | dict) else [value]
            if not name.startswith("_pytree__") and any(isinstance(part, jax.Array) for part in parts):
                setattr(node, name, nnx.data(value))


def _kind(leaf: Any) -> str:
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return "static"
    return "trainable" if jnp.issubdtype(leaf.dtype, jnp.inexact) else "state"
