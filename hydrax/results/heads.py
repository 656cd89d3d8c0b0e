"""Trained heads: index, select, call, predict, save, load."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from hydrax import checkpoint
from hydrax.arguments import is_int
from hydrax.data import check_dataset, num_rows
from hydrax.errors import ArgumentError, ModuleError
from hydrax.results.export import export
from hydrax.step import HeadInputs, HeadModule, HeadProgram, Hyperparameters, Preflight, Structure, per_head_values
from hydrax.trees import dotted, leaves_by_path


@jax.tree_util.register_pytree_node_class
class Heads:
    """The models of H heads, one batch of models.

    A pytree whose leaves are the stacked arrays `[H, ...]`, so `jax.tree`, `jax.vmap` and serialisers work on it;
    under `jax.vmap` it is one head, and calling it calls that head's model.

    Args:
      trainable: parameters, leaves `[H, ...]`.
      state: the models' other arrays, leaves `[H, ...]`.
      structure: what the models have in common.
      ids: int32[H], the heads' ids.
      hparams: the hyper-parameters they were trained with, or None where these are not known.
    """

    def __init__(
        self,
        trainable: Any,
        state: Any,
        structure: Structure,
        ids: np.ndarray,
        hparams: Hyperparameters | None = None,
    ) -> None:
        self.trainable, self.state = trainable, state
        self._aux = _Aux(structure, np.asarray(ids), jax.tree.leaves(trainable)[0].ndim, hparams)

    @property
    def ids(self) -> np.ndarray:
        """int32[H], the heads' ids, as in `Slices.ids`."""
        return self._aux.ids

    @property
    def hparams(self) -> Hyperparameters | None:
        """The hyper-parameters they were trained with; each `PerHead` holds one value for each of these heads."""
        return self._aux.hparams

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Any]:
        return (self[head] for head in range(len(self)))

    @overload
    def __getitem__(self, heads: int | np.integer[Any]) -> Any: ...
    @overload
    def __getitem__(self, heads: slice | Sequence[int] | np.ndarray | jax.Array) -> Heads: ...
    def __getitem__(self, heads: Any) -> Any:
        """One head as the ordinary model `configure_model` built (int); some as `Heads` (list, slice, bool mask).

        An `nnx.Module` comes in evaluation mode, so that `heads[k](x)` is `heads(x)[k]`; `.train()` switches back.

        Raises:
          ArgumentError: there are no such heads, or none is picked.
        """
        if isinstance(heads, jax.Array | np.ndarray) and heads.ndim == 0:
            heads = heads.item()
        if is_int(heads):
            index = _place(heads, len(self))
            with self._own_width():
                trainable, state = jax.tree.map(lambda a: a[index], (self.trainable, self.state))
            return _model(self._aux.structure, trainable, state)
        try:
            picked = np.arange(len(self))[heads]
        except (IndexError, TypeError):
            picked = np.zeros(0, int)
        # None, True and nested lists are indices to NumPy, but no choice of heads.
        if np.ndim(picked) != 1 or not picked.size:
            raise ArgumentError(
                f"There are no such heads: heads[...]. Got {heads!r:.80}, expected ints below {len(self)}, a slice, or "
                f"a mask of {len(self)} bools, of one head or more. Fix: heads count from 0, in the order of the "
                "slices."
            )
        with self._own_width():
            trainable, state = jax.tree.map(lambda a: a[picked], (self.trainable, self.state))
        hparams = None if self.hparams is None else self.hparams.of_heads(picked)
        return Heads(trainable, state, self._aux.structure, self.ids[picked], hparams)

    def with_trainable(self, trainable: Any) -> Heads:
        """The same heads with other parameters, of the same structure and shapes, leaves `[H, ...]`."""
        return Heads(trainable, self.state, self._aux.structure, self.ids, self.hparams)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls every head's model, in evaluation mode, on the same arguments; outputs lead with `[H]`."""
        if jax.tree.leaves(self.trainable)[0].ndim < self._aux.ndim:
            return _call_one(self._aux.structure, self.trainable, self.state, args, kwargs)
        with self._own_width():
            return _call_all(self._aux.structure, self.trainable, self.state, args, kwargs)

    def predict(self, x: Any, batch_size: int = 256, reduce: str | None = None) -> Any:
        """Calls every head's model on many rows, batch by batch.

        Args:
          x: pytree of arrays `[rows, ...]`, handed to the model as its one argument.
          batch_size: rows at a time.
          reduce: None, or "mean" over heads: the ensemble.

        Returns:
          NumPy arrays `[H, rows, ...]`, or `[rows, ...]` with `reduce="mean"`.

        Raises:
          ArgumentError: there is no such reduction, or batch size.
          DataError: x holds no arrays, or arrays of unequal length.
        """
        if reduce not in (None, "mean"):
            raise ArgumentError(
                f"No such reduction: Heads.predict(reduce=). Got {reduce!r}, expected None or 'mean'. Fix: drop it."
            )
        if not is_int(batch_size, least=1):
            raise ArgumentError(
                f"A batch has no such size: Heads.predict(batch_size=). Got {batch_size!r}, expected an int of 1 or "
                "more. Fix: leave it out."
            )
        x = check_dataset(x, "predict", wide=self._is_wide)
        rows = num_rows(x)
        axis = 1 if reduce is None else 0
        outputs = []
        for start in range(0, rows, batch_size):
            output = self(jax.tree.map(lambda a, start=start: a[start : start + batch_size], x))
            outputs.append(jax.tree.map(lambda a: np.asarray(a if reduce is None else a.mean(axis=0)), output))
        return jax.tree.map(lambda *parts: np.concatenate(parts, axis=axis), *outputs)

    def save(self, path: str | Path) -> Path:
        """Writes the heads into a folder; what another save left there is replaced once the new one is whole.

        Raises:
          CheckpointError: it cannot be written.
        """
        hparams = {} if self.hparams is None else self.hparams.to_json()
        meta = {"kind": "heads", "ids": self.ids.tolist(), "hparams": hparams}
        tree = {"heads": {"trainable": self.trainable, "state": self.state}}
        return checkpoint.save(Path(path), 0, tree, meta, run="heads")

    def export(self, path: str | Path, head: int | None = None) -> Path:
        """Writes arrays by name into one file, for use without Hydrax: parameters and the models' other state.

        Args:
          path: ends in `.npz` (NumPy's own) or `.safetensors` (needs `pip install 'hydrax-heads[export]'`).
          head: writes this one alone, as its model has them; None: all, `[H, ...]`.

        Returns:
          The file.

        Raises:
          ArgumentError: there is no such head, or the file's name ends otherwise.
        """
        trainable, state = self.trainable, self.state
        if head is not None:
            place = _place(head, len(self))
            with self._own_width():
                trainable, state = jax.tree.map(lambda a: a[place], (trainable, state))
        leaves = leaves_by_path(trainable) | leaves_by_path(state)
        return export(dict(zip(dotted(leaves), leaves.values(), strict=True)), Path(path))

    @overload
    @classmethod
    def load(cls, path: str | Path, module: HeadModule, head: None = None) -> Heads: ...
    @overload
    @classmethod
    def load(cls, path: str | Path, module: HeadModule, head: int) -> Any: ...
    @classmethod
    def load(cls, path: str | Path, module: HeadModule, head: int | None = None) -> Any:
        """Reads heads that `save` wrote, or those of a run's checkpoint.

        Args:
          path: a folder of checkpoints (the newest is read), or of one step.
          module: the module they were trained with: it builds the structure.
          head: reads this one alone, without the others, and gives what `heads[head]` would; None: all.

        Raises:
          ArgumentError: there is no such head.
          CheckpointError: there is no checkpoint, it is damaged, or holds heads of another module.
        """
        return checkpoint.first_sound(Path(path), lambda step: cls._read(step, module, head))

    @classmethod
    def _read(cls, step: Path, module: HeadModule, head: int | None) -> Any:
        meta = checkpoint.read_meta(step)
        ids = np.asarray(meta["ids"], np.int32)
        flight = Preflight.of_model(
            HeadProgram(module),
            HeadInputs(
                np.zeros(1, np.int32), {n: jnp.asarray(v.values[:1]) for n, v in per_head_values(module).items()}
            ),
        )
        axes = (len(ids),) if head is None else ()
        parts = jax.tree.map(lambda a: jax.ShapeDtypeStruct((*axes, *a.shape), a.dtype), flight.parts)
        like = {"heads": {"trainable": parts[0], "state": parts[1]}}
        dtypes = {tuple(leaf["path"]): leaf["dtype"] for leaf in meta["leaves"]}
        with jax.enable_x64("float64" in dtypes.values()):
            # Precision is the run's, not the module's: floats come in the width they were trained in.
            own = [_as_saved(leaf, dtypes.get(path)) for path, leaf in leaves_by_path(like).items()]
            like = jax.tree.unflatten(jax.tree.structure(like), own)
            structure = flight.program.structure
            assert structure is not None
            place = None if head is None else _place(head, len(ids))
            found = checkpoint.load(step, like, head=place)["heads"]
        if head is not None:
            return _model(structure, found["trainable"], found["state"])
        return cls(found["trainable"], found["state"], structure, ids, _kept(meta))

    @property
    def _is_wide(self) -> bool:
        return any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(self.trainable))

    def _own_width(self) -> contextlib.AbstractContextManager[Any]:
        """Heads of a "64-true" run stay in 64 bits after it; jax would narrow them."""
        return jax.enable_x64(True) if self._is_wide else contextlib.nullcontext()

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.trainable)) // max(len(self), 1)
        return f"Heads(heads={len(self)}, parameters={count} each)"

    def tree_flatten(self) -> tuple[tuple[Any, Any], _Aux]:
        """For JAX, to which heads are a pytree: the arrays, and what they have in common."""
        return (self.trainable, self.state), self._aux

    @classmethod
    def tree_unflatten(cls, aux: _Aux, children: tuple[Any, Any]) -> Heads:
        """For JAX: what `tree_flatten` gave, back.

        Args:
          aux: what the heads have in common.
          children: the arrays.
        """
        heads = object.__new__(cls)
        heads.trainable, heads.state = children
        heads._aux = aux
        return heads


