"""Hydrax: many independent models, called heads, trained side by side in one compiled JAX program.

Types and axes, used everywhere: H heads, N rows of the base dataset, B slots of a batch, K steps of a superstep.

    Rows = Int32[Array, "heads slots"]      # base-dataset row numbers, 0 <= row < N
    Mask = Bool[Array, "heads slots"]       # False: the slot is padding
    HeadScalar = Float[Array, "heads"]      # one number per head
"""

from hydrax import jaxlib_guard

jaxlib_guard.apply()  # before anything below can start JAX's backend

from hydrax.callback import Callback, Control, Event, StepInfo, TrainerView  # noqa: E402
from hydrax.data import DataModule  # noqa: E402
from hydrax.errors import (  # noqa: E402
    ArgumentError,
    CallbackError,
    CheckpointError,
    DamagedCheckpointError,
    DataError,
    HydraxError,
    MemoryLimitError,
    ModuleError,
    NonFiniteError,
    SliceError,
)
from hydrax.heads import Heads, export_heads  # noqa: E402
from hydrax.hparams import Hyperparameters, PerHead  # noqa: E402
from hydrax.module import Context, HydraModule  # noqa: E402
from hydrax.one_call import get_trained_models, unbatch_model  # noqa: E402
from hydrax.plan import Plan  # noqa: E402
from hydrax.predictions import HeldOut  # noqa: E402
from hydrax.result import FitResult  # noqa: E402
from hydrax.slices import Slices  # noqa: E402
from hydrax.trainer import Trainer  # noqa: E402
from hydrax.training_head import TrainingHead  # noqa: E402

__version__ = "0.1.0"
__all__ = [
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
    "ModuleError",
    "NonFiniteError",
    "PerHead",
    "Plan",
    "SliceError",
    "Slices",
    "StepInfo",
    "Trainer",
    "TrainerView",
    "TrainingHead",
    "export_heads",
    "get_trained_models",
    "unbatch_model",
]
