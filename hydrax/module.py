"""HydraModule: the user's model, optimiser and loss, written for one head."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import sys
from collections.abc import Mapping
from types import CodeType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import jax
import numpy as np
from jax.extend.core import get_opaque_trace_state

from hydrax.errors import ModuleError
from hydrax.hparams import Hyperparameters, PerHead

if TYPE_CHECKING:
    from pathlib import Path

    import optax

    from hydrax.heads import Heads
    from hydrax.training_head import TrainingHead

_Module = TypeVar("_Module", bound="HydraModule")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a step may need besides model and batch, for one head; nothing in it changes under the step.

    Attributes:
      key: PRNG key of this head and step.
      mask: bool[B], True for live slots, False for padding.
      rows: int32[B], base-dataset row in each slot; a padding slot repeats a row of the head's own slice.
      step: int32 scalar, optimiser updates done before this one.
      head: int32 scalar, the head's id.
      train: True in `training_step`; a Python bool.
    """

    key: jax.Array
    mask: jax.Array
    rows: jax.Array
    step: jax.Array
    head: jax.Array
    train: bool = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Logged:
    """One value that a step logged: a scalar, `[B]` values, or a `clu.metrics.Metric`."""

    value: Any
    prog_bar: bool
    on_step: bool
    on_epoch: bool


class Recorder:
    """Takes down what one traced call of a step logs.

    Attributes:
      stage: "training", "validation" or "test".
      where: the method that is called, for messages.
      logged: by name.
    """

    def __init__(self, stage: str, where: str | None = None) -> None:
        self.stage, self.where = stage, where or f"{stage}_step"
        self.logged: dict[str, Logged] = {}
        self._trace = get_opaque_trace_state(convention="flax")

    def add(self, name: str, value: Any, prog_bar: bool, on_step: bool | None, on_epoch: bool | None) -> None:
        if not isinstance(name, str) or not name:
            raise ModuleError(
                f"A logged value has no name: self.log in {self.where}. Got {name!r}, expected a word such as "
                '"train_accuracy". Fix: give the name first, then the value.'
            )
        if name in self.logged:
            again = ", or ask for the second gradient with log=False" if self.where == "update" else ""
            raise ModuleError(
                f"A name is logged twice in one step: self.log({name!r}) in {self.where}. Got a second value, "
                f"expected one value a name and step. Fix: log it under another name{again}."
            )
        if get_opaque_trace_state(convention="flax") != self._trace:
            raise ModuleError(
                f"A value is logged inside an inner jax transformation: self.log({name!r}) in {self.where}. Got a "
                "call inside your own scan, vmap, jit or grad, expected one at the step's own level. Fix: return the "
                "value from the inner function and log it after the call."
            )
        train = self.stage == "training"
        self.logged[name] = Logged(
            value,
            prog_bar=bool(prog_bar),
            on_step=train if on_step is None else bool(on_step),
            on_epoch=(not train) if on_epoch is None else bool(on_epoch),
        )


