"""Measures what the host costs: default callbacks against none, and the loop against the compiled program alone.

MLPs 64-64-10, B = 32, AdamW, supersteps of 50 steps, with as many heads as make a superstep take about 50 ms. Three
variants take turns in one process:
- default: a default `Trainer`, with TensorBoard events, progress bar and checkpoints;
- barebones: `Trainer(barebones=True)`;
- program: the compiled superstep of the barebones fit, called in a plain loop on its own heads; nobody reads its
  metrics, and it always gets the index batches of the first superstep.

All turns together count, because checkpoints are rare: the default variant saves at the first end of an epoch that is
30 s after the last save, by the wall clock, which also runs during the turns of the others. Saves are therefore about
three times as frequent here as in a run alone. Results: benchmarks/README.md.

    python benchmarks/quiet_host.py
"""

import argparse
import statistics
import tempfile
from typing import Any

import hydrax  # noqa: F401  # isort: skip  # first: its guard must stand before JAX starts its backend

import jax
import numpy as np
from peers import machine
from peers.cases import Case, perceptrons, prefixes
from peers.hydrax_fit import HydraxFit
from peers.report import number, table
from peers.turns import Player, median_ratio, take_turns

STEPS_PER_CALL, SUPERSTEP_SECS = 50, 0.05
EPOCH_STEPS = 1_000
WANTED = {"default to barebones": 1.05, "barebones to program": 1.02}


class Program:
    """The compiled superstep in a plain loop. Only this code uses private objects of the Trainer."""

    steps_per_unit, call_steps, note = 1, STEPS_PER_CALL, ""

    def __init__(self, fit: HydraxFit) -> None:
        training = fit.trainer._run.planned
        self._engine, self._step = training.engine, 0
        self._state = self._engine.init()
        self._taken = training.feed.superstep(0, [1] * STEPS_PER_CALL)
        self._first = self._last = None

    def advance(self, num_steps: int) -> None:
        for _ in range(num_steps // STEPS_PER_CALL):
            self._state, self._last = self._engine.superstep(
                self._state, self._taken, self._step, STEPS_PER_CALL, False
            )
            self._first = self._last if self._first is None else self._first
            self._step += STEPS_PER_CALL
        jax.block_until_ready((self._state, self._last))

    def losses(self) -> tuple[float, float]:
        first, last = (np.asarray(jax.tree.leaves(one)[0]) for one in (self._first, self._last))
        return float(first[0].mean()), float(last[STEPS_PER_CALL - 1].mean())

    def close(self) -> None:
        self._state = None


def make_case(num_heads: int) -> Case:
    return perceptrons(
        "q",
        "quiet host",
        (64, 64, 10),
        num_heads=num_heads,
        num_rows=32 * EPOCH_STEPS,
        steps_per_call=STEPS_PER_CALL,
        make_rows=lambda num_heads, num_rows: prefixes(np.full(num_heads, num_rows)),
    )


def find_heads() -> int:
    """Returns the number of heads at which a superstep takes 50 ms, estimated from a short fit of 32 heads."""
    player = Player("hydrax", lambda: HydraxFit(make_case(32)), 4 * STEPS_PER_CALL)
    player.opponent.close()
    return max(1, round(32 * SUPERSTEP_SECS / STEPS_PER_CALL / player.step_secs))


def measure(num_heads: int, turns: int, turn_secs: float, folder: str) -> dict[str, Player]:
    case, warm_steps = make_case(num_heads), 4 * STEPS_PER_CALL
    plain: dict[str, Any] = {"default_root_dir": folder}
    players = {
        "default": Player("default", lambda: HydraxFit(case, trainer=plain), warm_steps),
        "barebones": Player("barebones", lambda: HydraxFit(case), warm_steps),
    }
    bare = players["barebones"].opponent
    players["program"] = Player("program", lambda: Program(bare), warm_steps)
    for player in players.values():
        player.plan(turn_secs, 4)
    # Equal turns: all make as many steps as the fastest.
    most = max(player.turn_steps for player in players.values())
    for player in players.values():
        player.turn_steps = most
    take_turns(list(players.values()), turns)
    for player in reversed(players.values()):
        player.opponent.close()
    return players


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="turns per variant")
    parser.add_argument("--turn-secs", type=float, default=10.0, help="least seconds per turn")
    parser.add_argument("--heads", type=int, help="number of heads; by default as many as make a superstep of 50 ms")
    args = parser.parse_args()

    print(machine.describe())
    num_heads = args.heads or find_heads()
    with tempfile.TemporaryDirectory() as folder:
        players = measure(num_heads, args.turns, args.turn_secs, folder)
    superstep = 1e3 * STEPS_PER_CALL * statistics.median(players["barebones"].secs)
    print(f"\n{num_heads} heads, supersteps of {superstep:.1f} ms; {args.turns} turns\n")
    rows = []
    for name, wanted in WANTED.items():
        ours, theirs = (players[one].secs for one in name.split(" to "))
        together = sum(ours) / sum(theirs)
        median, low, high = median_ratio(ours, theirs)
        verdict = "reached" if together <= wanted else f"missed: {together / wanted:.2f} times that"
        rows.append((name, f"{together:.3f}", wanted, verdict, f"{median:.3f}", f"{low:.3f} .. {high:.3f}"))
    print(
        table(("time of a step", "all turns together", "wanted, at most", "verdict", "median", "least and most"), rows)
    )
    per_step = ", ".join(f"{name} {number(1e3 * statistics.median(one.secs))}" for name, one in players.items())
    print(f"\nms a step: {per_step}; {machine.load()} at the end")


if __name__ == "__main__":
    main()
