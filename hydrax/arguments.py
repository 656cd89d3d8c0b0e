"""Checks of what users pass and define: values, names of arguments, methods that nothing would call."""

from __future__ import annotations

import contextlib
import difflib
import dis
import functools
import inspect
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from types import CodeType
from typing import Any, Never, ParamSpec, TypeGuard, TypeVar

import numpy as np

from hydrax.errors import ArgumentError, HydraxError, MissingAttributeError, MissingImportError
from hydrax.lightning import ARGUMENTS

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")
_LISTED = 12  # names that a message lists
_NEAR = 0.6  # the ratio from which difflib calls two words close
_NEAR_METHOD = 0.75  # stricter, because a helper may have any name: `best_step` is no `test_step`


def is_int(value: Any, least: int | None = None) -> TypeGuard[int]:
    """Tells whether a value is a whole number, of Python or NumPy; a bool is not, although Python counts it as an int.

    Args:
      value: the value.
      least: the smallest number to accept; None accepts all.

    >>> is_int(3), is_int(np.int32(3)), is_int(3.0), is_int(True), is_int(0, least=1)
    (True, True, False, False, False)
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and (least is None or bool(value >= least))


def is_number(value: Any) -> TypeGuard[float]:
    """Tells whether a value is a number, of Python or NumPy; neither a bool nor NaN is one.

    >>> is_number(3), is_number(0.5), is_number(float("nan")), is_number(True)
    (True, True, False, False)
    """
    known = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return known and not math.isnan(value)


def is_training_metric(callback: str, monitor: str, trainer: Any) -> bool:
    """Tells whether a monitored metric is one of training; a validation metric of the same name comes first.

    Args:
      callback: name of the callback's class.
      monitor: name of the metric.
      trainer: the Trainer that the callback sees.

    Raises:
      ArgumentError: neither validation nor training logs it.
    """
    if monitor in trainer.validation_metrics:
        return False
    known = (("validation", trainer.validation_metrics), ("training", trainer.training_metrics))
    names = "; ".join(f"of {stage}: {', '.join(sorted(logged)) or 'none'}" for stage, logged in known)
    if monitor not in trainer.training_metrics:
        raise ArgumentError(
            f"Unknown metric to monitor: {callback}(monitor=...). Got {monitor!r}, expected a metric {names}. Fix: "
            "monitor one of them, or log it in validation_step or training_step."
        )
    return True


def is_choice(value: Any, allowed: Collection[str | None]) -> bool:
    """Tells whether a value is one of some strings or None; an array, which `in` would compare one by one, is not.

    >>> is_choice("min", ("min", "max")), is_choice(np.array(["min"]), ("min", "max"))
    (True, False)
    """
    return isinstance(value, str | None) and value in allowed


def require_meant(where: str, got: int, natural: int, unit: str) -> None:
    """Refuses a size that is so much larger than what it serves that it must be a mistake: it would take all memory.

    Args:
      where: the argument.
      got: the size.
      natural: what there is of the unit; a size above it only adds padding.
      unit: what the size counts, in the plural.

    Raises:
      ArgumentError: the size is larger than both `natural` and 1,024, below which padding does no harm.
    """
    most = max(natural, 1024)
    require(got <= most, where, got, f"at most {most:,}, as there are {natural:,} {unit}", f"pass {natural} or fewer")


def require(holds: bool, where: str, got: object, expected: str, fix: str) -> None:
    """Raises an error about an argument unless a condition holds.

    Args:
      holds: the condition.
      where: the argument, such as `Timer(duration=...)`.
      got: the value that was passed.
      expected: a phrase that names the values to accept.
      fix: a phrase that tells the user what to do.

    Raises:
      ArgumentError: the condition does not hold.
    """
    if not holds:
        raise ArgumentError(f"Invalid argument: {where}. Got {got!r:.500}, expected {expected}. Fix: {fix}.")


@contextlib.contextmanager
def naming(where: str, kind: type[HydraxError]) -> Iterator[None]:
    """Turns what a user's function raises into an error that names it; Hydrax's own errors pass unchanged.

    Args:
      where: class and method.
      kind: the class of the error; the user's own is attached as its cause.
    """
    try:
        yield
    except HydraxError:
        raise
    except Exception as error:
        raise kind(
            f"A method failed: {where}. Got {type(error).__name__}: {str(error) or 'no message':.300}, expected it to "
            "return. Fix: the cause above names the line."
        ) from error


# Calls: the names of arguments.


def checked_call(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a call that does not fit the signature raise an ArgumentError in place of Python's TypeError.

    A call that fits costs nothing more. Not for functions that look at the frame of their caller.

    Args:
      function: a function, or a method before it is bound.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except TypeError:
            _check_call(function, args, kwargs)
            raise  # the call fits, so the error is from inside

    return call


def checked_calls(kind: type[_T]) -> type[_T]:
    """Applies `checked_call` to the constructor and the public methods of a class, as a decorator.

    Args:
      kind: a class whose methods do not look at the frame of their caller.
    """
    for name, value in list(vars(kind).items()):
        if name != "__init__" and name[0] == "_":
            continue
        if isinstance(value, classmethod):
            setattr(kind, name, classmethod(checked_call(value.__func__)))
        elif inspect.isfunction(value):
            setattr(kind, name, checked_call(value))
    return kind


def check_init_calls(kind: type) -> None:
    """Applies `checked_call` to the constructor that a class defines, if it defines one."""
    if "__init__" in vars(kind):
        setattr(kind, "__init__", checked_call(vars(kind)["__init__"]))  # noqa: B010  mypy takes it for a method


def _check_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
        return
    except TypeError as error:
        trouble = str(error)
    owners, known = [function.__qualname__], _named(function)
    if "." in function.__qualname__ and args:
        kind = args[0] if isinstance(args[0], type) else type(args[0])
        part = "" if function.__name__ in ("__init__", "__new__") else f".{function.__name__}"
        owners = [f"{one.__name__}{part}" for one in kind.__mro__]
        if not part:  # a constructor may pass on what it does not know to that of its base class
            inits = [vars(one)["__init__"] for one in kind.__mro__[:-1] if "__init__" in vars(one)]
            known = list(dict.fromkeys(name for init in inits for name in _named(init)))
    # Of a constructor that passes them on, the names are known from its base class.
    takes_any = function.__name__ != "__init__" and any("**" in str(one) for one in signature.parameters.values())
    answered = {name for owner in owners for name in ARGUMENTS.get(owner, {})} if takes_any else set(kwargs)
    refuse_unknown({name: kwargs[name] for name in kwargs if name in answered - set(known)}, known, *owners)
    given = {*signature.bind_partial(*args).arguments, *kwargs} if "missing" in trouble else {*signature.parameters}
    needed = [name for name, one in signature.parameters.items() if one.default is one.empty and name not in given]
    fix = f"pass {needed[0]}" if needed else "pass arguments by name, each once"
    names = ", ".join(known[:_LISTED]) + (", ..." if len(known) > _LISTED else "")
    raise ArgumentError(
        f"Wrong number of arguments: {owners[0]}. Got {trouble}, expected {owners[0]}({names}). Fix: {fix}."
    ) from None


def _named(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.items()
    named = [name for name, one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    return [name for name in named if name not in ("self", "cls")]


def refuse_unknown(unknown: Mapping[str, Any], known: Collection[str], *owners: str) -> None:
    """Refuses arguments that do not exist, and names what takes their place, or the nearest name.

    Args:
      unknown: the arguments by name; if there are none, nothing happens.
      known: the names to choose from.
      owners: what was called, such as "Trainer.fit"; then its base classes, of which `ARGUMENTS` may know more.
    """
    instead = {name: text for owner in reversed(owners) for name, text in ARGUMENTS.get(owner, {}).items()}
    for name, value in unknown.items():
        if name in instead:
            raise invalid_argument(owners[0], name, value, "no such argument here", instead[name])
        # Ties go to the first: `epochs` is max_epochs rather than min_epochs.
        near = max(known, key=lambda other: _ratio(other, name), default="")
        listed = f"help({owners[0]}) lists the arguments" if len(known) > _LISTED else f"there are {', '.join(known)}"
        fix = f"the nearest name is {near}" if _ratio(near, name) >= _NEAR else listed if known else "it takes none"
        raise invalid_argument(owners[0], name, value, "a known argument", fix)


def invalid_argument(owner: str, name: str, value: object, expected: str, fix: str) -> ArgumentError:
    """Makes the error about one argument of `owner`, such as "Trainer"."""
    return ArgumentError(f"Invalid {owner} argument: {name}. Got {value!r:.500}, expected {expected}. Fix: {fix}.")


# Methods that a user's class defines.


def check_methods(one: object, base: type, instead: Mapping[str, str]) -> None:
    """Refuses methods that Hydrax would never call although their names say so, and hooks with other parameters.

    A helper may have any other name, and any name at all if the user's own methods call it.

    Args:
      one: an object of a user's class.
      base: the public class it derives from.
      instead: what takes the place of methods that do not exist here, by name.

    Raises:
      ArgumentError: a method is refused.
    """
    kind = type(one)
    # Hydrax's own subclasses may have methods of any name.
    theirs = [each for each in kind.__mro__ if not issubclass(base, each) and each.__module__.split(".")[0] != "hydrax"]
    defined = {name: value for each in reversed(theirs) for name, value in vars(each).items() if name[0] != "_"}
    hooks = [name for name, hook in inspect.getmembers(base, inspect.isfunction) if name[0] != "_"]
    called = {name for each in theirs for name in _called(each)}
    for name, value in {**vars(one), **defined}.items():
        if name[0] == "_":
            continue
        if name in hooks and name in defined and not accepts(getattr(one, name), hook := getattr(base, name)):
            raise _other_parameters(f"{kind.__name__}.{name}", value, hook)
        if hasattr(base, name) or name in called or any(value is defined.get(hook) for hook in hooks):
            continue
        if name in instead:
            raise _never_called(f"{kind.__name__}.{name}", base, instead[name])
        if not inspect.isfunction(getattr(value, "__func__", value)):
            continue
        beside = {each for one in theirs if name in vars(one) for each in vars(one)}  # what is there is not misspelt
        near = next((known for known in (*hooks, *instead) if known not in beside and _is_near(name, known)), None)
        if near is not None or (name.startswith("on_") and any(hook.startswith("on_") for hook in hooks)):
            near = near or difflib.get_close_matches(name, hooks, n=1, cutoff=0.0)[0]
            fix = instead.get(near, f"the nearest is {near}; a helper needs another name")
            raise _never_called(f"{kind.__name__}.{name}", base, fix)


def accepts(function: Callable[..., Any], hook: Callable[..., Any]) -> bool:
    """Whether a method can be called as Hydrax calls the hook it overrides: with plain positional arguments.

    Args:
      function: the user's method, bound; or a function.
      hook: the method of the base class, not bound.
    """
    parameters = list(inspect.signature(hook).parameters.values())[1:]
    if hook.__name__ == "configure_optimizers" or any(
        one.kind is not one.POSITIONAL_OR_KEYWORD or one.default is not one.empty for one in parameters
    ):
        return True  # Hydrax looks at its parameters, or the user calls it
    try:
        signature = inspect.signature(function)
        signature.bind(*parameters)
    except ValueError:  # a compiled function that does not tell
        return True
    except TypeError:
        return False
    # Lightning's third argument would take the place of `ctx`.
    return not {"batch_idx", "dataloader_idx"} & set(signature.parameters)


def _other_parameters(where: str, function: Any, hook: Callable[..., Any]) -> ArgumentError:
    got, expected = (", ".join(inspect.signature(one).parameters) for one in (function, hook))
    fix = f"write `def {hook.__name__}({expected})`"
    fix += "; event.trainer and event.trainer.module are the Trainer and the module" if "event" in expected else ""
    fix += "; ctx has the key, the mask and the numbers of rows, step and head" if "ctx" in expected else ""
    return ArgumentError(f"A method has other parameters: {where}. Got ({got}), expected ({expected}). Fix: {fix}.")


def _never_called(where: str, base: type, fix: str) -> ArgumentError:
    return ArgumentError(
        f"A method would never be called: {where}. Got a name that Hydrax does not know, expected a method of "
        f"hydrax.{base.__name__}. Fix: {fix}."
    )


def _called(kind: type) -> Iterator[str]:
    """Yields the attributes that the methods of a class read, each except for its own name."""
    for name, value in vars(kind).items():
        value = getattr(value, "fget", getattr(value, "__func__", value))
        if inspect.isfunction(value):
            yield from (used for used in _names(value.__code__) if used != name)


def _names(code: CodeType) -> Iterator[str]:
    yield from (one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_ATTR", "LOAD_METHOD"))
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _names(part)


def _is_near(name: str, known: str) -> bool:
    """Whether a name looks like a misspelling of a known one.

    >>> [_is_near(name, "validation_step") for name in ("val_step", "validate_step", "valdation_step", "shared_step")]
    [True, True, True, False]
    >>> _is_near("set_up", "setup"), _is_near("best_step", "test_step")
    (True, False)
    """
    words, others = name.lower().split("_"), known.split("_")
    if "".join(words) == "".join(others):
        return True
    if len(words) == 1:
        return len(name) > 4 and _ratio(name, known) > 0.85
    return len(words) == len(others) and all(
        word == other or _ratio(word, other) > _NEAR_METHOD or (len(word) > 2 and other.startswith(word))
        for word, other in zip(words, others, strict=True)
    )


def _ratio(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name, other).ratio()


# Names that do not exist.


def no_attribute(owner: str, name: str, instead: Mapping[str, str], known: Collection[str] = ()) -> Never:
    """Raises the error of an attribute that does not exist, for `__getattr__`; `hasattr` returns False as usual.

    Args:
      owner: what was asked, such as "Trainer" or "hydrax.callbacks".
      name: the attribute.
      instead: what takes the place of attributes that do not exist here, by name.
      known: names to choose from.
    """
    # Python turns an AttributeError in `from hydrax import name` into an ImportError without its message, so here an
    # ImportError must be raised at once. This function of the import system asks a package before it looks for a
    # submodule, whose name may be near to another.
    is_import = owner.startswith("hydrax") and sys._getframe(2).f_code.co_name == "_handle_fromlist"
    may_be_near = name[0].isupper() or (name[0] != "_" and not is_import)
    near = difflib.get_close_matches(name, known, n=1, cutoff=_NEAR) if may_be_near else []
    if name not in instead and not near and not (is_import and name[0].isupper()):
        raise AttributeError(f"{owner} has no attribute {name!r}")
    listed = f"there are {', '.join(known)}"
    fix = instead[name] if name in instead else f"the nearest name is {near[0]}" if near else listed
    if is_import:
        raise MissingImportError(
            f"A name does not exist: {owner}.{name}. Got an import of {name}, expected a public name. Fix: {fix}."
        )
    raise MissingAttributeError(
        f"An attribute does not exist: {owner}.{name}. Got a request for {name}, expected a public name. Fix: {fix}."
    )
