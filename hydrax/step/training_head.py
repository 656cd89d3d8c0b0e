"""TrainingHead: one head inside a training step, as `HydraModule.update` receives and returns it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from hydrax.errors import ModuleError
from hydrax.step.checks import check_same_form, check_unchanged, read_logged, read_loss
from hydrax.step.context import Context
from hydrax.step.logged import Logged, Recorder, masked_mean
from hydrax.step.lowering import Lowering, lower
from hydrax.step.model import Structure


class Applied(NamedTuple):
    """What the optimiser received and returned in its last call, each shaped like the parameters.

    Attributes:
      gradients: the gradients that were passed to `apply`.
      clipped: the same after clipping, as the optimiser received them.
      updates: what the optimiser added to the parameters.
    """

    gradients: Any
    clipped: Any
    updates: Any


class TrainsOneHead(Protocol):
    """What an update needs from the user's module. `HeadModule` implements it, and imports this file."""

    def training_step(self, model: Any, batch: Any, ctx: Context) -> Any: ...

    def update(self, head: TrainingHead, batch: Any, ctx: Context) -> TrainingHead: ...


# Compared by identity: as a static part of a pytree it must be hashable, and its functions have no equality.
@dataclasses.dataclass(frozen=True, eq=False)
class Tools:
    """What a training step works with; it does not change during the step.

    Attributes:
      module: the user's module, bound to this head.
      recorder: records what the step logs.
      structure: turns arrays into a model.
      model: builds a model in training mode from (trainable, state), in the precision that it computes in.
      optimizer: builds the optimiser.
      update_with: calls its `update` with extra arguments.
      clip: clips gradients, given also the function that makes updates from them.
      lowering: in which forms operations are computed.
      padding: why a slot can be padding, or None if none can.
    """

    module: TrainsOneHead
    recorder: Recorder
    structure: Structure
    model: Callable[[Any, Any], Any]
    optimizer: Callable[[], optax.GradientTransformation]
    update_with: Callable[..., tuple[Any, Any]]
    clip: Callable[[Any, Callable[[Any], Any]], Any]
    lowering: Lowering
    padding: str | None

    @contextlib.contextmanager
    def recording(self, recorder: Recorder) -> Iterator[None]:
        """Makes `self.log` of the module write to another recorder inside the block."""
        # Past `__setattr__`, which refuses assignments while the module is frozen.
        vars(self.module)["_recorder"] = recorder
        try:
            yield
        finally:
            vars(self.module)["_recorder"] = self.recorder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingHead:
    """One head inside a training step. It is immutable: each method returns a new one.

    Attributes:
      trainable: the parameters. For an `nnx.Module` nested dicts by attribute name, for Linen the variables "params",
        for any other pytree the pytree itself, with None in place of what is not trained.
      state: the other arrays of the model, such as batch statistics.
      opt_state: the state of the optimiser that `configure_optimizers` returns.
      loss: the loss of the step, a float scalar: the last one that `gradient` computed with `log=True`. Callbacks see
        it, and the head is quarantined if it is not finite.
      applied: what the optimiser received and returned, for callbacks.
      tools: what the step works with; internal to Hydrax.
    """

    trainable: Any
    state: Any
    opt_state: Any
    loss: Any
    applied: Any
    tools: Tools = dataclasses.field(metadata={"static": True})

    @property
    def model(self) -> Any:
        """The model with these parameters, in training mode."""
        return self.tools.model(self.trainable, self.state)

    def replace(self, **changes: Any) -> TrainingHead:
        """Returns the head with another `trainable`, `state`, `opt_state` or `loss` of the same shapes and dtypes."""
        return dataclasses.replace(self, **changes)

    def gradient(
        self, loss_function: Callable[..., Any], batch: Any, ctx: Context, *, log: bool = True
    ) -> tuple[jax.Array, Any, TrainingHead]:
        """Computes a loss and its gradient with respect to all parameters.

        Args:
          loss_function: `self.training_step`, or another pure function of (model, batch, ctx) with the same return
            value: the loss as float `[B]`, which is averaged over the live slots, or as a scalar.
          batch: columns, `[B, ...]`.
          ctx: the context of the update, or one with another key.
          log: whether the values that the function logs are reported, and its loss is the loss of the step;
            `self.training_step` then also logs `train_loss`. Pass False for a second evaluation of the same function.

        Returns:
          The loss, a float scalar; the gradient, shaped like `trainable`; and the head with the state of the model
          after the call and unchanged parameters. The gradient with respect to a complex parameter is the direction of
          steepest ascent, as in PyTorch: the conjugate of what `jax.grad` returns.

        Raises:
          ModuleError: the function returned no loss, or logs a name twice.
        """
        tools = self.tools
        entries: dict[str, Logged] = {}
        run = functools.partial(self._run, loss_function, batch, ctx, entries)
        # Lowered after differentiation: the rules know no derivatives.
        differentiated = lower(jax.value_and_grad(run, has_aux=True), tools.lowering)
        (loss, (logs, state)), gradients = differentiated(self.trainable)
        # For a complex parameter JAX returns the conjugate of the direction in which the loss grows.
        gradients = jax.tree.map(lambda g: jnp.conj(g) if jnp.iscomplexobj(g) else g, gradients)
        if not log:
            return loss, gradients, self.replace(state=state)
        for n, value in logs.items():
            entry = entries[n]
            tools.recorder.add(n, value, entry.prog_bar, entry.on_step, entry.on_epoch, entry.per_slot)
        return loss, gradients, self.replace(state=state, loss=loss)

    def evaluate(self, loss_function: Callable[..., Any], batch: Any, ctx: Context) -> tuple[jax.Array, TrainingHead]:
        """Computes a loss without its gradient, and logs nothing; the arguments are those of `gradient`.

        Returns:
          The loss, a float scalar, and the head with the state of the model after the call.
        """
        loss, (_, state) = self._run(loss_function, batch, ctx, {}, self.trainable)
        return loss, self.replace(state=state)

    def _run(
        self, loss_function: Callable[..., Any], batch: Any, ctx: Context, entries: dict[str, Logged], trainable: Any
    ) -> tuple[jax.Array, tuple[dict[str, Any], Any]]:
        """Computes the mean loss with these parameters, what was logged, and the state of the model after the call.

        How each value is reported is noted in `entries`.
        """
        tools = self.tools
        name = getattr(loss_function, "__name__", "a loss function")

        def step(trainable: Any) -> tuple[Any, Any, Any, Recorder]:
            model, recorder = tools.model(trainable, self.state), Recorder("training")
            before = tools.structure.read_trainable(model)
            with tools.recording(recorder):
                output = loss_function(model, batch, ctx)
            # An nnx model has changed in place; pure models, such as Linen variables, come as a new object.
            return before, output, output.get("model", model) if isinstance(output, Mapping) else model, recorder

        before, output, model, recorder = step(trainable)
        # `==` and not `is`: each access makes a new bound method.
        is_step = loss_function == tools.module.training_step
        if is_step and tools.structure.must_return and not (isinstance(output, Mapping) and "model" in output):
            raise ModuleError(
                f"A step does not return the state of its model: {name}. Got the loss alone, expected the model "
                'too, since its state changes. Fix: return {"loss": loss, "model": model}.'
            )
        loss = read_loss(output, name, ctx.mask, tools.padding)
        assert loss is not None
        if is_step and "train_loss" not in recorder.logged:
            recorder.add("train_loss", loss, prog_bar=True, on_step=None, on_epoch=None)
        # Values leave the differentiated function as its outputs; a traced one kept aside would leak.
        entries.update({n: dataclasses.replace(entry, value=None) for n, entry in recorder.logged.items()})
        logs = {n: read_logged(n, entry.value, "training", ctx.mask) for n, entry in recorder.logged.items()}
        read = tools.structure.read_trainable
        check_unchanged(read(model), before, model, name, again=lambda trainable: read(step(trainable)[2]))
        state = check_same_form(tools.structure.read_state(model), self.state, "state")
        return masked_mean(loss, ctx.mask), (logs, state)

    def apply(
        self, gradients: Any, *, value: Any = None, value_fn: Callable[[Any], jax.Array] | None = None
    ) -> TrainingHead:
        """Makes one step of the optimiser; `gradient_clip_val` clips the gradients first.

        Args:
          gradients: shaped like `trainable`.
          value: the loss, for optimisers that ask for it, such as `optax.contrib.reduce_on_plateau`. Default: the
            attribute `loss`.
          value_fn: a function of `trainable` that computes the loss again, for optimisers that search along a line,
            such as `optax.lbfgs`:
            `lambda p: head.replace(trainable=p).evaluate(loss_function, batch, ctx)[0]`.

        Returns:
          The head after the step.

        Raises:
          ModuleError: the gradients have another structure, or the optimiser fails.
        """
        tools = self.tools
        got, expected = str(jax.tree.structure(gradients)), str(jax.tree.structure(self.trainable))
        if got != expected:
            raise ModuleError(
                f"Gradients and parameters differ in structure: head.apply. Got {got}, expected {expected}. Fix: pass "
                "all that head.gradient returns as the gradient."
            )
        optimizer = tools.optimizer()
        searched: list[bool] = []

        def search(trainable: Any) -> jax.Array:
            searched.append(True)
            if value_fn is None:
                raise ModuleError(
                    "An optimiser evaluates the loss again: head.apply. Got no value_fn, expected a function of the "
                    "parameters. Fix: pass value_fn=lambda p: head.replace(trainable=p).evaluate(loss_function, batch, "
                    "ctx)[0]."
                )
            return value_fn(trainable)

        extra = {"value": self.loss if value is None else value, "grad": gradients, "value_fn": search}

        def update(gradients: Any) -> tuple[Any, Any]:
            args = gradients, self.opt_state, self.trainable
            return tools.update_with(optimizer, *args, extra=extra)

        # Here and not in the user's optimiser, so that callbacks see gradients before and after.
        clipped = tools.clip(gradients, lambda gradients: update(gradients)[0])
        updates, opt_state = update(clipped)
        if searched:  # as the gradient of the step: the loss is differentiated inside the optimiser
            updates, opt_state = lower(update, tools.lowering)(clipped)
        return dataclasses.replace(
            self,
            trainable=optax.apply_updates(self.trainable, updates),
            opt_state=check_same_form(opt_state, self.opt_state, "opt_state"),
            applied=Applied(gradients, clipped, updates),
        )


