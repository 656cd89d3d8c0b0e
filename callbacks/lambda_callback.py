"""Makes a callback from plain functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hydrax import Callback, Control, Event
from hydrax.arguments import accepts, checked_call, refuse_unknown, require


class LambdaCallback(Callback):
    """Calls the given functions as hooks.

    >>> callback = LambdaCallback(on_train_end=lambda event: print("training ended at step", event.step))
    >>> callback.on_train_end(Event(trainer=None, stage="fit", step=300, epoch=3))
    training ended at step 300

    Args:
      hooks: functions of an `Event`, each under the name of a host hook of `hydrax.Callback`.

    Raises:
      ArgumentError: a hook does not exist, or a value is not a function.
    """

    @checked_call
    def __new__(cls, **hooks: Callable[[Event], Control | None]) -> LambdaCallback:
        known = [name for name in vars(Callback) if name.startswith("on_") and name != "on_step"]
        known += ["setup", "teardown"]
        refuse_unknown({name: function for name, function in hooks.items() if name not in known}, known, cls.__name__)
        for name, function in hooks.items():
            fits = callable(function) and accepts(function, getattr(Callback, name))
            where = f"LambdaCallback({name}=...)"
            require(fits, where, function, "a function of an event", "pass lambda event: ...")
        # Each callback gets a class of its own, because the loop calls only hooks that a class overrides.
        methods: dict[str, Any] = {name: _method(function) for name, function in hooks.items()}
        return super().__new__(type(cls.__name__, (cls,), methods))

    def __init__(self, **hooks: Callable[[Event], Control | None]) -> None:
        """Does nothing: `__new__` has checked and kept the hooks."""


def _method(function: Callable[[Event], Control | None]) -> Callable[[Any, Event], Control | None]:
    return lambda self, event: function(event)
