"""Engine: the compiled programs together with the heads they run for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.draw import DeviceRows, Draw, Given
from hydrax.errors import ArgumentError
from hydrax.hparams import PerHead
from hydrax.module import HydraModule, per_head_values
from hydrax.plan import Plan
from hydrax.program import Programs
from hydrax.state import HeadInputs, HeadsState, padding_index
from hydrax.step import HeadProgram, Mean


def head_inputs(ids: np.ndarray, per_head: Mapping[str, PerHead]) -> HeadInputs:
    """Ids and `PerHead` values of all heads as arrays `[H, ...]`."""
    return HeadInputs(
        jnp.asarray(ids, jnp.int32), {name: jnp.asarray(value.values) for name, value in per_head.items()}
    )


def check_per_head(module: HydraModule, num_heads: int) -> dict[str, PerHead]:
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
    """Runs the programs of H heads, padded to whole chunks; what goes in and out is padded unless it says otherwise.

    Args:
      program: one head's functions.
      inputs: of the H heads.
      seed: of the run.
      plan: how they are laid out.
      epoch: empty accumulators of one head.
      draw: where the index batches of training come from; None where nothing trains.
    """

    def __init__(
        self,
        program: HeadProgram,
        inputs: HeadInputs,
        seed: int,
        plan: Plan,
        epoch: dict[str, Any],
        draw: Draw | None = None,
    ) -> None:
        self.num_heads = len(inputs.ids)
        self.structure = program.structure
        self.places = padding_index(self.num_heads, plan.chunk)
        self._num_chunks = len(self.places) // plan.chunk
        self._programs = Programs(program, plan.chunk, epoch, draw or Given(2, shared=False))
        self._inputs = self.pad(inputs)
        self._key = jax.random.key(seed)

    def pad(self, tree: Any) -> Any:
        """Leaves `[H, ...]` with copies of the first head up to whole chunks; the same arrays where none is needed."""
        if len(self.places) == self.num_heads:
            return jax.tree.map(jnp.asarray, tree)
        return jax.tree.map(lambda a: jnp.asarray(a)[self.places], tree)

    def unpad(self, tree: Any) -> Any:
        """Leaves `[H, ...]` without the padding, in buffers of their own: the next superstep gives the others away."""
        return jax.tree.map(lambda a: jnp.copy(a[: self.num_heads]), tree)

    def init(self) -> HeadsState:
        """All heads before their first step."""
        state: HeadsState = self._programs.init(self._inputs, self._key, self._num_chunks)
        return state

    def state_shapes(self) -> HeadsState:
        """Shapes of the state of the H heads, without padding."""
        shapes = jax.eval_shape(self._programs.init, self._inputs, self._key, self._num_chunks)
        unpadded: HeadsState = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct((self.num_heads, *s.shape[1:]), s.dtype), shapes
        )
        return unpadded

    def superstep(
        self,
        state: HeadsState,
        data: DeviceRows,
        batches: Mapping[str, Any],
        first_step: int,
        num_steps: int,
        new_epoch: bool,
    ) -> tuple[HeadsState, dict[str, Any]]:
        """Dispatches K steps; returns at once. The old state is gone."""
        result: tuple[HeadsState, dict[str, Any]] = self._programs.superstep(
            state, self._inputs, self._key, data, batches, first_step, num_steps, new_epoch, self._num_chunks
        )
        return result

    def spread(self, tree: Any) -> Any:
        """Leaves of one head repeated for all, `[H, ...]`."""
        return jax.tree.map(lambda a: jnp.array(jnp.broadcast_to(a, (len(self.places), *a.shape))), tree)

    def evaluate(
        self,
        stage: str,
        accumulators: dict[str, Any],
        head: Any,
        data: DeviceRows,
        rows: np.ndarray,
        mask: np.ndarray,
        step: int,
        first_batch: int,
        num_batches: int,
    ) -> dict[str, Any]:
        """Merges what all heads log for some batches of "validation" or "test" into accumulators, which are given away.

        Args:
          head: `(trainable, state)`.
          data: the rows on the device.
          rows, mask: as `Programs` takes them.
          step: updates done.
        """
        merged: dict[str, Any] = self._programs.evaluate(
            accumulators,
            head,
            self._inputs,
            self._key,
            data,
            rows,
            mask,
            step,
            first_batch,
            num_batches,
            self._num_chunks,
            stage=stage,
        )
        return merged

    def compute(self, accumulators: dict[str, Any]) -> dict[str, np.ndarray]:
        """The means and metrics that accumulators hold, float[H] by name, without padding."""
        return {
            name: np.asarray(value)[: self.num_heads] for name, value in self._programs.compute(accumulators).items()
        }

    def has_met_rows(self, accumulators: dict[str, Any]) -> np.ndarray:
        """bool[H], whether a head had a live slot since its accumulators were empty; True where none can tell."""
        weights = [np.asarray(a.weight)[: self.num_heads] for a in accumulators.values() if isinstance(a, Mean)]
        return np.any([weight > 0 for weight in weights], axis=0) if weights else np.ones(self.num_heads, bool)

    def predict(self, head: Any, data: DeviceRows, rows: np.ndarray, mask: np.ndarray, step: int, batch: int) -> Any:
        """All heads' predictions for one batch, leaves `[H, B, ...]`, without padding, on the device."""
        found = self._programs.predict(head, self._inputs, self._key, data, rows, mask, step, batch, self._num_chunks)
        return jax.tree.map(lambda a: a[: self.num_heads], found)

    def finite(self, trainable: Any) -> np.ndarray:
        """bool[H], whether all parameters of a head are finite, without padding."""
        return np.asarray(self._programs.finite(trainable))[: self.num_heads]

    def freeze(self, state: HeadsState, stop: np.ndarray) -> HeadsState:
        """The state with some heads (bool[H]) frozen."""
        return state._replace(live=self._programs.freeze(state.live, stop[self.places]))

    def keep(self, condition: np.ndarray, new: Any, old: Any) -> Any:
        """`new` for the heads of the condition (bool[H]), else `old`, which is donated."""
        return self._programs.keep(condition[self.places], new, old)
