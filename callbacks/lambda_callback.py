"""A callback made of functions."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from hydrax import Callback, Control, Event
from hydrax.errors import ArgumentError


class LambdaCallback(Callback):
    """Calls a function for each hook that is given: `LambdaCallback(on_fit_end=lambda event: print(event.step))`.

    Args:
      hooks: functions of an `Event`, by the name of a hook of the first tier.

    Raises:
      ArgumentError: there is no such hook, or it is given no function.
    """

    def __new__(cls, **hooks: Callable[[Event], Control | None]) -> LambdaCallback:
        known = [name for name in vars(Callback) if name.startswith("on_") and name != "on_step"]
        known += ["setup", "teardown"]
        for name, function in hooks.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ArgumentError(
                    f"There is no such hook: LambdaCallback({name}=...). Got {name!r}, expected a hook of "
                    f"hydrax.Callback that gets an event. Fix: the nearest is {near}."
                )
            if not callable(function):
                raise ArgumentError(
                    f"A hook is no function: LambdaCallback({name}=...). Got {type(function).__name__}, expected a "
                    "function of an event. Fix: pass lambda event: ..."
                )
        # A class of its own, as a hook costs only where a class overrides it.
        methods: dict[str, Any] = {name: _method(function) for name, function in hooks.items()}
        return super().__new__(type(cls.__name__, (cls,), methods))

    def __init__(self, **hooks: Callable[[Event], Control | None]) -> None:
        """`__new__` did it all."""


def _method(function: Callable[[Event], Control | None]) -> Callable[[Any, Event], Control | None]:
    return lambda self, event: function(event)
