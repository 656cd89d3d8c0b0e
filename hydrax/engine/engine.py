"""Engine: the compiled programs together with the heads they run for, block by block."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.engine import devices
from hydrax.engine.compiled import Compiled
from hydrax.engine.draw import Draw, HostBatches, SuperstepRows
from hydrax.engine.layout import Block, Layout
from hydrax.engine.programs import Programs
from hydrax.engine.spill import Spill
from hydrax.errors import ArgumentError
from hydrax.step import HeadInputs, HeadModule, HeadProgram, HeadsState, Mean, PerHead, StepInput, per_head_values
from hydrax.trees import is_key, tree_bytes

Blocks = tuple[Any, ...]
"""Trees of all heads, `[places, ...]`, one for each block of a layout, each on its block's device."""


def head_inputs(ids: np.ndarray, per_head: Mapping[str, PerHead]) -> HeadInputs:
    """Ids and `PerHead` values of all heads as arrays `[H, ...]`, on the host."""
    return HeadInputs(np.asarray(ids, np.int32), {name: np.asarray(value.values) for name, value in per_head.items()})


def check_per_head(module: HeadModule, num_heads: int) -> dict[str, PerHead]:
    """Every `PerHead` a module holds, by dotted name; each must have one value for each head."""
    found = per_head_values(module)
    for name, value in found.items():
        if len(value) != num_heads:
            raise ArgumentError(
                f"A PerHead has the wrong length: {type(module).__name__}, {name}. Got {len(value)} values, expected "
                f"{num_heads}, one for each head. Fix: give as many values as there are slices."
            )
    return found


