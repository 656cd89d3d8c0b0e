"""One head: pure functions that start, train, evaluate and predict with a single head.

Files, in reading order:
  module.py         `HeadModule`: what a step needs of the user's class
  context.py        `Context`: what a step gets besides model and batch
  logged.py         what a step logs, and how it is averaged
  step_callback.py  the part of a callback that runs inside the compiled program
  hparams.py        `PerHead` and `Hyperparameters`
  model.py          splits a model into parameters, state and structure
  state.py          `HeadsState`, `StepInput`: what a step changes, and what it reads
  checks.py         checks what a user's step returns and logs
  training_head.py  `TrainingHead`: what `update` gets and returns
  head_program.py   `HeadProgram`: one head's functions
  preflight.py      traces the user's functions before anything compiles
  finite.py         whether a head's arrays are finite
  lowering/         fast forms of operations under the head axis
"""

from hydrax.step.context import Context
from hydrax.step.finite import all_finite, stays_finite
from hydrax.step.head_program import HeadProgram, fault_names
from hydrax.step.hparams import Hyperparameters, PerHead
from hydrax.step.logged import Logged, Mean
from hydrax.step.lowering import Lowering
from hydrax.step.model import Structure
from hydrax.step.module import HeadModule, has_own_update, per_head_values, set_frozen
from hydrax.step.preflight import Preflight, TrainingShapes
from hydrax.step.state import DeviceRows, HeadInputs, HeadsState, StepInput, select
from hydrax.step.step_callback import StepCallback, StepInfo, has_second_tier
from hydrax.step.training_head import TrainingHead

__all__ = [
    "Context",
    "DeviceRows",
    "HeadInputs",
    "HeadModule",
    "HeadProgram",
    "HeadsState",
    "Hyperparameters",
    "Logged",
    "Lowering",
    "Mean",
    "PerHead",
    "Preflight",
    "StepCallback",
    "StepInfo",
    "StepInput",
    "Structure",
    "TrainingHead",
    "TrainingShapes",
    "all_finite",
    "fault_names",
    "has_own_update",
    "has_second_tier",
    "per_head_values",
    "select",
    "set_frozen",
    "stays_finite",
]
