"""TrainingHead: one head inside a training step, as `HydraModule.update` gets it and gives it back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from hydrax.errors import ModuleError
from hydrax.step.checks import check_same_form, read_logged, read_loss
from hydrax.step.context import Context
from hydrax.step.logged import Logged, Recorder, masked_mean
from hydrax.step.lowering.lowering import Lowering, lower
from hydrax.step.model import Structure


class Applied(NamedTuple):
    """What the optimiser last got and gave, each shaped like the parameters.

    Attributes:
      gradients: as they were handed to `apply`.
      clipped: what the optimiser got.
      updates: what it added to the parameters.
    """

    gradients: Any
    clipped: Any
    updates: Any


class TrainsOneHead(Protocol):
    """What an update needs of the user's module; `HeadModule`, which stands on this file, has it."""

    def training_step(self, model: Any, batch: Any, ctx: Context) -> Any: ...

    def update(self, head: TrainingHead, batch: Any, ctx: Context) -> TrainingHead: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Tools:
    """What a step is made with, the same from its start to its end.

    Attributes:
      module: the user's module, bound to this head.
      recorder: takes down what the step logs.
      structure: what turns arrays into a model.
      model: a model in training mode of (trainable, state), in the precision that it computes in.
      optimizer: makes the optimiser.
      clip: bounds gradients.
      lowering: in which forms operations are computed.
      padding: why a slot can be padding, or None where none can.
    """

    module: TrainsOneHead
    recorder: Recorder
    structure: Structure
    model: Callable[[Any, Any], Any]
    optimizer: Callable[[], optax.GradientTransformation]
    clip: Callable[[Any], Any]
    lowering: Lowering
    padding: str | None

    @contextlib.contextmanager
    def recording(self, recorder: Recorder) -> Iterator[None]:
        """Inside, `self.log` of the module writes to another recorder."""
        vars(self.module)["_recorder"] = recorder
        try:
            yield
        finally:
            vars(self.module)["_recorder"] = self.recorder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingHead:
    """One head inside a training step. It never changes: each method gives a new one.

    Attributes:
      trainable: the parameters: of an `nnx.Module` nested dicts by attribute, of Linen variables "params", of any other
        pytree itself, with None for what is not trained.
      state: the model's other arrays, such as batch statistics.
      opt_state: the state of the optimiser that `configure_optimizers` gives.
      loss: what `gradient` last logged, a float scalar: callbacks get it, and a head is lost where it is not finite.
      applied: what the optimiser last got and gave, for callbacks.
      tools: what the step is made with; Hydrax's own.
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
        """The head with other `trainable`, `state`, `opt_state` or `loss`; shapes and dtypes must stay."""
        return dataclasses.replace(self, **changes)

    def gradient(
        self, loss_function: Callable[..., Any], batch: Any, ctx: Context, *, log: bool = True
    ) -> tuple[jax.Array, Any, TrainingHead]:
        """The loss, and its gradient by all parameters.

        Args:
          loss_function: `self.training_step`, or a function of the same form: of (model, batch, ctx), pure, with the
            loss as float `[B]`, which is averaged over live slots, or as a scalar.
          batch: columns `[B, ...]`.
          ctx: as the update got it, or one with another key.
          log: whether what it logs counts, and its loss as the loss of the step; `self.training_step` logs
            `train_loss` then. Say False for a second look at the same loss.

        Returns:
          The loss, a float scalar; the gradient, shaped like `trainable`; and the head with the model's own state
          after the call, its parameters as they were.

        Raises:
          ModuleError: what came back is no loss, or something is logged twice.
        """
        tools = self.tools
        name = getattr(loss_function, "__name__", "a loss function")

        def run(trainable: Any) -> tuple[jax.Array, tuple[dict[str, Any], Any]]:
            model, recorder = tools.model(trainable, self.state), Recorder("training")
            with tools.recording(recorder):
                output = loss_function(model, batch, ctx)
            if isinstance(output, Mapping):
                model = output.get("model", model)
            loss = read_loss(output, name, ctx.mask, tools.padding)
            assert loss is not None
            if loss_function == tools.module.training_step and "train_loss" not in recorder.logged:
                recorder.add("train_loss", loss, prog_bar=True, on_step=None, on_epoch=None)
            entries.update({n: dataclasses.replace(entry, value=None) for n, entry in recorder.logged.items()})
            logs = {n: read_logged(n, entry.value, "training", ctx.mask) for n, entry in recorder.logged.items()}
            return masked_mean(loss, ctx.mask), (
                logs,
                check_same_form(tools.structure.read_state(model), self.state, "state"),
            )

        entries: dict[str, Logged] = {}
        differentiated = lower(jax.value_and_grad(run, has_aux=True), tools.lowering)
        (loss, (logs, state)), gradients = differentiated(self.trainable)
        if not log:
            return loss, gradients, self.replace(state=state)
        for n, value in logs.items():
            entry = entries[n]
            tools.recorder.add(n, value, entry.prog_bar, entry.on_step, entry.on_epoch)
        return loss, gradients, self.replace(state=state, loss=loss)

    def apply(self, gradients: Any) -> TrainingHead:
        """The head after the optimiser's step by these gradients, which `gradient_clip_val` bounds before.

        Args:
          gradients: shaped like `trainable`.

        Raises:
          ModuleError: they are not.
        """
        tools = self.tools
        got, expected = str(jax.tree.structure(gradients)), str(jax.tree.structure(self.trainable))
        if got != expected:
            raise ModuleError(
                f"Gradients have another form than the parameters: head.apply. Got {got}, expected {expected}. Fix: "
                "pass what head.gradient gives, whole."
            )
        clipped = tools.clip(gradients)
        updates, opt_state = tools.optimizer().update(clipped, self.opt_state, self.trainable)
        return dataclasses.replace(
            self,
            trainable=optax.apply_updates(self.trainable, updates),
            opt_state=check_same_form(opt_state, self.opt_state, "opt_state"),
            applied=Applied(gradients, clipped, updates),
        )


def start(trainable: Any, state: Any, opt_state: Any, tools: Tools, own_update: bool) -> TrainingHead:
    """A head at the start of a step.

    Args:
      own_update: whether the step is the user's own: it may apply no gradient, or several inside a scan, which carries
        arrays only.
    """
    if not own_update:
        return TrainingHead(trainable, state, opt_state, None, None, tools)
    zeros = jax.tree.map(jnp.zeros_like, trainable)
    return TrainingHead(trainable, state, opt_state, jnp.zeros(()), Applied(zeros, zeros, zeros), tools)


def finished(head: Any, before: TrainingHead, where: str) -> TrainingHead:
    """What the user's own update gave back, checked; its `updates` are all that changed the parameters."""
    if not isinstance(head, TrainingHead):
        raise ModuleError(
            f"No head came back: {where}. Got {type(head).__name__}, expected the head of the last call. Fix: return "
            "for example head.apply(gradients)."
        )
    old, new = ([*map(id, jax.tree.leaves((one.trainable, one.opt_state)))] for one in (before, head))
    if old == new:
        raise ModuleError(
            f"An update changes nothing: {where}. Got back the parameters and the optimiser's state that it was given, "
            "expected those after a step. Fix: a head never changes itself, so return what head.apply(gradients) gives."
        )
    for part in ("trainable", "state", "opt_state", "loss"):
        check_same_form(getattr(head, part), getattr(before, part), part)
    assert head.applied is not None
    updates = jax.tree.map(jnp.subtract, head.trainable, before.trainable)
    return dataclasses.replace(head, applied=head.applied._replace(updates=updates))
