"""Errors of the user's methods while they are traced, in terms of one head."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

import jax

from hydrax.errors import HydraxError, ModuleError
from hydrax.step.module import HeadModule


@contextlib.contextmanager
def explained(module: HeadModule, method: str, view: str) -> Iterator[None]:
    """Turns an error raised while a user's method is traced into one that names the method and the shapes it received.

    Args:
      module: the user's module.
      method: name of the method.
      view: what the method received, in words.
    """
    where = f"{type(module).__name__}.{method}"
    try:
        yield
    except HydraxError:
        raise  # it already says what is wrong
    # Before the group below, which holds its base class.
    except jax.errors.TracerBoolConversionError as error:
        raise _of_library(error, module, where) or ModuleError(
            f"Python control flow depends on a traced value: {where}. Got a Python `if`, `while`, `and` or `assert` on "
            f"a traced array, expected conditions on shapes only; the step got {view} for one head. Fix: use jnp.where "
            "or jax.lax.cond."
        ) from error
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    ) as error:
        raise _of_library(error, module, where) or ModuleError(
            f"Python needs the value of a traced array: {where}. Got float(), int(), numpy, a shape or a range on a "
            f"traced array ({_first_line(error)}), expected jax.numpy on arrays; the step got {view} for one head. "
            "Fix: use jax.numpy; a PerHead value is traced, so it cannot be a size."
        ) from error
    except Exception as error:
        fix = "see the line of yours that the cause above names"
        if getattr(type(module), method) is getattr(HeadModule, method):
            fix = f"define {method}; the default calls the model on the inputs"
        if "concrete values" in str(error):  # what jax.numpy says of a traced shape, in a plain TypeError
            fix = "a PerHead value is traced, so it cannot be a size"
        if f"'{type(module).__name__}' object is not callable" in str(error):  # Lightning calls its module, self(x)
            fix = "call the model that the method gets, model(...), not the module"
        if type(error).__name__ == "TraceContextError":  # Flax has no public name for it
            fix = "call an nnx model with dropout or batch statistics on the whole batch, not inside jax.vmap"
        raise ModuleError(
            f"A method failed while it was traced for one head: {where} got {view} for one head. Got "
            f"{type(error).__name__}: {_first_line(error)}, expected it to run on these shapes. Fix: {fix}."
        ) from error


def _of_library(error: Exception, module: HeadModule, where: str) -> ModuleError | None:
    """Explains an error that was raised by the code of another library; None if the user's own code raised it."""
    frames = [
        (frame.f_globals.get("__name__", "").split(".")[0], frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    outside = [found for found in frames if found[0] not in ("jax", "jaxlib", "numpy", "hydrax", "contextlib")]
    if not outside:
        return None
    package, frame, line = outside[-1]
    if "site-packages" not in frame.f_code.co_filename or package == type(module).__module__.split(".")[0]:
        return None
    name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name).partition(".<locals>")[0]  # Python 3.11 has it
    fix = f"compute this part with jax.numpy instead of {package}, or run a fit for each value"
    if package == "optax":
        fix = "build the schedule for a peak of 1.0 and scale it: lambda step: self.hparams.lr * schedule(step)"
    if name.startswith("Dropout"):
        fix = (
            "write the dropout yourself: keep = jax.random.bernoulli(ctx.key, 1 - rate, x.shape), then "
            "jnp.where(keep, x / (1 - rate), 0)"
        )
    return ModuleError(
        f"{package} needs the value of a traced array: {where}. Got {name} ({frame.f_code.co_filename}:{line}), which "
        f"looks at it with Python or NumPy, expected no such code between a PerHead value and its use. Fix: {fix}."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
