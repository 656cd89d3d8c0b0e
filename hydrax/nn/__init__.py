"""Ready-made models for one head."""

from hydrax.nn.nonlinear import NonLinearModel

__all__ = ["NonLinearModel"]
