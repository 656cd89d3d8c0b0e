"""What a user calls.

Files, in reading order:
  trainer.py     `Trainer`
  module.py      `HydraModule`
  fit.py         checks a fit and places it on the device
  tune.py        chooses the plan of a fit
  sampling.py    how the heads walk their slices
  evaluation.py  walks a validation, test or predict set
  resume.py      what a run writes into a checkpoint and reads back
  settings.py    the Trainer's arguments, checked
  run_folder.py  where runs write
  console.py     what a run prints
  one_call.py    `get_trained_models`, `unbatch_model`
"""

from hydrax.train.module import HydraModule
from hydrax.train.one_call import get_trained_models, unbatch_model
from hydrax.train.settings import Settings, refuse_unknown
from hydrax.train.trainer import Trainer

__all__ = [
    "HydraModule",
    "Settings",
    "Trainer",
    "get_trained_models",
    "refuse_unknown",
    "unbatch_model",
]
