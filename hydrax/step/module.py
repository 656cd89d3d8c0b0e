"""HeadModule: the part of the user's class that a step calls, written for one head."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import jax

from hydrax.arguments import checked_call
from hydrax.errors import DataError, HydraxError, ModuleError
from hydrax.step.context import Context
from hydrax.step.hparams import Hyperparameters, PerHead
from hydrax.step.logged import Recorder
from hydrax.step.training_head import TrainingHead

if TYPE_CHECKING:
    import optax

_Module = TypeVar("_Module", bound="HeadModule")
# Where a copy of the module keeps the transformation of its data module; no attribute of the user's has such a name.
_TRANSFORM = "batch_transform."
_INPUTS = ("x", "input", "inputs", "image", "images", "features", "tokens")


class HeadModule:
    """Model, loss and optimiser of ONE head: the base of `HydraModule`, with every method that a step calls."""

    def configure_model(self, key: jax.Array) -> Any:
        """Builds the model of one head.

        Args:
          key: PRNG key of this head. Models of different heads differ only by this key and by `PerHead` values.

        Returns:
          An `nnx.Module`, Linen variables, or any pytree of arrays, such as an Equinox module or the
          `(model, state)` of `equinox.nn.make_with_state`.
        """
        raise _missing(self, "configure_model(self, key)", "return MLP(rngs=nnx.Rngs(key))")

    def is_trained(self, name: str, leaf: jax.Array) -> bool:
        """Decides whether an array of the model is trained; by default every parameter is.

        It is asked for each floating-point or complex array that is an `nnx.Param`, in Linen's "params", or anywhere in
        another pytree, except in an `equinox.nn.State`. An array that is not trained belongs to the state of the model:
        it has no gradient and no optimiser state, does not count for `gradient_clip_val`, and keeps what a step returns
        for it.

        Args:
          name: its path in the model, as `Heads.export` writes it, such as "encoder.0.kernel".
          leaf: the array; only its shape and dtype may be read.
        """
        return True

    def configure_optimizers(self) -> optax.GradientTransformation:
        """Builds the optimiser of one head.

        A `PerHead` hyper-parameter is a traced scalar here: `optax.adamw(self.hparams.lr)` works, a Python `if` on it
        works only if it comes out the same for all heads.

        It may also be written `configure_optimizers(self, key)`. The key belongs to this head and stays the same during
        the run, for optimisers that keep a key in their state: `optax.noisy_sgd(0.1, key=key)`.

        Returns:
          An optax transformation. If it takes extra arguments (`optax.GradientTransformationExtraArgs`), it gets the
          loss as `value`, the gradient before clipping as `grad`, and the loss as a function of the parameters as
          `value_fn`.
        """
        raise _missing(self, "configure_optimizers(self)", "return optax.adamw(1e-3)")

    def evaluation_parameters(self, parameters: Any, opt_state: Any) -> Any:
        """Returns the parameters of one head to evaluate, if they are not those that are trained.

        Some optimisers train one point and return another, such as
        `optax.contrib.schedule_free_eval_params(opt_state, parameters)`. Validation, snapshots such as the best models,
        `result.heads` and readers of checkpoints use what this method returns; training and resumed runs do not.

        Args:
          parameters: the trained parameters, as `TrainingHead.trainable`.
          opt_state: the state of the optimiser.

        Returns:
          Parameters of the same structure and shapes.
        """
        return parameters

    def training_step(self, model: Any, batch: Any, ctx: Context) -> Any:
        """Computes the loss of one head on one batch. It must be pure: no side effects but `self.log`.

        Args:
          model: what `configure_model` returned, with the current parameters.
          batch: the columns of the dataset, each `[B, ...]`.
          ctx: key, mask, row numbers and step number; see `Context`.

        Returns:
          The loss, float `[B]`: Hydrax averages it over the live slots. A float scalar is accepted only where no slot
          can be padding. Alternatively, a dict with the loss as "loss" and, if the model is a plain pytree with state
          of its own (such as Linen's batch statistics), the changed model as "model": everything in it is kept except
          the parameters, which must be those that came in.
        """
        raise _missing(self, "training_step(self, model, batch, ctx)", "return one loss for each slot, [B]")

    def update(self, head: TrainingHead, batch: Any, ctx: Context) -> TrainingHead:
        """Makes one training step of one head. Override it when one gradient of one loss is not enough.

        The default shows the form:

            loss, gradients, head = head.gradient(self.training_step, batch, ctx)
            return head.apply(gradients)

        `TrainingHead` also serves two gradients in one step, several losses, noise on gradients, or parts that are
        trained in turn. The method must be pure; `self.log` works in it and in every loss function. It cannot be
        combined with `accumulate_grad_batches`, since an update sees a single batch.

        Args:
          head: parameters, model state and optimiser state before the step.
          batch: as in `training_step`.
          ctx: as in `training_step`.

        Returns:
          The head after the step.
        """
        before = head
        loss, gradients, head = head.gradient(self.training_step, batch, ctx)
        # For optimisers that search along a line: the loss of the same batch, from the same state of the model.
        value_fn = lambda p: before.replace(trainable=p).evaluate(self.training_step, batch, ctx)[0]  # noqa: E731
        return head.apply(gradients, value=loss, value_fn=value_fn)

    def validation_step(self, model: Any, batch: Any, ctx: Context) -> Any:
        """Evaluates one head on one batch of the validation set.

        Arguments and return value are those of `training_step`. A returned loss is logged as `val_loss`; return None if
        there is none.
        """
        raise _missing(self, "validation_step(self, model, batch, ctx)", "return one loss for each slot, [B]")

    def test_step(self, model: Any, batch: Any, ctx: Context) -> Any:
        """Evaluates one head on one batch of the test set, as `validation_step`; its loss is logged as `test_loss`."""
        raise _missing(self, "test_step(self, model, batch, ctx)", "return one loss for each slot, [B]")

    def predict_step(self, model: Any, batch: Any, ctx: Context) -> Any:
        """Predicts for one batch with one head; by default it calls the model on the inputs.

        Of a dict or named tuple the inputs are its only column, or else the column named x, input, inputs, image,
        images, features or tokens; of another tuple or list they are the first entry. Anything else is passed whole.

        Arguments are those of `training_step`.

        Returns:
          Any pytree of arrays `[B, ...]`, one entry for each slot.

        Raises:
          ModuleError: no column of a dict, or more than one, has such a name.
        """
        return model(_inputs(self, batch))

    @property
    def hparams(self) -> Hyperparameters:
        """The hyper-parameters. Inside a step each `PerHead` is replaced by this head's value, a traced scalar."""
        hparams: Hyperparameters = self.__dict__.get("_hparams", Hyperparameters({}))
        return hparams

    @checked_call
    def log(
        self, name: str, value: Any, prog_bar: bool = False, on_step: bool | None = None, on_epoch: bool | None = None
    ) -> None:
        """Logs one value of this head in this step.

        Args:
          name: name of the metric.
          value: a scalar; `[B]` values, which are averaged over the live slots; or a `clu.metrics.Metric`, which is
            merged over steps and computed at the end of the epoch.
          prog_bar: whether to show it in the progress bar.
          on_step: whether to report the value of each step. Default: only in `training_step`.
          on_epoch: whether to report the mean over the epoch, weighted by live slots. Default: everywhere except in
            `training_step`.

        Raises:
          ModuleError: the call is outside a step or inside a jax transformation of your own, or the name is already
            logged in this step.
        """
        # Only the copy that is bound to one head inside a step has a recorder.
        recorder = self.__dict__.get("_recorder")
        if recorder is None:
            raise ModuleError(
                f"A value is logged outside a step: {type(self).__name__}.log({name!r}). Got a call from elsewhere, "
                "expected one in training_step, validation_step, test_step or update. Fix: move the call into a step."
            )
        recorder.add(name, value, prog_bar, on_step, on_epoch)

    @checked_call
    def log_dict(self, values: Mapping[str, Any], prog_bar: bool = False, **when: bool | None) -> None:
        """Logs several values by name; the other arguments are those of `log`."""
        for name, value in values.items():
            self.log(name, value, prog_bar, **when)

    def __setattr__(self, name: str, value: Any) -> None:
        # Through `__dict__`: `__init__` of a subclass may set attributes before it calls the base class.
        if self.__dict__.get("_frozen"):
            raise ModuleError(
                f"An attribute is set while the module is frozen: {type(self).__name__}.{name}. Got an assignment "
                "during a run, expected none: the step is traced once for all heads, so the module would keep a "
                "tracer and not a value. Fix: return it, log it with self.log, or keep it in the model's own state."
            )
        object.__setattr__(self, name, value)


def chosen_per_head(module: HeadModule) -> dict[str, PerHead]:
    """Finds every `PerHead` that the user gave a module, by dotted name: `hparams.<name>`, or that of the attribute."""
    found = {f"hparams.{name}": value for name, value in module.hparams.items() if isinstance(value, PerHead)}
    return found | {name: value for name, value in vars(module).items() if isinstance(value, PerHead)}


def per_head_values(module: HeadModule) -> dict[str, PerHead]:
    """Finds every `PerHead` that a step takes: those of the module, and those that transform its batches."""
    transform = {name: value for name, value in _keywords(module).items() if isinstance(value, PerHead)}
    return chosen_per_head(module) | {_TRANSFORM + name: value for name, value in transform.items()}


def has_own_update(module: HeadModule) -> bool:
    """Whether the user's class overrides `update`."""
    return type(module).update is not HeadModule.update


def bind(module: _Module, values: Mapping[str, Any], stage: str) -> tuple[_Module, Recorder]:
    """Makes a frozen copy of the module as one head sees it, and a recorder of what the copy logs.

    Args:
      module: the user's module.
      values: this head's scalars, under the names of `per_head_values`.
      stage: "training", "validation", "test", "predict" or "configure"; only the first three may log.
    """
    # A copy, because a traced scalar on the user's own object would outlive its trace.
    bound = copy.copy(module)
    # Messages name the method that the user wrote.
    recorder = Recorder(stage, "update" if stage == "training" and has_own_update(module) else None)
    own = {name: value for name, value in values.items() if not name.startswith("hparams.")}
    hparams = {name: values.get(f"hparams.{name}", value) for name, value in module.hparams.items()}
    vars(bound).update(own, _hparams=Hyperparameters(hparams), _frozen=True)
    _set_keywords(bound, {name: values.get(_TRANSFORM + name, value) for name, value in _keywords(module).items()})
    vars(bound)["_recorder"] = recorder if stage in ("training", "validation", "test") else None
    return bound, recorder


def of_heads(module: _Module, heads: Any) -> _Module:
    """Returns a copy of the module whose `PerHead` values are those of some heads, given by a list, slice or mask."""
    chosen = copy.copy(module)
    own = {name: value[heads] for name, value in vars(module).items() if isinstance(value, PerHead)}
    vars(chosen).update(own, _hparams=module.hparams.of_heads(heads))
    _set_keywords(chosen, {n: v[heads] if isinstance(v, PerHead) else v for n, v in _keywords(module).items()})
    return chosen


def with_transform(module: _Module, transform: Callable[..., Any] | None) -> _Module:
    """Returns a copy of the module whose steps see what `transform` makes of a batch; the module itself if it is None.

    Args:
      module: the user's module.
      transform: as `DataModule.batch_transform` returns it.
    """
    if transform is None:
        return module
    chosen = copy.copy(module)
    vars(chosen)[_TRANSFORM] = transform
    return chosen


def has_transform(module: HeadModule) -> bool:
    """Whether the batches of a module are transformed before its steps see them."""
    return _TRANSFORM in vars(module)


def transformed(module: HeadModule, values: Mapping[str, Any], batch: Any) -> Any:
    """Returns a batch as the steps of one head see it; `values` as for `bind`."""
    if not has_transform(module):
        return batch
    try:
        return vars(bind(module, values, "configure")[0])[_TRANSFORM](batch)
    except HydraxError:
        raise
    except Exception as error:
        raise DataError(
            "A transformation of batches failed while it was traced for one head: DataModule.batch_transform. Got "
            f"{type(error).__name__}: {error}, expected it to run on traced arrays. Fix: see the line that the cause "
            "above names."
        ) from error


def _keywords(module: HeadModule) -> dict[str, Any]:
    """The keyword arguments of a module's transformation of batches."""
    return dict(getattr(vars(module).get(_TRANSFORM), "keywords", {}))


def _set_keywords(module: HeadModule, keywords: Mapping[str, Any]) -> None:
    if keywords:
        given = vars(module)[_TRANSFORM]
        vars(module)[_TRANSFORM] = functools.partial(given.func, *given.args, **keywords)


def set_frozen(module: HeadModule, frozen: bool) -> None:
    """Freezes or unfreezes the user's module itself, around a run."""
    vars(module)["_frozen"] = frozen


def _inputs(module: HeadModule, batch: Any) -> Any:
    """Returns the columns of a batch that the default `predict_step` calls the model on."""
    if hasattr(batch, "_asdict"):
        batch = batch._asdict()
    if isinstance(batch, tuple | list) and batch:
        return batch[0]
    if not isinstance(batch, Mapping):
        return batch
    names = list(batch) if len(batch) == 1 else [name for name in batch if name in _INPUTS]
    if len(names) == 1:
        return batch[names[0]]
    columns = ", ".join(map(str, batch))
    raise ModuleError(
        f"The inputs of the model are unknown: {type(module).__name__}.predict_step. Got columns {columns}, expected a "
        f"single one, or one with a name among {', '.join(_INPUTS)}. Fix: define predict_step(self, model, batch, ctx) "
        f"with `return model(batch[{next(iter(batch), 'x')!r}])`."
    )


def _missing(module: HeadModule, signature: str, example: str) -> ModuleError:
    return ModuleError(
        f"A method is missing: {type(module).__name__}.{signature.split('(')[0]}. Got none, expected `def "
        f"{signature}`. Fix: define it, for example `{example}`."
    )
