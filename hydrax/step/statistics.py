"""Batch statistics: makes batch normalisation leave out padding, or refuses a model in which it cannot."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

from hydrax.errors import ModuleError


class Slots:
    """The live slots of a batch. It is no pytree, so Flax takes it for a constant of a module and not for a variable.

    Args:
      mask: bool[B], the live slots.
      padding: why a slot can be padding; None if none is in this fit.
    """

    def __init__(self, mask: jax.Array, padding: str | None) -> None:
        self.mask, self.padding = mask, padding

    def for_input(self, x: Any, feature_axis: Any, layer: str) -> jax.Array | None:
        """Returns the mask in a shape that broadcasts against the input of a layer; None if there is nothing to mask.

        Raises:
          ModuleError: the first axis of the input is not that of the slots, or is an axis of features.
        """
        features = {axis % x.ndim for axis in ([feature_axis] if isinstance(feature_axis, int) else feature_axis)}
        if x.shape[:1] != self.mask.shape or 0 in features:
            if self.padding is None:
                return None
            got = f"an input of shape {list(x.shape)} with features on axis {feature_axis}"
            raise padding_counted(
                layer, got, f"[{self.mask.size}, ...] with one slot at each place of axis 0", self.padding
            )
        # With no live slot the step is discarded, but 0 / 0 would make a NaN in it.
        live: jax.Array = (self.mask | ~self.mask.any()).reshape(-1, *[1] * (x.ndim - 1))
        return live


def mask_nnx(model: Any, slots: Slots) -> None:
    """Makes each `nnx.BatchNorm` of a model leave out padding, in place; the model must not outlive the trace."""
    from flax import nnx  # late, as in model.py

    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm) and _takes_mask(module):
            module.hydrax_slots = slots  # type: ignore[attr-defined]
            object.__setattr__(module, "__class__", _masked(type(module)))


def unmaskable_in_nnx(model: Any) -> str | None:
    """Names a module whose batch statistics cannot leave out padding, or returns None."""
    from flax import nnx

    for _, module in nnx.iter_modules(model):
        # A Linen module is masked as one; a spectral norm keeps statistics of its weights.
        known = isinstance(module, nnx.bridge.ToNNX | nnx.SpectralNorm)
        known = known or (isinstance(module, nnx.BatchNorm) and _takes_mask(module))
        if not known and any(isinstance(value, nnx.BatchStat) for value in vars(module).values()):
            return type(module).__name__
    return None


@contextlib.contextmanager
def masked_linen(slots: Slots | None, train: bool) -> Iterator[None]:
    """Makes each `nn.BatchNorm` that is applied inside the block leave out padding.

    Args:
      slots: the live slots; None if none can be padding.
      train: whether to refuse other modules with batch statistics.

    Raises:
      ModuleError: a module of another kind keeps batch statistics.
    """
    nn: Any = sys.modules.get("flax.linen")
    if slots is None or nn is None:
        yield
        return

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if type(module).__call__ is nn.BatchNorm.__call__:
            if kwargs.get("mask") is None:
                kwargs = {**kwargs, "mask": slots.for_input(args[0], module.axis, "nn.BatchNorm")}
        elif train and slots.padding and not isinstance(module, nn.SpectralNorm):
            own = module.variables.get("batch_stats", {})
            if any(not hasattr(value, "items") for value in own.values()):
                raise padding_counted(type(module).__name__, "statistics of its own", "nn.BatchNorm", slots.padding)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def padding_counted(layer: str, got: str, expected: str, padding: str) -> ModuleError:
    """Returns the error for a layer whose batch statistics would count padding.

    Args:
      layer: its name.
      got: what about it stands in the way.
      expected: what would not.
      padding: why a slot can be padding.
    """
    return ModuleError(
        f"Batch statistics would count padding: {layer}. Got {got}, expected {expected}, since {padding}. Fix: use a "
        'layer norm, or fill every batch: small_slices="wrap" or a batch_size no larger than the shortest slice, '
        'without budget="passes".'
    )


def _takes_mask(module: Any) -> bool:
    return "mask" in inspect.signature(type(module).__call__).parameters


@functools.cache
def _masked(kind: type) -> type:
    """Makes a subclass of `nnx.BatchNorm` or of a class derived from it whose calls pass the mask on."""

    def call(self: Any, x: Any, *args: Any, mask: Any = None, **kwargs: Any) -> Any:
        mask = self.hydrax_slots.for_input(x, self.axis, kind.__name__) if mask is None else mask
        return kind.__call__(self, x, *args, mask=mask, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": call})
