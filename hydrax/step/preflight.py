"""Preflight: traces the user's functions for one head, by shapes alone, before anything compiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.arguments import is_number
from hydrax.errors import ModuleError
from hydrax.step.dependence import dependent
from hydrax.step.explain import explained
from hydrax.step.head_program import HeadProgram
from hydrax.step.hparams import Hyperparameters
from hydrax.step.logged import accumulator_of, empty_accumulator, is_metric, is_whole
from hydrax.step.model import Structure
from hydrax.step.module import HeadModule, bind, has_own_update
from hydrax.step.optimizer import configure, update_with
from hydrax.step.state import DeviceRows, HeadInputs, HeadsState, StepInput
from hydrax.trees import is_key

# A shape alone: an actual key would be computed on the device.
_KEY = jax.eval_shape(lambda: jax.random.key(0))
_STEP = jax.ShapeDtypeStruct((), jnp.int32)


class TrainingShapes(NamedTuple):
    """What tracing the training of one head finds.

    Attributes:
      epoch: empty accumulators for the values that are logged on_epoch, by name.
      state: shapes of the state of one head.
      step: the step of one head as a jaxpr, in JAX's own operations.
      names: the names that the user's step logs.
    """

    epoch: dict[str, Any]
    state: HeadsState
    step: Any
    names: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Preflight:
    """The shapes of one head, from which every trace below starts.

    Nothing touches the device: a mistake in the user's functions is reported within seconds, by the name of the method
    and the shapes that it received, however large the run is.

    Attributes:
      program: the functions of one head, with the structure of its model.
      inputs: shapes of the head's id and `PerHead` values.
      parts: shapes of its `(trainable, state)`.
    """

    program: HeadProgram
    inputs: HeadInputs
    parts: Any

    @classmethod
    def of_model(cls, program: HeadProgram, inputs: HeadInputs) -> Preflight:
        """Traces `configure_model`.

        Args:
          program: the functions of one head; its structure is ignored.
          inputs: arrays or shapes of all heads, `[H, ...]`.

        Raises:
          ModuleError: `configure_model` fails, or the model has no parameters.
        """
        # NumPy's float64 becomes jax's float32 unless the run is in 64 bits; jax 0.11 warns of it in shapes.
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], jax.dtypes.canonicalize_dtype(a.dtype)), inputs)
        found: list[Structure] = []

        def build(inputs: HeadInputs, key: Any) -> Any:
            parts = program.build(inputs, key)
            found.append(parts.structure)  # not the arrays: a tracer must not outlive its trace
            return parts[:2]

        with explained(program.module, "configure_model", "a PRNG key"):
            parts = jax.eval_shape(build, one, _KEY)
        return cls(dataclasses.replace(program, structure=found[-1]), one, parts)

    def training(
        self, data: Any, batch_size: int, accumulate: int, epoch_means: Collection[str] = ()
    ) -> TrainingShapes:
        """Traces `training_step` or `update`, `configure_optimizers` and the second tier of callbacks.

        Args:
          data: the training dataset, columns `[N, ...]`, as arrays or shapes.
          batch_size: slots B of a batch.
          accumulate: micro-batches A of a step.
          epoch_means: names to average over the epoch even if they are logged by step only.
        """
        shapes = _shapes(data)
        # First as an evaluation: what is logged on_epoch must be known before the state of a head has a form.
        accumulators = self.evaluation("training", shapes, batch_size, train=True)
        flags = self.program.logged["training"]
        epoch = {name: a for name, a in accumulators.items() if flags[name].on_epoch or name in epoch_means}
        _refuse_lists(self.program.module, self.inputs, self.parts[0])
        # Traced apart from the step, so that an error names this method.
        with explained(self.program.module, "configure_optimizers", "traced hyper-parameters"):
            args = self.inputs, _KEY, epoch
            init, state = jax.make_jaxpr(self.program.init, return_shape=True)(*args)
        own = dependent(init, (*jax.tree.map(lambda _: True, args[:2]), jax.tree.map(lambda _: False, epoch)), state)
        _refuse_shared_keys(self.program.module, state.opt_state, own.opt_state)
        with explained(self.program.module, self._training_method, _one_head_view(shapes, batch_size)):
            step = jax.make_jaxpr(self.program.train)(state, self._given(shapes, accumulate, batch_size))
        jax.eval_shape(self.program.evaluation_parameters, self.inputs, state)
        return TrainingShapes(epoch, state, step, frozenset(accumulators))

    @property
    def _training_method(self) -> str:
        return "update" if has_own_update(self.program.module) else "training_step"

    def evaluation(self, stage: str, data: Any, batch_size: int, train: bool = False) -> dict[str, Any]:
        """Traces the step of a stage, and returns empty accumulators for what it logs, by name; a `WholeSet` in shapes.

        Args:
          stage: "training", "validation" or "test".
          data: the dataset, columns `[N, ...]`, as arrays or shapes.
          batch_size: slots B of a batch.
          train: whether the model is in training mode.
        """
        shapes = _shapes(data)

        # Otherwise everything behind a batch norm would seem to be computed with regard to the mask.
        program = dataclasses.replace(self.program, masks_statistics=False)

        def run(head: Any, given: StepInput) -> Any:
            if train and has_own_update(program.module):
                return program.logged_by_update(head, given)
            return program.logs(stage, head, given, train)

        method = self._training_method if train else f"{stage}_step"
        with explained(self.program.module, method, _one_head_view(shapes, batch_size)):
            args = self.parts, self._given(shapes, batch_size)
            traced, logs = jax.make_jaxpr(run, return_shape=True)(*args)
        if padding := self.program.padding.get(stage):
            self._refuse_counted_padding(stage, method, padding, (traced, args, logs))
        # What the host computes keeps its shapes, `[B, ...]`.
        return {
            name: value if is_whole(value) else empty_accumulator(jax.eval_shape(accumulator_of, value, args[1].mask))
            for name, value in logs.items()
        }

    def _refuse_counted_padding(self, stage: str, method: str, padding: str, traced: Any) -> None:
        """Refuses a logged value that is computed from the rows of a batch without regard to its padding.

        Args:
          stage: "training", "validation" or "test".
          method: name of the traced method.
          padding: why a slot can be padding.
          traced: the jaxpr of the method, its arguments, and what it logs by name, in shapes.
        """
        jaxpr, args, logs = traced
        blank, given = jax.tree.map(lambda _: False, args)

        def uses(**marked: Any) -> dict[str, bool]:
            found = dependent(jaxpr, (blank, given._replace(**marked)), logs)
            return {name: any(jax.tree.leaves(one)) for name, one in found.items()}

        of_rows = uses(rows=True, data=jax.tree.map(lambda _: True, given.data))
        of_mask = uses(mask=True)
        for name, entry in self.program.logged[stage].items():
            metric = is_metric(logs[name])
            # A metric is made with the mask; an update logs losses and gradients whose padding its head has left out.
            if entry.per_slot or not of_rows[name] or ((metric or method == "update") and of_mask[name]):
                continue
            where = f"self.log({name!r}) in {method}"
            if metric:
                raise ModuleError(
                    f"A logged metric would count padding: {where}. Got one made without ctx.mask, expected one that "
                    f"leaves slots out, since {padding}. Fix: pass mask=ctx.mask where you make the metric."
                )
            raise ModuleError(
                f"A logged scalar would count padding: {where}. Got a scalar, expected one value for each slot, since "
                f"{padding}. Fix: log the values [B] and let Hydrax average, or average with ctx.mask yourself and log "
                "jnp.broadcast_to(value, ctx.mask.shape)."
            )

    def prediction(self, data: Any, batch_size: int) -> Any:
        """Traces `predict_step`, whose output must have the slots as its leading axis; returns its shapes."""
        shapes = _shapes(data)
        with explained(self.program.module, "predict_step", _one_head_view(shapes, batch_size)):
            output = jax.eval_shape(self.program.predict, self.parts, self._given(shapes, batch_size))
        # Padding slots are cut off by the caller, which needs the slots in front.
        for leaf in jax.tree.leaves(output) or [None]:
            if leaf is None or leaf.shape[:1] != (batch_size,):
                raise ModuleError(
                    f"A prediction has the wrong shape: {type(self.program.module).__name__}.predict_step. Got "
                    f"{'nothing' if leaf is None else _form(leaf)} for one head, expected [{batch_size}, ...], one "
                    "entry for each slot. Fix: keep the leading axis of the batch."
                )
        return output

    def _given(self, data: Any, *slots: int) -> StepInput:
        """Shapes of what a step reads, with these axes of slots."""
        rows, mask = (jax.ShapeDtypeStruct(slots, dtype) for dtype in (jnp.int32, jnp.bool_))
        return StepInput(self.inputs, _KEY, DeviceRows(data), rows, mask, _STEP)


def _refuse_shared_keys(module: HeadModule, opt_state: Any, own: Any) -> None:
    """Refuses an optimiser whose random numbers would be the same in all heads.

    Args:
      opt_state: its state, in shapes.
      own: for each leaf of the state whether it is computed from what distinguishes heads.
    """
    for (path, leaf), differs in zip(jax.tree.leaves_with_path(opt_state), jax.tree.leaves(own), strict=True):
        if is_key(leaf) and not differs:
            raise ModuleError(
                "An optimiser draws the same random numbers in all heads: "
                f"{type(module).__name__}.configure_optimizers, {jax.tree_util.keystr(path)}. Got one key for all, "
                "expected a key for each head. Fix: write `def configure_optimizers(self, key)` and pass on the key, "
                "as in optax.noisy_sgd(0.1, key=key)."
            )


def _refuse_lists(module: HeadModule, inputs: HeadInputs, trainable: Any) -> None:
    """Refuses a list or array that an optimiser takes as one number, such as `lr=[0.1, 0.01]`.

    A list fails somewhere inside the optimiser. An array is worse: if its length fits an axis of a parameter, it gives
    each column another learning rate, without a word.
    """

    def shapes_with(name: str, value: Any) -> Any:
        """Shapes of an update with another value of a hyper-parameter; None if there is no update with it."""

        def update(inputs: HeadInputs, trainable: Any) -> Any:
            bound = bind(module, inputs.per_head, "configure")[0]
            vars(bound)["_hparams"] = Hyperparameters({**bound.hparams, name: value})
            optimizer = configure(bound, jax.random.key(0))
            extra = {"value": jnp.zeros(()), "grad": trainable, "value_fn": lambda _: jnp.zeros(())}
            return update_with(module, optimizer, trainable, optimizer.init(trainable), trainable, extra=extra)[0]

        try:
            return jax.tree.map(jnp.shape, jax.eval_shape(update, inputs, trainable))
        except Exception:
            return None

    for name, value in module.hparams.items():
        if not _lists_numbers(value):
            continue
        # A length that no parameter has, so that nothing broadcasts by chance.
        length = 1 + max([len(value), *(side for leaf in jax.tree.leaves(trainable) for side in leaf.shape)])
        longer = type(value)([1.0] * length) if isinstance(value, list | tuple) else np.ones(length)
        shapes = jax.tree.map(jnp.shape, trainable)
        if shapes_with(name, longer) != shapes and shapes_with(name, 1.0) == shapes:
            raise ModuleError(
                f"An optimiser needs one number for each head: hparams.{name} of {type(module).__name__}. Got "
                f"{type(value).__name__} of {len(value)} values, expected a number or a hydrax.PerHead. Fix: pass "
                f"{name}=hx.PerHead([...]), one value for each head."
            )


def _lists_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) > 1 and all(map(is_number, value))
    return (
        isinstance(value, np.ndarray | jax.Array) and value.ndim == 1 and len(value) > 1 and value.dtype.kind in "fiu"
    )


def _one_head_view(shapes: Any, batch_size: int) -> str:
    """Describes the batch of one head, such as `image float32[32, 8, 8], label int32[32]`."""
    leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") or "batch" for path, _ in leaves]
    forms = [_form(jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype)) for _, leaf in leaves]
    return ", ".join(f"{name} {form}" for name, form in zip(names, forms, strict=True))


def _form(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