class _Aux:
    """What a Heads holds besides arrays; hashable, so that jax can keep compiled calls."""

    def __init__(self, structure: Structure, ids: np.ndarray, ndim: int, hparams: Hyperparameters | None) -> None:
        self.structure, self.ids, self.ndim, self.hparams = structure, ids, ndim, hparams

    # Hyper-parameters are a note on heads, and no part of what they compute.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Aux) and self.structure == other.structure and np.array_equal(self.ids, other.ids)

    def __hash__(self) -> int:
        return hash((self.structure, self.ids.tobytes()))


def export_heads(path: str | Path, file: str | Path, head: int | None = None) -> Path:
    """Writes the heads of a checkpoint by name into one file, as `Heads.export` does; their module is not needed.

    Args:
      path: a run's checkpoints or `Heads.save`'s folder; the newest step is read.
      file: ends in `.npz` or `.safetensors`.
      head: writes this one alone, and reads nothing of the others; None: all, `[H, ...]`.

    Returns:
      The file.

    Raises:
      ArgumentError: there is no such head, or the file's name ends otherwise.
      CheckpointError: there is no checkpoint, or it is damaged.
    """

    def read(step: Path) -> dict[str, np.ndarray]:
        count = len(checkpoint.read_meta(step)["ids"])
        return checkpoint.load_models(step, None if head is None else _place(head, count))

    return export(checkpoint.first_sound(Path(path), read), Path(file))


