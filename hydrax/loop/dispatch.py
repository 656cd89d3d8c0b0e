"""Calls the hooks of all callbacks in order, and collects the `Control` that each returns."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from hydrax.arguments import check_methods, is_int
from hydrax.errors import ArgumentError, CallbackError, HydraxError
from hydrax.lightning import CALLBACK_HOOKS
from hydrax.loop.callback import Callback, Control, Event, overrides

_log = logging.getLogger("hydrax")


BEFORE_TRAINING = ("setup", "load_state_dict", "on_load_checkpoint", "on_fit_start", "on_train_start")
"""The hooks in which callbacks check their arguments."""


class Failure(NamedTuple):
    """A callback that raised, and its error."""

    callback: Callback
    error: Exception


class Dispatcher:
    """The callbacks of one run, in the order given, except that those that save come last.

    Args:
      callbacks: the user's callbacks and the defaults.
      make_event: builds an event from the fields that differ.
    """

    def __init__(self, callbacks: Sequence[Callback], make_event: Callable[..., Event]) -> None:
        # The sort is stable: apart from that, callbacks are called in the order of the user's list.
        self.callbacks = sorted(callbacks, key=lambda callback: callback.is_checkpoint)
        self._make_event = make_event

    def __call__(self, hook: str, **fields: Any) -> list[tuple[Callback, Control]]:
        """Calls one hook of every callback that overrides it; returns each callback with its `Control`.

        Raises:
          CallbackError: a hook raised; the message names class, hook and step, and the cause is attached. It is
            raised after all callbacks have been called.
        """
        answers, failures = self.hear(hook, **fields)
        raise_first(failures)
        return answers

    def hear(
        self, hook: str, only: Collection[Callback] | None = None, **fields: Any
    ) -> tuple[list[tuple[Callback, Control]], list[Failure]]:
        """Does the same but returns the errors, for events that all callbacks must receive whatever one of them raises.

        Args:
          hook: its name.
          only: the callbacks to call; None calls all.
          fields: fields of the event.
        """
        event: Event | None = None
        answers, failures = [], []
        for callback in self.callbacks:
            if not overrides(callback, hook) or (only is not None and callback not in only):
                continue
            # Made for the first listener: most hooks have none, and an event costs a pass over all heads.
            event = event or self._make_event(**fields)
            try:
                with naming(callback, hook, event.step):
                    control = getattr(callback, hook)(event)
                if control is not None:
                    answers.append((callback, _checked(control, f"{type(callback).__name__}.{hook}", len(event.live))))
            except Exception as error:  # not BaseException: Ctrl-C and SystemExit end the fit at once
                failures.append(Failure(callback, error))
        return answers, failures

    def to_all(self, hook: str, **fields: Any) -> Exception | None:
        """Calls a hook of every callback even if one of them raises; logs the errors and returns the first."""
        failures = self.hear(hook, **fields)[1]
        for failure in failures:
            _log.error("%s", failure.error)
        return failures[0].error if failures else None

    def rounds(self) -> tuple[Dispatcher, Dispatcher]:
        """Splits off the callbacks that save, so that the loop can carry out the others' `Control` before they run."""
        others, savers = ([c for c in self.callbacks if c.is_checkpoint is saves] for saves in (False, True))
        return Dispatcher(others, self._make_event), Dispatcher(savers, self._make_event)

    def hears(self, hook: str) -> bool:
        """Whether any callback overrides a hook."""
        return any(overrides(callback, hook) for callback in self.callbacks)

    def next_due(self, step: int) -> int | None:
        """Returns the nearest step at which a callback must see the heads as they then are, or None."""
        dues = []
        for callback in self.callbacks:
            with naming(callback, "next_due", step):
                due = callback.next_due(step)
            if due is not None and not is_int(due):
                raise CallbackError(
                    f"A callback names no step: {type(callback).__name__}.next_due. Got {due!r:.80}, expected an int "
                    "or None. Fix: return the number of the step, or None if nothing is due."
                )
            dues.append(due)
        # A step that has passed is dropped: it would ask for a superstep without steps.
        return min((due for due in dues if due is not None and due > step), default=None)


