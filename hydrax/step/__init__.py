"""One head: pure functions that start, train, evaluate and predict with a single head.

Files, in reading order:
  module.py         `HeadModule`: what a step needs of the user's class
  context.py        `Context`: what a step receives besides model and batch
  logged.py         what a step logs, and how logged values are merged
  step_callback.py  the second tier of a callback, which runs inside the compiled program
  hparams.py        `PerHead` and `Hyperparameters`
  statistics.py     batch statistics that leave out padding
  model.py          splits a model into parameters, other state and structure
  state.py          `HeadsState`: what a step changes; `StepInput`: what it reads
  dependence.py     which results of a traced function depend on which arguments, or are one of them
  checks.py         checks what a step returns and logs
  training_head.py  `TrainingHead`: one head inside a training step, as `update` receives it
  explain.py        errors of the user's methods in terms of one head
  optimizer.py      builds and calls the optimiser of one head
  head_program.py   `HeadProgram`: the functions of one head
  preflight.py      `Preflight`: traces the user's functions before anything compiles
  finite.py         checks arrays for NaN and infinity
  lowering/         fast forms of operations under the head axis
"""

from hydrax.step.checks import check_jax_config
from hydrax.step.context import Context
from hydrax.step.finite import all_finite, stays_finite
from hydrax.step.head_program import HeadProgram, fault_names
from hydrax.step.hparams import Hyperparameters, PerHead
from hydrax.step.logged import Logged, Mean, WholeSet, is_whole
from hydrax.step.lowering import Lowering
from hydrax.step.model import Structure, split
from hydrax.step.module import (
    HeadModule,
    chosen_per_head,
    has_own_update,
    has_transform,
    of_heads,
    per_head_values,
    set_frozen,
    with_transform,
)
from hydrax.step.preflight import Preflight, TrainingShapes
from hydrax.step.state import DeviceRows, HeadInputs, HeadsState, StepInput, select
from hydrax.step.statistics import padding_counted
from hydrax.step.step_callback import StepCallback, StepInfo, has_second_tier
from hydrax.step.training_head import TrainingHead
