"""Programs: the functions of one head under the head axis, ready to be compiled.

Each program is `for each chunk of C heads: for K steps: vmap(one head)`. In this order the parameters of a chunk stay
in the processor's cache for all K steps; steps outside and chunks inside took up to 1.9 times as long. The width C is
fixed, so a head's bits depend neither on H nor on its neighbours. The numbers of chunks and steps are arguments, not
constants: nothing compiles twice, and XLA cannot unroll a loop of one turn into a program with other bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hydrax.engine.draw import Draw, HostBatches
from hydrax.step import HeadInputs, HeadProgram, HeadsState, Mean, StepInput, all_finite, is_whole, select, stays_finite

# Batches of one head each that are drawn at once: enough to fill the vector registers, and few enough for the cache.
_DRAWN_TOGETHER = 1024
_LEAST_STEPS, _MOST_STEPS = 8, 32  # Steps that are drawn at once.


class Programs:
    """The programs of one run, as pure functions that the engine compiles.

    Programs that read rows share their arguments: after the heads come `given`, a `StepInput` of all heads without
    `rows` and `mask`; `batches`, from which the program draws these two for each step; and the numbers of the call, of
    which `num_chunks` is the last.

    Args:
      head: the functions of one head.
      chunk: C; every `[H]` axis below is a multiple of it.
      epoch: empty accumulators of one head, by the names that are logged on_epoch.
      draw: where the index batches of training come from.
    """

    def __init__(self, head: HeadProgram, chunk: int, epoch: dict[str, Any], draw: Draw) -> None:
        self._head, self._chunk, self._epoch, self._draw = head, chunk, epoch, draw

    def init(self, inputs: HeadInputs, base_key: jax.Array, num_chunks: jax.Array, start: Any = None) -> HeadsState:
        """Makes the state of all heads before the first step; `start` as for `HeadProgram.init`, leaves `[H, ...]`."""
        # In chunks like all else: initial values, too, may depend on the width of the vmapped block.
        one = jax.vmap(lambda given: self._head.init(given[0], base_key, self._epoch, given[1]))
        state: HeadsState = self._map_chunks(one, (inputs, start), num_chunks)
        return state

    def superstep(
        self,
        state: HeadsState,
        given: StepInput,
        batches: Mapping[str, Any],
        begin: jax.Array,
        num_steps: jax.Array,
        new_epoch: jax.Array,
        num_chunks: jax.Array,
        *,
        whole: bool = False,
    ) -> tuple[HeadsState, dict[str, Any]]:
        """Runs K steps of all heads.

        If heads are watched, one that is NaN or infinite after these steps is returned as it was before them, frozen,
        and the value "lost" is True for it. The check comes once for all steps, since it reads every array of a head,
        which costs as much as an update.

        Args:
          state: the state of all heads; donated.
          given: its `step` is the number of updates before the first of the K max steps.
          batches: what `draw` makes `rows` and `mask` from, for K max steps of A micro-batches.
          begin: the first step to run, counted from `given.step`.
          num_steps: the step to stop before, at most K max.
          new_epoch: whether to empty the accumulators of the epoch first.
          num_chunks: how many chunks run; the heads beyond them rest.
          whole: a constant of the program: run all K max steps of all chunks, whatever the numbers say. On a GPU a loop
            of dynamic length asks the host after each step if there is another, so nothing could be dispatched ahead;
            a loop of constant length does not.

        Returns:
          The new state, and the values of `HeadProgram.train`, each `[K max, H]`, valid for the steps that ran.
        """
        axes = self._draw.axes
        # `jit` only so that the step is traced once and not at each use below; inlined, it leaves the program the same.
        step = jax.jit(self._of_chunk(self._head.train), inline=True)

        def run_chunk(state: HeadsState, inputs: HeadInputs, *parts: Any) -> Any:
            # Emptied inside the program, which saves a dispatch at the start of each epoch.
            empty = jax.tree.map(lambda old, one: jnp.broadcast_to(one, old.shape), state.epoch, self._epoch)
            # Frozen heads keep their accumulators, bit for bit like everything else of theirs.
            before, state = state, state._replace(epoch=select(new_epoch & state.live, empty, state.epoch))

            def run(state: HeadsState, rows: Any, mask: Any, k: Any) -> Any:
                return step(state, given._replace(inputs=inputs, rows=rows, mask=mask, step=given.step + k))

            own = dict(zip(axes, parts, strict=True))
            state, values = self._run_steps(run, state, own, inputs.ids, None if whole else (begin, num_steps))
            if not self._head.watched:
                return state, values
            # A head that does not run is not lost: one may be NaN from the start, and a plan is tried with no step.
            return self._restore_lost(before, state, values, before.live & (whole or num_steps > begin))

        parts = ((given.inputs, 0), *((batches[name], axis) for name, axis in axes.items()))
        count = len(given.inputs.ids) // self._chunk if whole else num_chunks
        found: tuple[HeadsState, dict[str, Any]] = self._over_chunks(run_chunk, state, parts, count)
        return found

    def _run_steps(
        self,
        run: Callable[..., Any],
        state: HeadsState,
        parts: dict[str, Any],
        ids: jax.Array,
        bounds: tuple[jax.Array, jax.Array] | None,
    ) -> Any:
        """Draws and runs the steps of a chunk: `run(state, rows, mask, number of the step) -> (state, values)`.

        Args:
          parts: what `draw` makes rows and masks of these heads from.
          bounds: the first step, and the one to stop before; None runs all K max steps in loops of constant length.

        Returns:
          The state, and the values, `[K max, C]`.
        """
        # One wide computation for many steps costs less than one for each. But if all K max steps were drawn, a
        # superstep of one step would cost as much as one of many.
        most, size = self._drawn_together(parts, whole=bounds is None)
        parts = self._draw.prepared(parts, ids)
        # The last group may be shorter than the others.
        by_step = {
            name: jnp.pad(parts[name], ((0, -most % size), (0, 0))) for name in self._draw.by_step if size < most
        }

        def draw(number: Any) -> tuple[Any, Any]:
            some = {name: lax.dynamic_slice_in_dim(part, number * size, size) for name, part in by_step.items()}
            return self._draw(parts | some, ids)

        def run_group(number: Any, carry: Any) -> Any:
            (rows, mask), first = draw(number), number * size

            def body(k: jax.Array, carry: Any) -> Any:
                state, values = carry
                state, new = run(state, rows[k - first], mask[k - first], k)
                return state, jax.tree.map(lambda old, one: old.at[k].set(one), values, new)

            lower, upper = first, first + size
            if bounds is not None:
                lower, upper = jnp.maximum(bounds[0], lower), jnp.minimum(bounds[1], upper)
            return lax.fori_loop(lower, upper, body, carry)

        # A scan would stack these values itself, but it has no dynamic length: K changes from call to call.
        shapes = jax.eval_shape(lambda: run(state, *(part[0] for part in draw(0)), 0))[1]
        values = jax.tree.map(lambda s: jnp.zeros((most, *s.shape), s.dtype), shapes)
        lower, upper = (0, most // size) if bounds is None else (bounds[0] // size, -(-bounds[1] // size))
        return lax.fori_loop(lower, upper, run_group, (state, values))

    def _drawn_together(self, parts: Mapping[str, Any], *, whole: bool) -> tuple[int, int]:
        """Returns K max, and how many steps to draw at once; `whole` asks for groups of equal size."""
        most, accumulate = next(parts[name] for name in self._draw.by_step).shape[:2]
        if isinstance(self._draw, HostBatches):
            return most, most
        wanted = min(most, _MOST_STEPS, max(_LEAST_STEPS, _DRAWN_TOGETHER // (accumulate * self._chunk)))
        return most, max(size for size in range(1, wanted + 1) if not whole or most % size == 0)

    def _of_chunk(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Maps `HeadProgram.train`, or a function of the same arguments, over the heads of a chunk."""
        return jax.vmap(step, in_axes=(0, _heads_on(rows=None if self._draw.shared else 1, mask=1)))

    @staticmethod
    def _restore_lost(before: HeadsState, state: HeadsState, values: dict[str, Any], ran: jax.Array) -> Any:
        """Restores and freezes the heads that are NaN or infinite after these steps, if they ran."""

        def is_sound(old: HeadsState, new: HeadsState) -> jax.Array:
            return all_finite(new.trainable) & stays_finite((old.opt_state, old.state), (new.opt_state, new.state))

        # The losses of all steps as well as the arrays at the end: a NaN loss need not reach the parameters, for
        # example with `optax.zero_nans`.
        lost = (values["lost"].any(axis=0) | ~jax.vmap(is_sound)(before, state)) & ran
        # For all steps at once: which one it was is found by `roll_back`, and only if a head is lost.
        values = values | {"lost": jnp.broadcast_to(lost, values["lost"].shape)}

        def restored(lost: jax.Array, before: HeadsState, state: HeadsState) -> HeadsState:
            state = select(lost, before, state)
            return state._replace(live=state.live & ~lost)

        def restored_if_any(lost: jax.Array, before: HeadsState, state: HeadsState) -> Any:
            return lax.cond(lost.any(), restored, lambda lost, before, state: state, lost, before, state)

        # XLA for a CPU would compute `lost` anew wherever it selects, and for that copy whole arrays of all heads for
        # each chunk. On a GPU a branch would wait for the host.
        return lax.platform_dependent(lost, before, state, cpu=restored_if_any, default=restored), values

    def find_fault(
        self,
        state: HeadsState,
        given: StepInput,
        batches: Mapping[str, Any],
        number: jax.Array,
        num_chunks: jax.Array,
    ) -> jax.Array:
        """Runs `HeadProgram.find_fault` for one step of a superstep, int32[H]; arguments as in `superstep`.

        Args:
          number: number of the step in the superstep.
        """
        axes, find = self._draw.axes, self._of_chunk(self._head.find_fault)

        def run_chunk(_: Any, state: HeadsState, inputs: HeadInputs, *parts: Any) -> Any:
            rows, mask = self._draw(dict(zip(axes, parts, strict=True)), inputs.ids)
            one = given._replace(inputs=inputs, rows=rows[number], mask=mask[number], step=given.step + number)
            return find(state, one), {}

        # The state is read and not carried, so nothing is donated: the caller still needs it.
        parts = ((state, 0), (given.inputs, 0), *((batches[name], axis) for name, axis in axes.items()))
        blank = jnp.full(len(state.live), -1)
        found: jax.Array = self._over_chunks(run_chunk, blank, parts, num_chunks)[0]
        return found

    def evaluate(
        self,
        accumulators: Any,
        head: Any,
        given: StepInput,
        batches: Mapping[str, Any],
        first_batch: jax.Array,
        num_batches: jax.Array,
        num_chunks: jax.Array,
        *,
        stage: str,
    ) -> Any:
        """Merges what all heads log for some batches into accumulators.

        Returns:
          The accumulators; and by name what the host must gather, leaves `[E max, H, B, ...]`, valid for the batches
          that ran.

        Args:
          accumulators: leaves `[H]`, by name; donated.
          head: `(trainable, state)`, leaves `[H, ...]`.
          batches: "rows" and "mask": `[E max, B]`, the same for all heads, or `[E max, H, B]`.
          first_batch: number of the first batch in the dataset; keys depend on it.
          num_batches: how many of the E max batches there are.
          num_chunks: how many chunks run.
          stage: "validation" or "test"; a constant of the program.
        """
        # The data module decides whether heads have validation rows of their own; each case is one program.
        own = batches["rows"].ndim == 3
        axis = 0 if own else None

        def one(head: Any, given: StepInput, batch: jax.Array) -> Any:
            key = self._head.eval_key(given.inputs, given.key, batch)
            return self._head.evaluate(stage, head, given._replace(key=key))

        run = jax.jit(
            jax.vmap(one, in_axes=(0, _heads_on(rows=axis, mask=axis), None)), inline=True
        )  # as in `superstep`

        # All batches of a chunk before the next chunk, as in training: its parameters stay in the cache.
        def run_chunk(accumulators: Any, head: Any, inputs: HeadInputs, rows: Any, mask: Any) -> Any:
            def at(k: Any) -> Any:
                new = run(head, given._replace(inputs=inputs, rows=rows[k], mask=mask[k]), first_batch + k)
                whole = {name: value.arrays for name, value in new.items() if is_whole(value)}
                return {name: value for name, value in new.items() if name not in whole}, whole

            shapes = jax.eval_shape(lambda: at(0))[1]
            values = jax.tree.map(lambda s: jnp.zeros((len(rows), *s.shape), s.dtype), shapes)

            def body(k: jax.Array, carry: Any) -> Any:
                accumulators, values = carry
                new, whole = at(k)
                values = jax.tree.map(lambda old, one: old.at[k].set(one), values, whole)
                return {name: accumulators[name].merge(new[name]) for name in accumulators}, values

            return lax.fori_loop(0, num_batches, body, (accumulators, values))

        parts = ((head, 0), (given.inputs, 0), *((batches[name], 1 if own else None) for name in ("rows", "mask")))
        return self._over_chunks(run_chunk, accumulators, parts, num_chunks)

    def predict(self, head: Any, given: StepInput, batches: Mapping[str, Any], batch: Any, num_chunks: Any) -> Any:
        """Predicts one batch with all heads, `[H, B, ...]`; "rows" and "mask" are `[1, B]` or `[1, H, B]`."""
        rows, mask = batches["rows"][0], batches["mask"][0]
        own = rows.ndim == 2  # rows that all heads share stay outside the map, and are gathered once

        def one(args: Any) -> Any:
            head, inputs, *slots = args
            key = self._head.eval_key(inputs, given.key, batch)
            rows_here, mask_here = slots or (rows, mask)
            return self._head.predict(head, StepInput(inputs, key, given.data, rows_here, mask_here, given.step))

        return self._map_chunks(jax.vmap(one), (head, given.inputs, *((rows, mask) if own else ())), num_chunks)

    def evaluation_parameters(self, inputs: HeadInputs, state: HeadsState) -> Any:
        """Returns the parameters to evaluate, `[H, ...]`."""
        return jax.vmap(self._head.evaluation_parameters)(inputs, state)

    def compute(self, accumulators: dict[str, Any]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Computes means and metrics from accumulators, and the weights of the means: `[H]` by name."""
        values = jax.vmap(lambda one: {name: value.compute() for name, value in one.items()})(accumulators)
        return values, {name: one.weight for name, one in accumulators.items() if isinstance(one, Mean)}

    def finite(self, trainable: Any) -> jax.Array:
        """Tells for which heads all parameters are finite, bool[H]."""
        return jax.vmap(all_finite)(trainable)

    def freeze(self, live: jax.Array, stop: jax.Array) -> jax.Array:
        """Returns the new `HeadsState.live` when the heads of `stop`, bool[H], are frozen."""
        return live & ~stop

    def select(self, condition: jax.Array, new: Any, old: Any) -> Any:
        """Selects `new` for the heads where the condition, bool[H], holds, else `old`, which is donated."""
        return select(condition, new, old)

    def broadcast(self, tree: Any, ids: jax.Array) -> Any:
        """Repeats a tree of one head for all heads."""
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (len(ids), *a.shape)), tree)

    def _map_chunks(self, run: Callable[[Any], Any], tree: Any, num_chunks: jax.Array) -> Any:
        """Runs `run` on every chunk of a tree with leaves `[H, ...]`; so are its outputs."""
        count = len(jax.tree.leaves(tree)[0]) // self._chunk
        run = jax.jit(run, inline=True)  # as in `superstep`
        first = jax.tree.map(lambda a: lax.slice_in_dim(a, 0, self._chunk), tree)
        shapes = jax.eval_shape(run, first)
        blank = jax.tree.map(lambda s: _zeros((count * self._chunk, *s.shape[1:]), s.dtype), shapes)
        return self._over_chunks(lambda _, chunk: (run(chunk), {}), blank, ((tree, 0),), num_chunks)[0]

    def _over_chunks(
        self,
        run: Callable[..., Any],
        carried: Any,
        parts: tuple[tuple[Any, int | None], ...],
        num_chunks: jax.Array | int,
    ) -> Any:
        """Runs `run(carried chunk, *chunks of parts) -> (carried chunk, values)` chunk by chunk, in place.

        Args:
          carried: leaves `[H, ...]`, updated.
          parts: trees, each with the axis of its heads, or None if it is the same for all heads.
          num_chunks: how many chunks run.

        Returns:
          The updated `carried`, and the values with their K axis first, `[K, H]`.
        """
        size, run = self._chunk, jax.jit(run, inline=True)  # as in `superstep`

        # Slices of whole arrays, not `lax.map` over `[chunks, C, ...]`: the number of chunks is an argument, and the
        # carry of a loop is updated in its own buffer, so that there is no second copy of all heads.
        def take(tree: Any, axis: int | None, i: Any) -> Any:
            if axis is None:
                return tree
            return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, i * size, size, axis), tree)

        def put(tree: Any, new: Any, axis: int, i: Any) -> Any:
            return jax.tree.map(lambda a, n: lax.dynamic_update_slice_in_dim(a, n, i * size, axis), tree, new)

        def chunk(i: Any, carried: Any) -> Any:
            return run(take(carried, 0, i), *(take(tree, axis, i) for tree, axis in parts))

        # An evaluation may carry nothing, but always reads heads.
        heads = len(jax.tree.leaves((carried, [tree for tree, axis in parts if axis == 0]))[0])
        shapes = jax.eval_shape(chunk, 0, carried)[1]
        values = jax.tree.map(lambda s: jnp.zeros((s.shape[0], heads, *s.shape[2:]), s.dtype), shapes)

        def body(i: jax.Array, carry: Any) -> Any:
            carried, values = carry
            new, new_values = chunk(i, carried)
            return put(carried, new, 0, i), put(values, new_values, 1, i)

        return lax.fori_loop(0, num_chunks, body, (carried, values))


def _heads_on(rows: int | None, mask: int | None) -> Any:
    """Returns the axes of a `StepInput` for `jax.vmap`; None for what is the same for all heads."""
    return StepInput(inputs=0, key=None, data=None, rows=rows, mask=mask, step=None)  # type: ignore[arg-type]


def _zeros(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Zeros of any dtype; `jnp.zeros` makes no PRNG keys."""
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jnp.zeros(shape, dtype)
    size = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype)).shape
    keys: jax.Array = jax.random.wrap_key_data(jnp.zeros((*shape, *size), jnp.uint32), impl=str(dtype._impl.name))
    return keys
