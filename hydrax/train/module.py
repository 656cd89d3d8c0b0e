"""HydraModule: the class that users derive from: model, optimiser and loss of one head, and hooks around a stage."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any, Never, overload

from hydrax.arguments import checked_call, no_attribute, refuse_unknown
from hydrax.errors import ModuleError
from hydrax.lightning import MODULE_ATTRIBUTES, MODULE_HOOKS
from hydrax.results import Heads, load_with
from hydrax.step import HeadModule, Hyperparameters


class HydraModule(HeadModule):
    """Model, loss and optimiser of ONE head; the Trainer adds the head axis.

    The module holds configuration only, is never changed by training, and is frozen while a fit runs.
    Override `configure_model`, `configure_optimizers` and `training_step`; the rest as needed.
    """

    if not TYPE_CHECKING:  # a type checker must go on to report unknown attributes

        def __getattr__(self, name: str) -> None:
            no_attribute(type(self).__name__, name, MODULE_HOOKS | MODULE_ATTRIBUTES, dir(type(self)))

    def save_hyperparameters(
        self, *names: str, ignore: str | tuple[str, ...] | list[str] = (), **unknown: Never
    ) -> None:
        """Keeps the arguments of the calling `__init__` as `self.hparams`.

        Args:
          names: which arguments; all of them if none is named.
          ignore: an argument to leave out, or several.

        Raises:
          ArgumentError: there is no such argument.
          ModuleError: the call is not inside `__init__`, or a name is not one of its arguments.
        """
        name = f"{type(self).__name__}.save_hyperparameters"
        refuse_unknown(unknown, ("ignore",), name, "HydraModule.save_hyperparameters")
        ignore = (ignore,) if isinstance(ignore, str) else ignore
        # Read from the frame of the calling `__init__`, so that the user need not repeat any argument.
        caller = inspect.currentframe()
        frame = caller.f_back if caller else None
        # `__init__` may call its first argument by another name than self.
        first = frame.f_locals.get(next(iter(frame.f_code.co_varnames), "")) if frame else None
        if frame is None or frame.f_code.co_name != "__init__" or first is not self:
            raise ModuleError(
                f"save_hyperparameters was called outside __init__: {type(self).__name__}.save_hyperparameters. Got a "
                f"call from {frame.f_code.co_name if frame else 'nowhere'}, expected one inside __init__. Fix: call it "
                "first in __init__."
            )
        info = inspect.getargvalues(frame)
        found = {name: info.locals[name] for name in info.args[1:]}
        found |= {name: info.locals[name] for name in _keyword_only(frame)}
        found |= info.locals.get(info.keywords, {}) if info.keywords else {}
        missing = [name for name in names if name not in found]
        if missing:
            raise ModuleError(
                f"A hyper-parameter is not an argument of __init__: {type(self).__name__}.save_hyperparameters. Got "
                f"{missing[0]!r}, expected one of {', '.join(found)}. Fix: name an argument of __init__."
            )
        kept = {name: value for name, value in found.items() if name in (names or found) and name not in ignore}
        # A base class may have kept arguments of its own `__init__` already.
        self._hparams = Hyperparameters({**self.hparams, **kept})

    def setup(self, stage: str) -> None:
        """Called on the host before a stage ("fit", "validate", "test", "predict") starts."""

    def teardown(self, stage: str) -> None:
        """Called on the host after a stage ended, even if by an error."""

    @overload
    @classmethod
    def load_from_checkpoint(cls, path: str | Path, head: None = None, **hparams: Any) -> Heads: ...
    @overload
    @classmethod
    def load_from_checkpoint(cls, path: str | Path, head: int, **hparams: Any) -> Any: ...
    @classmethod
    @checked_call
    def load_from_checkpoint(cls, path: str | Path, head: int | None = None, **hparams: Any) -> Any:
        """Reads models that were trained with a module of this class from a checkpoint.

        Args:
          path: a run's checkpoints, or the folder of `Heads.save`; the newest step is read.
          head: the place of one head, which is returned as `heads[head]` would be; nothing of the others is read. None
            returns all, as `Heads`.
          hparams: arguments of `__init__` that replace those in the checkpoint. A checkpoint holds what
            `save_hyperparameters` kept, except for values that are not numbers, strings, tuples, lists or dicts.

        Raises:
          ModuleError: the checkpoint does not hold an argument that `__init__` needs.
          CheckpointError: it holds heads of another module, or is damaged.
        """
        return load_with(cls, path, head, hparams)


def _keyword_only(frame: Any) -> tuple[str, ...]:
    code: CodeType = frame.f_code
    return code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
