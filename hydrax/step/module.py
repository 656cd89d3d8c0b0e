"""HeadModule: the part of the user's class that a step calls, written for one head."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import jax

from hydrax.errors import ModuleError
from hydrax.step.context import Context
from hydrax.step.hparams import Hyperparameters, PerHead
from hydrax.step.logged import Recorder
from hydrax.step.training_head import TrainingHead

if TYPE_CHECKING:
    import optax

_Module = TypeVar("_Module", bound="HeadModule")


class HeadModule:
    """Model, loss and optimiser of ONE head: the base of `HydraModule`, and all of it that a step uses."""

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

    @property
    def hparams(self) -> Hyperparameters:
        """The hyper-parameters; inside a step each `PerHead` is this head's own value, a traced scalar."""
        hparams: Hyperparameters = self.__dict__.get("_hparams", Hyperparameters({}))
        return hparams

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


def per_head_values(module: HeadModule) -> dict[str, PerHead]:
    """Every `PerHead` a module holds, by dotted name: `hparams.<name>`, or the attribute's own name."""
    found = {f"hparams.{name}": value for name, value in module.hparams.items() if isinstance(value, PerHead)}
    return found | {name: value for name, value in vars(module).items() if isinstance(value, PerHead)}


def has_own_update(module: HeadModule) -> bool:
    """Whether the user's class overrides `update`."""
    return type(module).update is not HeadModule.update


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


def set_frozen(module: HeadModule, frozen: bool) -> None:
    """Freezes or thaws the user's own module around a run."""
    vars(module)["_frozen"] = frozen


def _missing(module: HeadModule, signature: str, example: str) -> ModuleError:
    return ModuleError(
        f"A method is missing: {type(module).__name__}.{signature.split('(')[0]}. Got none, expected `def "
        f"{signature}`. Fix: define it, for example `{example}`."
    )
