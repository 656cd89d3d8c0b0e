"""Slices: the rows that each head may learn from, and the order in which it meets them.

Files, in reading order:
  slices.py       `Slices`: the rows of all heads, with all constructors and questions
  arguments.py    checks of the constructors' arguments
  axes.py         the named axes of a product
  recipes.py      how each slice was made, formatted for the user
  summary.py      the text that describes slices
  store.py        the slices of all heads, in one part for each way of keeping rows
  law.py          the interface of a part, and the law from offsets to rows, in NumPy and in JAX
  windows.py      a part: windows on the base order or on a keyed permutation
  strata.py       a part: stratified subsets
  lists.py        two parts: lists of rows, and all rows but the listed ones
  bits.py         a part: one bit for each row of the dataset
  draws.py        a part: draws with replacement
  sets.py         chooses lists or bits for sets of rows
  weights.py      copies in proportion to weights; classes dealt to heads
  permutation.py  keyed bijections and bit mixing, the basis of hashed rows and of the rotation
  rotation.py     which rows a head meets at step t, and which slots are live
"""

from hydrax.arguments import checked_calls
from hydrax.slices import rotation
from hydrax.slices.axes import LEDGER_COLUMNS
from hydrax.slices.law import RowLaw
from hydrax.slices.slices import Slices

checked_calls(Slices)