@contextlib.contextmanager
def naming(callback: Callback, method: str, step: int) -> Iterator[None]:
    """Turns what a callback's method raises into a CallbackError that names class, method and step.

    Before training, Hydrax's own errors pass unchanged: a callback refuses its arguments with them.
    """
    try:
        yield
    except CallbackError:
        raise  # it names its place already
    except Exception as error:
        if isinstance(error, HydraxError) and method in BEFORE_TRAINING:
            raise
        raise CallbackError(
            f"A callback failed: {type(callback).__name__}.{method} at step {step}. Got {type(error).__name__}: "
            f"{error}, expected it to return. Fix: the cause above names the line."
        ) from error


def raise_first(failures: Sequence[Failure]) -> None:
    """Raises the first error, if there is one, and logs the others."""
    for failure in failures[1:]:
        _log.error("%s", failure.error)
    if failures:
        raise failures[0].error


def keys(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    """Callbacks by class name; the second of a class gets the suffix `#2`, and so on."""
    found: dict[str, Callback] = {}
    for callback in callbacks:
        name = type(callback).__name__
        # Keys are in checkpoints, so they follow from class and order alone.
        number = sum(type(c).__name__ == name for c in found.values()) + 1
        found[name if number == 1 else f"{name}#{number}"] = callback
    return found


def snapshot_name(key: str, slot: int) -> str:
    """Returns the name of a callback's snapshot in a slot; `key` is the callback's."""
    return key if slot == 0 else f"{key}@{slot}"


def owner_of(snapshot: str) -> str:
    """Returns the key of the callback that a snapshot belongs to."""
    return snapshot.partition("@")[0]


def check_callbacks(callbacks: Any) -> list[Callback]:
    """Returns one callback or several as a list.

    Raises:
      ArgumentError: an object is not a callback, or defines a hook that does not exist, or that has other parameters.
    """
    given = [] if callbacks is None else [callbacks] if isinstance(callbacks, Callback) else callbacks
    if not isinstance(given, list | tuple) or not all(isinstance(callback, Callback) for callback in given):
        odd = given if not isinstance(given, list | tuple) else next(c for c in given if not isinstance(c, Callback))
        raise ArgumentError(
            f"A callback has the wrong type: Trainer(callbacks=). Got {odd!r:.80}, expected instances of "
            "hydrax.Callback. Fix: pass an instance, not a class, and derive your own from hydrax.Callback."
        )
    for callback in given:
        check_methods(callback, Callback, CALLBACK_HOOKS)
    return list(given)


def _checked(control: Any, where: str, num_heads: int) -> Control:
    """Checks what a hook returned, and converts its masks to NumPy arrays."""
    if not isinstance(control, Control):
        raise _wrong_form(where, type(control).__name__, "stop", num_heads)
    # Checked here, where the hook is known; in the loop a wrong mask would fail without a name.
    masks = {}
    for name in ("stop", "snapshot", "restore"):
        mask = getattr(control, name)
        try:
            masks[name] = mask = None if mask is None else np.asarray(mask)
        except Exception as error:  # a ragged list, or JAX's typed keys, which NumPy cannot hold
            raise _wrong_form(where, type(mask).__name__, name, num_heads) from error
        shape = () if mask is None else mask.shape[1:] if name == "snapshot" and mask.ndim == 2 else mask.shape
        if mask is not None and (shape != (num_heads,) or mask.dtype != bool):
            raise _wrong_form(where, f"{mask.dtype}{list(mask.shape)}", name, num_heads)
    reason = control.reason
    listed = isinstance(reason, list | tuple) or (isinstance(reason, np.ndarray) and reason.ndim > 0)
    if not isinstance(reason, str) and not (listed and len(reason) == num_heads):
        got = f"{len(reason)} reasons" if listed else type(reason).__name__
        raise _wrong_form(where, got, "reason", num_heads)
    return Control(**masks, reason=reason)


def _wrong_form(where: str, got: str, name: str, num_heads: int) -> CallbackError:
    form = f"a string or {num_heads} of them" if name == "reason" else f"bool[{num_heads}]"
    return CallbackError(
        f"A callback hook returned an invalid value: {where}. Got {got}, expected None or Control({name}={form}). Fix: "
        "return one for each head."
    )
