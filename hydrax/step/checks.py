"""Checks on what a user's step returns, logs and does to its head, made while the step is traced."""

from __future__ import annotations

import concurrent.futures
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.arguments import require
from hydrax.errors import CallbackError, ModuleError
from hydrax.step.dependence import passed_on
from hydrax.step.logged import is_metric, is_whole, masked_mean
from hydrax.trees import named_leaves

_GUARDS = ("host_to_device", "device_to_host", "device_to_device")


def check_jax_config() -> None:
    """Refuses settings of JAX under which no program could run.

    Raises:
      ArgumentError: `jax_disable_jit` is set, or a transfer guard forbids transfers.
    """
    config: Any = jax.config  # type checkers do not know its options
    usable: dict[str, tuple[Any, ...]] = {"jax_disable_jit": (False,)}
    usable |= {f"jax_transfer_guard_{way}": ("allow", None, "log", "log_explicit") for way in _GUARDS}

    def read() -> dict[str, Any]:
        return {name: getattr(config, name) for name in usable}

    # A `with` block changes a setting for its own thread alone, and other threads run programs too.
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        elsewhere = other.submit(read).result()
    for found in (read(), elsewhere):
        for name, allowed in usable.items():
            expected, fix = f"one of {', '.join(map(repr, allowed))}", f'jax.config.update("{name}", {allowed[0]!r})'
            where = f"jax.config.{name}"
            require(
                found[name] in allowed, where, found[name], expected, f"{fix}, or leave the `with` block that set it"
            )


def read_loss(
    output: Any, where: str, mask: jax.Array, padding: str | None, optional: bool = False
) -> jax.Array | None:
    """Reads the loss from what a step returned: float `[B]` or a scalar, or None if it is optional.

    Args:
      output: what the step returned.
      where: name of the step, for error messages.
      mask: bool[B], the live slots.
      padding: why a slot can be padding, or None if none can.
      optional: whether the step may return None.

    Raises:
      ModuleError: it is not such a loss, or it is a scalar although slots can be padding.
    """
    # All checks use shapes and dtypes alone: they cost nothing in the compiled program.
    fix = "Fix: return one float loss for each slot, [B]."
    if isinstance(output, Mapping) and "loss" not in output:
        keys = ", ".join(map(repr, output)) or "no keys"
        raise ModuleError(f'A returned dict holds no loss: {where}. Got {keys}, expected an entry "loss". {fix}')
    loss = output["loss"] if isinstance(output, Mapping) else output
    if loss is None and optional:
        return None
    if not isinstance(loss, jax.Array | np.ndarray | np.generic | float):
        raise ModuleError(f"A step returned no loss: {where}. Got {type(loss).__name__}, expected a float array. {fix}")
    loss = jnp.asarray(loss)
    if jnp.iscomplexobj(loss):
        raise ModuleError(
            f"A loss is complex: {where}. Got dtype {loss.dtype}, expected a float dtype. Fix: return a real number, "
            "such as the squared absolute value."
        )
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ModuleError(f"A loss has no gradient: {where}. Got dtype {loss.dtype}, expected a float dtype. {fix}")
    if loss.shape not in ((), mask.shape):
        raise ModuleError(
            f"A loss has the wrong shape: {where}. Got {list(loss.shape)} for one head, expected [{mask.size}], one "
            "loss for each slot. Fix: take the mean over all axes but the first."
        )
    # The user has averaged already, and cannot have left out slots that only the mask knows.
    if loss.ndim == 0 and padding:
        raise ModuleError(
            f"A scalar loss would count padding: {where}. Got a scalar, expected [{mask.size}], since {padding}. Fix: "
            "return one loss for each slot and let Hydrax average, or average with ctx.mask yourself and return "
            "jnp.broadcast_to(loss, ctx.mask.shape)."
        )
    return loss