class HydraModule:
    """Model, loss and optimiser of ONE head; the Trainer adds the head axis.

    The module holds configuration only, is never changed by training, and is frozen while a fit runs.
    Override `configure_model`, `configure_optimizers` and `training_step`; the rest as needed.
    """

    def configure_model(self, key: jax.Array) -> Any:
        """Builds one head's model: an `nnx.Module`, Linen variables, or any pytree of arrays.

        Args:
          key: PRNG key of this head; the only source of difference between heads besides `PerHead` values.
        """
        raise _missing(self, "configure_model(self, key)", "return MLP(rngs=nnx.Rngs(key))")

    def configure_optimizers(self) -> optax.GradientTransformation:
        """Builds one head's optimiser, an optax transformation; hyper-parameters may be traced scalars."""
        raise _missing(self, "configure_optimizers(self)", "return optax.adamw(1e-3)")

    def training_step(self, model: Any, batch: Any, ctx: Context) -> Any:
        """The loss of one head on one batch: pure.

        Args:
          model: what `configure_model` built.
          batch: the dataset's columns, each `[B, ...]`.
          ctx: see `Context`.

        Returns:
          The loss, float `[B]` (averaged over live slots for you) or a float scalar (only where no slot can be
          padding); or a dict with "loss", and with "model" where a plain pytree's own state (such as Linen's batch
          statistics) moves on.
        """
        raise _missing(self, "training_step(self, model, batch, ctx)", "return one loss for each slot, [B]")

    def update(self, head: TrainingHead, batch: Any, ctx: Context) -> TrainingHead:
        """One training step of one head: pure. The one way out for training that is more than one gradient of one loss.

        The default is the ordinary step, and the example of how to write another:

            loss, gradients, head = head.gradient(self.training_step, batch, ctx)
            return head.apply(gradients)

        Two gradients a step, several losses, noise on gradients, parts that take turns: `TrainingHead` has what it
        takes. `self.log` works here, and in every loss function. With `accumulate_grad_batches` it stays the default,
        as an update sees one batch.

        Args:
          head: parameters, model state and optimiser state before the step.
          batch: as in `training_step`.
          ctx: as in `training_step`.

        Returns:
          The head after the step.
        """
        _, gradients, head = head.gradient(self.training_step, batch, ctx)
        return head.apply(gradients)

    def validation_step(self, model: Any, batch: Any, ctx: Context) -> Any:
        """As `training_step`, without an update; a returned loss is logged as `val_loss`. May return None."""
        raise _missing(self, "validation_step(self, model, batch, ctx)", "return one loss for each slot, [B]")

    def test_step(self, model: Any, batch: Any, ctx: Context) -> Any:
        """As `validation_step`, for the test set; a returned loss is logged as `test_loss`. May return None."""
        raise _missing(self, "test_step(self, model, batch, ctx)", "return one loss for each slot, [B]")

    def predict_step(self, model: Any, batch: Any, ctx: Context) -> Any:
        """As `training_step`, but gives any pytree whose leaves lead with `[B]`. The default calls the model."""
        return model(batch)

    def setup(self, stage: str) -> None:
        """Called on the host before a stage ("fit", "validate", "test", "predict") starts."""

    def teardown(self, stage: str) -> None:
        """Called on the host after a stage ended, also by an error."""

    @overload
    @classmethod
    def load_from_checkpoint(cls, path: str | Path, head: None = None, **hparams: Any) -> Heads: ...
    @overload
    @classmethod
    def load_from_checkpoint(cls, path: str | Path, head: int, **hparams: Any) -> Any: ...
    @classmethod
    def load_from_checkpoint(cls, path: str | Path, head: int | None = None, **hparams: Any) -> Any:
        """Models that were trained with a module of this class, read from a checkpoint.

        Args:
          path: a run's checkpoints or `Heads.save`'s folder; the newest step is read.
          head: gives what `heads[head]` would, and reads nothing of the others; None: all, as `Heads`.
          hparams: arguments of `__init__`, instead of those that the checkpoint holds. It holds what
            `save_hyperparameters` kept, but for what is no number, text, tuple, list or dict.

        Raises:
          ModuleError: the checkpoint does not hold an argument that `__init__` needs.
          CheckpointError: it holds heads of another module, or is damaged.
        """
        from hydrax.heads import load_with

        return load_with(cls, path, head, hparams)

    @property
    def hparams(self) -> Hyperparameters:
        """The hyper-parameters; inside a step each `PerHead` is this head's own value, a traced scalar."""
        hparams: Hyperparameters = self.__dict__.get("_hparams", Hyperparameters({}))
        return hparams

    def save_hyperparameters(self, *names: str, ignore: tuple[str, ...] | list[str] = ()) -> None:
        """Keeps the arguments of the calling `__init__` as `self.hparams`.

        Args:
          names: which arguments; all of them if none is named.
          ignore: arguments to leave out.

        Raises:
          ModuleError: it is not called in `__init__`, or a name is none of its arguments.
        """
        caller = inspect.currentframe()
        frame = caller.f_back if caller else None
        if frame is None or frame.f_code.co_name != "__init__" or frame.f_locals.get("self") is not self:
            raise ModuleError(
                f"Hyper-parameters are saved from outside __init__: {type(self).__name__}.save_hyperparameters. Got a "
                f"call from {frame.f_code.co_name if frame else 'nowhere'}, expected one inside __init__. Fix: call it "
                "first in __init__."
            )
        info = inspect.getargvalues(frame)
        found = {name: info.locals[name] for name in info.args[1:]}
        found |= {name: info.locals[name] for name in _keyword_only(frame)}
        found |= info.locals.get(info.keywords, {}) if info.keywords else {}
        unknown = [name for name in names if name not in found]
        if unknown:
            raise ModuleError(
                f"Hyper-parameter is not an argument of __init__: {type(self).__name__}.save_hyperparameters. Got "
                f"{unknown[0]!r}, expected one of {', '.join(found)}. Fix: name an argument of __init__."
            )
        kept = {name: value for name, value in found.items() if name in (names or found) and name not in ignore}
        self._hparams = Hyperparameters({**self.hparams, **kept})

    def log(
        self, name: str, value: Any, prog_bar: bool = False, on_step: bool | None = None, on_epoch: bool | None = None
    ) -> None:
        """Records one value of this head and step.

        Args:
          name: the metric's name.
          value: a scalar, `[B]` values (averaged over live slots), or a `clu.metrics.Metric` (merged, then computed).
          prog_bar: show it in the progress bar.
          on_step: report it for each step; default: in `training_step` only.
          on_epoch: report its mean over the epoch, weighted by live slots; default: everywhere but in `training_step`.

        Raises:
          ModuleError: it is called outside a step or inside your own scan, or the name is taken.
        """
        recorder = self.__dict__.get("_recorder")
        if recorder is None:
            raise ModuleError(
                f"A value is logged outside a step: {type(self).__name__}.log({name!r}). Got a call outside "
                "training_step, validation_step and test_step, expected one inside. Fix: move the call into the step."
            )
        recorder.add(name, value, prog_bar, on_step, on_epoch)

    def log_dict(self, values: Mapping[str, Any], prog_bar: bool = False, **when: bool | None) -> None:
        """Records several values, as `log` does each."""
        for name, value in values.items():
            self.log(name, value, prog_bar, **when)

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_frozen"):
            raise ModuleError(
                f"An attribute is set while the module is frozen: {type(self).__name__}.{name}. Got an assignment "
                "during a run, expected none: a compiled step runs for every head, so a value kept on the module "
                "would be a leaked tracer. Fix: return it, log it with self.log, or keep it in the model's own state."
            )
        object.__setattr__(self, name, value)


