"""One head's start, update, evaluation and prediction: the user's module as pure functions of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hydrax.errors import CallbackError, HydraxError, ModuleError
from hydrax.step.checks import check_same_form, read_logged, read_loss, read_metrics
from hydrax.step.context import Context
from hydrax.step.finite import is_finite
from hydrax.step.logged import Logged, Recorder, accumulator_of, empty_accumulator, is_metric, masked_mean
from hydrax.step.lowering.lowering import Lowering, lower
from hydrax.step.model import Parts, Structure, split
from hydrax.step.module import HeadModule, bind, has_own_update
from hydrax.step.state import HeadInputs, HeadsState, StepInput, select
from hydrax.step.step_callback import StepCallback, StepInfo
from hydrax.step.training_head import Tools, TrainingHead, finished, start

# Keys that no training step uses: a head's key is folded with the step, which stays below 2**31.
_INIT_KEY, _EVAL_KEY = np.uint32(2**32 - 1), np.uint32(2**32 - 2)
_LOSS_NAMES = {"training": "train_loss", "validation": "val_loss", "test": "test_loss"}
_FLOATS = {"bf16-mixed": jnp.bfloat16, "bf16-true": jnp.bfloat16, "64-true": jnp.float64}


@dataclasses.dataclass(frozen=True)
class HeadProgram:
    """What one head does, as pure functions; `program.py` adds the head axis.

    Attributes:
      module: the user's module.
      structure: what all heads' models have in common; None before `configure_model` was traced.
      callbacks: callbacks with a second tier, by key.
      precision: "32-true", "bf16-mixed", "bf16-true" or "64-true".
      clip_val: bound of the gradient of this head, or None.
      clip_algorithm: "norm" or "value".
      padding: for "training", "validation" and "test": why a slot can be padding there, or None where none can.
      may_idle: whether a head may have no live slot in a step.
      watched: whether training says which heads became NaN or infinite.
      lowering: in which forms the operations of the user's functions are computed.
    """

    module: HeadModule
    structure: Structure | None = None
    callbacks: Mapping[str, StepCallback] = dataclasses.field(default_factory=dict)
    precision: str = "32-true"
    clip_val: float | None = None
    clip_algorithm: str = "norm"
    padding: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    may_idle: bool = False
    watched: bool = False
    lowering: Lowering = Lowering()
    logged: dict[str, dict[str, Logged]] = dataclasses.field(default_factory=dict)

    def build(self, inputs: HeadInputs, base_key: jax.Array) -> Parts:
        """The head's fresh model, taken apart."""
        key = jax.random.fold_in(jax.random.fold_in(base_key, inputs.ids), _INIT_KEY)
        model = bind(self.module, inputs.per_head, "configure")[0].configure_model(key)
        trainable, state, structure = split(model)
        stored = None if self.precision == "bf16-mixed" else _FLOATS.get(self.precision)
        return Parts(_strong(_cast(trainable, stored)), _strong(state), structure)

    def init(self, inputs: HeadInputs, base_key: jax.Array, epoch: dict[str, Any]) -> HeadsState:
        """The head's state before its first step; `epoch` holds its empty accumulators."""
        trainable, state, _ = self.build(inputs, base_key)
        return HeadsState(
            trainable=trainable,
            state=state,
            opt_state=_strong(self._optimizer(inputs).init(trainable)),
            callbacks={key: _strong(self._hear(key, "init", trainable)) for key in self.callbacks},
            epoch=epoch,
            live=jnp.array(True),
        )

    def train(self, head: HeadsState, given: StepInput) -> tuple[HeadsState, dict[str, Any]]:
        """One optimiser update of one head.

        Returns:
          The new state, equal to the old one bit for bit where the head is frozen or has no live slot; and the step's
          values: "logged" by name; "stepped", whether it had one, where a head may have none; and where heads are
          watched "lost", whether its loss is NaN or infinite.
        """
        new, logs, loss, _ = self._update(head, given)
        flags, runs = self.logged["training"], head.live & given.mask.any()
        on_step = {name: value for name, value in logs.items() if flags[name].on_step}
        values: dict[str, Any] = {
            "logged": {n: value.compute() if is_metric(value) else value for n, value in on_step.items()}
        }
        if self.may_idle:
            values["stepped"] = given.mask.any()
        if self.watched:
            values["lost"] = runs & ~jnp.isfinite(loss)
        return select(runs, new, head), values

    def find_fault(self, head: HeadsState, given: StepInput) -> jax.Array:
        """The first array that a step makes NaN or infinite, as its place in `fault_names`, or -1; as `train`."""
        new, _, loss, gradients = self._update(head, given)
        found = [~is_finite(leaf) for leaf in jax.tree.leaves((loss, gradients, new.trainable))]
        old, others = (jax.tree.leaves((one.opt_state, one.state)) for one in (head, new))
        found += [is_finite(before) & ~is_finite(after) for before, after in zip(old, others, strict=True)]
        return jnp.where(jnp.stack(found).any(), jnp.argmax(jnp.stack(found)), -1)

    def _update(self, head: HeadsState, given: StepInput) -> tuple[HeadsState, dict[str, Any], jax.Array, Any]:
        """The state after a step, what it logs, its loss, and its gradients as they came."""
        inputs, mask = given.inputs, given.mask
        key = jax.random.fold_in(jax.random.fold_in(given.key, inputs.ids), given.step)
        update = self._update_once if len(given.rows) == 1 else self._accumulate
        done, logs = update(head, given._replace(key=key))
        applied = done.applied
        hparams = bind(self.module, inputs.per_head, "configure")[0].hparams
        info = StepInfo(
            done.trainable, applied.clipped, applied.updates, done.loss, given.step, done.opt_state, hparams
        )
        callbacks = {
            key: check_same_form(self._hear(key, "on_step", old, info), old, f"callbacks.{key}")
            for key, old in head.callbacks.items()
        }
        new = HeadsState(
            trainable=done.trainable,
            state=done.state,
            opt_state=done.opt_state,
            callbacks=callbacks,
            epoch={name: head.epoch[name].merge(accumulator_of(logs[name], mask)) for name in head.epoch},
            live=head.live,
        )
        return new, logs | self._callback_metrics(callbacks, info, logs), done.loss, applied.gradients

    def evaluate(self, stage: str, head: Any, given: StepInput, train: bool = False) -> dict[str, Any]:
        """What one head logs for one batch of "training", "validation" or "test", as accumulators by name.

        Args:
          head: `(trainable, state)` of the head.
          train: the mode the model is in.
        """
        batch, ctx = self._open(given, train)
        run = lambda: self._run_step(stage, head[0], head[1], given.inputs, batch, ctx)[1][0]  # noqa: E731
        logs = lower(run, self.lowering)()
        return {name: accumulator_of(value, given.mask) for name, value in logs.items()}

    def logged_by_update(self, head: Any, given: StepInput) -> dict[str, Any]:
        """What the module's own update logs, as accumulators by name; arguments as `evaluate`."""
        trainable, state = head
        opt_state = self._optimizer(given.inputs).init(trainable)
        fresh = HeadsState(trainable, state, opt_state, callbacks={}, epoch={}, live=jnp.array(True))
        _, logs = self._update_once(fresh, given._replace(rows=given.rows[None], mask=given.mask[None]))
        return {name: accumulator_of(value, given.mask) for name, value in logs.items()}

    def predict(self, head: Any, given: StepInput) -> Any:
        """One head's prediction for one batch: what `predict_step` returns."""
        model = self._model(head[0], head[1], train=False)
        bound, _ = bind(self.module, given.inputs.per_head, "predict")
        batch, ctx = self._open(given, train=False)
        return lower(lambda: bound.predict_step(model, batch, ctx), self.lowering)()

    def eval_key(self, inputs: HeadInputs, base_key: jax.Array, batch: Any) -> jax.Array:
        """The head's key for an evaluation batch."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(base_key, inputs.ids), _EVAL_KEY), batch)

    def _update_once(self, head: HeadsState, given: StepInput) -> tuple[TrainingHead, dict[str, Any]]:
        """The head after the module's update by its one batch, and what that logs."""
        batch, ctx = self._open(given._replace(rows=given.rows[0], mask=given.mask[0]), train=True)
        one = self._start(head, given.inputs)
        done = one.tools.module.update(one, batch, ctx)
        if has_own_update(self.module):
            done = finished(done, one, f"{type(self.module).__name__}.update")
        return done, self._logs_of(one.tools.recorder, ctx.mask)

    def _accumulate(self, head: HeadsState, given: StepInput) -> tuple[TrainingHead, dict[str, Any]]:
        """The same by the mean gradient of the micro-batches with live slots; the model's state goes through all."""
        live = given.mask.any(axis=1)
        weights = live / jnp.maximum(live.sum(), 1)

        def micro(carry: Any, xs: Any) -> Any:
            state, total = carry
            number, rows, mask, weight = xs
            key = jax.random.fold_in(given.key, number)
            batch, ctx = self._open(given._replace(key=key, rows=rows, mask=mask), train=True)
            one = self._start(head._replace(state=state), given.inputs)
            loss, gradients, moved = one.gradient(one.tools.module.training_step, batch, ctx)
            logs = self._logs_of(one.tools.recorder, mask)
            total = jax.tree.map(
                lambda t, g: t + jnp.where(weight > 0, g * weight, 0).astype(t.dtype), total, gradients
            )
            # A window at an epoch's end may lack micro-batches: a metric must not count what stands in their place.
            logs = {n: select(weight > 0, v, empty_accumulator(v)) if is_metric(v) else v for n, v in logs.items()}
            return (select(weight > 0, moved.state, state), total), (loss, logs)

        zeros = jax.tree.map(jnp.zeros_like, head.trainable)
        xs = (jnp.arange(len(given.rows)), given.rows, given.mask, weights)
        (state, gradients), (losses, logs) = jax.lax.scan(micro, (head.state, zeros), xs)
        mean: Callable[[Any], jax.Array] = lambda values: jnp.where(live, values * weights, 0).sum()  # noqa: E731
        logs = {name: value.reduce() if is_metric(value) else mean(value) for name, value in logs.items()}
        one = self._start(head._replace(state=state), given.inputs)
        return one.replace(loss=mean(losses)).apply(gradients), logs

    def _open(self, given: StepInput, train: bool) -> tuple[Any, Context]:
        """The batch and the context that a step gets."""
        # Rows are checked on the host, so the gather need not clip them.
        gather: Callable[[Any], Any] = lambda column: column.at[given.rows].get(mode="promise_in_bounds")  # noqa: E731
        batch = _cast(jax.tree.map(gather, given.data.columns), _FLOATS.get(self.precision))
        rows = given.rows if given.data.numbers is None else gather(given.data.numbers)
        return batch, Context(given.key, given.mask, rows, given.step, given.inputs.ids, train)

    def _start(self, head: HeadsState, inputs: HeadInputs) -> TrainingHead:
        """The head that an update gets."""
        bound, recorder = bind(self.module, inputs.per_head, "training")
        tools = Tools(
            module=bound,
            recorder=recorder,
            structure=self._structure,
            model=lambda trainable, state: self._model(trainable, state, train=True),
            optimizer=lambda: self._optimizer(inputs),
            clip=self._clip,
            lowering=self.lowering,
            padding=self.padding.get("training"),
        )
        return start(head.trainable, head.state, head.opt_state, tools, has_own_update(self.module))

    def _logs_of(self, recorder: Recorder, mask: jax.Array) -> dict[str, Any]:
        """What a training step logged, and a note of how each is to be reported."""
        self.logged["training"] = {n: dataclasses.replace(entry, value=None) for n, entry in recorder.logged.items()}
        return {n: read_logged(n, entry.value, "training", mask) for n, entry in recorder.logged.items()}

    def _run_step(self, stage: str, trainable: Any, state: Any, inputs: HeadInputs, batch: Any, ctx: Context) -> Any:
        """Calls the user's step; returns the loss and (what was logged, the model's new state)."""
        model = self._model(trainable, state, train=ctx.train)
        bound, recorder = bind(self.module, inputs.per_head, stage)
        output = getattr(bound, f"{stage}_step")(model, batch, ctx)
        if isinstance(output, Mapping):
            model = output.get("model", model)
        loss = read_loss(output, f"{stage}_step", ctx.mask, self.padding.get(stage), optional=stage != "training")
        name = _LOSS_NAMES[stage]
        if loss is not None and name not in recorder.logged:
            recorder.add(name, loss, prog_bar=True, on_step=None, on_epoch=None)
        self.logged[stage] = {n: dataclasses.replace(entry, value=None) for n, entry in recorder.logged.items()}
        logs = {n: read_logged(n, entry.value, stage, ctx.mask) for n, entry in recorder.logged.items()}
        new_state = check_same_form(self._structure.read_state(model), state, "state")
        return (0.0 if loss is None else masked_mean(loss, ctx.mask)), (logs, new_state)

    @property
    def _structure(self) -> Structure:
        assert self.structure is not None
        return self.structure

    def _model(self, trainable: Any, state: Any, train: bool) -> Any:
        compute = jnp.bfloat16 if self.precision == "bf16-mixed" else None
        model = self._structure.merge(_cast(trainable, compute), state)
        self._structure.set_mode(model, train)
        return model

    def _clip(self, gradients: Any) -> Any:
        if self.clip_val is None:
            return gradients
        clip = optax.clip_by_global_norm if self.clip_algorithm == "norm" else optax.clip
        return clip(self.clip_val).update(gradients, optax.EmptyState())[0]

    def _hear(self, key: str, hook: str, *args: Any) -> Any:
        """What a callback's second tier answers."""
        callback = self.callbacks[key]
        try:
            return getattr(callback, hook)(*args)
        except HydraxError:
            raise
        except Exception as error:
            raise CallbackError(
                f"A callback failed while it was traced for one head: {type(callback).__name__}.{hook}. Got "
                f"{type(error).__name__}: {error}, expected it to run on traced arrays. Fix: the cause above names the "
                "line."
            ) from error

    def _callback_metrics(self, states: Mapping[str, Any], info: StepInfo, logs: Mapping[str, Any]) -> dict[str, Any]:
        """What callbacks log of a step, float scalars by name."""
        found: dict[str, Any] = {}
        for key, state in states.items():
            values = self._hear(key, "metrics", state, info)
            found |= read_metrics(f"{type(self.callbacks[key]).__name__}.metrics", values, {*logs, *found})
        entries = {name: Logged(None, prog_bar=False, on_step=True, on_epoch=False) for name in found}
        self.logged["training"] = {**self.logged["training"], **entries}
        return found

    def _optimizer(self, inputs: HeadInputs) -> optax.GradientTransformation:
        optimizer = bind(self.module, inputs.per_head, "configure")[0].configure_optimizers()
        if not isinstance(optimizer, optax.GradientTransformation):
            raise ModuleError(
                f"No optimiser came back: {type(self.module).__name__}.configure_optimizers. Got "
                f"{type(optimizer).__name__}, expected an optax.GradientTransformation. Fix: return for example "
                "optax.adamw(1e-3)."
            )
        return optimizer


def fault_names(head: HeadsState) -> list[str]:
    """What `HeadProgram.find_fault` numbers; takes arrays or shapes."""
    trees = [("loss", 0.0), ("gradient", head.trainable), ("parameter", head.trainable)]
    trees += [("opt_state", head.opt_state), ("model state", head.state)]
    return [
        kind + jax.tree_util.keystr(path)
        for kind, tree in trees
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _cast(tree: Any, dtype: Any) -> Any:
    """Floating leaves as `dtype`; the tree as it is where dtype is None."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def _strong(tree: Any) -> Any:
    """Arrays without weak types, which would change the loop's carry after the first step."""
    return jax.tree.map(
        lambda a: a if jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key) else jnp.asarray(a, jnp.result_type(a)),
        tree,
    )