def read_logged(name: str, value: Any, stage: str, mask: jax.Array) -> Any:
    """Reduces a logged value to a scalar; a `clu.metrics.Metric` is returned as it is.

    Args:
      name: name of the metric.
      value: what was logged.
      stage: "training", "validation" or "test", for error messages.
      mask: bool[B], the live slots.
    """
    where = f"self.log({name!r}) in {stage}_step"
    if is_whole(value):
        return _read_whole(value, where, stage, mask)
    if is_metric(value):
        try:
            computed = value.compute()
        except TypeError as error:  # such as clu 0.0.12's Std, which calls jnp.clip as JAX no longer has it
            raise ModuleError(
                f"A metric cannot be computed: {where}. Got {type(error).__name__} from {type(value).__name__}"
                f".compute: {error}, expected a number. Fix: instead of a Std, log x and x**2, or "
                "hx.WholeSet(np.std, x)."
            ) from error
        shape = jnp.shape(computed) if not isinstance(computed, Mapping) else "a dict"
        if shape != ():
            raise ModuleError(
                f"A metric computes no scalar: {where}. Got {shape}, expected one number. Fix: log its parts as "
                "metrics of their own."
            )
        return value
    if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int):
        raise ModuleError(
            f"A logged value is not a number: {where}. Got {type(value).__name__}, expected a scalar, [{mask.size}] "
            "values or a clu.metrics.Metric. Fix: convert it to an array."
        )
    value = jnp.asarray(value)
    if jnp.iscomplexobj(value):
        raise ModuleError(
            f"A logged value is complex: {where}. Got {value.dtype}, expected real numbers. Fix: log its absolute "
            "value, or its real and imaginary part under two names."
        )
    if value.shape not in ((), mask.shape) or not (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool):
        raise ModuleError(
            f"A logged value has the wrong shape: {where}. Got {value.dtype}{list(value.shape)} for one head, expected "
            f"a scalar or [{mask.size}] numbers, one for each slot. Fix: reduce it over all axes but the first."
        )
    return masked_mean(value, mask)


def _read_whole(value: Any, where: str, stage: str, mask: jax.Array) -> Any:
    """Checks a metric over a whole set, and returns it with JAX's arrays."""
    if stage == "training":
        raise ModuleError(
            f"A metric over a whole set is logged in training: {where}. Got hx.WholeSet, expected one in "
            "validation_step or test_step. Fix: log a mean, or move it there."
        )
    shapes = [
        list(array.shape) if isinstance(array, jax.Array | np.ndarray) else type(array).__name__
        for array in value.arrays
    ]
    if not callable(value.function) or not shapes or any(shape[:1] != [mask.size] for shape in shapes):
        raise ModuleError(
            f"A metric over a whole set has the wrong arguments: {where}. Got {type(value.function).__name__} and "
            f"{shapes}, expected a function and arrays [{mask.size}, ...], one entry for each slot. Fix: pass "
            "hx.WholeSet(function, targets, predictions)."
        )
    return type(value)(value.function, *map(jnp.asarray, value.arrays))


def read_metrics(where: str, values: Any, taken: Collection[str]) -> dict[str, jax.Array]:
    """Reads what the `metrics` of a callback returned, as float32 scalars by name.

    Args:
      where: class and method, for error messages.
      values: what the method returned.
      taken: names that the step or other callbacks have logged already.
    """
    if not isinstance(values, Mapping):
        raise CallbackError(
            f"A callback's metrics have no names: {where}. Got {type(values).__name__}, expected a dict of scalars. "
            "Fix: return a dict with a name for each."
        )
    found = {}
    for name, value in values.items():
        if name in taken:
            raise CallbackError(
                f"A name is logged twice in one step: {where}, {name!r}. Got a name that the module or another "
                "callback logs too, expected one value for each name and step. Fix: rename one of them."
            )
        is_number = isinstance(value, jax.Array | np.ndarray | np.generic | float | int) and not jnp.iscomplexobj(value)
        if not is_number or jnp.shape(value) != ():
            form = f"{jnp.result_type(value)}{list(jnp.shape(value))}" if is_number else type(value).__name__
            raise CallbackError(
                f"A callback's metric is not a scalar: {where}, {name!r}. Got {form} for one head, expected one "
                "number. Fix: reduce it over all axes."
            )
        # One dtype for all, because values become the carry of a loop.
        found[name] = jnp.asarray(value, jnp.float32)
    return found


