"""Which rows each head may learn from, and in which order it meets them.

Files, in reading order:
  slices.py     `Slices`: the rows of all heads; its constructors
  arguments.py  checks the constructors' arguments
  axes.py       the named axes of a product
  recipes.py    how each slice was made, in words
  store.py      the slices of all heads, whichever way each is kept
  law.py        what every way of keeping rows can do, in NumPy and in JAX
  windows.py    windows on the base order or on a keyed permutation
  strata.py     stratified subsets
  lists.py      lists of rows, and what a list leaves out
  bits.py       one bit for each row of the dataset
  sets.py       chooses between lists and bits
  draws.py      draws with replacement
  weights.py    copies in proportion to weights; classes dealt to heads
  rotation.py   which rows a head meets at step t, and which slots are live
"""

from hydrax.slices import rotation
from hydrax.slices.axes import LEDGER_COLUMNS
from hydrax.slices.computed import ComputedSlices
from hydrax.slices.law import RowLaw
from hydrax.slices.listed import ListedSlices
from hydrax.slices.slices import Slices

__all__ = [
    "ComputedSlices",
    "LEDGER_COLUMNS",
    "ListedSlices",
    "RowLaw",
    "Slices",
    "rotation",
]
