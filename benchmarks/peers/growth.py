"""One point of the growth case in a process of its own: `python -m peers.growth '{"num_heads": 16, ...}'` prints JSON.

Linear heads 64-10, B = 32, AdamW. A process holds one fit alone, so that its peak of resident memory is that fit's:
`ru_maxrss` at the end, less what the process held when all was imported. The dataset counts.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

import hydrax  # noqa: F401  # isort: skip  # first: its guard must stand before JAX starts its backend

import numpy as np
from peers.cases import perceptrons, prefixes
from peers.hydrax_fit import HydraxFit
from peers.turns import Player, take_turns

EPOCH_ROWS = 1_600
"""Least number of rows of the first head. An epoch is one pass of the longest slice, and supersteps end with epochs if
a callback listens to steps: if all slices had ten rows, every step would be a superstep."""


def run(num_heads: int, length: int, num_rows: int, turn_count: int, least_secs: float, tiny: bool) -> dict[str, Any]:
    def make_rows(num_heads: int, num_rows: int) -> Any:
        lengths = np.full(num_heads, length)
        lengths[0] = min(max(length, EPOCH_ROWS), num_rows)
        return prefixes(lengths)

    calls = min(50, max(1, 2**18 // num_heads))
    how = {"num_heads": num_heads, "num_rows": num_rows, "steps_per_call": calls, "make_rows": make_rows}
    how |= {"chunk": 2} if tiny else {}
    case = perceptrons("g", "growth", (64, 10), **how)
    before = peak_bytes()
    player = Player("hydrax", lambda: HydraxFit(case), 3 * case.steps_per_call)
    player.plan(least_secs, 4)
    take_turns([player], turn_count)
    peak = peak_bytes() - before
    found = {"heads": num_heads, "length": length, "rows": num_rows, "peak_bytes": peak, **player.result()}
    player.opponent.close()
    return found


def peak_bytes() -> int:
    """Returns the peak resident memory of this process so far; the kernel counts in units of 1,024 bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(json.dumps(run(**json.loads(sys.argv[1]))))
