"""What a user's step returned, logged and made of its head, checked while it is traced."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.errors import CallbackError, ModuleError
from hydrax.step.logged import is_metric, masked_mean


def read_loss(
    output: Any, where: str, mask: jax.Array, padding: str | None, optional: bool = False
) -> jax.Array | None:
    """The loss in what a step returned, checked: float, `[B]` or a scalar; or None, where it is optional."""
    fix = "Fix: return one float loss for each slot, [B]."
    if isinstance(output, Mapping) and "loss" not in output:
        keys = ", ".join(map(repr, output)) or "no keys"
        raise ModuleError(f'A returned dict holds no loss: {where}. Got {keys}, expected a "loss" entry. {fix}')
    loss = output["loss"] if isinstance(output, Mapping) else output
    if loss is None and optional:
        return None
    if not isinstance(loss, jax.Array | np.ndarray | np.generic | float):
        raise ModuleError(f"No loss came back: {where}. Got {type(loss).__name__}, expected a float array. {fix}")
    loss = jnp.asarray(loss)
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ModuleError(f"A loss has no gradient: {where}. Got dtype {loss.dtype}, expected floats. {fix}")
    if loss.shape not in ((), mask.shape):
        raise ModuleError(
            f"A loss has the wrong shape: {where}. Got {list(loss.shape)} for one head, expected [{mask.size}], one "
            "loss for each slot. Fix: take the mean over all axes but the first."
        )
    if loss.ndim == 0 and padding:
        raise ModuleError(
            f"A scalar loss would count padding: {where}. Got a scalar, expected [{mask.size}], since {padding}. Fix: "
            "return one loss for each slot and leave the mean to Hydrax, or average with ctx.mask yourself and return "
            "jnp.broadcast_to(loss, ctx.mask.shape)."
        )
    return loss


def read_logged(name: str, value: Any, stage: str, mask: jax.Array) -> Any:
    """A logged value as a scalar, or the `clu.metrics.Metric` itself."""
    where = f"self.log({name!r}) in {stage}_step"
    if is_metric(value):
        shape = jnp.shape(value.compute()) if not isinstance(value.compute(), Mapping) else "a dict"
        if shape != ():
            raise ModuleError(
                f"A metric computes no scalar: {where}. Got {shape}, expected one number. Fix: log its parts one by "
                "one."
            )
        return value
    if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int):
        raise ModuleError(
            f"A logged value is no number: {where}. Got {type(value).__name__}, expected a scalar, [{mask.size}] "
            "values or a clu.metrics.Metric. Fix: turn it into an array."
        )
    value = jnp.asarray(value)
    if value.shape not in ((), mask.shape) or not (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool):
        raise ModuleError(
            f"A logged value has the wrong form: {where}. Got {value.dtype}{list(value.shape)} for one head, expected "
            f"a scalar or [{mask.size}] numbers, one for each slot. Fix: reduce it over all axes but the first."
        )
    return masked_mean(value, mask)


def read_metrics(where: str, values: Any, taken: Collection[str]) -> dict[str, jax.Array]:
    """What a callback logs of a step, as float32 scalars; `taken` are the names that others have logged."""
    if not isinstance(values, Mapping):
        raise CallbackError(
            f"A callback's metrics have no names: {where}. Got {type(values).__name__}, expected a dict of scalars. "
            "Fix: return one."
        )
    found = {}
    for name, value in values.items():
        if name in taken:
            raise CallbackError(
                f"A name is logged twice in one step: {where}, {name!r}. Got it from the module or a callback before, "
                "expected one value a name and step. Fix: give one of them another name."
            )
        is_number = isinstance(value, jax.Array | np.ndarray | np.generic | float | int)
        if not is_number or jnp.shape(value) != ():
            form = f"{jnp.result_type(value)}{list(jnp.shape(value))}" if is_number else type(value).__name__
            raise CallbackError(
                f"A callback's metric is no number: {where}, {name!r}. Got {form} for one head, expected a scalar. "
                "Fix: reduce it over all axes."
            )
        found[name] = jnp.asarray(value, jnp.float32)
    return found


def check_same_form(new: Any, old: Any, where: str) -> Any:
    """`new`, which must be able to stand where `old` stood: the same structure, shapes and kinds of numbers."""
    before, after = str(jax.tree.structure(old)), str(jax.tree.structure(new))
    if before != after:
        raise ModuleError(
            f"A step changes what a head consists of: its {where}. Got {after}, expected {before}. Fix: create all of "
            "it at the start, in configure_model or init."
        )
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(new)[0], jax.tree.leaves(old), strict=True):
        if jnp.shape(a) != jnp.shape(b) or not _holds(jnp.result_type(b), jnp.result_type(a)):
            raise ModuleError(
                f"A step changes an array's form: {where}{jax.tree_util.keystr(path)} of one head. Got "
                f"{jnp.result_type(a)}{list(jnp.shape(a))}, expected {jnp.result_type(b)}{list(jnp.shape(b))}. Fix: "
                "keep every array's shape and dtype from step to step."
            )
    return new


def _holds(old: Any, new: Any) -> bool:
    """Whether numbers of dtype `new` keep their meaning in an array of dtype `old`: a fraction in an int does not."""
    numbers = {jnp.floating: (jnp.floating, jnp.integer), jnp.integer: (jnp.integer,)}
    kinds = next((kinds for kind, kinds in numbers.items() if jnp.issubdtype(old, kind)), ())
    return bool(old == new) or any(jnp.issubdtype(new, kind) for kind in kinds)