def start_update(trainable: Any, state: Any, opt_state: Any, tools: Tools, own_update: bool) -> TrainingHead:
    """Makes the head that an update receives.

    Args:
      own_update: whether the update is the user's own. It may apply no gradient, or several inside a scan, which
        carries arrays only; so `loss` and `applied` then start as zeros.
    """
    if not own_update:
        return TrainingHead(trainable, state, opt_state, None, None, tools)
    zeros = jax.tree.map(jnp.zeros_like, trainable)
    return TrainingHead(trainable, state, opt_state, jnp.zeros(()), Applied(zeros, zeros, zeros), tools)


def finish_update(head: Any, before: TrainingHead, where: str) -> TrainingHead:
    """Checks what the user's own update returned, and sets `updates` to all that changed the parameters.

    Args:
      head: what the update returned.
      before: what it received.
      where: class and method, for error messages.

    Raises:
      ModuleError: it is not a head, the same as before, or of another structure.
    """
    if not isinstance(head, TrainingHead):
        raise ModuleError(
            f"An update returned no head: {where}. Got {type(head).__name__}, expected the head of its last call. Fix: "
            "return for example head.apply(gradients)."
        )
    # By identity: inside a trace an untouched array is still the same tracer.
    old, new = ([*map(id, jax.tree.leaves((one.trainable, one.opt_state)))] for one in (before, head))
    if old == new:
        raise ModuleError(
            f"An update changes nothing: {where}. Got the parameters and optimiser state that it received, expected "
            "those after a step. Fix: return what head.apply(gradients) returns; it does not change the head in place."
        )
    for part in ("trainable", "state", "opt_state", "loss"):
        check_same_form(getattr(head, part), getattr(before, part), part)
    assert head.applied is not None
    # An update may apply several gradients, or none: what callbacks see is the whole change.
    updates = jax.tree.map(jnp.subtract, head.trainable, before.trainable)
    return dataclasses.replace(head, applied=head.applied._replace(updates=updates))
