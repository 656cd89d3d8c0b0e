"""Rewrites one head's program into forms that stay fast under the head axis; measured by `benchmarks/engine.py`.

Files, in reading order:
  lowering.py      `Lowering`, `lower`: rewrites a traced function
  convolutions.py  convolutions as matrix products of shifted slices
  pooling.py       pooling as arithmetic on slices
  products.py      narrow matrix products, and gradients of weights
  reductions.py    sums over many rows as products with ones
"""

from hydrax.step.lowering.lowering import Lowering, lower

__all__ = [
    "Lowering",
    "lower",
]
