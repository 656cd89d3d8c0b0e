"""Lifecycle of a stage (fit, validate, test, predict): the user's setup and teardown, and the callbacks' hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from hydrax.arguments import check_methods
from hydrax.data import DataModule
from hydrax.engine import compile_cache, refuse_forked
from hydrax.errors import ArgumentError
from hydrax.lightning import DATA_HOOKS, MODULE_HOOKS
from hydrax.loop import Callback, Dispatcher
from hydrax.step import check_jax_config, set_frozen
from hydrax.train.module import HydraModule
from hydrax.train.settings import Settings

# A method may also be at home in another class.
_MODULE_HOOKS = {
    **{
        name: "define it in a callback, and pass that to Trainer(callbacks=)"
        for name in dir(Callback)
        if name[:3] == "on_"
    },
    **{name: "define it in the data module" for name in vars(DataModule) if name.endswith(("slices", "dataset"))},
    **MODULE_HOOKS,
}


@contextlib.contextmanager
def open_stage(
    settings: Settings, module: HydraModule, datamodule: DataModule, stage: str, data_stage: str | None = None
) -> Iterator[None]:
    """Calls the user's setup and teardown around a stage, and freezes the module inside it.

    Args:
      settings: the Trainer's arguments.
      module: the user's module.
      datamodule: the user's data module.
      stage: "fit", "validate", "test" or "predict".
      data_stage: the stage whose data is used, if it is another one.
    """
    refuse_forked()
    check_jax_config()
    compile_cache.enable()  # before anything compiles
    with contextlib.ExitStack() as stack:
        if settings.precision == "64-true":
            stack.enter_context(jax.enable_x64(True))
        if settings.matmul_precision is not None:
            stack.enter_context(jax.default_matmul_precision(settings.matmul_precision))
        datamodule.prepare_data()
        # Each teardown is registered before its setup: it runs even if the setup fails half-way.
        stack.callback(datamodule.teardown, data_stage or stage)
        datamodule.setup(data_stage or stage)
        stack.callback(module.teardown, stage)
        module.setup(stage)
        # From here on an attribute that a step sets would be a tracer, the same for all heads.
        set_frozen(module, True)
        stack.callback(set_frozen, module, False)
        yield


@contextlib.contextmanager
def open_hooks(emit: Dispatcher) -> Iterator[None]:
    """Calls `setup` first and `teardown` last; after an error `on_exception` too, whatever a callback raises."""
    try:
        emit("setup")
        yield
    except BaseException as error:  # Ctrl-C too: callbacks have files to close
        emit.to_all("on_exception", error=error)
        emit.to_all("teardown")
        raise
    failure = emit.to_all("teardown")
    if failure is not None:
        raise failure


def check_types(module: Any, datamodule: Any) -> tuple[HydraModule, DataModule]:
    """Returns both, if they are what their names say and define no method that Hydrax would never call."""
    arrays = "a data module, such as hydrax.datamodules.ArrayDataModule(arrays, slices=...)"
    model = "an object whose class derives from hydrax.HydraModule"
    checks = (
        ("module", module, HydraModule, _MODULE_HOOKS, model),
        ("datamodule", datamodule, DataModule, DATA_HOOKS, arrays),
    )
    for name, value, kind, instead, fix in checks:
        if not isinstance(value, kind):
            got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
            raise ArgumentError(
                f"An argument has the wrong type: {name}. Got {got}, expected an instance of hydrax.{kind.__name__}. "
                f"Fix: pass {fix}."
            )
        check_methods(value, kind, instead)
    return module, datamodule
