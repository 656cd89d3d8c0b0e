"""Layout: the device, block and place of each head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Block:
    """Chunks that run one after the other, in parallel to those of other blocks.

    Attributes:
      device: the device. On a CPU several blocks share it, with one core each.
      lane: number of the thread that dispatches the programs; blocks of one lane take turns.
      heads: int64[places], the head at each place; all blocks have the same number of places.
      num_chunks: how many chunks run; the heads beyond them rest.
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
      blocks: one for each lane, or several if heads run in waves.
    """

    num_heads: int
    chunk: int
    blocks: tuple[Block, ...]

    @property
    def heads(self) -> np.ndarray:
        """int64[all places], the head at each place, block after block."""
        return np.concatenate([block.heads for block in self.blocks])

    @property
    def places(self) -> np.ndarray:
        """int64[H], the place of each head, counted through all blocks."""
        heads = self.heads
        places = np.empty(self.num_heads, np.int64)
        # Padding repeats a head at further places. Written from the back, its first place wins: the one that runs.
        places[heads[::-1]] = np.arange(heads.size)[::-1]
        return places

    @property
    def longest(self) -> int:
        """The number of chunks of the block that runs most."""
        return max(block.num_chunks for block in self.blocks)

    @property
    def is_plain(self) -> bool:
        """Whether one block holds all heads in order and without padding."""
        return len(self.blocks) == 1 and np.array_equal(self.blocks[0].heads, np.arange(self.num_heads))

    @property
    def in_waves(self) -> bool:
        """Whether blocks take turns on a lane; those that wait are kept on the host."""
        return self.num_lanes < len(self.blocks)

    @property
    def num_lanes(self) -> int:
        """How many blocks run at the same time."""
        return len({block.lane for block in self.blocks})

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        """The devices in use, each listed once."""
        return tuple(dict.fromkeys(block.device for block in self.blocks))

    def with_running(self, runs: np.ndarray) -> Layout:
        """Deals the heads out again to the same blocks, so that only these heads, bool[H], run; the others rest."""
        return _deal(self.num_heads, self.chunk, [(block.lane, block.device) for block in self.blocks], runs)

    def send(self, tree: Mapping[str, Any], axes: Mapping[str, int | None]) -> list[dict[str, Any]]:
        """Cuts host arrays of all places into those of each block, and sends them to its device.

        Args:
          tree: trees of arrays by name.
          axes: by name, the axis of the places, or None if the tree is the same for all places.
        """
        size = len(self.blocks[0].heads)

        def part(value: Any, axis: int | None, number: int) -> Any:
            if axis is None:
                return value
            here = (slice(None),) * axis + (slice(number * size, (number + 1) * size),)
            return jax.tree.map(lambda array: array[here], value)

        return [
            jax.device_put({name: part(value, axes[name], number) for name, value in tree.items()}, block.device)
            for number, block in enumerate(self.blocks)
        ]


def lay_out(num_heads: int, chunk: int, devices: Sequence[jax.Device], waves: int = 1) -> Layout:
    """Deals the heads out, in order and in whole chunks, to blocks of equal size: one program serves them all.

    Args:
      num_heads: H.
      chunk: C.
      devices: one for each lane; no more are used than there are chunks.
      waves: how many blocks each lane has.
    """
    # One wave over all lanes after the other: if there are fewer chunks than blocks, only the last wave is short.
    lanes = list(enumerate(devices)) * waves
    return _deal(num_heads, chunk, lanes[: -(-num_heads // chunk)], np.ones(num_heads, bool))


def _deal(num_heads: int, chunk: int, lanes: Sequence[tuple[int, jax.Device]], runs: np.ndarray) -> Layout:
    """Makes a block for each entry of `lanes`; in each block the heads that run come first, those that rest follow.

    Padding repeats a real head, as zeros could produce NaN in a user's model. A narrower last chunk instead of padding
    would be another program with other bits.
    """
    count = len(lanes)
    # In chunks, at least 2 on a CPU: XLA drops a loop over an axis of length 1, which gives another program with other
    # bits. A GPU has all heads in one chunk by default, and no promise on bits to keep.
    least = 2 if lanes[0][1].platform == "cpu" else 1
    capacity = max(least, -(-num_heads // (chunk * count)))
    # Within each part heads keep their order, so that a run whose heads all run is dealt out in order of heads.
    running, resting = np.flatnonzero(runs), np.flatnonzero(~runs)
    busy = -(-running.size // chunk)
    padding = np.full(count * capacity * chunk - num_heads, running[0])
    # The last chunk that runs is filled up with heads that rest: they are frozen, so running them changes nothing.
    active, spare = np.split(np.concatenate([running, resting, padding]), [busy * chunk])
    # The chunks that run are dealt out evenly, so that no core waits for another.
    blocks = []
    for number, (lane, device) in enumerate(lanes):
        chunks = busy // count + (number < busy % count)  # the first blocks take one more
        mine, active = np.split(active, [chunks * chunk])
        rest, spare = np.split(spare, [(capacity - chunks) * chunk])
        blocks.append(Block(device, lane, np.concatenate([mine, rest]), chunks))
    return Layout(num_heads, chunk, tuple(blocks))
