"""Writes a table of the heads that were quarantined for NaN or infinity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hydrax import Callback, Event
from hydrax.files import table_text, warn_if_unwritable, write_text
from hydrax.results import column_of


class HeadQuarantineReport(Callback):
    """Writes `quarantine.csv` into `trainer.log_dir`, one line per quarantined head, when a fit ends or fails.

    A line holds what identifies the head (recipe, seed, slice length, axes, `PerHead` values), the number of updates it
    keeps, and the first array that the next update made NaN or infinite. A fit without quarantined heads writes
    nothing.

    Attributes:
      rows: one dict per quarantined head, in the order of the heads.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_fit_end(self, event: Event) -> None:
        self._report(event)

    def on_exception(self, event: Event) -> None:
        if event.stage == "fit" and event.live.size:
            self._report(event)

    def _report(self, event: Event) -> None:
        lost, heads = event.trainer.quarantined, event.trainer.head_settings()
        # Only the rows of lost heads are made: there may be a million others.
        places = np.flatnonzero(np.isin(column_of(heads, "head"), list(lost))).tolist()
        rows = [heads[place] for place in places]
        self.rows = [{**row, "step": lost[row["head"]].step, "leaf": lost[row["head"]].leaf} for row in rows]
        if not self.rows or event.trainer.log_dir is None:
            return
        path = Path(event.trainer.log_dir) / "quarantine.csv"
        with warn_if_unwritable("The table of quarantined heads", path, "read trainer.quarantined"):
            write_text(path, table_text(self.rows))
