"""RunState: everything of a fit that changes; the loop updates it, and a checkpoint stores it for a resumed fit."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from hydrax.engine import Blocks, Engine, Fault


@dataclasses.dataclass
class Kept:
    """What was known of the models in a snapshot when they were kept.

    Attributes:
      step: int64[H], updates done by then.
      validated: bool[H], as in `RunState`.
      metrics: float[H] by name, the latest value of everything logged by then.
    """

    step: np.ndarray
    validated: np.ndarray
    metrics: dict[str, np.ndarray]


@dataclasses.dataclass
class RunState:
    """The state of a fit.

    Heads are addressed by place: 0 to H - 1 in the order of the slices, whatever their ids.

    Attributes:
      heads: the `HeadsState` of all heads, block by block, as the last dispatched superstep leaves it.
      step: optimiser updates dispatched.
      live: bool[H], False for heads that a callback stopped or that were lost.
      validated: bool[H], heads whose validation metrics are those of their present model.
      restored: bool[H], heads that rest with a model restored from a snapshot, which holds parameters to evaluate.
      in_epoch: bool[H], heads about whose training the end of the present epoch has something to report.
      snapshots: the `(trainable, state)` that `Control.snapshot` kept, by `dispatch.snapshot_name`.
      kept: what was known of these models, by the same names.
      metrics: the latest value of everything logged, float[H] by name; for a head whose model was restored from a
        snapshot, the values of that time.
      heard: the hooks that were called at this step; a resumed fit does not call them again.
      missed: those of these hooks in which some callbacks raised, each with `callbacks`, their keys, and `metrics`, the
        names of the event's metrics.
      faults: how heads became NaN or infinite, by place.
      reasons: why a callback stopped heads, by place.
      origins: for each head where its first weights were from; empty if they were fresh.
      run_id: the run's own random name. Its checkpoints carry it, and a resumed run keeps it.
    """

    heads: Blocks
    step: int
    live: np.ndarray
    validated: np.ndarray
    in_epoch: np.ndarray
    restored: np.ndarray
    snapshots: dict[str, Blocks] = dataclasses.field(default_factory=dict)
    kept: dict[str, Kept] = dataclasses.field(default_factory=dict)
    metrics: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    heard: list[str] = dataclasses.field(default_factory=list)
    missed: dict[str, dict[str, list[str]]] = dataclasses.field(default_factory=dict)
    faults: dict[int, Fault] = dataclasses.field(default_factory=dict)
    reasons: dict[int, str] = dataclasses.field(default_factory=dict)
    origins: list[str] = dataclasses.field(default_factory=list)
    # Random, not a digest of the settings: two runs with equal settings must not mix their checkpoints.
    run_id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16))

    @classmethod
    def fresh(cls, engine: Engine, heads: Blocks) -> RunState:
        """Returns the state before the first step."""
        none = np.zeros(engine.num_heads, bool)
        return cls(heads, 0, read_live(engine, heads), none, none, none)

    def models(self, engine: Engine) -> Blocks:
        """Returns the `(trainable, state)` of all heads to evaluate, return and keep."""
        return engine.models(self.heads, self.restored)

    def known(self) -> Kept:
        """Returns what is known of the present models."""
        return Kept(np.full(len(self.live), self.step), self.validated, self.metrics)

    def keep(self, snapshot: str, heads: np.ndarray, new: Kept) -> None:
        """Notes what is known of the models that a snapshot has just received, those of some heads, bool[H]."""
        old = self.kept.get(snapshot, new)  # the first time it receives the models of all heads
        self.kept[snapshot] = Kept(
            np.where(heads, new.step, old.step),
            np.where(heads, new.validated, old.validated),
            _merged(heads, new.metrics, old.metrics),
        )

    def add_to_kept(self, found: dict[str, np.ndarray]) -> None:
        """Adds metrics that came at this step, but after its snapshots, to what is known of the models in these."""
        for kept in self.kept.values():
            # Of these names alone: the others keep their values.
            known = {name: kept.metrics[name] for name in found if name in kept.metrics}
            kept.metrics = kept.metrics | _merged(kept.step == self.step, found, known)

    def restore(self, snapshot: str, heads: np.ndarray) -> None:
        """Brings back what was known of some heads, bool[H], whose models were restored from a snapshot."""
        # A checkpoint of an older version does not say: these heads are validated again.
        kept = self.kept.get(snapshot) or Kept(self.live - 1, np.zeros_like(self.live), self.metrics)
        self.validated = np.where(heads, kept.validated, self.validated)
        self.metrics = _merged(heads, kept.metrics, self.metrics)
        self.in_epoch = self.in_epoch & ~(heads & ~self.live & (kept.step < self.step))


def read_live(engine: Engine, heads: Blocks) -> Any:
    """bool[H], the heads that still learn, read from the device."""
    return engine.read(tuple(block.live for block in heads))


def _merged(heads: np.ndarray, new: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values of `new` for some heads, bool[H], and of `old` for the others; NaN where there is none."""
    merged = {name: np.where(heads, new.get(name, np.nan), old.get(name, np.nan)) for name in {**old, **new}}
    return {name: sealed(value) for name, value in merged.items()}


def sealed(array: np.ndarray) -> np.ndarray:
    """Makes an array read-only: callbacks receive the loop's own arrays."""
    array.setflags(write=False)
    return array
