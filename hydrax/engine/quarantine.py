"""Quarantine: restores heads that became NaN or infinite to their last finite step, and reports them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hydrax.engine.draw import SuperstepRows
from hydrax.engine.engine import Blocks, Engine, read_steps
from hydrax.errors import NonFiniteError
from hydrax.step import fault_names

_log = logging.getLogger("hydrax")
_MOST_NAMED = 5  # most heads that one message names


class Fault(NamedTuple):
    """When and how a head became NaN or infinite.

    Attributes:
      step: how many updates the head keeps, which is `ctx.step` of the update that was undone.
      leaf: the first array that this update made NaN or infinite: "loss", or the kind of array and its path.
    """

    step: int
    leaf: str


class Steps(NamedTuple):
    """A dispatched superstep, with everything needed to run it again.

    Attributes:
      rows: its rows and index batches.
      first: updates done before its first step.
      num_steps: how many steps it has.
      new_epoch: whether it begins an epoch.
    """

    rows: SuperstepRows
    first: int
    num_steps: int
    new_epoch: bool


def roll_back(
    engine: Engine, state: Blocks, steps: Steps, lost: np.ndarray, live: np.ndarray
) -> tuple[Blocks, dict[int, Fault]]:
    """Repeats a superstep for the heads that were lost in it, up to the last step that leaves them finite.

    The program has restored these heads to where they were before the superstep. It now runs them again, one step at a
    time, so they get the same bits as before; all other heads are frozen meanwhile. Finding the step costs nothing in a
    run without NaN, where each array is checked only once a superstep.

    Args:
      state: the state of all heads, with the lost ones restored; donated.
      steps: the superstep in which they were lost.
      lost: bool[H], the lost heads.
      live: bool[H], the heads that learn afterwards.

    Returns:
      The state, and how each head was lost, by its position among all heads.
    """
    names = fault_names(engine.state_shapes())
    faults: dict[int, Fault] = {}
    # The program can only run all chunks, so the others are frozen; later supersteps have trained them already.
    state = engine.with_live(state, lost)
    for number in range(steps.num_steps):
        left = lost & ~np.isin(np.arange(len(lost)), list(faults))
        if not left.any():
            break
        new_epoch = steps.new_epoch and number == 0
        # Only the bounds of the loop differ, so this is the same compiled program and, on a CPU, gives the same bits.
        state, values = engine.superstep(state, steps.rows, steps.first, number + 1, new_epoch, begin=number)
        # The program has undone the step for heads that it lost, so `find_fault` starts from the state before it.
        gone = left & read_steps(tuple(block["lost"] for block in values), number + 1, engine.layout.places)[number]
        if gone.any():
            codes = engine.find_fault(state, steps.rows, steps.first, number)
            for head in np.flatnonzero(gone):
                leaf = names[codes[head]] if codes[head] >= 0 else "unknown"
                faults[int(head)] = Fault(steps.first + number, leaf)
    # A head that stays finite in the repetition: possible only for programs that do not repeat their bits, as on a GPU.
    ended = steps.first + steps.num_steps
    faults |= {int(head): Fault(ended, "unknown") for head in np.flatnonzero(lost) if int(head) not in faults}
    return engine.with_live(state, live), faults


def describe(faults: Mapping[int, Fault], ids: Sequence[int]) -> str:
    """Describes which heads were lost, at which step and by what, for the first few of them.

    Args:
      faults: by the position of a head.
      ids: the ids of all heads, by position.
    """
    named = [f"head {ids[place]} at step {fault.step}: {fault.leaf}" for place, fault in sorted(faults.items())]
    more = [f"and {len(named) - _MOST_NAMED} more"] if len(named) > _MOST_NAMED else []
    return "; ".join(named[:_MOST_NAMED] + more)


def report_faults(new: Mapping[int, Fault], num_left: int, ids: Sequence[int], *, on_nonfinite: str) -> None:
    """Logs a warning that names the lost heads.

    Args:
      new: the heads lost in this superstep, by position.
      num_left: the number of heads that were never lost.
      ids: the ids of all heads, by position.
      on_nonfinite: the Trainer's argument; "raise" makes an error of it.

    Raises:
      NonFiniteError: no head is left, or `on_nonfinite` is "raise".
    """
    found = describe(new, ids)
    if on_nonfinite == "raise" or not num_left:
        what = "All heads became" if not num_left else "A head became"
        raise NonFiniteError(
            f"{what} NaN or infinite: training. Got {found}, expected finite numbers. Fix: pass "
            "Trainer(detect_anomaly=True), which names the row and the line; or lower the learning rate, or clip "
            "gradients (gradient_clip_val)."
        )
    _log.warning("Quarantined, as NaN or infinite: %s. They stay as they were before that step.", found)
