"""Results of a fit: its heads, their predictions and their table.

Files, in reading order:
  heads.py        `Heads`: index, call, predict, save, load
  held_out.py     predictions of all heads; `HeldOut`
  fit_result.py   `FitResult`
  ledger.py       the table of heads
  export.py       arrays by name in one file that others can read
  best_scores.py  the best scores of each head
"""

from hydrax.results.best_scores import BestScores
from hydrax.results.export import SUFFIXES, check_suffix, export
from hydrax.results.fit_result import FitResult
from hydrax.results.heads import Heads, export_heads, load_with
from hydrax.results.held_out import HeldOut, check_reduction, held_out, stacked
from hydrax.results.ledger import Ledger, column_of, head_settings, write_csv