def per_head_values(module: HydraModule) -> dict[str, PerHead]:
    """Every `PerHead` a module holds, by dotted name: `hparams.<name>`, or the attribute's own name."""
    found = {f"hparams.{name}": value for name, value in module.hparams.items() if isinstance(value, PerHead)}
    return found | {name: value for name, value in vars(module).items() if isinstance(value, PerHead)}


def has_own_update(module: HydraModule) -> bool:
    """Whether the user's class overrides `update`."""
    return type(module).update is not HydraModule.update


def bind(module: _Module, values: Mapping[str, Any], stage: str) -> tuple[_Module, Recorder]:
    """A frozen copy of the module as one head sees it, and the recorder of what it logs.

    Args:
      module: the user's module.
      values: this head's scalars, by the names of `per_head_values`.
      stage: "training", "validation", "test", "predict" or "configure"; only the first three may log.
    """
    bound = copy.copy(module)
    recorder = Recorder(stage, "update" if stage == "training" and has_own_update(module) else None)
    own = {name: value for name, value in values.items() if not name.startswith("hparams.")}
    hparams = {name: values.get(f"hparams.{name}", value) for name, value in module.hparams.items()}
    vars(bound).update(own, _hparams=Hyperparameters(hparams), _frozen=True)
    vars(bound)["_recorder"] = recorder if stage in ("training", "validation", "test") else None
    return bound, recorder


def set_frozen(module: HydraModule, frozen: bool) -> None:
    """Freezes or thaws the user's own module around a run."""
    vars(module)["_frozen"] = frozen


def masked_mean(value: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `[B]` values over live slots, float32 or wider; 0 where no slot is live. A scalar passes through."""
    value = value.astype(jax.numpy.promote_types(value.dtype, np.float32))
    if value.ndim == 0:
        return value
    # `where` and not a product: what a padding slot holds, NaN included, must not reach the mean.
    return jax.numpy.where(mask, value, 0).sum() / jax.numpy.maximum(mask.sum(), 1)


def is_metric(value: Any) -> bool:
    """Whether a logged value is a `clu.metrics.Metric`, which merges itself."""
    # It imports Flax; a metric can only come from where it is imported already.
    metrics: Any = sys.modules.get("clu.metrics")
    return metrics is not None and isinstance(value, metrics.Metric)


def _keyword_only(frame: Any) -> tuple[str, ...]:
    code: CodeType = frame.f_code
    return code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]


def _missing(module: HydraModule, signature: str, example: str) -> ModuleError:
    return ModuleError(
        f"A method is missing: {type(module).__name__}.{signature.split('(')[0]}. Got none, expected `def "
        f"{signature}`. Fix: define it, for example `{example}`."
    )
