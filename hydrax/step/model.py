"""Splits a model into parameters, other state and static structure, and merges them again.

This is the one place that knows kinds of models. Everywhere else a model is two pytrees of arrays and a hashable
structure, so nnx modules, Linen variables and plain pytrees run through the same program.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.errors import ModuleError
from hydrax.step.statistics import Slots, mask_nnx, unmaskable_in_nnx
from hydrax.trees import dotted

if TYPE_CHECKING:
    from flax import nnx


class Structure(Protocol):
    """What the models of all heads have in common: everything except the arrays.

    Attributes:
      has_batch_statistics: whether the model is known to compute statistics over the rows of a batch.
      must_return: whether the model has state that changes only if a training step returns the model.
      unmaskable: the name of a layer whose statistics cannot leave out padding, or None.
    """

    @property
    def has_batch_statistics(self) -> bool: ...

    @property
    def must_return(self) -> bool: ...

    @property
    def unmaskable(self) -> str | None: ...

    def merge(self, trainable: Any, state: Any) -> Any:
        """Builds the ordinary model from these arrays."""

    def read_trainable(self, model: Any) -> Any:
        """Reads the arrays of a model that are trained, in the form that `split` returned them."""

    def read_state(self, model: Any) -> Any:
        """Reads the arrays of a model that are not trained, in the form that `split` returned them."""

    def set_mode(self, model: Any, train: bool) -> None:
        """Switches dropout, batch statistics and the like to training or evaluation, if the model has such a switch."""

    def mask_statistics(self, model: Any, slots: Slots) -> None:
        """Makes batch statistics leave out padding, in a model that was merged for this trace, if it computes any."""


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


IsTrained = Callable[[str, Any], bool]
"""Whether an array is trained, by its dotted name and itself; see `HeadModule.is_trained`."""


def split(model: Any, is_trained: IsTrained | None = None) -> Parts:
    """Splits a model into its parts.

    Args:
      model: an `nnx.Module` (Linen modules through `nnx.bridge.ToNNX`), a mapping of Linen variables with "params",
        or any pytree whose floating-point arrays are its parameters (Equinox modules, dicts, dataclasses).
      is_trained: asked for each floating-point array that is an `nnx.Param`, in "params", or in any other pytree and
        there not in an `equinox.nn.State`. None trains all of these.

    Raises:
      ModuleError: there is a Python number among the parameters, or `is_trained` returned no bool.
    """
    # Flax takes a third of a second to import. A model can be an nnx.Module only if it is imported already.
    nnx: Any = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(model, nnx.Module):
        _mark_arrays(model, nnx)
        params = {path: param.get_value() for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param))}
        names = dotted([tuple(map(str, path)) for path in params])
        asked = zip(names, params.items(), strict=True)
        frozen = frozenset(path for name, (path, value) in asked if not _trains(name, value, is_trained))
        trainable = _trained_params(nnx, frozen)
        # Intermediates are what one call stored with `sow`, not state that the next call needs.
        graphdef, trained, _, rest = nnx.split(model, trainable, nnx.Intermediate, ...)
        statistics = bool(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
        # Pure dicts: merging nnx States of Variables under `grad` raises TraceContextError (flax#5050).
        nnx_structure = NnxStructure(graphdef, statistics, unmaskable_in_nnx(model), frozen)
        return Parts(nnx.to_pure_dict(trained), nnx.to_pure_dict(rest), nnx_structure)
    if isinstance(model, Mapping) and "params" in model:
        others = {name: value for name, value in model.items() if name != "params"}
        split_params = _split_pytree(model["params"], is_trained)
        if not jax.tree.leaves(split_params.state):
            return Parts(model["params"], others, LinenStructure("batch_stats" in others))
        # Beside the collections, so that an array has the same name whether it is trained or not.
        kept = dict(split_params.state)
        if both := others.keys() & kept.keys():
            raise ModuleError(
                f"A layer has the name of a collection: configure_model. Got {min(both)!r} in both, expected different "
                "names if some parameters are not trained. Fix: rename the layer."
            )
        structure = LinenStructure("batch_stats" in others, split_params.structure, tuple(kept))
        return Parts(split_params.trainable, {**others, **kept}, structure)
    return _split_pytree(model, is_trained)


def _split_pytree(model: Any, is_trained: IsTrained | None) -> Parts:
    flat, treedef = jax.tree_util.tree_flatten_with_path(model)
    _refuse_numbers(flat)
    leaves = [leaf for _, leaf in flat]
    names = dotted([tuple(jax.tree_util.keystr((key,), simple=True) for key in path) for path, _ in flat])
    # A State of Equinox is known for what it is; it can be in the model only if Equinox is imported.
    eqx: Any = sys.modules.get("equinox")
    is_state, statistics, moves = [False] * len(leaves), False, False
    if eqx is not None:
        is_state = _below(model, (eqx.nn.State, eqx.nn.StateIndex))
        statistics, moves = any(_below(model, (eqx.nn.BatchNorm,))), any(_below(model, (eqx.nn.State,)))
    kinds = []
    for name, leaf, known in zip(names, leaves, is_state, strict=True):
        is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
        trains = is_array and not known and _trains(name, leaf, is_trained)
        kinds.append("trainable" if trains else "state" if is_array else "static")
    static = tuple(_Static(leaf if kind == "static" else None) for leaf, kind in zip(leaves, kinds, strict=True))
    structure = PytreeStructure(treedef, tuple(kinds), static, statistics, moves)
    return Parts(structure.pick(leaves, "trainable"), structure.pick(leaves, "state"), structure)


def _trained_params(nnx: Any, frozen: frozenset[Any]) -> Any:
    """Returns the filter of nnx that selects every `nnx.Param` except those at these paths."""
    return (lambda path, value: isinstance(value, nnx.Param) and path not in frozen) if frozen else nnx.Param


@dataclasses.dataclass(frozen=True)
class NnxStructure:
    """An `nnx.Module` without its variables; `frozen` holds the paths of each `nnx.Param` that is not trained."""

    graphdef: Any
    has_batch_statistics: bool
    unmaskable: str | None
    frozen: frozenset[Any] = frozenset()
    must_return = False  # a step changes it in place

    def merge(self, trainable: Any, state: Any) -> nnx.Module:
        from flax import nnx  # late, as in `split`

        model: nnx.Module = nnx.merge(self.graphdef, trainable, state)
        return model

    def read_trainable(self, model: nnx.Module) -> Any:
        from flax import nnx  # late, as in `split`

        return nnx.to_pure_dict(nnx.state(model, _trained_params(nnx, self.frozen)))

    def read_state(self, model: nnx.Module) -> Any:
        from flax import nnx  # late, as in `split`

        trained = _trained_params(nnx, self.frozen)
        return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Any(trained, nnx.Intermediate))))

    def set_mode(self, model: nnx.Module, train: bool) -> None:
        # This changes the graphdef, so it is done inside the trace, on a merged model, and never kept.
        if train:
            model.train()
        else:
            model.eval()

    def mask_statistics(self, model: nnx.Module, slots: Slots) -> None:
        # This, too, changes the graphdef.
        mask_nnx(model, slots)


@dataclasses.dataclass(frozen=True)
class LinenStructure:
    """Linen variables: "params" are trained, every other collection is state.

    If some of "params" are not trained, `params` is the structure of that collection and `layers` are its keys; else
    it is None.
    """

    has_batch_statistics: bool
    params: Structure | None = None
    layers: tuple[str, ...] = ()
    unmaskable = None  # found out when it is applied

    @property
    def must_return(self) -> bool:
        return self.has_batch_statistics

    def merge(self, trainable: Any, state: Any) -> dict[str, Any]:
        if self.params is None:
            return {"params": trainable, **state}
        others = {name: value for name, value in state.items() if name not in self.layers}
        return {"params": self.params.merge(trainable, {name: state[name] for name in self.layers}), **others}

    def read_trainable(self, model: Mapping[str, Any]) -> Any:
        return model["params"] if self.params is None else self.params.read_trainable(model["params"])

    def read_state(self, model: Mapping[str, Any]) -> Any:
        others = {name: value for name, value in model.items() if name != "params"}
        return others if self.params is None else {**others, **self.params.read_state(model["params"])}

    def set_mode(self, model: Any, train: bool) -> None:
        """Does nothing: Linen modules take the mode as an argument of `apply`, and the step has `ctx.train`."""

    def mask_statistics(self, model: Any, slots: Slots) -> None:
        """Does nothing: `masked_linen` gives modules the mask when they are applied."""


@dataclasses.dataclass(frozen=True)
class PytreeStructure:
    """Any pytree: its treedef, the kind of each leaf, and the leaves that are not arrays (functions, sizes)."""

    treedef: Any
    kinds: tuple[str, ...]
    static: tuple[_Static, ...]
    # A pytree without layers of Equinox says neither.
    has_batch_statistics: bool = False
    must_return: bool = False

    @property
    def unmaskable(self) -> str | None:
        # It averages over a named axis, without a mask.
        return "eqx.nn.BatchNorm" if self.has_batch_statistics else None

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

    def read_trainable(self, model: Any) -> Any:
        return self.pick(self._leaves(model), "trainable")

    def read_state(self, model: Any) -> Any:
        return self.pick(self._leaves(model), "state")

    def _leaves(self, model: Any) -> list[Any]:
        try:
            flat, treedef = jax.tree_util.tree_flatten_with_path(model)
        except ValueError as error:  # what Equinox says of a State that was replaced by another
            raise ModuleError(
                'The state of a model was not returned: the "model" of a step. Got a state that is used up '
                f'({error!s:.60}...), expected the new one. Fix: return {{"loss": loss, "model": (model, state)}}.'
            ) from error
        if str(treedef) != str(self.treedef):
            raise ModuleError(
                f'A step changes the structure of a model: its "model". Got {treedef!s:.300}, expected '
                f"{self.treedef!s:.300}. Fix: return the model in the form that configure_model gave it."
            )
        for (path, leaf), kind, fixed in zip(flat, self.kinds, self.static, strict=True):
            # A flag, such as that of inference mode, belongs to the call and not to the model.
            is_number = isinstance(leaf, int | float | complex) and not isinstance(leaf, bool)
            if kind == "static" and (isinstance(leaf, jax.Array) or is_number and leaf != fixed.value):
                raise ModuleError(
                    f'A step changes what is no array: the "model" of a step, {jax.tree_util.keystr(path)}. Got '
                    f"{leaf!r:.60}, expected {fixed.value!r:.60} as before. Fix: make it an array in configure_model."
                )
        return [leaf for _, leaf in flat]

    def set_mode(self, model: Any, train: bool) -> None:
        """Does nothing: a plain pytree has no switch, and the step has `ctx.train`."""

    def mask_statistics(self, model: Any, slots: Slots) -> None:
        """Does nothing: batch norms of pytrees take no mask."""


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


def why_nothing_trains(model: Any) -> tuple[str, str]:
    """Says what was found in place of parameters, and what to do about it."""
    if jax.tree.leaves(split(model).trainable):
        return "False from is_trained for every array, expected True for at least one", "return True for some names"
    nnx: Any = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(model, nnx.Module):
        found = nnx.state(model, lambda path, value: isinstance(value, nnx.Variable))
        kinds = sorted({type(variable).__name__ for _, variable in nnx.to_flat_state(found)})
        got = f"variables of type {', '.join(kinds)}" if kinds else "no variable"
        return f"{got}, expected a floating-point nnx.Param", "write nnx.Param(...) for each array to train"
    # Such as a Linen module whose variables were never created.
    return "no floating-point array, expected at least one", "return a model whose parameters are already created"


def _trains(name: str, value: Any, is_trained: IsTrained | None) -> bool:
    """Whether a candidate is trained: it holds floating-point numbers, and the user's hook agrees."""
    if not all(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in jax.tree.leaves(value)):
        return False
    answer = True if is_trained is None else is_trained(name, value)
    if not isinstance(answer, bool | np.bool_):
        raise ModuleError(
            f"is_trained returned no bool: is_trained({name!r}, ...). Got {answer!r:.60}, expected True or False. Fix: "
            'return for example not name.startswith("encoder.").'
        )
    return bool(answer)


def _below(model: Any, kinds: tuple[type, ...]) -> list[bool]:
    """Tells for each leaf whether it is in a node of one of these types."""
    parts = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, kinds))
    return [isinstance(part, kinds) for part in parts for _ in jax.tree.leaves(part)]


def _refuse_numbers(flat: Sequence[tuple[Any, Any]]) -> None:
    """Refuses Python numbers in plain containers: a parameter is meant, and it would never be trained."""
    containers = (jax.tree_util.DictKey, jax.tree_util.SequenceKey)
    for path, leaf in flat:
        is_number = isinstance(leaf, int | float | complex) and not isinstance(leaf, bool | np.generic)
        if is_number and path and all(isinstance(key, containers) for key in path):
            raise ModuleError(
                f"A parameter is a Python number: configure_model, {jax.tree_util.keystr(path)}. Got {leaf!r}, "
                f"expected an array, as only arrays are trained. Fix: write jnp.array({leaf * 1.0!r}) to train it, or "
                "keep it in an attribute of the module."
            )
