"""Anomaly detection: repeats a step of each head under `jax.experimental.checkify`, and names head, row and line."""

from __future__ import annotations

import dataclasses
import linecache
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jax.extend import source_info_util

from hydrax.engine.draw import Draw
from hydrax.errors import AnomalyError
from hydrax.step import HeadProgram, HeadsState, Lowering, StepInput, has_own_update

_HYDRAX = str(Path(__file__).parents[1])
# Packages whose lines a user did not write.
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "equinox", "numpy")
# By the class of checkify's error, which has no public name: what is wrong, what was expected, and how to mend it.
_KINDS = {
    "OOBError": ("an index outside its array", "an index inside it", "check the labels and indices of this row"),
    "NaNError": (
        "NaN",
        "a number",
        "guard the operation, for example with jnp.where on its argument, or check the values of this row",
    ),
    "DivisionByZeroError": ("a division by zero", "a divisor other than 0", "guard the division"),
}


class AnomalyDetector:
    """Checks indices, NaN and divisions of a training step, one head at a time, without changing anything.

    Args:
      program: the functions of one head.
      draw: where the index batches of training come from.
    """

    def __init__(self, program: HeadProgram, draw: Draw) -> None:
        # In JAX's own operations, as Hydrax's have no line of the user's; without clipping, whose formula divides by a
        # norm that may be 0 and then drops the result; without callbacks, which only look.
        self._program = dataclasses.replace(program, lowering=Lowering(), clip_val=None, callbacks={})
        self._draw = draw
        from jax.experimental import checkify  # late: few runs need it

        arithmetic = checkify.nan_checks | checkify.div_checks
        # JAX 0.10 cannot check the indices of all scatters, of which gradients are full. A gradient scatters where its
        # step gathers, so it is enough to check the step.
        self._forward = checkify.checkify(_with_lines(self._run_forward), errors=arithmetic | checkify.index_checks)
        self._update = checkify.checkify(_with_lines(self._program.train), errors=arithmetic)
        self._step = jax.jit(self._of_place)

    def check(self, state: HeadsState, given: StepInput, batches: Mapping[str, Any], places: Mapping[int, int]) -> None:
        """Checks the first step of a superstep for the heads of a block.

        Args:
          state: the state of the block's heads before the step; it is not donated.
          given, batches: as in `Programs.superstep`.
          places: by place in the block, the id of its head.

        Raises:
          AnomalyError: a step goes wrong; the message names the first head with that.
        """
        live = np.asarray(state.live)
        for place in (place for place in places if live[place]):
            found, (runs, mask, rows) = self._find(state, given, batches, place, -1)
            if found is None or not runs:
                continue
            # A batch that holds nothing but copies of one row goes wrong if that row is to blame.
            slots = (int(slot) for slot in np.flatnonzero(mask))
            slot = next((one for one in slots if self._find(state, given, batches, place, one)[0] is not None), None)
            where = f"head {places[place]}, step {int(given.step)}"
            where += ", no row by itself" if slot is None else f", row {int(rows[slot])}"
            raise _error(found, where)

    def _find(self, state: Any, given: Any, batches: Any, place: int, slot: int) -> tuple[Any, Any]:
        """Makes the step of one head; returns checkify's error or None, and what `_of_place` tells."""
        errors, told = self._step(state, given, batches, np.int32(place), np.int32(slot))
        return next((found for error in errors if (found := error.get_exception()) is not None), None), told

    def _run_forward(self, head: HeadsState, given: StepInput) -> None:
        for number, (rows, mask) in enumerate(zip(given.rows, given.mask, strict=True)):
            key = jax.random.fold_in(jax.random.fold_in(given.key, given.inputs.ids), given.step)
            key = key if len(given.rows) == 1 else jax.random.fold_in(key, number)
            one = given._replace(key=key, rows=rows, mask=mask)
            self._program.logs("training", (head.trainable, head.state), one, train=True)

    def _of_place(
        self, state: HeadsState, given: StepInput, batches: Mapping[str, Any], place: jax.Array, slot: jax.Array
    ) -> Any:
        """Makes the step of one head, from `slot` 0 on with the row of that slot alone.

        Returns:
          Checkify's errors; and whether the head runs, its mask and its rows.
        """
        rows, mask = (part[0] for part in self._draw(batches, given.inputs.ids))
        head, inputs = jax.tree.map(lambda a: a[place], (state, given.inputs))
        rows, mask = rows if self._draw.shared else rows[:, place], mask[:, place]
        picked = jnp.where(slot < 0, rows, rows.reshape(-1)[slot])
        one = given._replace(inputs=inputs, rows=picked, mask=mask)
        head = head._replace(epoch={}, callbacks={})
        # A module with an `update` of its own need not have a `training_step`.
        forward = [] if has_own_update(self._program.module) else [self._forward(head, one)[0]]
        numbers = rows if given.data.numbers is None else given.data.numbers[rows]
        told = head.live & mask.any(), mask.reshape(-1), numbers.reshape(-1)
        return [*forward, self._update(head, one)[0]], told


def _with_lines(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Runs what jitted functions do, such as most of `jax.numpy`, as if it stood in the line that calls them.

    JAX traces a jitted function apart, so its operations do not know who called it. The result is None: only errors
    are looked for.
    """

    def run(*args: Any) -> None:
        closed = jax.make_jaxpr(fun)(*args)
        _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), None)

    return run


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], caller: Any) -> list[Any]:
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    read: Callable[[Any], Any] = lambda atom: atom.val if isinstance(atom, jex.Literal) else values[atom]  # noqa: E731
    for equation in jaxpr.eqns:
        operands, info = [read(atom) for atom in equation.invars], equation.source_info
        trace = caller or info.traceback
        if equation.primitive.name in ("jit", "pjit"):
            inner = equation.params["jaxpr"]
            results = _evaluate(inner.jaxpr, inner.consts, operands, trace)
        else:
            with source_info_util.user_context(trace, name_stack=info.name_stack), equation.ctx.manager:
                # JAX 0.10.2 returns a dict here, other versions a pair.
                bound = equation.primitive.get_bind_params(equation.params)
                functions, bound = bound if isinstance(bound, tuple) else ((), bound)
                results = equation.primitive.bind(*functions, *operands, **bound)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _error(found: Any, where: str) -> AnomalyError:
    what, expected, fix = _KINDS[type(found).__name__]
    got = str(found).strip().rstrip(".")
    return AnomalyError(
        f"A step goes wrong: {where}{_line(found.traceback_info)}. Got {what} ({got}), expected {expected}. Fix: {fix}."
    )


def _line(trace: Any) -> str:
    """Describes the innermost line of the user's, between JAX, which it calls, and Hydrax, which calls it."""
    folders = [str(Path(sys.modules[name].__file__ or "").parent) for name in _LIBRARIES if name in sys.modules]
    own = next((frame for frame in trace.frames if not frame.file_name.startswith(tuple(folders))), None)
    if own is None or own.file_name.startswith(_HYDRAX):  # such as the optimiser
        return ", outside of your own lines"
    text = linecache.getline(own.file_name, own.line_num).strip()
    return f", {own.file_name}:{own.line_num} in {own.function_name}" + (f" (`{text}`)" if text else "")
