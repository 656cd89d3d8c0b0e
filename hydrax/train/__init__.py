"""What a user calls.

Files, in reading order:
  trainer.py     `Trainer`
  module.py      `HydraModule`
  fit.py         a fit before its first step: `FitSpec`, checked, and `PlannedFit`, placed on the devices
  warm_start.py  weights that a fit begins with
  tune.py        chooses the plan of a fit
  run.py         `Run`: a fit that runs or has run
  run_view.py    `RunView`: what callbacks and users read of a run
  lifecycle.py   setup and teardown around a stage
  evaluation.py  runs a validation, test or predict set
  whole_sets.py  metrics that the host computes from all rows of a set
  sampling.py    how the heads walk their slices
  resume.py      what a run writes to a checkpoint and reads back
  settings.py    the Trainer's arguments, checked
  run_folder.py  where runs write
  console.py     what a run prints
  one_call.py    `get_trained_models`, `unbatch_model`
"""

from hydrax.train.module import HydraModule
from hydrax.train.one_call import get_trained_models, unbatch_model
from hydrax.train.trainer import Trainer
