"""HeadProgram: the start, update, evaluation and prediction of one head, as pure functions of arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hydrax.errors import CallbackError, HydraxError, ModuleError
from hydrax.step.checks import check_same_form, read_logged, read_loss, read_metrics
from hydrax.step.context import Context
from hydrax.step.dependence import dependent
from hydrax.step.explain import explained
from hydrax.step.finite import is_finite
from hydrax.step.logged import Logged, Recorder, accumulator_of, empty_accumulator, is_metric, is_whole
from hydrax.step.lowering import Lowering, lower
from hydrax.step.model import Parts, Structure, split, why_nothing_trains
from hydrax.step.module import HeadModule, bind, has_own_update, transformed
from hydrax.step.optimizer import build_optimizer, update_with
from hydrax.step.state import HeadInputs, HeadsState, StepInput, select
from hydrax.step.statistics import Slots, masked_linen
from hydrax.step.step_callback import StepCallback, StepInfo, evaluates_others
from hydrax.step.training_head import Tools, TrainingHead, finish_update, start_update

# Keys that no training step uses: training folds the step into a head's key, and steps stay below 2**31.
_INIT_KEY, _EVAL_KEY, _OPTIMIZER_KEY = np.uint32(2**32 - 1), np.uint32(2**32 - 2), np.uint32(2**32 - 3)
_LOSS_NAMES = {"training": "train_loss", "validation": "val_loss", "test": "test_loss"}
_FLOATS = {"bf16-mixed": jnp.bfloat16, "bf16-true": jnp.bfloat16, "64-true": jnp.float64}


@dataclasses.dataclass(frozen=True)
class HeadProgram:
    """The functions of one head. Nothing here knows about other heads: `engine/programs.py` adds the head axis.

    Attributes:
      module: the user's module.
      structure: what the models of all heads have in common; None before `configure_model` was traced.
      callbacks: the callbacks with a second tier, by key.
      precision: "32-true", "bf16-mixed", "bf16-true" or "64-true".
      clip_val: bound for the gradient of one head, or None.
      clip_algorithm: "norm" or "value".
      padding: by stage, such as "training", why a slot can be padding there, or None if none can.
      may_idle: whether a head may have no live slot in a step.
      watched: whether training reports which heads became NaN or infinite.
      masks_statistics: whether batch statistics leave out padding in training. This follows from settings, not from
        the lengths of slices: with and without a mask bits differ, and those of a head must not depend on the others.
      lowering: in which forms the operations of the user's functions are computed.
      logged: what each stage logs, by stage and name; filled while the stage is traced.
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
    masks_statistics: bool = False
    lowering: Lowering = Lowering()
    logged: dict[str, dict[str, Logged]] = dataclasses.field(default_factory=dict)

    # ---- the start

    def build(self, inputs: HeadInputs, base_key: jax.Array) -> Parts:
        """Builds the fresh model of the head, in parts."""
        # By id and not by position, so that a head starts the same whatever else is trained.
        key = jax.random.fold_in(jax.random.fold_in(base_key, inputs.ids), _INIT_KEY)
        bound = bind(self.module, inputs.per_head, "configure")[0]
        stored = None if self.precision == "bf16-mixed" else _FLOATS.get(self.precision)
        model = _stored_in(bound.configure_model(key), stored)
        with explained(self.module, "is_trained", "a name and an array"):
            trainable, state, structure = split(model, bound.is_trained)
        if not jax.tree.leaves(trainable):
            got, fix = why_nothing_trains(model)
            raise ModuleError(
                f"A model has nothing to train: {type(self.module).__name__}.configure_model. Got {got}. Fix: {fix}."
            )
        return Parts(_strong(trainable), _strong(state), structure)

    def init(self, inputs: HeadInputs, base_key: jax.Array, epoch: dict[str, Any], start: Any = None) -> HeadsState:
        """Makes the state of the head before its first step.

        Args:
          inputs: the head's id and `PerHead` values.
          base_key: PRNG key of the run.
          epoch: empty accumulators of the head.
          start: `(trainable, state)` to begin with, None in place of arrays that are fresh; None begins with the
            model that `configure_model` returns.
        """
        trainable, state, _ = self.build(inputs, base_key)
        if start is not None:
            fresh = (trainable, state)
            trainable, state = jax.tree.map(lambda one, given: one if given is None else given, fresh, start)
        return HeadsState(
            trainable=trainable,
            state=state,
            opt_state=_strong(self._optimizer(inputs, base_key).init(trainable)),
            callbacks={key: _strong(self._call(key, "init", trainable)) for key in self.callbacks},
            epoch=epoch,
            live=jnp.array(True),
        )

    # ---- training

    def train(self, head: HeadsState, given: StepInput) -> tuple[HeadsState, dict[str, Any]]:
        """Makes one optimiser update.

        Returns:
          The new state, equal to the old one bit for bit if the head is frozen or has no live slot; and the values of
          the step: "logged", by name; "stepped", whether the head made a step, if it may idle; "lost", whether its loss
          is NaN or infinite, if heads are watched.
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
        # `select`, not `cond`: under the head axis a `cond` becomes a select anyway, and computes both branches.
        return select(runs, new, head), values

    def find_fault(self, head: HeadsState, given: StepInput) -> jax.Array:
        """Finds the first array that a step makes NaN or infinite: its index in `fault_names`, or -1."""
        new, _, loss, gradients = self._update(head, given)
        found = [~is_finite(leaf) for leaf in jax.tree.leaves((loss, gradients, new.trainable))]
        # Some optimisers hold infinities from the start; only what was finite before is a fault.
        old, others = (jax.tree.leaves((one.opt_state, one.state)) for one in (head, new))
        found += [is_finite(before) & ~is_finite(after) for before, after in zip(old, others, strict=True)]
        return jnp.where(jnp.stack(found).any(), jnp.argmax(jnp.stack(found)), -1)

    def _update(self, head: HeadsState, given: StepInput) -> tuple[HeadsState, dict[str, Any], jax.Array, Any]:
        """Makes a step: the state after it, the values it logs, its loss, and its gradients before clipping."""
        inputs = given.inputs
        # A function of head and step alone: a resumed head draws what an uninterrupted one draws.
        key = jax.random.fold_in(jax.random.fold_in(given.key, inputs.ids), given.step)
        optimizer = functools.partial(self._optimizer, inputs, given.key)
        # One micro-batch needs no scan, and may have an `update` of the user's own.
        update = self._update_once if len(given.rows) == 1 else self._accumulate
        done, logs = update(head, given._replace(key=key), optimizer)
        applied = done.applied
        # Callbacks see the values of this head, traced scalars, where the module has a `PerHead`.
        hparams = bind(self.module, inputs.per_head, "configure")[0].hparams
        info = StepInfo(
            done.trainable,
            applied.clipped,
            applied.updates,
            done.loss,
            given.step,
            done.opt_state,
            hparams,
            applied.gradients,
        )
        # After the optimiser and before the logs, so that `metrics` sees the callback's state of this step.
        callbacks = {
            key: check_same_form(self._call(key, "on_step", old, info), old, f"callbacks.{key}")
            for key, old in head.callbacks.items()
        }
        new = HeadsState(
            trainable=done.trainable,
            state=done.state,
            opt_state=done.opt_state,
            callbacks=callbacks,
            epoch={name: head.epoch[name].merge(accumulator_of(logs[name], given.mask)) for name in head.epoch},
            live=head.live,
        )
        return new, logs | self._callback_metrics(callbacks, info, logs), done.loss, applied.gradients

    def _update_once(
        self, head: HeadsState, given: StepInput, optimizer: Callable[[], Any]
    ) -> tuple[TrainingHead, dict[str, Any]]:
        """Runs the module's `update` on the single batch; returns the head after it and what it logs."""
        batch, ctx = self._batch(given._replace(rows=given.rows[0], mask=given.mask[0]), train=True)
        slots = self._slots("training", ctx.mask)
        one = self._training_head(head, given.inputs, optimizer, slots)
        with masked_linen(slots, train=True):
            done = one.tools.module.update(one, batch, ctx)
        if has_own_update(self.module):
            done = finish_update(done, one, f"{type(self.module).__name__}.update")
        return done, self._read_logs(one.tools.recorder, ctx.mask)

    def _accumulate(
        self, head: HeadsState, given: StepInput, optimizer: Callable[[], Any]
    ) -> tuple[TrainingHead, dict[str, Any]]:
        """Does the same with the mean gradient of the micro-batches; each passes the state of the model to the next.

        A micro-batch without a live slot has weight 0: it changes neither gradient nor state, nor what is logged.
        """
        live = given.mask.any(axis=1)
        # Micro-batches weigh the same, however many live slots they have; one without any does not count.
        weights = live / jnp.maximum(live.sum(), 1)

        def prepare(trainable: Any, state: Any, number: Any, rows: Any, mask: Any) -> Any:
            key = jax.random.fold_in(given.key, number)
            batch, ctx = self._batch(given._replace(key=key, rows=rows, mask=mask), train=True)
            slots = self._slots("training", mask)
            head_now = head._replace(trainable=trainable, state=state)
            one = self._training_head(head_now, given.inputs, optimizer, slots)
            return one, (one.tools.module.training_step, batch, ctx), masked_linen(slots, train=True)

        def micro(carry: Any, xs: Any) -> Any:
            state, total = carry
            *which, weight = xs
            one, of, masked = prepare(head.trainable, state, *which)
            with masked:
                loss, gradients, moved = one.gradient(*of)
            logs = self._read_logs(one.tools.recorder, which[-1])
            total = jax.tree.map(
                lambda t, g: t + jnp.where(weight > 0, g * weight, 0).astype(t.dtype), total, gradients
            )
            # The last step of an epoch may have fewer micro-batches; a metric must not count the repeated rows.
            logs = {n: select(weight > 0, v, empty_accumulator(v)) if is_metric(v) else v for n, v in logs.items()}
            return (select(weight > 0, moved.state, state), total), (loss, logs)

        zeros = jax.tree.map(jnp.zeros_like, head.trainable)
        xs = (jnp.arange(len(given.rows)), given.rows, given.mask, weights)
        (state, gradients), (losses, logs) = jax.lax.scan(micro, (head.state, zeros), xs)
        mean: Callable[[Any], jax.Array] = lambda values: jnp.where(live, values * weights, 0).sum()  # noqa: E731
        logs = {name: value.reduce() if is_metric(value) else mean(value) for name, value in logs.items()}

        def value_fn(trainable: Any) -> jax.Array:
            def micro(state: Any, xs: Any) -> Any:
                *which, weight = xs
                one, of, masked = prepare(trainable, state, *which)
                with masked:
                    loss, moved = one.evaluate(*of)
                return select(weight > 0, moved.state, state), loss

            return mean(jax.lax.scan(micro, head.state, xs)[1])

        one = self._training_head(head._replace(state=state), given.inputs, optimizer)
        loss = mean(losses)
        return one.replace(loss=loss).apply(gradients, value=loss, value_fn=value_fn), logs

    def _training_head(
        self, head: HeadsState, inputs: HeadInputs, optimizer: Callable[[], Any], slots: Slots | None = None
    ) -> TrainingHead:
        """Makes the head that an update receives."""
        bound, recorder = bind(self.module, inputs.per_head, "training")
        tools = Tools(
            module=bound,
            recorder=recorder,
            structure=self._structure,
            model=lambda trainable, state: self._model(trainable, state, True, slots),
            optimizer=optimizer,
            update_with=functools.partial(update_with, self.module),
            clip=self._clip,
            lowering=self.lowering,
            padding=self.padding.get("training"),
        )
        return start_update(head.trainable, head.state, head.opt_state, tools, has_own_update(self.module))

    def logged_by_update(self, head: Any, given: StepInput) -> dict[str, Any]:
        """Returns what the module's own `update` logs, by name; arguments as in `logs`."""
        trainable, state = head
        # The accumulators are not known yet, so this is an update without callbacks and without an epoch.
        optimizer = functools.partial(self._optimizer, given.inputs, given.key)
        opt_state = optimizer().init(trainable)
        fresh = HeadsState(trainable, state, opt_state, callbacks={}, epoch={}, live=jnp.array(True))
        slots = given._replace(rows=given.rows[None], mask=given.mask[None])
        return self._update_once(fresh, slots, optimizer)[1]

    # ---- evaluation

    @property
    def may_evaluate_others(self) -> bool:
        """Whether the parameters to evaluate may differ from those that are trained."""
        own = type(self.module).evaluation_parameters is not HeadModule.evaluation_parameters
        return own or any(map(evaluates_others, self.callbacks.values()))

    def evaluation_parameters(self, inputs: HeadInputs, head: HeadsState) -> Any:
        """Returns the parameters of the head to evaluate."""
        bound = bind(self.module, inputs.per_head, "configure")[0]
        with explained(self.module, "evaluation_parameters", "parameters and the state of the optimiser"):
            found = bound.evaluation_parameters(head.trainable, head.opt_state)
        for key in filter(lambda key: evaluates_others(self.callbacks[key]), self.callbacks):
            found = self._call(key, "evaluation_parameters", found, head.callbacks[key])
        return select(jnp.array(True), check_same_form(found, head.trainable, "evaluation_parameters"), head.trainable)

    def evaluate(self, stage: str, head: Any, given: StepInput) -> dict[str, Any]:
        """Runs a step for one batch, and returns what it logs by name: accumulators, and `WholeSet` values as they are.

        Arguments are those of `logs`.
        """
        logs = self.logs(stage, head, given)
        return {name: value if is_whole(value) else accumulator_of(value, given.mask) for name, value in logs.items()}

    def logs(self, stage: str, head: Any, given: StepInput, train: bool = False) -> dict[str, Any]:
        """Runs a step for one batch, and returns what it logs by name: scalars and metrics.

        Args:
          stage: "training", "validation" or "test".
          head: `(trainable, state)` of the head.
          given: the batch; its key is that of `eval_key`.
          train: whether the model is in training mode.
        """
        batch, ctx = self._batch(given, train)
        # Without derivatives, so the whole step can be lowered at once.
        logs: dict[str, Any] = lower(lambda: self._logs_of_step(stage, head, given.inputs, batch, ctx), self.lowering)()
        return logs

    def _logs_of_step(self, stage: str, head: Any, inputs: HeadInputs, batch: Any, ctx: Context) -> dict[str, Any]:
        trainable, state = head
        slots = self._slots(stage, ctx.mask)
        model = self._model(trainable, state, ctx.train, slots)
        bound, recorder = bind(self.module, inputs.per_head, stage)
        with masked_linen(slots, ctx.train):
            output = getattr(bound, f"{stage}_step")(model, batch, ctx)
        loss = read_loss(output, f"{stage}_step", ctx.mask, self.padding.get(stage), optional=stage != "training")
        name = _LOSS_NAMES[stage]
        if loss is not None and name not in recorder.logged:
            recorder.add(name, loss, prog_bar=True, on_step=None, on_epoch=None)
        # The state of the model is dropped: evaluation must not change a head, whatever the model does to itself.
        return self._read_logs(recorder, ctx.mask)

    def predict(self, head: Any, given: StepInput) -> Any:
        """Predicts one batch with `predict_step`; arguments as in `evaluate`."""
        bound, _ = bind(self.module, given.inputs.per_head, "predict")
        batch, ctx = self._batch(given, train=False)

        def run() -> Any:
            slots = self._slots("predict", ctx.mask)
            # Merged in here: Flax lets a model change its state only in the trace that it was made in.
            model = self._model(head[0], head[1], False, slots)
            with masked_linen(slots, train=False):
                return bound.predict_step(model, batch, ctx)

        return lower(run, self.lowering)()

    def eval_key(self, inputs: HeadInputs, base_key: jax.Array, batch: Any) -> jax.Array:
        """Returns the key of the head for a batch of an evaluation, by the number of the batch."""
        # Not by the training step: validating twice with the same heads gives the same numbers.
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(base_key, inputs.ids), _EVAL_KEY), batch)

    # ---- what they share

    @property
    def _structure(self) -> Structure:
        assert self.structure is not None
        return self.structure

    def _slots(self, stage: str, mask: jax.Array) -> Slots | None:
        """Returns the live slots for batch statistics; None if they need not be masked."""
        padding = self.padding.get(stage)
        is_masked = self.masks_statistics if stage == "training" else padding is not None
        return Slots(mask, padding) if is_masked else None

    def _model(self, trainable: Any, state: Any, train: bool, slots: Slots | None) -> Any:
        """Builds the ordinary model, in the precision that it computes in."""
        # bf16-mixed stores and updates float32 parameters; only the model computes with rounded ones.
        compute = jnp.bfloat16 if self.precision == "bf16-mixed" else None
        # Arrays that `is_trained` leaves out keep their precision: they are read back after the step.
        model = self._structure.merge(_cast(trainable, compute), state)
        self._structure.set_mode(model, train)
        if slots is not None:
            self._structure.mask_statistics(model, slots)
        return model

    def _batch(self, given: StepInput, train: bool) -> tuple[Any, Context]:
        """Gathers the batch of a step, and makes its context."""
        # Row numbers are checked on the host, so the gather need not clip them.
        gather: Callable[[Any], Any] = lambda column: column.at[given.rows].get(mode="promise_in_bounds")  # noqa: E731
        batch = transformed(self.module, given.inputs.per_head, jax.tree.map(gather, given.data.columns))
        # Converted after the gather: B rows are copied and not the dataset.
        batch = _cast(batch, _FLOATS.get(self.precision))
        rows = given.rows if given.data.numbers is None else gather(given.data.numbers)
        return batch, Context(given.key, given.mask, rows, given.step, given.inputs.ids, train)

    def _clip(self, gradients: Any, update: Callable[[Any], Any]) -> Any:
        """Clips gradients by the Trainer's arguments.

        The norm counts only parameters whose updates depend on some gradient, not those that the optimiser freezes,
        such as with `optax.set_to_zero`.

        Args:
          update: makes the updates of the optimiser from gradients.
        """
        if self.clip_val is None:
            return gradients
        # Inside the head axis, so each head is clipped by its own norm.
        if self.clip_algorithm == "norm":
            leaves, tree = jax.tree.flatten(gradients)
            traced, shapes = jax.make_jaxpr(update, return_shape=True)(gradients)
            moving = jax.tree.leaves(dependent(traced, [True] * len(leaves), shapes))
            counted = [leaf for leaf, moves in zip(leaves, moving, strict=True) if moves]
            clipped = iter(optax.clip_by_global_norm(self.clip_val).update(counted, optax.EmptyState())[0])
            found = [next(clipped) if moves else leaf for leaf, moves in zip(leaves, moving, strict=True)]
            return jax.tree.unflatten(tree, found)
        bound = self.clip_val

        def clip(g: jax.Array) -> jax.Array:
            if not jnp.iscomplexobj(g):
                return jnp.clip(g, -bound, bound)
            return jax.lax.complex(jnp.clip(g.real, -bound, bound), jnp.clip(g.imag, -bound, bound))

        return jax.tree.map(clip, gradients)

    def _read_logs(self, recorder: Recorder, mask: jax.Array) -> dict[str, Any]:
        """Reads what a step logged, by name; notes in `logged` how each value is reported."""
        stage = recorder.stage
        self.logged[stage] = {n: dataclasses.replace(entry, value=None) for n, entry in recorder.logged.items()}
        return {n: read_logged(n, entry.value, stage, mask) for n, entry in recorder.logged.items()}

    def _callback_metrics(self, states: Mapping[str, Any], info: StepInfo, logs: Mapping[str, Any]) -> dict[str, Any]:
        """Collects what callbacks log in a step, float scalars by name."""
        found: dict[str, Any] = {}
        for key, state in states.items():
            values = self._call(key, "metrics", state, info)
            found |= read_metrics(f"{type(self.callbacks[key]).__name__}.metrics", values, {*logs, *found})
        entries = {name: Logged(None, prog_bar=False, on_step=True, on_epoch=False) for name in found}
        self.logged["training"] = {**self.logged["training"], **entries}
        return found

    def _call(self, key: str, method: str, *args: Any) -> Any:
        """Calls a method of a callback's second tier."""
        callback = self.callbacks[key]
        try:
            return getattr(callback, method)(*args)
        except HydraxError:
            raise
        except Exception as error:
            raise CallbackError(
                f"A callback failed while it was traced for one head: {type(callback).__name__}.{method}. Got "
                f"{type(error).__name__}: {error}, expected it to run on traced arrays. Fix: see the line that the "
                "cause above names."
            ) from error

    def _optimizer(self, inputs: HeadInputs, base_key: jax.Array) -> optax.GradientTransformation:
        # Built anew inside every trace, so that hyper-parameters may be traced scalars without inject_hyperparams.
        key = jax.random.fold_in(jax.random.fold_in(base_key, inputs.ids), _OPTIMIZER_KEY)
        return build_optimizer(self.module, inputs.per_head, key)


