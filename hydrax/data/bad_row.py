"""BadRow: what is wrong with one row of a dataset that stays on the host."""

from __future__ import annotations


class BadRow(Exception):
    """A row that cannot be used. Crosses processes, which know no heads, so the reader makes the DataError of it."""

    def __init__(self, row: int, problem: str, where: str, outcome: str) -> None:
        super().__init__(row, problem, where, outcome)
        self.row, self._problem, self._where, self._outcome = row, problem, where, outcome

    def message(self, wanted: str) -> str:
        """The whole text; `wanted` says whose row it is, and is empty or starts with a comma."""
        return f"{self._problem}: {self._where}, row {self.row}{wanted}. {self._outcome}"

    def __str__(self) -> str:
        return self.message("")
