"""Hydrax as an opponent: one long fit that pauses at the end of each turn.

Every fit compiles its programs, so one fit per turn would measure compilation. Instead one fit with `barebones=True`
runs in its own thread, and a callback holds it: `next_due` ends a superstep where the turn ends, and then nothing is in
flight until `on_train_steps_end` returns. There the thread waits for its next turn. The time covers the loop as a user
runs it, with supersteps, index batches and reading of metrics, from that return to the last metrics of the turn. Each
turn starts with nothing in flight, as for every opponent. After the last turn the callback stops all heads, which ends
the fit.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from peers.cases import Case, Rows

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

_NEVER = 2**30


class Module(hx.HydraModule):
    """A case as a module of Hydrax."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def configure_model(self, key: jax.Array) -> nnx.Module:
        return self.case.make_model(nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return self.case.make_optimizer()

    def training_step(self, model: nnx.Module, batch: Mapping[str, jax.Array], ctx: hx.Context) -> jax.Array:
        return self.case.row_loss(model, batch)


def make_slices(rows: Rows, num_rows: int) -> hx.Slices:
    if not rows.gap.any():
        return hx.Slices.prefix(rows.length, num_rows)
    if not rows.gap_at.any():
        return hx.Slices.window(rows.gap, rows.length, num_rows)
    everything = np.arange(num_rows)
    gaps = [range(at, at + gap) for at, gap in zip(rows.gap_at, rows.gap, strict=True)]
    return hx.Slices.from_splits(((np.delete(everything, gap), gap) for gap in gaps), num_rows)


class Gate(hx.Callback):
    """Holds a fit between turns, and keeps the losses of its first and last step."""

    def __init__(self) -> None:
        self.due, self.stop = 0, False
        self.first = self.last = None
        self.go, self.over = threading.Event(), threading.Event()

    def on_train_start(self, event: hx.Event) -> None:
        self.start = jax.tree.map(np.array, event.trainer.heads.trainable)
        self._wait()

    def next_due(self, step: int) -> int:
        return self.due if step < self.due else _NEVER

    def on_train_steps_end(self, event: hx.Event) -> hx.Control | None:
        self.last = next(values for name, values in event.metrics.items() if name.startswith("train_loss"))
        self.first = self.last if self.first is None else self.first
        if event.step < self.due:
            return None
        self._wait()
        return hx.Control(stop=np.ones_like(event.live)) if self.stop else None

    def _wait(self) -> None:
        self.over.set()
        self.go.wait()
        self.go.clear()


class HydraxFit:
    """One fit that trains turn by turn.

    Args:
      case: the job.
      sampling: argument of the Trainer.
      trainer: further arguments of the Trainer, instead of barebones=True.
    """

    def __init__(
        self,
        case: Case,
        sampling: str = "own",
        trainer: Mapping[str, Any] | None = None,
    ) -> None:
        self.call_steps, self.step = case.steps_per_call, 0
        self.steps_per_unit = (case.steps_per_unit or {}).get(sampling, 1)
        self.gate, self._error = Gate(), None
        data = case.make_data(case.num_rows)
        slices = make_slices(case.rows(), case.num_rows)
        module = ArrayDataModule(data, slices=slices, batch_size=case.batch_size)
        how = {"barebones": True} if trainer is None else dict(trainer)
        how |= {"steps_per_call": case.steps_per_call, "sampling": sampling, "chunk": case.chunk}
        self.trainer = hx.Trainer(max_steps=_NEVER, callbacks=self.gate, **how)
        self._thread = threading.Thread(target=self._run, args=(Module(case), module), daemon=True)
        self._thread.start()
        self._await()
        self.start = self.gate.start

    @property
    def note(self) -> str:
        """Returns the plan. Called after all turns, because the report measures the limits of the machine."""
        plan = self.trainer.plan() if callable(self.trainer.plan) else self.trainer.plan
        words = str(getattr(plan, "plan", plan)).partition(" (")[0].split()
        return " ".join(word for word in words if word.partition("=")[0] in ("chunk", "devices", "lowering"))

    def advance(self, num_steps: int) -> None:
        self.step += num_steps
        self.gate.due = self.step
        self._let_go()
        self._await()

    def losses(self) -> tuple[float, float]:
        return float(self.gate.first[0].mean()), float(self.gate.last[-1].mean())

    def close(self) -> None:
        self.gate.stop = True
        self._let_go()
        self._thread.join()

    def _let_go(self) -> None:
        self.gate.over.clear()
        self.gate.go.set()

    def _await(self) -> None:
        self.gate.over.wait()
        if self._error is not None:
            raise self._error

    def _run(self, module: hx.HydraModule, data: hx.DataModule) -> None:
        try:
            self.trainer.fit(module, data)
        except BaseException as error:  # passed to the main thread, which reports it
            self._error = error
        finally:
            self.gate.over.set()
