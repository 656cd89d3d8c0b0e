"""Engine: runs the compiled programs for all heads, block by block."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.engine import devices
from hydrax.engine.anomaly import AnomalyDetector
from hydrax.engine.compiled import Compiled
from hydrax.engine.draw import Draw, HostBatches, SuperstepRows
from hydrax.engine.layout import Block, Layout
from hydrax.engine.programs import Programs
from hydrax.engine.spill import Spill
from hydrax.errors import ArgumentError
from hydrax.step import HeadInputs, HeadModule, HeadProgram, HeadsState, Mean, PerHead, StepInput, per_head_values
from hydrax.trees import is_key, tree_bytes

Blocks = tuple[Any, ...]
"""A tree of all heads: for each block of a layout one tree with leaves `[places, ...]`, on the device of the block."""


def head_inputs(ids: np.ndarray, per_head: Mapping[str, PerHead]) -> HeadInputs:
    """Collects the ids and `PerHead` values of all heads as arrays `[H, ...]` on the host."""
    return HeadInputs(np.asarray(ids, np.int32), {name: np.asarray(value.values) for name, value in per_head.items()})


def check_per_head(module: HeadModule, num_heads: int) -> dict[str, PerHead]:
    """Collects every `PerHead` of a module by dotted name, and checks that each has one value for each head."""
    found = per_head_values(module)
    for name, value in found.items():
        if len(value) != num_heads:
            raise ArgumentError(
                f"A PerHead has the wrong length: {type(module).__name__}, {name}. Got {len(value)} values, expected "
                f"{num_heads}, one for each head. Fix: pass one value for each slice."
            )
    return found


class Engine:
    """Runs the compiled programs for all H heads of a run.

    Each block of the layout has its own part of every tree of heads, so methods take and return `Blocks` unless they
    say otherwise. Methods dispatch a program for all blocks and do not wait for it; only `read`, and methods built on
    it, wait.

    Args:
      program: the functions of one head.
      inputs: ids and `PerHead` values of the H heads, on the host.
      seed: the seed of the run.
      layout: the places of the heads.
      epoch: empty accumulators of one head.
      draw: where the index batches of training come from; None if nothing trains.
      spill: keeps waiting heads on disk if they run in waves; None otherwise.
      max_steps: most steps K of a superstep, for the second program that GPUs have; None if nothing trains.
      start: `(trainable, state)` of the H heads to begin with, on the host; None begins with fresh models.
      detect_anomaly: whether to check each step before it is made; supersteps must then have one step.

    Attributes:
      num_heads: H.
      structure: what the models of all heads have in common.
      may_evaluate_others: whether the parameters to evaluate may differ from those that are trained.
      layout: the places of the heads.
      programs: the compiled programs by name.
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
        start: Any = None,
        detect_anomaly: bool = False,
    ) -> None:
        self.num_heads = len(inputs.ids)
        self.structure = program.structure
        self.may_evaluate_others = program.may_evaluate_others
        draw = draw or HostBatches(2, shared=False)
        functions = Programs(program, layout.chunk, epoch, draw)
        self._detector = AnomalyDetector(program, draw) if detect_anomaly else None
        self.programs = {
            "init": Compiled(functions.init),
            "superstep": Compiled(functions.superstep, donate=(0,), static=("whole",)),
            "find_fault": Compiled(functions.find_fault),
            "evaluate": Compiled(functions.evaluate, donate=(0,), static=("stage",)),
            "predict": Compiled(functions.predict),
            "evaluation_parameters": Compiled(functions.evaluation_parameters),
            "compute": Compiled(functions.compute),
            "finite": Compiled(functions.finite),
            "freeze": Compiled(functions.freeze),
            "select": Compiled(functions.select, donate=(2,)),
            "broadcast": Compiled(functions.broadcast),
        }
        # JAX's one CPU device runs programs in parallel if they come from different threads, and in turn if they come
        # from the same thread.
        self._lanes = [
            concurrent.futures.ThreadPoolExecutor(1, f"hydrax-lane-{lane}")
            for lane in range(layout.num_lanes if layout.num_lanes > 1 else 0)
        ]
        self._spill, self._start = spill, start
        self._whole_steps = max_steps if devices.loops_need_host(layout.blocks[0].device) else None
        # JAX keeps 64-bit mode for each thread. The engine remembers that of the run: its lanes are threads of their
        # own, and results are read after the run has ended.
        self._x64 = bool(getattr(jax.config, "jax_enable_x64", False))
        self._all_inputs = inputs
        # An input of the programs, not a constant: another seed compiles nothing.
        self._key = run_key(seed)
        self._place(layout)

    # ---- places of heads

    def scatter(self, tree: Any) -> Blocks:
        """Distributes leaves `[H, ...]` to the blocks, without a copy if one block holds all heads in order."""
        layout = self.layout
        if self._spill is not None:
            return tuple(self._spill.put(_pick(tree, block.heads)) for block in layout.blocks)
        if layout.is_plain:  # the default on a GPU, whose memory a copy of all heads could exceed
            return (jax.tree.map(jnp.asarray, tree),)
        return tuple(jax.device_put(_pick(tree, block.heads), block.device) for block in layout.blocks)

    def gather(self, blocks: Blocks) -> Any:
        """Collects leaves `[H, ...]` on one device, or on the host's disk if heads run in waves.

        The result is always in new buffers, since the next superstep donates the old ones.
        """
        layout, device = self.layout, self.layout.blocks[0].device
        if self._spill is not None:  # on disk as well: all heads together may not fit into memory
            return jax.tree.map(functools.partial(self._joined, blank=self._spill.blank), *blocks)
        if devices.shares_host_memory(device):
            # JAX would store float64 as float32 while 64-bit mode is off, as it is after the run.
            with jax.enable_x64(self._x64):
                return jax.device_put(jax.tree.map(self._joined, *blocks), device)
        if layout.is_plain:
            return jax.tree.map(jnp.copy, blocks[0])
        whole = blocks[0]
        if len(blocks) > 1:
            whole = jax.tree.map(lambda *parts: jnp.concatenate(parts), *jax.device_put(blocks, device))
        return _pick(whole, layout.places)

    def read(self, blocks: Blocks) -> Any:
        """Copies leaves `[H, ...]` to the host and waits for them; PRNG keys stay on a device, as NumPy has none."""
        return self.gather(blocks) if self._spill is not None else jax.tree.map(self._joined, *blocks)

    def _joined(self, *parts: Any, blank: Callable[..., np.ndarray] = np.empty) -> Any:
        """Joins the parts of a leaf to `[H, ...]` in a new array of NumPy; PRNG keys on a device."""
        places = self.layout.places
        if is_key(parts[0]):
            return jnp.concatenate(jax.device_put(parts, self.layout.blocks[0].device))[places]
        whole = blank((self.num_heads, *parts[0].shape[1:]), parts[0].dtype)
        for number, part in enumerate(parts):
            here = np.flatnonzero(places // len(part) == number)
            whole[here] = np.asarray(part)[places[here] % len(part)]
        return whole

    def rearrange(self, layout: Layout, *trees: Blocks | None) -> list[Any]:
        """Moves trees of all heads to another layout of the same blocks; None stays None."""
        # All trees are gathered before the layout changes, because their order is that of the old one.
        whole = [None if tree is None else self.gather(tree) for tree in trees]
        self._place(layout)
        return [None if tree is None else self.scatter(tree) for tree in whole]

    def _place(self, layout: Layout) -> None:
        self.layout = layout
        self._keys: Mapping[Any, jax.Array] = {device: jax.device_put(self._key, device) for device in layout.devices}
        self._inputs = tuple(
            jax.device_put(_pick(self._all_inputs, block.heads), block.device) for block in layout.blocks
        )

    # ---- training

    def begin_init(self) -> None:
        """Starts to compile the program of `init`, without waiting for it."""
        for block, inputs in zip(self.layout.blocks, self._inputs, strict=True):
            self.programs["init"].compile_in_background(block.device, *self._init_input(block, inputs))

    def init(self) -> Blocks:
        """Makes the state of all heads before their first step."""
        return self._each(lambda block, inputs: self._run("init", block, *self._init_input(block, inputs)))

    def _init_input(self, block: Block, inputs: HeadInputs) -> Any:
        start = jax.device_put(_pick(self._start, block.heads), block.device)
        return inputs, self._keys[block.device], *_sent(block), start

    def state_shapes(self) -> HeadsState:
        """Returns the shapes of the state of all heads, leaves `[H, ...]`."""
        shapes = self._init_shapes()
        unpadded: HeadsState = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct((self.num_heads, *s.shape[1:]), s.dtype), shapes
        )
        return unpadded

    def superstep(
        self, state: Blocks, rows: SuperstepRows, first_step: int, num_steps: int, new_epoch: bool, begin: int = 0
    ) -> tuple[Blocks, Blocks]:
        """Dispatches K steps of all heads and returns at once.

        Args:
          state: the state of all heads; donated.
          rows: the rows and index batches of the superstep.
          first_step: updates done before it.
          num_steps: how many steps to run, at most K max.
          new_epoch: whether to empty the accumulators of the epoch first.
          begin: how many of the steps to leave out at the beginning, to repeat the rest of a superstep.

        Returns:
          The new state, and the values of `HeadProgram.train` for each step, `[K max, places]`.
        """
        if self._detector is not None and num_steps - begin == 1:
            self._detect_anomaly(self._detector, state, rows, first_step)
        # NumPy scalars, which have a dtype, so that every call has arguments of one form and the program compiles once.
        steps = np.int32(first_step), np.int32(begin), np.int32(num_steps), np.bool_(new_epoch)
        capacity = len(self.layout.blocks[0].heads) // self.layout.chunk

        def run(block: Block, inputs: HeadInputs, state: Any, block_rows: Any) -> Callable[[], Any]:
            args = state, *self._step_input(block, inputs, block_rows, *steps)
            # Resting heads or a shortened superstep need the program with dynamic counts.
            whole = begin == 0 and num_steps == self._whole_steps and block.num_chunks == capacity
            how = {"whole": True} if whole else {}  # without the argument there is one program, as on a CPU
            return functools.partial(self._spill_back, state, self._run("superstep", block, *args, **how))

        found = self._each(run, state, rows)
        return tuple(new for new, _ in found), tuple(values for _, values in found)

    def _detect_anomaly(self, detector: AnomalyDetector, state: Blocks, rows: SuperstepRows, step: int) -> None:
        with jax.enable_x64(self._x64):
            for block, inputs, one, block_rows in zip(self.layout.blocks, self._inputs, state, rows, strict=True):
                given, batches, _ = self._step_input(block, inputs, block_rows, np.int32(step))
                heads = block.heads[: block.num_chunks * self.layout.chunk].tolist()
                ids = {heads.index(head): int(self._all_inputs.ids[head]) for head in dict.fromkeys(heads)}
                detector.check(one, given, batches, ids)

    def _spill_back(self, old: Any, step: Callable[[], Any]) -> Any:
        """Runs a superstep; with a spill the new state overwrites the old one on disk."""
        state, values = step()
        if self._spill is None:
            return state, values
        return self._spill.put(state, into=old), values

    def begin_superstep(self, rows: SuperstepRows) -> list[concurrent.futures.Future[jax.stages.Compiled]]:
        """Starts to compile the superstep, and returns its program for each block.

        Args:
          rows: the rows and index batches of a superstep, or their shapes.
        """
        steps = np.int32(0), np.int32(0), np.int32(0), np.bool_(False)
        state = self._init_shapes()
        # All are begun before one is waited for, so that programs of several devices compile in parallel.
        return [
            self.programs["superstep"].compile_in_background(
                block.device, state, *self._step_input(block, inputs, block_rows, *steps)
            )
            for block, inputs, block_rows in zip(self.layout.blocks, self._inputs, rows, strict=True)
        ]

    def superstep_memory(self, rows: SuperstepRows) -> int:
        """Compiles the superstep, and returns the bytes it takes on the fullest device, heads and rows included."""
        peaks: dict[Any, dict[int, int]] = {}  # by device and lane
        for block, (data, _), program in zip(self.layout.blocks, rows, self.begin_superstep(rows), strict=True):
            found = program.result().memory_analysis()
            if found is None:  # this backend does not tell: count at least what goes in
                return tree_bytes(self._init_shapes()) * len(self.layout.blocks) + tree_bytes(data)
            lanes = peaks.setdefault(block.device, {})
            # The state is donated, so it is both an argument and an output, and XLA counts it as alias.
            peak = found.argument_size_in_bytes + found.temp_size_in_bytes
            peak += found.output_size_in_bytes - found.alias_size_in_bytes
            # The lanes of a device share its rows, so they count once.
            shared = tree_bytes(data) if lanes and block.lane not in lanes else 0
            # Blocks of one lane run in turn and need the memory of the largest; lanes run at once, so they add up.
            lanes[block.lane] = max(lanes.get(block.lane, 0), peak - shared)
        return max(sum(lanes.values()) for lanes in peaks.values())

    # ---- evaluation

    def models(self, state: Blocks, as_they_are: np.ndarray) -> Blocks:
        """Returns `(trainable, state)` of all heads as they are to be evaluated.

        Args:
          state: the state of all heads.
          as_they_are: bool[H], heads whose present parameters are to be evaluated in any case.
        """
        present = heads_of(state)
        if not self.may_evaluate_others:
            return present
        found = self._each(lambda block, inputs, one: self._run("evaluation_parameters", block, inputs, one), state)
        if as_they_are.any():
            found = self.select(as_they_are, tuple(trainable for trainable, _ in present), found)
        return tuple((trainable, other) for trainable, (_, other) in zip(found, present, strict=True))

    def broadcast(self, tree: Any) -> Blocks:
        """Repeats a tree of one head for all heads."""
        return self._each(lambda block, inputs: self._run("broadcast", block, tree, inputs.ids))

    def evaluate(
        self,
        stage: str,
        accumulators: Blocks,
        heads: Blocks,
        rows: SuperstepRows,
        step: int,
        first_batch: int,
        num_batches: int,
    ) -> tuple[Blocks, Blocks]:
        """Merges what all heads log for some batches into accumulators; also returns what the host must gather.

        Args:
          stage: "validation" or "test".
          accumulators: of all heads; donated.
          heads: `(trainable, state)` of all heads.
          rows: the rows and index batches.
          step: updates done so far.
          first_batch: number of the first batch in the dataset.
          num_batches: how many batches there are.
        """
        numbers = np.int32(step), np.int32(first_batch), np.int32(num_batches)

        def run(block: Block, inputs: HeadInputs, accumulators: Any, head: Any, block_rows: Any) -> Any:
            args = accumulators, head, *self._step_input(block, inputs, block_rows, *numbers)
            return self._run("evaluate", block, *args, stage=stage)

        found = self._each(run, accumulators, heads, rows)
        return tuple(new for new, _ in found), tuple(values for _, values in found)

    def read_batches(self, values: Blocks, count: int) -> Any:
        """Copies values of the first batches to the host: leaves `[count, H, ...]` of `[E max, places, ...]`."""
        places = self.layout.places
        return jax.tree.map(lambda *parts: read_steps(parts, count, places), *values)

    def runs(self) -> np.ndarray:
        """bool[H], the heads that programs compute in the present layout; the others rest."""
        size, places = len(self.layout.blocks[0].heads), self.layout.places
        ends = np.array([block.num_chunks * self.layout.chunk for block in self.layout.blocks])
        found: np.ndarray = places % size < ends[places // size]
        return found

    @property
    def ids(self) -> np.ndarray:
        """int32[H], the heads' ids."""
        ids: np.ndarray = self._all_inputs.ids
        return ids

    def compute(self, accumulators: Blocks) -> dict[str, np.ndarray]:
        """Computes the means and metrics from accumulators: float[H] by name, on the host; NaN for a mean of no row."""
        found: dict[str, np.ndarray]
        found, weights = self.read(self._apply("compute", accumulators))
        return found | {name: np.where(weight > 0, found[name], np.nan) for name, weight in weights.items()}

    def has_met_rows(self, accumulators: Blocks) -> np.ndarray:
        """Tells which heads had a live slot since their accumulators were empty, bool[H]; all if no mean is logged."""
        means = [name for name, one in accumulators[0].items() if isinstance(one, Mean)]
        weights: list[Any] = [self.read(tuple(block[name].weight for block in accumulators)) for name in means]
        return np.any([weight > 0 for weight in weights], axis=0) if means else np.ones(self.num_heads, bool)

    def predict(self, heads: Blocks, rows: SuperstepRows, step: int, batch: int) -> Any:
        """Predicts one batch with all heads; leaves `[H, B, ...]` on one device.

        Args:
          heads: `(trainable, state)` of all heads.
          rows: the rows and the index batch.
          step: updates done so far.
          batch: number of the batch in the dataset.
        """
        numbers = np.int32(step), np.int32(batch)

        def run(block: Block, inputs: HeadInputs, head: Any, block_rows: Any) -> Any:
            return self._run("predict", block, head, *self._step_input(block, inputs, block_rows, *numbers))

        return self.gather(self._each(run, heads, rows))

    # ---- some heads and not others

    def finite(self, trainable: Blocks) -> np.ndarray:
        """Tells for which heads all parameters are finite, bool[H]."""
        if devices.shares_host_memory(self.layout.blocks[0].device):
            # Without a program, which takes longer to compile than a short fit to train.
            found: np.ndarray = self._joined(*map(_finite_heads, trainable))
        else:
            found = self.read(self._apply("finite", trainable))
        return found

    def freeze(self, state: Blocks, stop: np.ndarray) -> Blocks:
        """Freezes some heads, bool[H], in addition to those that are frozen already."""
        live = tuple(one.live for one in state)
        frozen = self._each(lambda block, _, live: self._run("freeze", block, live, _put(stop, block)), live)
        return tuple(one._replace(live=live) for one, live in zip(state, frozen, strict=True))

    def with_live(self, state: Blocks, live: np.ndarray) -> Blocks:
        """Makes exactly these heads, bool[H], live."""
        spill = self._spill
        # With a spill the state is a tree of memory maps, and `live` must stay one of them.
        put = _put if spill is None else lambda live, block: spill.put(live[block.heads])
        blocks = zip(self.layout.blocks, state, strict=True)
        return tuple(one._replace(live=put(live, block)) for block, one in blocks)

    def find_fault(self, state: Blocks, rows: SuperstepRows, first_step: int, number: int) -> np.ndarray:
        """Runs `HeadProgram.find_fault` for one step of a superstep: int32[H].

        Args:
          state: the state of all heads before that step.
          rows: the rows and index batches of the superstep.
          first_step: updates done before the superstep.
          number: number of the step in the superstep.
        """
        numbers = np.int32(first_step), np.int32(number)

        def run(block: Block, inputs: HeadInputs, state: Any, block_rows: Any) -> Any:
            return self._run("find_fault", block, state, *self._step_input(block, inputs, block_rows, *numbers))

        found: np.ndarray = self.read(self._each(run, state, rows))
        return found

    def select(self, condition: np.ndarray, new: Blocks, old: Blocks) -> Blocks:
        """Selects `new` for the heads where the condition, bool[H], holds, and `old` for the others; donates `old`."""
        return self._each(
            lambda block, _, new, old: self._run("select", block, _put(condition, block), new, old), new, old
        )

    def close(self) -> None:
        """Ends the threads of the lanes; later calls, such as reading the heads after a fit, run in the caller's."""
        for lane in self._lanes:
            lane.shutdown(wait=True)
        self._lanes = []

    # ---- how programs are run

    def _apply(self, name: str, blocks: Blocks) -> Blocks:
        return self._each(lambda block, _, tree: self._run(name, block, tree), blocks)

    def _init_shapes(self) -> HeadsState:
        # With the arguments of `init`, so that JAX finds the trace of its program again.
        shapes: HeadsState = self.programs["init"].shapes(*self._init_input(self.layout.blocks[0], self._inputs[0]))
        return shapes

    def _step_input(self, block: Block, inputs: HeadInputs, rows: Any, step: np.generic, *numbers: np.generic) -> Any:
        """Returns the arguments after the heads of every program that reads rows, as `Programs` describes them."""
        data, batches = rows
        first, *others = _sent(block, step, *numbers)
        return StepInput(inputs, self._keys[block.device], data, None, None, first), batches, *others

    def _each(self, run: Callable[..., Any], *trees: Sequence[Any]) -> Blocks:
        """Runs a program for each block, on the block's lane.

        Args:
          run: from a block, its inputs and its parts of the trees to a call that dispatches the program.
        """
        blocks = self.layout.blocks
        with jax.enable_x64(self._x64):
            # Compiled in this thread, before any lane starts: `Compiled` has no lock, and lanes share programs.
            calls = [run(*args) for args in zip(blocks, self._inputs, *trees, strict=True)]
            if not self._lanes:
                return tuple(call() for call in calls)
        started = [
            self._lanes[block.lane].submit(self._with_x64, call) for block, call in zip(blocks, calls, strict=True)
        ]
        return tuple(one.result() for one in started)

    def _with_x64(self, call: Callable[[], Any]) -> Any:
        with jax.enable_x64(self._x64):
            return call()

    def _run(self, name: str, block: Block, *args: Any, **static: Any) -> Callable[[], Any]:
        """Returns the call that dispatches a program; with a spill, its result goes to disk."""
        call = functools.partial(self.programs[name].compiled_for(block.device, *args, **static), *args)
        if self._spill is None or name == "superstep":  # a superstep overwrites its old state on disk itself
            return call
        spill = self._spill
        return lambda: spill.put(call())


def read_steps(blocks: Blocks, num_steps: int, places: np.ndarray) -> np.ndarray:
    """Reads a value that a superstep returned for each step, as `[K, H]` on the host.

    Args:
      blocks: `[K max, places]` for each block.
      num_steps: K, the steps that ran.
      places: int64[H], the places of the heads at dispatch.
    """
    parts = [np.asarray(part)[:num_steps] for part in blocks]
    found: np.ndarray = np.concatenate(parts, axis=1)[:, places]
    return found


def heads_of(state: Blocks) -> Blocks:
    """Picks `(trainable, state)` from the state of all heads; see `Engine.models` for those to evaluate."""
    return tuple((one.trainable, one.state) for one in state)


def run_key(seed: int) -> jax.Array:
    """Makes `jax.random.key(seed)`, 0 <= seed < 2**32."""
    impl: Any = getattr(jax.config, "jax_default_prng_impl", None)
    if impl != "threefry2x32":
        return jax.random.key(seed)
    # The same for JAX's default generator, without the two programs that compute it.
    words: Any = np.array([0, seed], np.uint32)
    key: jax.Array = jax.random.wrap_key_data(words, impl=impl)
    return key


def _pick(tree: Any, heads: np.ndarray) -> Any:
    return jax.tree.map(lambda a: _on_host(a)[heads], tree)


def _on_host(array: Any) -> Any:
    """Returns an array as one of NumPy if that takes no copy: what is done with it then needs no program."""
    near = isinstance(array, jax.Array) and all(map(devices.shares_host_memory, array.devices()))
    return np.asarray(array) if near and not is_key(array) else array


def _finite_heads(tree: Any) -> np.ndarray:
    """Tells for which places all arrays are finite, bool[places]."""
    leaves = jax.tree.leaves(tree)
    found = np.ones(len(leaves[0]), bool)
    for leaf in (np.asarray(leaf) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)):
        found &= np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
    return found


def _put(array: np.ndarray, block: Block) -> jax.Array:
    """Sends one value for each head, `[H]`, to the places of a block."""
    placed: jax.Array = jax.device_put(array[block.heads], block.device)
    return placed


def _sent(block: Block, *numbers: np.generic) -> Any:
    """Sends the numbers that a program is called with, in one transfer; the last is its number of chunks."""
    # Explicitly: an implicit transfer at the call would come once for each number, and transfer guards forbid it.
    return jax.device_put((*numbers, np.int32(block.num_chunks)), block.device)
