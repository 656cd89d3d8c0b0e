"""One head's functions and a plan become the compiled programs of a run.

Each program is `for each chunk of C heads: for K steps: vmap(one head)`. The number of chunks and the number of steps
are arguments, not constants: nothing compiles twice, and XLA can never unroll a loop of one turn into a program with
other bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hydrax.engine.draw import Draw
from hydrax.step import HeadInputs, HeadProgram, HeadsState, StepInput, all_finite, select, stays_finite


class Programs:
    """The programs of one run, as pure functions for the engine to compile.

    Args:
      head: one head's functions.
      chunk: C; every `[H]` axis here is a multiple of it.
      epoch: empty accumulators of one head, by name of what is logged on_epoch.
      draw: where the index batches of training come from.
    """

    def __init__(self, head: HeadProgram, chunk: int, epoch: dict[str, Any], draw: Draw) -> None:
        self._head, self._chunk, self._epoch, self._draw = head, chunk, epoch, draw

    def init(self, inputs: HeadInputs, base_key: jax.Array, num_chunks: jax.Array) -> HeadsState:
        """The state of all heads before the first step."""
        start = jax.vmap(lambda one: self._head.init(one, base_key, self._epoch))
        state: HeadsState = self._map_chunks(start, inputs, num_chunks)
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
        """K steps of all heads.

        Where heads are watched, one that is NaN or infinite in the end comes back as it came, frozen, and "lost" among
        the values is True for it. Found once for all steps, since looking at every array costs as much as changing it.

        Args:
          state: donated.
          given: its `step` counts the updates before the first of the K max steps; `draw` makes `rows` and `mask`.
          batches: what `draw` makes them from, for K max steps of A micro-batches.
          begin: the first step to run, counted from `given.step`.
          num_steps: the step to end before, at most K max.
          new_epoch: whether to empty the epoch's accumulators first.
          whole: all K max steps of all chunks, whatever the numbers say; known when it compiles. A GPU else tells the
            host after each step whether there is another, and nothing is dispatched ahead.

        Returns:
          The new state, and the values of `HeadProgram.train`, each `[K max, H]`, valid for the steps that ran.
        """
        axes = self._draw.axes
        # Inlined, so the program is the same; but a jitted function is traced once, and not for each use below.
        step = jax.jit(self._of_chunk(self._head.train), inline=True)

        def run_chunk(state: HeadsState, inputs: HeadInputs, *parts: Any) -> Any:
            # All K steps at once, outside their loop: one wide computation costs less than K small ones.
            rows, mask = self._draw(dict(zip(axes, parts, strict=True)), inputs.ids)
            empty = jax.tree.map(lambda old, one: jnp.broadcast_to(one, old.shape), state.epoch, self._epoch)
            before, state = state, state._replace(epoch=select(new_epoch & state.live, empty, state.epoch))

            def at(k: Any) -> StepInput:
                return given._replace(inputs=inputs, rows=rows[k], mask=mask[k], step=given.step + k)

            shapes = jax.eval_shape(lambda: step(state, at(0)))[1]
            values = jax.tree.map(lambda s: jnp.zeros((len(rows), *s.shape), s.dtype), shapes)

            def body(k: jax.Array, carry: Any) -> Any:
                state, values = carry
                state, new = step(state, at(k))
                return state, jax.tree.map(lambda old, one: old.at[k].set(one), values, new)

            lower, upper = (0, len(rows)) if whole else (begin, num_steps)
            state, values = lax.fori_loop(lower, upper, body, (state, values))
            return self._take_back(before, state, values) if self._head.watched else (state, values)

        parts = ((given.inputs, 0), *((batches[name], axis) for name, axis in axes.items()))
        count = len(given.inputs.ids) // self._chunk if whole else num_chunks
        found: tuple[HeadsState, dict[str, Any]] = self._over_chunks(run_chunk, state, parts, count)
        return found

    def _of_chunk(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """`HeadProgram.train`, or a function of the same arguments, for the heads of a chunk."""
        return jax.vmap(step, in_axes=(0, _heads_on(rows=None if self._draw.shared else 1, mask=1)))

    @staticmethod
    def _take_back(before: HeadsState, state: HeadsState, values: dict[str, Any]) -> Any:
        """Heads that are NaN or infinite after these steps, as they were before, and frozen."""

        def is_sound(old: HeadsState, new: HeadsState) -> jax.Array:
            return all_finite(new.trainable) & stays_finite((old.opt_state, old.state), (new.opt_state, new.state))

        lost = values["lost"].any(axis=0) | ~jax.vmap(is_sound)(before, state)
        values = values | {"lost": jnp.broadcast_to(lost, values["lost"].shape)}
        state = select(lost, before, state)
        return state._replace(live=state.live & ~lost), values

    def find_fault(
        self,
        state: HeadsState,
        given: StepInput,
        batches: Mapping[str, Any],
        number: jax.Array,
        num_chunks: jax.Array,
    ) -> jax.Array:
        """int32[H], of each head `HeadProgram.find_fault` for one of the steps; arguments as `superstep`."""
        axes, find = self._draw.axes, self._of_chunk(self._head.find_fault)

        def run_chunk(_: Any, state: HeadsState, inputs: HeadInputs, *parts: Any) -> Any:
            rows, mask = self._draw(dict(zip(axes, parts, strict=True)), inputs.ids)
            one = given._replace(inputs=inputs, rows=rows[number], mask=mask[number], step=given.step + number)
            return find(state, one), {}

        parts = ((state, 0), (given.inputs, 0), *((batches[name], axis) for name, axis in axes.items()))
        blank = jnp.full(len(state.live), -1)
        found: jax.Array = self._over_chunks(run_chunk, blank, parts, num_chunks)[0]
        return found

    def evaluate(
        self,
        accumulators: Any,
        head: Any,
        given: StepInput,
        first_batch: jax.Array,
        num_batches: jax.Array,
        num_chunks: jax.Array,
        *,
        stage: str,
    ) -> Any:
        """Merges what all heads log for some batches into accumulators `[H]`, which are donated.

        Args:
          head: `(trainable, state)`, leaves `[H, ...]`.
          given: its `rows` and `mask` are `[E max, B]`, the same for all heads, or `[E max, H, B]`.
          num_batches: how many of the E max are real.
        """
        own = given.rows.ndim == 3
        axis = 0 if own else None

        def one(head: Any, given: StepInput, batch: jax.Array) -> Any:
            key = self._head.eval_key(given.inputs, given.key, batch)
            return self._head.evaluate(stage, head, given._replace(key=key))

        run = jax.vmap(one, in_axes=(0, _heads_on(rows=axis, mask=axis), None))

        def run_chunk(accumulators: Any, head: Any, inputs: HeadInputs, batches: Any) -> Any:
            rows, mask = batches

            def body(k: jax.Array, accumulators: Any) -> Any:
                new = run(head, given._replace(inputs=inputs, rows=rows[k], mask=mask[k]), first_batch + k)
                return {name: accumulators[name].merge(new[name]) for name in accumulators}

            return lax.fori_loop(0, num_batches, body, accumulators), {}

        parts = ((head, 0), (given.inputs, 0), ((given.rows, given.mask), 1 if own else None))
        return self._over_chunks(run_chunk, accumulators, parts, num_chunks)[0]

    def predict(self, head: Any, given: StepInput, batch: Any, num_chunks: Any) -> Any:
        """Predictions of all heads for one batch, `[H, B, ...]`; `rows` and `mask` are `[1, B]` or `[1, H, B]`."""
        rows, mask = given.rows[0], given.mask[0]
        own = rows.ndim == 2

        def one(args: Any) -> Any:
            head, inputs, *slots = args
            key = self._head.eval_key(inputs, given.key, batch)
            rows_here, mask_here = slots or (rows, mask)
            return self._head.predict(head, StepInput(inputs, key, given.data, rows_here, mask_here, given.step))

        return self._map_chunks(jax.vmap(one), (head, given.inputs, *((rows, mask) if own else ())), num_chunks)

    def compute(self, accumulators: dict[str, Any]) -> dict[str, jax.Array]:
        """The means and metrics that accumulators hold, `[H]` by name."""
        return jax.vmap(lambda one: {name: value.compute() for name, value in one.items()})(accumulators)

    def finite(self, trainable: Any) -> jax.Array:
        """bool[H], whether all parameters of a head are finite."""
        return jax.vmap(lambda one: jnp.all(jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(one)])))(
            trainable
        )

    def freeze(self, live: jax.Array, stop: jax.Array) -> jax.Array:
        """bool[H], who still learns."""
        return live & ~stop

    def keep(self, condition: jax.Array, new: Any, old: Any) -> Any:
        """`new` where the condition holds, bool[H], else `old`, which is donated."""
        return select(condition, new, old)

    def spread(self, tree: Any, ids: jax.Array) -> Any:
        """Leaves of one head repeated for all."""
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (len(ids), *a.shape)), tree)

    def _map_chunks(self, run: Callable[[Any], Any], tree: Any, num_chunks: jax.Array) -> Any:
        """`run` on every chunk of a tree of `[H, ...]`; its outputs are `[H, ...]` too."""
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
          parts: trees, each with the axis its heads are on; None: the same for all heads.

        Returns:
          The updated `carried`, and the values with their leading K axis first: `[K, H]`.
        """
        size = self._chunk

        def take(tree: Any, axis: int | None, i: Any) -> Any:
            if axis is None:
                return tree
            return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, i * size, size, axis), tree)

        def put(tree: Any, new: Any, axis: int, i: Any) -> Any:
            return jax.tree.map(lambda a, n: lax.dynamic_update_slice_in_dim(a, n, i * size, axis), tree, new)

        def chunk(i: Any, carried: Any) -> Any:
            return run(take(carried, 0, i), *(take(tree, axis, i) for tree, axis in parts))

        heads = len(jax.tree.leaves(carried)[0])
        shapes = jax.eval_shape(chunk, 0, carried)[1]
        values = jax.tree.map(lambda s: jnp.zeros((s.shape[0], heads, *s.shape[2:]), s.dtype), shapes)

        def body(i: jax.Array, carry: Any) -> Any:
            carried, values = carry
            new, new_values = chunk(i, carried)
            return put(carried, new, 0, i), put(values, new_values, 1, i)

        return lax.fori_loop(0, num_chunks, body, (carried, values))


def _heads_on(rows: int | None, mask: int | None) -> Any:
    """Axes of a `StepInput` under `jax.vmap`; None: the same for all heads."""
    return StepInput(inputs=0, key=None, data=None, rows=rows, mask=mask, step=None)  # type: ignore[arg-type]


def _zeros(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Zeros of any dtype, PRNG keys included."""
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jnp.zeros(shape, dtype)
    size = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype)).shape
    keys: jax.Array = jax.random.wrap_key_data(jnp.zeros((*shape, *size), jnp.uint32), impl=str(dtype._impl.name))
    return keys
