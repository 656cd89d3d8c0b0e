"""Trained heads: index, select, call, predict, save, load."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from hydrax import checkpoint
from hydrax.arguments import checked_call, checked_calls, is_int, naming
from hydrax.data import check_dataset, check_form, num_rows
from hydrax.engine import check_per_head, head_inputs, refuse_forked
from hydrax.errors import ArgumentError, ModuleError
from hydrax.files import as_path
from hydrax.results.export import export
from hydrax.results.held_out import check_reduction, stacked
from hydrax.step import (
    DeviceRows,
    HeadInputs,
    HeadModule,
    HeadProgram,
    Hyperparameters,
    Preflight,
    StepInput,
    Structure,
    has_transform,
    of_heads,
    per_head_values,
    with_transform,
)
from hydrax.trees import dotted, is_key, leaves_by_path, random_state

_TRANSFORMED = "batch_transform"  # Marks saved heads that learnt from the batches that a data module transformed.


@jax.tree_util.register_pytree_node_class
@checked_calls
class Heads:
    """The models of H heads, as one batch of models.

    A pytree whose leaves are the stacked arrays `[H, ...]`, so `jax.tree`, `jax.vmap` and serialisers work on it. Under
    `jax.vmap` it is one head, and a call runs the model of that head.

    Args:
      trainable: parameters, leaves `[H, ...]`.
      state: the other arrays of the models, leaves `[H, ...]`.
      structure: everything of the models but their arrays.
      ids: int32[H], the heads' ids.
      hparams: the hyper-parameters that the heads were trained with, or None if they are unknown.
      module: the module that they were trained with, whose `predict_step` predicts; None if it is unknown.
    """

    def __init__(
        self,
        trainable: Any,
        state: Any,
        structure: Structure,
        ids: np.ndarray,
        hparams: Hyperparameters | None = None,
        module: HeadModule | None = None,
    ) -> None:
        self.trainable, self.state = trainable, state
        self._aux = _Aux(structure, np.asarray(ids), jax.tree.leaves(trainable)[0].ndim, hparams, module)

    @property
    def ids(self) -> np.ndarray:
        """int32[H], the heads' ids, as in `Slices.ids`."""
        return self._aux.ids

    @property
    def hparams(self) -> Hyperparameters | None:
        """The hyper-parameters that the heads were trained with; a `PerHead` has one value for each of these heads."""
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
        """Returns one head as `configure_model` built it (int), or some as `Heads` (list, slice, bool mask).

        An `nnx.Module` is in evaluation mode, so that `heads[k](x)` is `heads(x)[k]`; `.train()` switches back.

        Raises:
          ArgumentError: there are no such heads, or none is selected.
        """
        if isinstance(heads, jax.Array | np.ndarray) and heads.ndim == 0 and jnp.issubdtype(heads.dtype, jnp.integer):
            heads = heads.item()
        if is_int(heads):
            index = _place(heads, len(self))
            with self._own_width():
                trainable, state = jax.tree.map(lambda a: a[index], (self.trainable, self.state))
            return _model(self._aux.structure, trainable, state)
        try:
            picked = np.arange(len(self))[heads]
        except (IndexError, OverflowError, TypeError, ValueError):
            picked = np.zeros(0, int)
        # NumPy also takes None, True and nested lists as indices, but they select no heads.
        if np.ndim(picked) != 1 or not picked.size:
            raise ArgumentError(
                f"There are no such heads: heads[...]. Got {heads!r:.80}, expected ints below {len(self)}, a slice, or "
                f"a mask of {len(self)} bools, of one head or more. Fix: heads count from 0, in the order of the "
                "slices."
            )
        with self._own_width():
            trainable, state = jax.tree.map(lambda a: a[picked], (self.trainable, self.state))
        hparams = None if self.hparams is None else self.hparams.of_heads(picked)
        module = self._aux.module and of_heads(self._aux.module, picked)
        return Heads(trainable, state, self._aux.structure, self.ids[picked], hparams, module)

    def with_trainable(self, trainable: Any) -> Heads:
        """Returns the same heads with other parameters of the same structure and shapes, leaves `[H, ...]`."""
        return Heads(trainable, self.state, self._aux.structure, self.ids, self.hparams, self._aux.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model of every head, in evaluation mode, on the same arguments; returns outputs `[H, ...]`."""
        refuse_forked()
        if jax.tree.leaves(self.trainable)[0].ndim < self._aux.ndim:
            return _call_one(self._aux.structure, self.trainable, self.state, args, kwargs)
        with self._own_width():
            return _call_all(self._aux.structure, self.trainable, self.state, args, kwargs)

    def predict(self, x: Any, *more: Any, batch_size: int = 256, reduce: str | None = None, **named: Any) -> Any:
        """Predicts many rows with every head, batch by batch.

        A dict of columns or a table, such as a dataset, is predicted by the `predict_step` of the heads' module, as by
        `Trainer.predict`. Anything else is passed to the model: one array, several, or a pytree.

        Args:
          x: columns `[rows, ...]` by name, or the first argument of the model, a pytree of arrays `[rows, ...]`.
          more: its other arguments, in the same form.
          batch_size: rows per call.
          reduce: None; "mean", the mean over heads of what `predict_step` or the model returns; or "mean_probability",
            the mean over heads of the probabilities whose logits it returns. See `Trainer.predict`.
          named: keyword arguments of the model, in the same form as `x`.

        Returns:
          NumPy arrays `[H, rows, ...]`, or `[rows, ...]` with a reduction.

        Raises:
          ArgumentError: `reduce` or `batch_size` is invalid.
          DataError: x holds no arrays, or arrays of unequal length.
          ModuleError: `predict_step` fails on these columns.
        """
        if len(more) == 1 and isinstance(more[0], int):  # the batch size used to be the second argument
            batch_size, more = more[0], ()
        check_reduction(reduce, "Heads.predict")
        if not is_int(batch_size, least=1):
            raise ArgumentError(
                f"Invalid batch size: Heads.predict(batch_size=). Got {batch_size!r}, expected an int of 1 or "
                "more. Fix: leave it out."
            )
        several = bool(more or named)
        given = ((x, *more), named) if several else check_form(x, "predict")
        given = check_dataset(given, "predict", wide=self._is_wide)
        rows = num_rows(given)
        if isinstance(given, Mapping) and self._aux.module is not None:
            predict = self._predict_step(given, min(batch_size, rows))
        elif several:
            predict = lambda batch, _: self(*batch[0], **batch[1])  # noqa: E731
        else:
            predict = lambda batch, _: self(batch)  # noqa: E731

        def batches() -> Iterator[Any]:
            for start in range(0, rows, batch_size):
                batch = jax.tree.map(lambda a, start=start: a[start : start + batch_size], given)
                numbers = np.arange(start, min(start + batch_size, rows), dtype=np.int32)
                with self._own_width():
                    yield predict(batch, numbers), numbers, np.ones(numbers.size, bool)

        return stacked(batches(), reduce)

    def _predict_step(self, columns: Any, batch_size: int) -> Callable[[Any, np.ndarray], Any]:
        """Returns a function of a batch and its row numbers that runs `predict_step` of all heads."""
        module = self._aux.module
        assert module is not None
        inputs = head_inputs(self.ids, check_per_head(module, len(self)))
        floats = {str(leaf.dtype) for leaf in jax.tree.leaves(self.trainable)}
        precision = "64-true" if self._is_wide else "bf16-true" if floats == {"bfloat16"} else "32-true"
        with self._own_width():
            # Traced first, as the Trainer does, for its messages.
            flight = Preflight.of_model(HeadProgram(module, precision=precision), inputs)
            for slots in {batch_size, num_rows(columns) % batch_size} - {0}:
                flight.prediction(columns, slots)
        program, key = dataclasses.replace(flight.program, structure=self._aux.structure), jax.random.key(0)

        @jax.jit
        def run(head: Any, inputs: HeadInputs, batch: Any, rows: Any, number: Any) -> Any:
            def one(head: Any, inputs: HeadInputs) -> Any:
                slots = jnp.arange(len(rows), dtype=jnp.int32)
                data, mask = DeviceRows(batch, rows), jnp.ones(len(rows), bool)
                own = program.eval_key(inputs, key, number)
                return program.predict(head, StepInput(inputs, own, data, slots, mask, jnp.int32(0)))

            return jax.vmap(one)(head, inputs)

        parts = self.trainable, self.state
        return lambda batch, rows: run(parts, inputs, batch, rows, np.int32(rows[0] // batch_size))

    def save(self, path: str | Path) -> Path:
        """Writes the heads to a folder; heads saved there before are replaced once the new ones are complete.

        Raises:
          CheckpointError: the folder cannot be written, or holds the checkpoints of a run or folders of others.
        """
        hparams = {} if self.hparams is None else self.hparams.to_json()
        meta = {"kind": "heads", "ids": self.ids.tolist(), "hparams": hparams}
        tree: dict[str, Any] = {"heads": {"trainable": self.trainable, "state": self.state}}
        if self._aux.module is not None and has_transform(self._aux.module):
            tree[_TRANSFORMED] = np.zeros(0, bool)
        return checkpoint.save(as_path("Heads.save(path=)", path), 0, tree, meta, run="heads")

    def export(self, path: str | Path, head: int | None = None) -> Path:
        """Writes parameters and other state of the models by name to one file, for use without Hydrax.

        A name is the path of an array, as in `c1.kernel`. If two paths would get the same name, a dot inside a key is
        written with a backslash before it. The random state of dropout is left out: only training draws from it.

        Args:
          path: ends in `.npz` (NumPy's own) or `.safetensors` (needs `pip install 'hydrax-heads[export]'`).
          head: writes only this head, with the shapes of its model; None writes all, `[H, ...]`.

        Returns:
          The file.

        Raises:
          ArgumentError: there is no such head, or the name of the file ends in something else.
        """
        trainable, state = self.trainable, self.state
        if head is not None:
            place = _place(head, len(self))
            with self._own_width():
                trainable, state = jax.tree.map(lambda a: a[place], (trainable, state))
        leaves = leaves_by_path(trainable) | leaves_by_path(state)
        drawn = random_state(path for path, leaf in leaves.items() if is_key(leaf))
        leaves = {path: leaf for path, leaf in leaves.items() if path not in drawn}
        return export(dict(zip(dotted(leaves), leaves.values(), strict=True)), as_path("Heads.export(path=)", path))

    @overload
    @classmethod
    def load(cls, path: str | Path, module: HeadModule, head: None = None) -> Heads: ...
    @overload
    @classmethod
    def load(cls, path: str | Path, module: HeadModule, head: int) -> Any: ...
    @classmethod
    def load(cls, path: str | Path, module: HeadModule, head: int | None = None) -> Any:
        """Reads heads that `save` wrote, or those in the checkpoint of a run.

        Args:
          path: a folder of checkpoints, of which the newest is read, or the folder of one step.
          module: the module that the heads were trained with; it builds the structure.
          head: reads only this head and returns what `heads[head]` would; None reads all.

        Raises:
          ArgumentError: there is no such head.
          CheckpointError: there is no checkpoint, it is damaged, or holds heads of another module.
        """
        place = as_path("Heads.load(path=)", path)
        return checkpoint.first_sound(place, lambda step: cls._read(step, module, head))

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
        # A run may train other parameters than those to evaluate: then it holds both.
        source = "evaluated" if any(leaf["path"][0] == "evaluated" for leaf in meta["leaves"]) else "heads"
        like = {"heads": {"state": parts[1]}}
        like.setdefault(source, {})["trainable"] = parts[0]
        dtypes = {tuple(leaf["path"]): leaf["dtype"] for leaf in meta["leaves"]}
        with jax.enable_x64(bool({"float64", "complex128"} & set(dtypes.values()))):
            # The run decides the precision, not the module: floats keep the width that they were trained in.
            own = [_as_saved(leaf, dtypes.get(path)) for path, leaf in leaves_by_path(like).items()]
            like = jax.tree.unflatten(jax.tree.structure(like), own)
            structure = flight.program.structure
            assert structure is not None
            place = None if head is None else _place(head, len(ids))
            found = checkpoint.load(step, like, head=place, meta=meta)
            found = {"trainable": found[source]["trainable"], "state": found["heads"]["state"]}
        if head is not None:
            return _model(structure, found["trainable"], found["state"])
        saw_transformed = _TRANSFORMED in meta.get("fingerprint", {}) or (_TRANSFORMED,) in dtypes
        if saw_transformed and not has_transform(module):
            module = with_transform(module, _refuse_raw_rows)
        return cls(found["trainable"], found["state"], structure, ids, _kept(meta), module)

    @property
    def _is_wide(self) -> bool:
        return any(leaf.dtype in (jnp.float64, jnp.complex128) for leaf in jax.tree.leaves(self.trainable))

    def _own_width(self) -> contextlib.AbstractContextManager[Any]:
        """Keeps heads of a "64-true" run in 64 bits after it; JAX would narrow them."""
        return jax.enable_x64(True) if self._is_wide else contextlib.nullcontext()

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.trainable)) // max(len(self), 1)
        return f"Heads(heads={len(self)}, parameters={count} each)"

    def __copy__(self) -> Heads:
        return self.tree_unflatten(self._aux, (self.trainable, self.state))

    def __deepcopy__(self, memo: dict[int, Any]) -> Heads:
        # JAX arrays never change; heads that took turns in memory are NumPy maps of files.
        own = jax.tree.map(lambda a: a if isinstance(a, jax.Array) else np.array(a), (self.trainable, self.state))
        return self.tree_unflatten(self._aux, own)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what pickle stores.

        Raises:
          ArgumentError: the model holds something that cannot be pickled, such as a lambda.
        """
        try:
            pickle.dumps(self._aux)
        except Exception as error:  # the classes and functions of a model are the user's
            raise ArgumentError(
                f"Heads cannot be pickled: their model. Got {type(error).__name__}: {error}, expected classes and "
                "functions that can be imported. Fix: write them with heads.save(path), and read them with "
                "Heads.load(path, module)."
            ) from error
        return vars(self)

    def tree_flatten(self) -> tuple[tuple[Any, Any], _Aux]:
        """Splits the heads into arrays and everything else, for JAX, to which they are a pytree."""
        return (self.trainable, self.state), self._aux

    @classmethod
    def tree_unflatten(cls, aux: _Aux, children: tuple[Any, Any]) -> Heads:
        """Rebuilds heads from what `tree_flatten` returned, for JAX.

        Args:
          aux: everything but the arrays.
          children: the arrays.
        """
        heads = object.__new__(cls)
        heads.trainable, heads.state = children
        heads._aux = aux
        return heads


class _Aux:
    """Everything in Heads except the arrays; hashable, so that JAX can cache compiled calls."""

    def __init__(
        self,
        structure: Structure,
        ids: np.ndarray,
        ndim: int,
        hparams: Hyperparameters | None,
        module: HeadModule | None,
    ) -> None:
        self.structure, self.ids, self.ndim, self.hparams, self.module = structure, ids, ndim, hparams, module

    def __getstate__(self) -> dict[str, Any]:
        # Without a module that cannot be pickled, such as one of a class inside a function, the models still can.
        try:
            pickle.dumps(self.module)
        except Exception:  # whatever the user's class raises
            return {**vars(self), "module": None}
        return vars(self)

    # Hyper-parameters and module describe heads and do not change what a call of them computes, so they do not count.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Aux) and self.structure == other.structure and np.array_equal(self.ids, other.ids)

    def __hash__(self) -> int:
        return hash((self.structure, self.ids.tobytes()))


@checked_call
def export_heads(path: str | Path, file: str | Path, head: int | None = None) -> Path:
    """Writes the heads of a checkpoint by name to one file, as `Heads.export` does, but without their module.

    Args:
      path: the checkpoints of a run, or a folder that `Heads.save` wrote; the newest step is read.
      file: ends in `.npz` or `.safetensors`.
      head: reads and writes only this head; None takes all, `[H, ...]`.

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
    """Reads heads as `Heads.load` does, and builds their module from the hyper-parameters saved with them.

    Args:
      kind: the class of the module that the heads were trained with.
      given: arguments of its `__init__` that replace the saved ones.
    """

    def read(step: Path) -> Any:
        arguments = _arguments(kind, {**_kept(checkpoint.read_meta(step)), **given}, given, step)
        return Heads._read(step, kind(**arguments), head)

    return checkpoint.first_sound(as_path("load_from_checkpoint(path=)", path), read)


def _kept(meta: Mapping[str, Any]) -> Hyperparameters:
    return Hyperparameters.from_json(meta["hparams"])


def _arguments(
    kind: type[HeadModule], values: Mapping[str, Any], given: Mapping[str, Any], step: Path
) -> dict[str, Any]:
    """Selects the values that `kind.__init__` takes; the class it derives from may have saved others."""
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


def _refuse_raw_rows(batch: Any) -> Any:
    raise ArgumentError(
        "Rows are not transformed as in training: Heads.predict. Got columns for heads that were loaded, expected "
        "what the batch_transform of their data module returns. Fix: call trainer.predict(module, datamodule, "
        "heads=heads), or heads[k] on the columns of datamodule.transformed(dataset, k)."
    )


def _as_saved(leaf: Any, dtype: str | None) -> Any:
    """Converts a floating-point leaf to the dtype that it was saved in."""
    if dtype is None or not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))


def _place(head: Any, count: int) -> int:
    """Checks the place of a head and counts it from 0; negative places count from the end."""
    # JAX would silently return the last head for an index past the end.
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
    with naming("the model of one head", ArgumentError):
        return model(*args, **kwargs)


@functools.partial(jax.jit, static_argnums=0)
def _call_all(structure: Structure, trainable: Any, state: Any, args: Any, kwargs: Any) -> Any:
    return jax.vmap(lambda t, s: _call_one(structure, t, s, args, kwargs))(trainable, state)
