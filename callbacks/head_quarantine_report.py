"""Writes a table of the heads that were quarantined for NaN or infinity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydrax import Callback, Event
from hydrax.files import table_text, warn_if_unwritable, write_text


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
        lost = event.trainer.quarantined
        self.rows = [
            {**head, "step": lost[head["head"]].step, "leaf": lost[head["head"]].leaf}
            for head in (event.trainer.head_settings() if lost else [])
            if head["head"] in lost
        ]
        if not self.rows or event.trainer.log_dir is None:
            return
        path = Path(event.trainer.log_dir) / "quarantine.csv"
        with warn_if_unwritable("The table of quarantined heads", path, "read trainer.quarantined"):
            write_text(path, table_text(self.rows))
