"""Where each head stands: which device, which block of places, which chunk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Block:
    """Chunks that run one after the other, beside those of other blocks.

    Attributes:
      device: the device; on a CPU several blocks share it, each with a core of its own.
      lane: number of the thread that dispatches them; blocks of one lane take turns.
      heads: int64[places], which head stands at each place; the same number of places in every block.
      num_chunks: how many chunks run; the heads beyond them are at rest.
    """

    device: jax.Device
    lane: int
    heads: np.ndarray
    num_chunks: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """All blocks of a run.

    Attributes:
      num_heads: H.
      chunk: C.
      blocks: one for each lane; where heads run in waves, several.
    """

    num_heads: int
    chunk: int
    blocks: tuple[Block, ...]

    @property
    def heads(self) -> np.ndarray:
        """int64[all places], which head stands at each place, block after block."""
        return np.concatenate([block.heads for block in self.blocks])

    @property
    def places(self) -> np.ndarray:
        """int64[H], a place of each head, counted through all blocks."""
        heads = self.heads
        places = np.empty(self.num_heads, np.int64)
        # From the back, so that the first place of a head wins: that one runs.
        places[heads[::-1]] = np.arange(heads.size)[::-1]
        return places

    @property
    def longest(self) -> int:
        """Chunks that the busiest block runs."""
        return max(block.num_chunks for block in self.blocks)

    @property
    def is_plain(self) -> bool:
        """Whether one block holds all heads in order, without padding."""
        return len(self.blocks) == 1 and np.array_equal(self.blocks[0].heads, np.arange(self.num_heads))

    @property
    def in_waves(self) -> bool:
        """Whether blocks take turns; the others then wait on the host."""
        return self.num_lanes < len(self.blocks)

    @property
    def num_lanes(self) -> int:
        """How many blocks run at a time."""
        return len({block.lane for block in self.blocks})

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        """The devices in use, each once."""
        return tuple(dict.fromkeys(block.device for block in self.blocks))

    def with_running(self, runs: np.ndarray) -> Layout:
        """The same blocks, where only these heads (bool[H]) run and the others rest behind them."""
        return _deal(self.num_heads, self.chunk, [(block.lane, block.device) for block in self.blocks], runs)

    def send(self, tree: Mapping[str, Any], axes: Mapping[str, int | None]) -> list[dict[str, Any]]:
        """Arrays of all places, on the host, cut into those of each block, on its device.

        Args:
          tree: trees of arrays by name.
          axes: where each has its places; None: it is the same for all.
        """
        size = len(self.blocks[0].heads)

        def part(array: Any, axis: int, number: int) -> Any:
            return array[(slice(None),) * axis + (slice(number * size, (number + 1) * size),)]

        def parts(name: str, value: Any, number: int) -> Any:
            axis = axes[name]
            return value if axis is None else jax.tree.map(lambda a: part(a, axis, number), value)

        return [
            jax.device_put({name: parts(name, value, number) for name, value in tree.items()}, block.device)
            for number, block in enumerate(self.blocks)
        ]


def lay_out(num_heads: int, chunk: int, devices: Sequence[jax.Device], waves: int = 1) -> Layout:
    """Deals the heads out, in order and in whole chunks, to blocks of equal size: one program serves them all.

    Args:
      num_heads: H.
      chunk: C.
      devices: one for each lane; no more are used than there are chunks.
      waves: blocks of each lane.
    """
    lanes = list(enumerate(devices)) * waves
    return _deal(num_heads, chunk, lanes[: -(-num_heads // chunk)], np.ones(num_heads, bool))


def _deal(num_heads: int, chunk: int, lanes: Sequence[tuple[int, jax.Device]], runs: np.ndarray) -> Layout:
    """A block for each entry of `lanes`; the heads that run come first in it, those at rest behind them.

    Padding repeats a head that is there: zeros can make NaN in a user's model, and another width would be another
    program with other bits.
    """
    count = len(lanes)
    # In chunks. Over an axis of one XLA would drop the loop: another program, with other bits; a GPU promises none, and
    # has all heads in one chunk.
    least = 2 if lanes[0][1].platform == "cpu" else 1
    capacity = max(least, -(-num_heads // (chunk * count)))
    running, resting = np.flatnonzero(runs), np.flatnonzero(~runs)
    busy = -(-running.size // chunk)
    padding = np.full(count * capacity * chunk - num_heads, running[0])
    # Heads at rest fill up the last chunk that runs.
    active, spare = np.split(np.concatenate([running, resting, padding]), [busy * chunk])
    blocks = []
    for number, (lane, device) in enumerate(lanes):
        chunks = busy // count + (number < busy % count)
        mine, active = np.split(active, [chunks * chunk])
        rest, spare = np.split(spare, [(capacity - chunks) * chunk])
        blocks.append(Block(device, lane, np.concatenate([mine, rest]), chunks))
    return Layout(num_heads, chunk, tuple(blocks))
