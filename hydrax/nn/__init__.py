"""Ready-made models for one head.

Files:
  flatten.py    turns rows of any shape into vectors
  nonlinear.py  `NonLinearModel`, the model of the one-call form
  mlp.py        `MLP`, the recipe of a multi-layer perceptron
"""

from hydrax.nn.mlp import MLP
from hydrax.nn.nonlinear import NonLinearModel

__all__ = ["MLP", "NonLinearModel"]
