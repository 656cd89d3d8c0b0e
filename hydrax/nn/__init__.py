"""Ready-made models for one head.

Files:
  nonlinear.py  `NonLinearModel`, the model of the one-call form
"""

from hydrax.nn.nonlinear import NonLinearModel

__all__ = ["NonLinearModel"]
