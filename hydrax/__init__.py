"""Hydrax: many independent models, called heads, trained side by side in one compiled JAX program.

Types and axes, used everywhere: H heads, N rows of the base dataset, B slots of a batch, K steps of a superstep.

    Rows = Int32[Array, "heads slots"]      # base-dataset row numbers, 0 <= row < N
    Mask = Bool[Array, "heads slots"]       # False: the slot is padding
    HeadScalar = Float[Array, "heads"]      # one number per head

Packages, in import order; each imports only from those before it, and its `__init__.py` lists its files:
    errors, lightning, arguments, jaxlib_guard, loss, nn, trees, files, notebook   small things that stand alone
    slices       which rows each head may learn from, and in which order
    step         one head: pure functions
    checkpoint   files of a saved step
    engine       all heads on this machine: compiled programs and the plan
    data         from the user's rows to the device
    results      what a fit leaves behind
    loop         what happens between supersteps
    train        what a user calls: Trainer, HydraModule
    loggers      what the loggers among the callbacks share
    cli          the command `hydrax`
`callbacks` and `datamodules` are plug-ins; they lie beside this folder and use public names only.
"""

import importlib
from typing import Any

from hydrax import jaxlib_guard

jaxlib_guard.apply()  # before anything below can start JAX's backend

from hydrax.arguments import no_attribute  # noqa: E402
from hydrax.data import DataModule, NamedSets  # noqa: E402
from hydrax.engine import Plan  # noqa: E402
from hydrax.errors import (  # noqa: E402
    AnomalyError,
    ArgumentError,
    CallbackError,
    CheckpointError,
    DamagedCheckpointError,
    DataError,
    HydraxError,
    MemoryLimitError,
    MissingAttributeError,
    MissingImportError,
    ModuleError,
    NonFiniteError,
    SliceError,
)
from hydrax.lightning import CLASSES  # noqa: E402
from hydrax.loop import Callback, Control, Event, TrainerView  # noqa: E402
from hydrax.results import FitResult, Heads, HeldOut, export_heads  # noqa: E402
from hydrax.slices import Slices  # noqa: E402
from hydrax.step import Context, Hyperparameters, PerHead, StepInfo, TrainingHead, WholeSet  # noqa: E402
from hydrax.train import HydraModule, Trainer, get_trained_models, unbatch_model  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "AnomalyError",
    "ArgumentError",
    "Callback",
    "CallbackError",
    "CheckpointError",
    "Context",
    "Control",
    "DamagedCheckpointError",
    "DataError",
    "DataModule",
    "Event",
    "FitResult",
    "Heads",
    "HeldOut",
    "HydraModule",
    "HydraxError",
    "Hyperparameters",
    "MemoryLimitError",
    "MissingAttributeError",
    "MissingImportError",
    "ModuleError",
    "NamedSets",
    "NonFiniteError",
    "PerHead",
    "Plan",
    "SliceError",
    "Slices",
    "StepInfo",
    "Trainer",
    "TrainerView",
    "TrainingHead",
    "WholeSet",
    "export_heads",
    "get_trained_models",
    "unbatch_model",
]

# These are imported when they are first named: `import hydrax` stays quick.
_LATE = ("callbacks", "datamodules", "nn")


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return importlib.import_module(f"hydrax.{name}")
    places = ("callbacks", "datamodules") if name[0].isupper() else ()
    elsewhere = {one: f"it is in hydrax.{place}" for place in places for one in __getattr__(place).__all__}
    return no_attribute("hydrax", name, CLASSES | elsewhere, __all__)


def __dir__() -> list[str]:
    """Lists the public names, for `dir(hydrax)` and editors, without the packages of the library itself."""
    return sorted([*__all__, *_LATE, "__version__"])
