"""What becomes of heads that turned NaN or infinite: they are brought to the last step before that, and named."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hydrax.engine.draw import SuperstepRows
from hydrax.engine.engine import Blocks, Engine, read_steps
from hydrax.errors import NonFiniteError
from hydrax.step import fault_names

_log = logging.getLogger("hydrax")
_MOST_NAMED = 5  # heads that one message names


class Fault(NamedTuple):
    """How a head was lost.

    Attributes:
      step: updates that the head keeps: the `ctx.step` of the one that was taken back.
      leaf: the first array that this update made NaN or infinite: "loss", or the kind of array and its path.
    """

    step: int
    leaf: str


class Steps(NamedTuple):
    """Steps that were dispatched together, with all that is needed to run them again.

    Attributes:
      rows: their rows and index batches.
      first, num_steps: updates done before them, and how many they are.
      new_epoch: whether they begin an epoch.
    """

    rows: SuperstepRows
    first: int
    num_steps: int
    new_epoch: bool


def roll_back(
    engine: Engine, state: Blocks, steps: Steps, lost: np.ndarray, live: np.ndarray
) -> tuple[Blocks, dict[int, Fault]]:
    """Runs lost heads again, step by step, up to the last one that leaves them finite.

    The program has put them back to where they were before these steps. It runs again, for one step at a time, so the
    bits of a head are those it had; the other heads rest meanwhile.

    Args:
      state: all heads, these put back; given away.
      steps: the steps in which they were lost.
      lost: bool[H], the heads.
      live: bool[H], those that learn afterwards.

    Returns:
      The state, and how each of them was lost, by its place among all heads.
    """
    names = fault_names(engine.state_shapes())
    faults: dict[int, Fault] = {}
    state = engine.with_live(state, lost)
    for number in range(steps.num_steps):
        left = lost & ~np.isin(np.arange(len(lost)), list(faults))
        if not left.any():
            break
        new_epoch = steps.new_epoch and number == 0
        state, values = engine.superstep(state, steps.rows, steps.first, number + 1, new_epoch, begin=number)
        gone = left & _read(engine, values, "lost", number)
        if gone.any():
            codes = engine.find_fault(state, steps.rows, steps.first, number)
            for head in np.flatnonzero(gone):
                leaf = names[codes[head]] if codes[head] >= 0 else "unknown"
                faults[int(head)] = Fault(steps.first + number, leaf)
    # Only a program that does not repeat itself, as some on a GPU, loses a head in one run and not in the next.
    ended = steps.first + steps.num_steps
    faults |= {int(head): Fault(ended, "unknown") for head in np.flatnonzero(lost) if int(head) not in faults}
    return engine.with_live(state, live), faults


def describe(faults: Mapping[int, Fault], ids: Sequence[int]) -> str:
    """Which heads were lost, where and by what, for the first few of them.

    Args:
      faults: by a head's place.
      ids: the heads' ids, by place.
    """
    named = [f"head {ids[place]} at step {fault.step}: {fault.leaf}" for place, fault in sorted(faults.items())]
    more = [f"and {len(named) - _MOST_NAMED} more"] if len(named) > _MOST_NAMED else []
    return "; ".join(named[:_MOST_NAMED] + more)


def report(new: Mapping[int, Fault], num_left: int, ids: Sequence[int], *, on_nonfinite: str) -> None:
    """Says which heads were lost.

    Args:
      new: those lost now.
      num_left: heads that were not lost.

    Raises:
      NonFiniteError: no head is left, or one is one too many.
    """
    found = describe(new, ids)
    if on_nonfinite == "raise" or not num_left:
        what = "All heads became" if not num_left else "A head became"
        raise NonFiniteError(
            f"{what} NaN or infinite: training. Got {found}, expected finite numbers. Fix: lower the learning rate, "
            "clip gradients (gradient_clip_val), or look for NaN in the rows of these heads."
        )
    _log.warning("Quarantined, as NaN or infinite: %s. They stay as they were before that step.", found)


def _read(engine: Engine, values: Blocks, name: str, number: int) -> Any:
    rows = tuple(block[name] for block in values)
    return read_steps(rows, number + 1, engine.layout.places)[number]