def load_with(kind: type[HeadModule], path: str | Path, head: int | None, given: Mapping[str, Any]) -> Any:
    """Reads heads as `Heads.load` does, with a module built from the hyper-parameters that were saved with them.

    Args:
      kind: the class of the module they were trained with.
      given: arguments of its `__init__` that count instead of the saved ones.
    """

    def read(step: Path) -> Any:
        arguments = _arguments(kind, {**_kept(checkpoint.read_meta(step)), **given}, given, step)
        return Heads._read(step, kind(**arguments), head)

    return checkpoint.first_sound(Path(path), read)


def _kept(meta: Mapping[str, Any]) -> Hyperparameters:
    return Hyperparameters.from_json(meta["hparams"])


def _arguments(
    kind: type[HeadModule], values: Mapping[str, Any], given: Mapping[str, Any], step: Path
) -> dict[str, Any]:
    """Those of the values that `kind.__init__` takes; a base class may have kept others of its own."""
    parameters = [] if kind.__init__ is object.__init__ else list(inspect.signature(kind).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(values)
    named = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
    names = {parameter.name for parameter in named}
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ModuleError(
            f"Unknown argument: {kind.__name__}.load_from_checkpoint({unknown[0]}=...). Got {unknown[0]!r}, expected "
            f"an argument of {kind.__name__}.__init__: {', '.join(sorted(names)) or 'none'}. Fix: leave it out."
        )
    missing = [p.name for p in named if p.default is p.empty and p.name not in values]
    if missing:
        raise ModuleError(
            f"A checkpoint does not hold an argument: {kind.__name__}.load_from_checkpoint, {step}. Got "
            f"{', '.join(sorted(values)) or 'none'}, expected {missing[0]!r} too. Fix: pass {missing[0]}=..., and call "
            "self.save_hyperparameters() in __init__, which keeps numbers, text, lists, tuples and dicts of them."
        )
    return {name: value for name, value in values.items() if name in names}


def _as_saved(leaf: Any, dtype: str | None) -> Any:
    """The shape with the floating dtype it was saved in."""
    if dtype is None or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))


def _place(head: Any, count: int) -> int:
    """A head's place from 0; negative ones count from the end."""
    # jax would silently give the last head for an index past the end.
    if not is_int(head, -count) or head >= count:
        raise ArgumentError(
            f"There is no such head: heads[{head}]. Got {head!r}, expected {-count} to {count - 1}. Fix: heads count "
            "from 0, in the order of the slices."
        )
    return int(head) % count


def _model(structure: Structure, trainable: Any, state: Any) -> Any:
    model = structure.merge(trainable, state)
    structure.set_mode(model, train=False)
    return model


def _call_one(structure: Structure, trainable: Any, state: Any, args: Any, kwargs: Any) -> Any:
    model = _model(structure, trainable, state)
    if not callable(model):
        raise ArgumentError(
            f"A model cannot be called: heads(...). Got {type(model).__name__}, expected a callable. Fix: apply your "
            "own function to heads[k], or under jax.vmap to heads.trainable."
        )
    return model(*args, **kwargs)


@functools.partial(jax.jit, static_argnums=0)
def _call_all(structure: Structure, trainable: Any, state: Any, args: Any, kwargs: Any) -> Any:
    return jax.vmap(lambda t, s: _call_one(structure, t, s, args, kwargs))(trainable, state)