class Engine:
    """Runs the programs of H heads. Trees of all heads go in and out as `Blocks`, unless a method says otherwise.

    Args:
      program: one head's functions.
      inputs: of the H heads, on the host.
      seed: of the run.
      layout: where the heads stand.
      epoch: empty accumulators of one head.
      draw: where the index batches of training come from; None where nothing trains.
      spill: keeps the heads that wait, where they run in waves.

    Attributes:
      layout: where the heads stand.
      programs: what is compiled, by name.
    """

    def __init__(
        self,
        program: HeadProgram,
        inputs: HeadInputs,
        seed: int,
        layout: Layout,
        epoch: dict[str, Any],
        draw: Draw | None = None,
        spill: Spill | None = None,
        max_steps: int | None = None,
    ) -> None:
        self.num_heads = len(inputs.ids)
        self.structure = program.structure
        functions = Programs(program, layout.chunk, epoch, draw or HostBatches(2, shared=False))
        self.programs = {
            "init": Compiled(functions.init),
            "superstep": Compiled(functions.superstep, donate=(0,), static=("whole",)),
            "find_fault": Compiled(functions.find_fault),
            "evaluate": Compiled(functions.evaluate, donate=(0,), static=("stage",)),
            "predict": Compiled(functions.predict),
            "compute": Compiled(functions.compute),
            "finite": Compiled(functions.finite),
            "freeze": Compiled(functions.freeze),
            "keep": Compiled(functions.keep, donate=(2,)),
            "spread": Compiled(functions.spread),
        }
        # A CPU runs side by side what comes from different threads, and one after the other what comes from one.
        self._lanes = [
            concurrent.futures.ThreadPoolExecutor(1, f"hydrax-lane-{lane}")
            for lane in range(layout.num_lanes if layout.num_lanes > 1 else 0)
        ]
        self._spill = spill
        self._whole_steps = max_steps if devices.tells_host(layout.blocks[0].device) else None
        # Whether 64 bits stay is a setting of each thread, and of the run: results are read after its end too.
        self._wide = bool(getattr(jax.config, "jax_enable_x64", False))
        self._all_inputs = inputs
        self._key = jax.random.key(seed)
        self._stand(layout)

    # Where the heads stand.

    def scatter(self, tree: Any) -> Blocks:
        """Leaves `[H, ...]`, dealt to the blocks; the same arrays where one block holds all heads in order."""
        layout = self.layout
        if self._spill is not None:
            return tuple(self._spill.put(_pick(tree, block.heads)) for block in layout.blocks)
        if layout.is_plain:
            return (jax.tree.map(jnp.asarray, tree),)
        return tuple(jax.device_put(_pick(tree, block.heads), block.device) for block in layout.blocks)

    def gather(self, blocks: Blocks) -> Any:
        """Leaves `[H, ...]` on one device, in buffers of their own: the next superstep gives the others away.

        Where heads run in waves, they are on the host's disk instead.
        """
        layout, device = self.layout, self.layout.blocks[0].device
        if self._spill is not None:
            return jax.tree.map(self._gather_spilled, *blocks)
        if layout.is_plain:
            return jax.tree.map(jnp.copy, blocks[0])
        whole = blocks[0]
        if len(blocks) > 1:
            whole = jax.tree.map(lambda *parts: jnp.concatenate(parts), *jax.device_put(blocks, device))
        return _pick(whole, layout.places)

    def _gather_spilled(self, *parts: Any) -> Any:
        assert self._spill is not None
        if is_key(parts[0]):
            return jnp.concatenate(parts)[self.layout.places]
        whole = self._spill.blank((self.num_heads, *parts[0].shape[1:]), parts[0].dtype)
        places = self.layout.places
        for number, part in enumerate(parts):
            here = np.flatnonzero(places // len(part) == number)
            whole[here] = part[places[here] % len(part)]
        return whole

    def read(self, blocks: Blocks) -> Any:
        """Leaves `[H, ...]` on the host, but PRNG keys, which NumPy does not know; waits for them."""
        if self._spill is not None:
            return self.gather(blocks)
        places = self.layout.places

        def leaf(*parts: Any) -> Any:
            if is_key(parts[0]):
                here = jax.device_put(parts, self.layout.blocks[0].device)
                return jnp.concatenate(here)[places]
            return np.concatenate([np.asarray(part) for part in parts])[places]

        return jax.tree.map(leaf, *blocks)

    def rearrange(self, layout: Layout, *trees: Blocks | None) -> list[Any]:
        """Moves trees of all heads to where they stand in another layout of the same blocks; None stays None."""
        whole = [None if tree is None else self.gather(tree) for tree in trees]
        self._stand(layout)
        return [None if tree is None else self.scatter(tree) for tree in whole]

    def _stand(self, layout: Layout) -> None:
        self.layout = layout
        self._keys: Mapping[Any, jax.Array] = {device: jax.device_put(self._key, device) for device in layout.devices}
        self._inputs = tuple(
            jax.device_put(_pick(self._all_inputs, block.heads), block.device) for block in layout.blocks
        )

    # What they do.

    def compile_in_background(self) -> None:
        """Starts to compile what `init` runs, beside what the caller does next."""
        for block, inputs in zip(self.layout.blocks, self._inputs, strict=True):
            self.programs["init"].compile_in_background(block.device, inputs, self._key_on(block), *_sent(block))

    def init(self) -> Blocks:
        """All heads before their first step."""
        return self._each(lambda block, inputs: self._run("init", block, inputs, self._key_on(block), *_sent(block)))

    def state_shapes(self) -> HeadsState:
        """Shapes of the state of the H heads."""
        shapes = self._init_shapes()
        unpadded: HeadsState = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct((self.num_heads, *s.shape[1:]), s.dtype), shapes
        )
        return unpadded

    def superstep(
        self, state: Blocks, rows: SuperstepRows, first_step: int, num_steps: int, new_epoch: bool, begin: int = 0
    ) -> tuple[Blocks, Blocks]:
        """Dispatches K steps; returns at once. The old state is gone.

        Args:
          begin: steps of the K to leave out, those first.
          Others as in `Programs.superstep`.

        Returns:
          The new state, and what `HeadProgram.train` gives for each step, `[K max, places]`.
        """
        steps = np.int32(first_step), np.int32(begin), np.int32(num_steps), np.bool_(new_epoch)

        def run(block: Block, inputs: HeadInputs, state: Any, block_rows: Any) -> Callable[[], Any]:
            args = state, *self._training_input(block, inputs, block_rows, *steps)
            whole = begin == 0 and num_steps == self._whole_steps and block.num_chunks == capacity
            how = {"whole": True} if whole else {}  # one program where it is never so
            return functools.partial(self._spill_back, state, self._run("superstep", block, *args, **how))

        capacity = len(self.layout.blocks[0].heads) // self.layout.chunk
        found = self._each(run, state, rows)
        return tuple(new for new, _ in found), tuple(values for _, values in found)

    def _spill_back(self, old: Any, step: Callable[[], Any]) -> Any:
        state, values = step()
        if self._spill is None:
            return state, values
        return self._spill.put(state, into=old), values

    def superstep_memory(self, rows: SuperstepRows) -> int:
        """Bytes that a superstep takes on the fullest device, heads and rows included; compiles it."""
        steps = np.int32(0), np.int32(0), np.int32(0), np.bool_(False)
        peaks: dict[Any, dict[int, int]] = {}
        state = self._init_shapes()
        blocks = list(zip(self.layout.blocks, self._inputs, rows, strict=True))
        begun = [
            self.programs["superstep"].compile_in_background(
                block.device, state, *self._training_input(block, inputs, block_rows, *steps)
            )
            for block, inputs, block_rows in blocks
        ]
        for (block, _, block_rows), program in zip(blocks, begun, strict=True):
            found = program.result().memory_analysis()
            if found is None:  # this backend does not say
                return tree_bytes(state) * len(self.layout.blocks) + tree_bytes(block_rows[0])
            lanes = peaks.setdefault(block.device, {})
            peak = found.argument_size_in_bytes + found.temp_size_in_bytes
            peak += found.output_size_in_bytes - found.alias_size_in_bytes
            # Lanes of a device share the rows.
            shared = tree_bytes(block_rows[0]) if lanes and block.lane not in lanes else 0
            lanes[block.lane] = max(lanes.get(block.lane, 0), peak - shared)
        return max(sum(lanes.values()) for lanes in peaks.values())

    def spread(self, tree: Any) -> Blocks:
        """Leaves of one head repeated for all."""
        return self._each(lambda block, inputs: self._run("spread", block, tree, inputs.ids))

    def evaluate(
        self,
        stage: str,
        accumulators: Blocks,
        heads: Blocks,
        rows: SuperstepRows,
        step: int,
        first_batch: int,
        num_batches: int,
    ) -> Blocks:
        """Merges what all heads log for some batches of "validation" or "test" into accumulators, which are given away.

        Args:
          heads: `(trainable, state)`.
          rows: the rows, and the index batches as `Programs` takes them.
          step: updates done.
        """
        numbers = np.int32(step), np.int32(first_batch), np.int32(num_batches)

        def run(block: Block, inputs: HeadInputs, accumulators: Any, head: Any, block_rows: Any) -> Any:
            args = accumulators, head, *self._evaluation_input(block, inputs, block_rows, *numbers)
            return self._run("evaluate", block, *args, stage=stage)

        return self._each(run, accumulators, heads, rows)

    def compute(self, accumulators: Blocks) -> dict[str, np.ndarray]:
        """The means and metrics that accumulators hold, float[H] by name."""
        found: dict[str, np.ndarray] = self.read(self._apply("compute", accumulators))
        return found

    def has_met_rows(self, accumulators: Blocks) -> np.ndarray:
        """bool[H], whether a head had a live slot since its accumulators were empty; True where none can tell."""
        means = [name for name, one in accumulators[0].items() if isinstance(one, Mean)]
        weights: list[Any] = [self.read(tuple(block[name].weight for block in accumulators)) for name in means]
        return np.any([weight > 0 for weight in weights], axis=0) if means else np.ones(self.num_heads, bool)

    def predict(self, heads: Blocks, rows: SuperstepRows, step: int, batch: int) -> Any:
        """All heads' predictions for one batch, leaves `[H, B, ...]`, on one device."""
        numbers = np.int32(step), np.int32(batch)

        def run(block: Block, inputs: HeadInputs, head: Any, block_rows: Any) -> Any:
            return self._run("predict", block, head, *self._evaluation_input(block, inputs, block_rows, *numbers))

        return self.gather(self._each(run, heads, rows))

    def finite(self, trainable: Blocks) -> np.ndarray:
        """bool[H], whether all parameters of a head are finite."""
        found: np.ndarray = self.read(self._apply("finite", trainable))
        return found

    def freeze(self, state: Blocks, stop: np.ndarray) -> Blocks:
        """The state with some heads (bool[H]) frozen."""
        live = tuple(one.live for one in state)
        frozen = self._each(lambda block, _, live: self._run("freeze", block, live, _put(stop, block)), live)
        return tuple(one._replace(live=live) for one, live in zip(state, frozen, strict=True))

    def with_live(self, state: Blocks, live: np.ndarray) -> Blocks:
        """The state with these heads (bool[H]) learning, and no others."""
        spill = self._spill
        put = _put if spill is None else lambda live, block: spill.put(live[block.heads])
        blocks = zip(self.layout.blocks, state, strict=True)
        return tuple(one._replace(live=put(live, block)) for block, one in blocks)

    def find_fault(self, state: Blocks, rows: SuperstepRows, first_step: int, number: int) -> np.ndarray:
        """int32[H], for one step of a superstep what `HeadProgram.find_fault` finds."""
        numbers = np.int32(first_step), np.int32(number)

        def run(block: Block, inputs: HeadInputs, state: Any, block_rows: Any) -> Any:
            return self._run("find_fault", block, state, *self._training_input(block, inputs, block_rows, *numbers))

        found: np.ndarray = self.read(self._each(run, state, rows))
        return found

    def keep(self, condition: np.ndarray, new: Blocks, old: Blocks) -> Blocks:
        """`new` for the heads of the condition (bool[H]), else `old`, which is given away."""
        return self._each(
            lambda block, _, new, old: self._run("keep", block, _put(condition, block), new, old), new, old
        )

    def close(self) -> None:
        """Ends the threads; what is asked for later runs in the thread that asks."""
        for lane in self._lanes:
            lane.shutdown(wait=True)
        self._lanes = []

    def _apply(self, name: str, blocks: Blocks) -> Blocks:
        return self._each(lambda block, _, tree: self._run(name, block, tree), blocks)

    def _init_shapes(self) -> HeadsState:
        shapes: HeadsState = self.programs["init"].shapes(self._inputs[0], self._key, np.int32(0))
        return shapes

    def _key_on(self, block: Block) -> jax.Array:
        return self._keys[block.device]

    def _training_input(
        self, block: Block, inputs: HeadInputs, rows: Any, step: np.generic, *numbers: np.generic
    ) -> Any:
        """What a program of training is called with after the state: `StepInput`, index batches, numbers."""
        data, batches = rows
        sent, *others = _sent(block, step, *numbers)
        return StepInput(inputs, self._key_on(block), data, None, None, sent), batches, *others

    def _evaluation_input(
        self, block: Block, inputs: HeadInputs, rows: Any, step: np.generic, *numbers: np.generic
    ) -> Any:
        """What a program of evaluation is called with after the heads: `StepInput` and numbers."""
        data, batches = rows
        sent, *others = _sent(block, step, *numbers)
        return StepInput(inputs, self._key_on(block), data, batches["rows"], batches["mask"], sent), *others

    def _each(self, run: Callable[..., Any], *trees: Sequence[Any]) -> Blocks:
        """What `run(block, inputs, *trees of it)` gives for each block."""
        blocks = self.layout.blocks
        with jax.enable_x64(self._wide):
            calls = [run(*args) for args in zip(blocks, self._inputs, *trees, strict=True)]
            if not self._lanes:
                return tuple(call() for call in calls)
        started = [
            self._lanes[block.lane].submit(self._in_width, call) for block, call in zip(blocks, calls, strict=True)
        ]
        return tuple(one.result() for one in started)

    def _in_width(self, call: Callable[[], Any]) -> Any:
        with jax.enable_x64(self._wide):
            return call()

    def _run(self, name: str, block: Block, *args: Any, **static: Any) -> Callable[[], Any]:
        """A program, ready to be dispatched."""
        call = functools.partial(self.programs[name].compiled_for(block.device, *args, **static), *args)
        if self._spill is None or name == "superstep":
            return call
        spill = self._spill
        return lambda: spill.put(call())


def read_steps(blocks: Blocks, num_steps: int, places: np.ndarray) -> np.ndarray:
    """What a superstep gave for each step, `[K max, places]` in each block, as `[K, H]` on the host.

    Args:
      places: int64[H], where the heads stood.
    """
    parts = [np.asarray(part)[:num_steps] for part in blocks]
    found: np.ndarray = np.concatenate(parts, axis=1)[:, places]
    return found


def heads_of(state: Blocks) -> Blocks:
    """`(trainable, state)` of each block's heads: what evaluation needs of them."""
    return tuple((one.trainable, one.state) for one in state)


def _pick(tree: Any, heads: np.ndarray) -> Any:
    return jax.tree.map(lambda a: a[heads], tree)


def _put(array: np.ndarray, block: Block) -> jax.Array:
    """One value for each head, `[H]`, at the places of a block."""
    placed: jax.Array = jax.device_put(array[block.heads], block.device)
    return placed


def _sent(block: Block, *numbers: np.generic) -> Any:
    """The numbers a program is called with, its number of chunks last, on the block's device."""
    return jax.device_put((*numbers, np.int32(block.num_chunks)), block.device)
