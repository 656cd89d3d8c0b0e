"""What is wanted: ratios of the time of a step of all heads, Hydrax's to an opponent's, at most."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from peers.turns import median_ratio

BY_HAND = ("vmap", "chunks", "one by one")
BEST_BY_HAND, GROWTH = 1.05, 1.2
WANTED = (
    ("a", "vmap", 0.20),
    ("a", "torch one by one", 0.05),
    ("a", "torch vmap", 0.5),
    ("b", "torch one by one", 0.10),
    ("b", "torch vmap", 0.15),
    ("c", "vmap", 0.02),
    ("c", "torch one by one", 0.65),
    ("d", "torch vmap", 0.4),
)
LIMIT_SHARE = 0.8
"""Of the machine's binding limit, on a GPU, at least."""


class Line(NamedTuple):
    """One target. `ratio` is None if it was not measured."""

    letter: str
    what: str
    ratio: float | None
    wanted: float

    def verdict(self) -> str:
        if self.ratio is None:
            return "not measured"
        return "reached" if self.ratio <= self.wanted else f"missed: {self.ratio / self.wanted:.2f} times that"


def lines(found: dict[str, Any]) -> list[Line]:
    """Returns all targets of the cases that ran, by letter."""
    rows = []
    for letter, case in found.items():
        if letter == "g":
            rows += _of_growth(case)
            continue
        secs = {result["name"]: result["secs"] for result in case["results"]}
        rows += _against_best(letter, secs, "hydrax", [name for name in BY_HAND if name in secs])
        if "hydrax shared" in secs:
            shared = [name for name in ("vmap shared", "chunks shared") if name in secs]
            rows += _against_best(letter, secs, "hydrax shared", shared)
        for of, opponent, wanted in WANTED:
            if of == letter:
                ratio = median_ratio(secs["hydrax"], secs[opponent])[0] if opponent in secs else None
                rows.append(Line(letter, f"hydrax to {opponent}", ratio, wanted))
        if "hydrax few" in secs:
            ratio = median_ratio(secs["hydrax"], secs["hydrax few"])[0] * case["few"] / case["heads"]
            rows.append(Line(letter, f"a head of {case['heads']:,} to one of {case['few']:,}", ratio, GROWTH))
    return rows


def _against_best(letter: str, secs: dict[str, list[float]], ours: str, names: list[str]) -> list[Line]:
    if not names:
        return []
    best = min(names, key=lambda name: statistics.median(secs[name]))
    return [Line(letter, f"{ours} to the best by hand ({best})", median_ratio(secs[ours], secs[best])[0], BEST_BY_HAND)]


def _of_growth(case: dict[str, Any]) -> list[Line]:
    """The targets for growth: the last point costs at most 1.2 of the reference per head-step."""
    cost = lambda point: statistics.median(point["secs"]) / point["heads"]  # noqa: E731
    heads, lengths = case["by heads"], case["by length"]
    usual = min(heads, key=lambda point: abs(point["heads"] - 1_024))
    rows = []
    for points, reference, name in ((heads, usual, "heads"), (lengths, lengths[0], "length")):
        word = "heads" if name == "heads" else "rows in each slice"
        what = f"a head-step with {points[-1][name]:,} {word} to one with {reference[name]:,}"
        rows.append(Line("g", what, cost(points[-1]) / cost(reference), GROWTH))
    return rows