def fault_names(head: HeadsState) -> list[str]:
    """Names of the arrays that `HeadProgram.find_fault` numbers, of a state in arrays or shapes."""
    trees = [("loss", 0.0), ("gradient", head.trainable), ("parameter", head.trainable)]
    trees += [("opt_state", head.opt_state), ("model state", head.state)]
    return [
        kind + jax.tree_util.keystr(path)
        for kind, tree in trees
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _stored_in(model: Any, dtype: Any) -> Any:
    """Converts the parameters of a model as `_cast` does, also those that `is_trained` leaves out."""
    if dtype is None:
        return model
    parameters, state, structure = split(model)
    return structure.merge(_cast(parameters, dtype), state)


def _cast(tree: Any, dtype: Any) -> Any:
    """Converts floating-point leaves to `dtype`, and complex ones to complex128 beside float64; None converts none."""
    if dtype is None:
        return tree
    # There is no complex number of half precision: complex leaves stay as they are beside bfloat16.
    kinds = {jnp.floating: dtype} | ({jnp.complexfloating: jnp.complex128} if dtype == jnp.float64 else {})

    def cast(leaf: Any) -> Any:
        return next((leaf.astype(to) for kind, to in kinds.items() if jnp.issubdtype(leaf.dtype, kind)), leaf)

    return jax.tree.map(cast, tree)


def _strong(tree: Any) -> Any:
    """Removes weak types: after the first step they would be gone, and the loop's carry would differ from its start."""
    return jax.tree.map(
        lambda a: a if jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key) else jnp.asarray(a, jnp.result_type(a)),
        tree,
    )