def check_same_form(new: Any, old: Any, where: str) -> Any:
    """Returns `new` in arrays if it can replace `old`: same structure and shapes, and dtypes that `old` can hold.

    Args:
      where: what it is a part of, for error messages.

    Raises:
      ModuleError: it cannot.
    """
    # The state is the carry of a loop: JAX would refuse another form, but without naming the array.
    before, after = str(jax.tree.structure(old)), str(jax.tree.structure(new))
    if before != after:
        raise ModuleError(
            f"A step changes the structure of a head: its {where}. Got {after}, expected {before}. Fix: create every "
            "part at the start, in configure_model or init."
        )
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(new)[0], jax.tree.leaves(old), strict=True):
        if jnp.shape(a) != jnp.shape(b) or not _holds(jnp.result_type(b), jnp.result_type(a)):
            raise ModuleError(
                f"A step changes the form of an array: {where}{jax.tree_util.keystr(path)} of one head. Got "
                f"{jnp.result_type(a)}{list(jnp.shape(a))}, expected {jnp.result_type(b)}{list(jnp.shape(b))}. Fix: "
                "keep the shape and dtype of every array from step to step."
            )
    # Python numbers too, such as a flag that a layer sets.
    return jax.tree.map(lambda a: a if isinstance(a, jax.Array) else jnp.asarray(a), new)


def check_unchanged(new: Any, old: Any, model: Any, where: str, again: Callable[[Any], Any]) -> None:
    """Refuses a step that changes parameters: those after it come from the optimiser, so the change would be lost.

    Args:
      new: the parameters of the model after the step.
      old: those that it received.
      model: the model after the step.
      where: name of the step, for error messages.
      again: makes the step again, and returns the parameters after it.
    """
    after, before = named_leaves(new), named_leaves(old)
    # By identity: inside a trace an untouched array is still the same tracer.
    if all(after.get(name) is before[name] for name in before) and len(after) == len(before):
        return
    # Transformations such as nnx.jit and nnx.remat return other tracers for what they do not touch.
    places = dict(zip(after, passed_on(jax.make_jaxpr(again)(old)), strict=True))
    changed = [name for place, name in enumerate(before) if places.get(name) != place]
    changed += [name for name in after if name not in before]
    changed = [name for name in changed if not _is_normalized(model, name)]
    if changed:
        raise ModuleError(
            f"A step changes a parameter: {where}, {changed[0]}. Got another array in the model after the step, "
            "expected the one that came in, since only the optimiser changes parameters. Fix: change it in `update`, "
            "with head.replace(trainable=...), or return False for this name from is_trained."
        )


def _is_normalized(model: Any, name: str) -> bool:
    """Whether a layer of Flax puts a normalised weight in place of a parameter, to compute with it in this call."""
    # Late: a model can hold such a layer only if Flax is imported already.
    nnx: Any = sys.modules.get("flax.nnx")
    for key in name.split(".") if nnx is not None else ():
        if isinstance(model, nnx.WeightNorm | nnx.SpectralNorm):
            return True
        model = getattr(model, key, None)
    return False


def _holds(old: Any, new: Any) -> bool:
    """Whether numbers of dtype `new` can be stored as `old`: a float can be rounded, but never becomes an int."""
    real = (jnp.floating, jnp.integer)
    numbers = {jnp.complexfloating: (jnp.complexfloating, *real), jnp.floating: real, jnp.integer: (jnp.integer,)}
    kinds = next((kinds for kind, kinds in numbers.items() if jnp.issubdtype(old, kind)), ())
    return bool(old == new) or any(jnp.issubdtype(new, kind) for kind in kinds)
