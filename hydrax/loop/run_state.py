"""RunState: everything of a fit that changes; the loop updates it, and a checkpoint stores it for a resumed fit."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any

import numpy as np

from hydrax.engine import Blocks, Engine, Fault


@dataclasses.dataclass
class RunState:
    """The state of a fit.

    Heads are addressed by place: 0 to H - 1 in the order of the slices, whatever their ids.

    Attributes:
      heads: the `HeadsState` of all heads, block by block, as the last dispatched superstep leaves it.
      step: optimiser updates dispatched.
      live: bool[H], False for heads that a callback stopped or that were lost.
      snapshots: the `(trainable, state)` that `Control.snapshot` kept, by `dispatch.snapshot_name`.
      metrics: the latest value of everything logged, float[H] by name.
      heard: the hooks that were called at this step; a resumed fit does not call them again.
      missed: those of these hooks in which some callbacks raised, each with `callbacks`, their keys, and `metrics`, the
        names of the event's metrics.
      faults: how heads became NaN or infinite, by place.
      reasons: why a callback stopped heads, by place.
      run_id: the run's own random name. Its checkpoints carry it, and a resumed run keeps it.
    """

    heads: Blocks
    step: int
    live: np.ndarray
    snapshots: dict[str, Blocks] = dataclasses.field(default_factory=dict)
    metrics: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    heard: list[str] = dataclasses.field(default_factory=list)
    missed: dict[str, dict[str, list[str]]] = dataclasses.field(default_factory=dict)
    faults: dict[int, Fault] = dataclasses.field(default_factory=dict)
    reasons: dict[int, str] = dataclasses.field(default_factory=dict)
    # Random, not a digest of the settings: two runs with equal settings must not mix their checkpoints.
    run_id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16))

    @classmethod
    def fresh(cls, engine: Engine, heads: Blocks) -> RunState:
        """Returns the state before the first step."""
        return cls(heads, 0, read_live(engine, heads))


def read_live(engine: Engine, heads: Blocks) -> Any:
    """bool[H], the heads that still learn, read from the device."""
    return engine.read(tuple(block.live for block in heads))
