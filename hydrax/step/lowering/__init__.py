"""Rewrites the program of one head into forms that stay fast under the head axis; `benchmarks/engine.py` measures it.

Files, in reading order:
  lowering.py      `Lowering` names what is rewritten, `lower` rewrites a function
  convolutions.py  convolutions: XLA's own in a fast layout, or matrix products of shifted slices
  pooling.py       pooling and its gradient as arithmetic on slices
  products.py      matrix products with few columns, and gradients of weights
  reductions.py    sums over many rows as products with ones
"""

from hydrax.step.lowering.lowering import Lowering, lower
