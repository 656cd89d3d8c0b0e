"""Turns: all opponents of a case live in one process and train in turn, so that other work on the machine affects all.

An opponent is built (its heads are at their initial values), warmed up for a fixed number of steps, which compiles
everything and after which the losses of all are compared, and then trains turns of several whole calls. The order
shifts by one from turn to turn, so that no opponent always follows the same one.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

WARM_SECS = 5.0
SLOW_SECS, SLOW_TURNS = 5.0, 2  # An opponent with slower steps gets fewer turns.


class Missing(Exception):
    """An opponent cannot take part; the message says why."""


class Opponent(Protocol):
    """A program that trains all heads of a case.

    Attributes:
      call_steps: steps per call; it trains whole calls only.
      steps_per_unit: steps of the unit that is timed: 1, or an epoch.
      note: its choices, for the table.
    """

    call_steps: int
    steps_per_unit: int
    note: str

    def advance(self, num_steps: int) -> None:
        """Trains all heads and returns when the last result is available."""

    def losses(self) -> tuple[float, float]:
        """Returns the losses of the first and the last step, averaged over heads."""

    def close(self) -> None:
        """Frees memory."""


class Player:
    """An opponent with its times.

    Args:
      name: its key.
      make: builds the opponent.
      warm_steps: steps before the first turn, at least two calls.
      exact: whether to make all of them, so that losses can be compared; otherwise a slow warm-up ends early.
    """

    def __init__(self, name: str, make: Callable[[], Opponent], warm_steps: int, exact: bool = False) -> None:
        start = time.perf_counter()
        self.name, self.opponent, self.secs = name, make(), list[float]()
        call = self.opponent.call_steps
        self.opponent.advance(call)
        self.first_secs = time.perf_counter() - start
        self.warm_steps, self.step_secs = call, math.inf
        while self.step_secs == math.inf or self.warm_steps + call <= warm_steps:
            self.step_secs = min(self.step_secs, self._timed(call))
            self.warm_steps += call
            if not exact and time.perf_counter() - start > self.first_secs + WARM_SECS:
                break
        self.losses = self.opponent.losses()
        self.turn_steps = call

    def plan(self, least_secs: float, least_calls: int) -> None:
        """Chooses the calls per turn so that a turn takes at least `least_secs`."""
        call, secs = self.opponent.call_steps, self.step_secs
        calls = max(1, math.ceil(least_secs / (call * secs)))
        self.turn_steps = call * (calls if call * secs > 1 else max(calls, least_calls))

    def take_turn(self) -> None:
        self.secs.append(self._timed(self.turn_steps) * self.opponent.steps_per_unit)

    def _timed(self, num_steps: int) -> float:
        start = time.perf_counter()
        self.opponent.advance(num_steps)
        return (time.perf_counter() - start) / num_steps

    def result(self) -> dict[str, Any]:
        opponent = self.opponent
        return {
            "name": self.name,
            "note": opponent.note,
            "first_secs": self.first_secs,
            "secs": self.secs,
            "turn_steps": self.turn_steps,
            "warm_steps": self.warm_steps,
            "losses": self.losses,
            "last_loss": opponent.losses()[1],
        }


def best_of(name: str, makers: Mapping[str, Callable[[], Opponent]], warm_steps: int, exact: bool) -> Player:
    """Warms up all variants and keeps the fastest; the note names it and its rivals."""
    best, tried = None, {}
    for form, make in makers.items():
        player = Player(name, make, warm_steps, exact)
        tried[form] = player.step_secs
        if best is not None and player.step_secs >= best.step_secs:
            player.opponent.close()
            continue
        if best is not None:
            best.opponent.close()
        best = player
        if form:
            best.opponent.note = form
    assert best is not None
    if len(tried) > 1:
        others = ", ".join(
            f"{form} {secs / best.step_secs:.2f}" for form, secs in tried.items() if secs > best.step_secs
        )
        best.opponent.note += f" (best of {len(tried)}: {others})"
    return best


def take_turns(players: list[Player], turns: int) -> None:
    """Lets all opponents train in turn, `turns` times; slow ones skip the later turns."""
    for turn in range(turns):
        for player in players[turn % len(players) :] + players[: turn % len(players)]:
            if turn < SLOW_TURNS or player.step_secs <= SLOW_SECS:
                player.take_turn()


def disagreements(results: list[dict[str, Any]], tolerance: float | None) -> list[str]:
    """Returns what is wrong with the losses: a loss that did not fall, or, if a tolerance is given, a loss that differs
    from the others after the warm-up.

    Args:
      results: results of `Player.result`, Hydrax first.
      tolerance: relative, for opponents that start from the initial values of Hydrax and learn from the same rows
        for as many steps.
    """
    wrong = []
    for result in results:
        first, last = result["losses"][0], result["last_loss"]
        if not last < first:
            wrong.append(f"the loss of {result['name']} does not fall: {first:.4f}, then {last:.4f}")
        like = results[0]
        equal = result["warm_steps"] == like["warm_steps"] and result["name"] not in UNLIKE
        if tolerance is not None and equal and not np.allclose(result["losses"], like["losses"], rtol=tolerance):
            wrong.append(f"losses of {result['name']} are {result['losses']}, those of {like['name']} {like['losses']}")
    return wrong


UNLIKE = ("hydrax shared", "vmap shared", "chunks shared", "sklearn", "hydrax few")
"""Who learns from other rows, or starts from other values, than the rest."""


def median_ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Returns the median, minimum and maximum over turns of Hydrax's time divided by theirs."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=False)]
    return statistics.median(ratios), min(ratios), max(ratios)
