"""The training loop: dispatches supersteps, reads their metrics one superstep late, and calls the callbacks."""

from __future__ import annotations

import collections
import contextlib
import functools
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.data import Feed
from hydrax.engine import Blocks, Engine, Layout, Steps, heads_of, read_steps, report_faults, roll_back
from hydrax.errors import CallbackError
from hydrax.loop.callback import Callback, Control
from hydrax.loop.dispatch import Dispatcher, Failure, keys, raise_first, snapshot_name
from hydrax.loop.interrupts import Interrupted, Interrupts
from hydrax.loop.run_state import Kept, RunState, sealed
from hydrax.loop.schedule import Schedule
from hydrax.loop.timing import SUPERSTEP, StepClock, Timed, not_timed
from hydrax.step import Logged

# A resumed fit calls these again for callbacks that raised in them: their metrics are computed once and then gone.
_HEARD_AGAIN = ("on_validation_end", "on_train_epoch_end")
# Moving heads recompiles nothing but copies all of them, so it waits until this share of the running heads is at rest.
_REST_SHARE = 0.25


class _Pending(NamedTuple):
    """A dispatched superstep whose metrics have not been read yet.

    Attributes:
      steps: what was dispatched.
      values: what the program returns for each step.
      places: int64[H], the places of the heads at dispatch.
      live: bool[H], the heads that were not stopped at dispatch.
    """

    steps: Steps
    values: Blocks
    places: np.ndarray
    live: np.ndarray


class Trainable(Protocol):
    """A fit that is ready to start, as the loop sees it; `train.fit.PlannedFit` implements it.

    Attributes:
      engine: the compiled programs.
      feed: the rows and index batches of each superstep.
      schedule: when things are due.
      steps_per_call: the most steps of one superstep.
      own_batches: int64[H], how many batches the passes of each head take; None with `budget="steps"`.
      logged: what the steps log, by stage and name.
      ids: the heads' ids, by place.
    """

    @property
    def engine(self) -> Engine: ...

    @property
    def feed(self) -> Feed: ...

    @property
    def schedule(self) -> Schedule: ...

    @property
    def steps_per_call(self) -> int: ...

    @property
    def own_batches(self) -> np.ndarray | None: ...

    @property
    def logged(self) -> Mapping[str, Mapping[str, Logged]]: ...

    @property
    def ids(self) -> Sequence[int]: ...

    def set_layout(self, layout: Layout) -> None:
        """Passes the new layout of the heads to everything that hands out rows."""


class FitLoop:
    """Trains all heads from the step of its state to the end of the schedule.

    Order of operations, from one superstep to the next:
      1. `on_train_epoch_start`, if an epoch or the fit begins;
      2. the index batches of K steps are drawn, where K ends at the next thing due, and the superstep is dispatched;
      3. while it runs, the metrics of the previous superstep are read: `on_train_steps_end`;
      4. if the host must see the heads as they are (validation, an epoch's end, a callback's `next_due`, the end of the
         fit), the metrics of this superstep are read too;
      5. validation, if due: `on_validation_start`, `on_validation_end`;
      6. `on_train_epoch_end`, if an epoch or the fit ends.
    Before 2, heads at rest are moved behind the others once they are a quarter of those that run.
    The loop carries out what a hook returns (`Control`) before the callbacks that save are called for the same event. A
    fit that ends between validations validates once more, so that its last metrics belong to its last heads. A resumed
    fit begins with whatever of 5 and 6 had not happened yet when its checkpoint was written; a fit that a signal
    interrupts leaves them out.

    Attributes:
      state: the state of the fit.
    """

    def __init__(
        self,
        fit: Trainable,
        state: RunState,
        emit: Dispatcher,
        *,
        validate: Callable[[RunState], dict[str, np.ndarray]] | None,
        on_nonfinite: str = "quarantine",
        interrupts: Interrupts | None = None,
        timed: Timed = not_timed,
    ) -> None:
        """Prepares the loop; `run` trains.

        Args:
          fit: the compiled programs, the rows, and when things are due.
          state: where to start; the loop updates it.
          emit: calls the callbacks.
          validate: runs the validation set with the present heads and returns what they log, float[H] by name; None if
            the fit has no validation.
          on_nonfinite: the Trainer's argument.
          interrupts: the signals that end the fit early.
          timed: measures the parts of the fit.
        """
        self.state = state
        self._fit, self._engine, self._schedule = fit, fit.engine, fit.schedule
        self._emit, self._validate, self._on_nonfinite = emit, validate, on_nonfinite
        self._interrupts, self._timed = interrupts or Interrupts(), timed
        num_heads, never = self._engine.num_heads, np.iinfo(np.int64).max
        self._running = np.ones(num_heads, bool)  # heads in the chunks that run
        self._own_batches = np.full(num_heads, never) if fit.own_batches is None else fit.own_batches
        self._rounds, self._keys = emit.rounds(), keys(emit.callbacks)
        self._every_step = emit.hears("on_train_batch_end")
        # `on_train_batch_end` promises the heads as they are after each step, so nothing can be dispatched ahead. This
        # is slow; `StepClock` warns of the cost.
        self._steps_per_call = 1 if self._every_step else fit.steps_per_call
        self._pending: collections.deque[_Pending] = collections.deque()
        # The models as scored, and what was known of them; kept while callbacks run.
        self._scored: tuple[Blocks, Kept] | None = None
        self._clock = StepClock(state.step)

    @property
    def step_secs(self) -> float | None:
        """Seconds of a step of all heads, or None before they are known; see `StepClock`."""
        return self._clock.step_secs

    def training(self, step: int) -> np.ndarray:
        """bool[H], the heads that still learn after `step` steps: neither stopped nor done with their passes."""
        return sealed(self.state.live & (self._own_batches > self._schedule.batches(step)))

    def run(self) -> None:
        """Trains until the schedule ends or no head learns."""
        try:
            self._run()
        except CallbackError:
            # The supersteps in flight are trained, and a checkpoint will hold them: every callback must still receive
            # their metrics.
            while self._pending:
                with contextlib.suppress(CallbackError):
                    self._read_pending()
            raise

    def _run(self) -> None:
        schedule, first = self._schedule, True
        self.tell("on_train_start")
        if self.state.step:
            # The checkpoint may have been written between two events of its step: what followed is made up for first.
            self._tell_again()
            self._finish_step()
        while not self._ended:
            new_epoch = schedule.is_epoch_end(self.state.step)
            if new_epoch or first:
                self.tell("on_train_epoch_start")
                if self._ended:
                    break
            due = self._emit.next_due(self.state.step)
            self._dispatch(schedule.superstep(self.state.step, self._steps_per_call, due), new_epoch)
            # Only here does the host wait for the superstep just dispatched. Everywhere else it is one superstep
            # behind, which keeps the device busy.
            if schedule.is_boundary(self.state.step) or self.state.step == due or self._every_step or self._ended:
                self._read_pending()
                self._finish_step()
            first = False
        self._read_pending()
        if self.state.step:
            self._finish_step()
        self.tell("on_train_end")

    @property
    def _ended(self) -> bool:
        done = self.state.step >= self._schedule.max_steps or not self.training(self.state.step).any()
        return done or self._interrupts.came

    def _dispatch(self, num_steps: int, new_epoch: bool) -> None:
        first, training = self.state.step, self.training(self.state.step)
        self._rest()
        try:
            with self._interrupts.cutting(), self._timed("wait for rows"):  # reading may block
                rows = self._fit.feed.superstep(self._schedule.batches(first), self._schedule.counts(first, num_steps))
        except Interrupted:
            return
        with self._timed(SUPERSTEP):
            self.state.heads, values = self._engine.superstep(self.state.heads, rows, first, num_steps, new_epoch)
        # The copy starts now and is read one superstep later. Waiting for a value in every step halved the speed of
        # small models.
        for value in jax.tree.leaves(values):
            value.copy_to_host_async()
        # From here on these steps count as done: a checkpoint written now holds them, with or without their metrics.
        self.state.step += num_steps
        self.state.heard, self.state.missed = [], {}
        self.state.validated = self.state.validated & ~training
        self.state.restored = self.state.restored & ~training
        self.state.in_epoch = training if new_epoch else self.state.in_epoch | training
        steps = Steps(rows, first, num_steps, new_epoch)
        # Places and live heads are noted as they are now: by the time the values are read, heads may have moved or
        # stopped.
        self._pending.append(_Pending(steps, values, self._engine.layout.places, self.state.live))
        self._expect()  # before reading, which waits for the previous superstep
        self._read_pending(but=1)

    def _rest(self) -> None:
        """Moves heads at rest behind those that run, once there are enough of them; this changes no bit of any head."""
        # Without validation nothing is due for a head that is done, so it can be moved at once; otherwise its last
        # parameters must be validated first.
        settled = self.state.validated | (self._validate is None)
        runs = self._running & ~(settled & ~self.training(self.state.step))
        if runs.sum() > (1 - _REST_SHARE) * self._running.sum():
            return
        old = self._engine.layout
        layout = old.with_running(runs)
        # Blocks run side by side, so only a shorter longest block saves time.
        if layout.longest < old.longest:
            self._read_pending()  # before the heads move: these values are in the order of the old layout
            self._running = runs
            self.state.heads, *kept = self._engine.rearrange(layout, self.state.heads, *self.state.snapshots.values())
            self.state.snapshots = dict(zip(self.state.snapshots, kept, strict=True))
            self._fit.set_layout(layout)

    def _expect(self) -> None:
        """Lets the feed prepare the rows of the next superstep while this one runs."""
        schedule = self._schedule
        if not self._ended:
            count = schedule.superstep(self.state.step, self._steps_per_call, self._emit.next_due(self.state.step))
            self._fit.feed.prefetch(schedule.batches(self.state.step), schedule.counts(self.state.step, count))

    def _read_pending(self, but: int = 0) -> None:
        """Reads the metrics of pending supersteps, except the last `but`, and calls the callbacks."""
        while len(self._pending) > but:
            self._read_superstep(self._pending.popleft())

    def _read_superstep(self, pending: _Pending) -> None:
        # A head lost in the previous superstep did not run in this one; a head that a callback stopped since did.
        pending = pending._replace(live=pending.live & ~self.lost)
        steps, values = pending[:2]
        first, count = steps.first, steps.num_steps
        if "lost" in values[0]:
            self._quarantine(pending)
        rows = {self._step_name(name): self._read(pending, ("logged", name)) for name in values[0]["logged"]}
        # A frozen head still returns values, computed on rows that it never learned from; they are not its metrics.
        if "stepped" in values[0] or not pending.live.all():
            stepped = self._read(pending, ("stepped",)) if "stepped" in values[0] else np.ones((count, 1), bool)
            stepped = stepped & pending.live
            rows = {name: sealed(_carried(row, stepped, self.state.metrics.get(name))) for name, row in rows.items()}
        if self.state.faults:
            rows = {
                name: self._without_lost(row, np.arange(first, first + count)[:, None]) for name, row in rows.items()
            }
        self._clock.read(count)
        self.state.metrics |= {name: row[-1] for name, row in rows.items()}
        end = first + count
        at: dict[str, Any] = {"step": end, "epoch": self._schedule.epoch(end - 1)}
        failure: CallbackError | None = None
        if self._every_step:
            try:
                self.tell("on_train_batch_end", metrics={name: row[-1] for name, row in rows.items()}, **at)
            except CallbackError as error:
                failure = error  # raised once the other hook of the same event has been called
            self._clock.warn_of_cost(end)
        self.tell("on_train_steps_end", metrics=rows, steps=sealed(np.arange(first + 1, end + 1)), **at)
        if failure is not None:
            raise failure

    def _read(self, pending: _Pending, path: Sequence[str]) -> np.ndarray:
        """Reads values [K, H] from the device; they are one superstep old unless the host must wait."""
        blocks = tuple(functools.reduce(operator.getitem, path, block) for block in pending.values)
        with self._timed("wait for metrics"):
            return sealed(read_steps(blocks, pending.steps.num_steps, pending.places))

    def _quarantine(self, pending: _Pending) -> None:
        """Rolls heads that became NaN or infinite back to the last step before that."""
        lost = self._read(pending, ("lost",))[-1]
        if not lost.any():
            return
        self.state.live = sealed(self.state.live & ~lost)
        self.state.heads, new = roll_back(self._engine, self.state.heads, pending.steps, lost, self.state.live)
        self.state.faults |= new
        report_faults(new, int((~self.lost).sum()), self._fit.ids, on_nonfinite=self._on_nonfinite)

    @property
    def lost(self) -> np.ndarray:
        """bool[H], the heads in quarantine."""
        return self._ends_of_lost >= 0

    def _without_lost(self, values: np.ndarray, steps: Any = np.inf) -> np.ndarray:
        """Sets the values `[..., H]` of heads in quarantine after `steps` updates to NaN, which every mean skips."""
        ends = self._ends_of_lost
        return sealed(np.where((ends >= 0) & (steps >= ends), np.nan, values))

    @property
    def _ends_of_lost(self) -> np.ndarray:
        """int64[H], the updates done by each head in quarantine, -1 for the others."""
        ends = np.full(len(self.state.live), -1)
        ends[list(self.state.faults)] = [fault.step for fault in self.state.faults.values()]
        return ends

    def _finish_step(self) -> None:
        """Runs validation and the epoch's end, if they are due and have not happened at this step already."""
        self._clock.pause()
        if self._interrupts.came:
            return  # a resumed fit begins with what is skipped here
        schedule = self._schedule
        if (self._ended or schedule.is_validation(self.state.step)) and "on_validation_end" not in self.state.heard:
            self._run_validation()
        at_epoch = schedule.stop_at_epochs and schedule.is_epoch_end(self.state.step)
        if (self._ended or at_epoch) and "on_train_epoch_end" not in self.state.heard:
            self._end_epoch()

    def _run_validation(self) -> None:
        if self._validate is None:
            return
        self.tell("on_validation_start")
        try:
            with self._timed("validation"):
                found = self._validate(self.state)
        except Interrupted:
            return
        # A head that has not changed since its last validation keeps its values. They would differ if its step looked
        # at `ctx.step`, and which of these heads are at rest, and have no values, differs in a resumed fit.
        new, old = self._running & ~self.state.validated, self.state.metrics
        found = {name: sealed(np.where(new, value, old.get(name, value))) for name, value in found.items()}
        if self.state.faults:
            found = {name: self._without_lost(value) for name, value in found.items()}
        self.state.metrics |= found
        self.state.validated = np.ones_like(new)
        self.tell("on_validation_end", metrics=found)

    def _end_epoch(self) -> None:
        epoch = tuple(block.epoch for block in self.state.heads)
        means = self._engine.compute(epoch) if epoch[0] else {}
        found = {self._epoch_name(name): value for name, value in means.items()}
        # A head that met no row in this epoch keeps its previous value. A frozen head keeps its accumulators, too, so
        # they do not tell.
        met = self.state.in_epoch & self._engine.has_met_rows(epoch)
        found = {
            name: sealed(np.where(met, value, self.state.metrics.get(name, value))) for name, value in found.items()
        }
        if self.state.faults:
            found = {name: self._without_lost(value) for name, value in found.items()}
        # As in Lightning, a name logged both by step and by epoch is also reported without a suffix.
        flags = self._fit.logged["training"]
        both = found | {name: found[self._epoch_name(name)] for name in means if flags[name].on_epoch}
        self.state.metrics |= both
        self.state.add_to_kept(both)
        self.tell("on_train_epoch_end", metrics=found, epoch=self._schedule.epoch(self.state.step - 1))

    def tell(self, hook: str, only: Collection[Callback] | None = None, **fields: Any) -> None:
        """Calls a hook of all callbacks, or of some, and carries out what they return.

        Args:
          hook: its name.
          only: the callbacks to call; None calls all.
          fields: fields of the event.

        Raises:
          CallbackError: the first error of a callback, raised once all have been called.
        """
        # Noted first: a fit resumed from a checkpoint that is written during this event must not repeat it.
        self.state.heard.append(hook)
        failures: list[Failure] = []
        for emit in self._rounds:
            with self._timed(f"callbacks, {hook}"):
                answers, failed = emit.hear(hook, only, **fields)
            for callback, control in answers:
                try:
                    self._carry_out(callback, control)
                except CallbackError as error:
                    failed.append(Failure(callback, error))
            failures += failed
            # Noted between the two rounds, so that a checkpoint written in the second one names these callbacks.
            if hook in _HEARD_AGAIN and failed:
                names = [key for key, callback in self._keys.items() if callback in [one.callback for one in failed]]
                missed = self.state.missed.setdefault(hook, {"callbacks": [], "metrics": list(fields["metrics"])})
                missed["callbacks"] += names
        self._scored = None
        raise_first(failures)

    def _tell_again(self) -> None:
        """Repeats hooks for the callbacks that raised in them before the checkpoint was written."""
        missed, self.state.missed = self.state.missed, {}
        for hook, what in missed.items():
            only = [self._keys[key] for key in what["callbacks"] if key in self._keys]
            epoch = self._schedule.epoch(self.state.step - (hook == "on_train_epoch_end"))
            self.tell(hook, only, metrics={name: self.state.metrics[name] for name in what["metrics"]}, epoch=epoch)

    def _carry_out(self, callback: Callback, control: Control) -> None:
        key = next(key for key, known in self._keys.items() if known is callback)
        if control.snapshot is not None:
            now, known = self._scored or (self.state.models(self._engine), self.state.known())
            for slot, mask in enumerate(np.atleast_2d(control.snapshot)):
                name = snapshot_name(key, slot)
                if mask.any():
                    # `select` donates `old`, so a first snapshot needs a copy.
                    old = self.state.snapshots[name] if name in self.state.snapshots else jax.tree.map(jnp.copy, now)
                    self.state.snapshots[name] = self._engine.select(mask, now, old)
                    self.state.keep(name, mask, known)
        may_stop = self.state.step >= self._schedule.min_steps
        if control.stop is not None:
            # Of several callbacks the first to stop a head gives the reason.
            stop = control.stop & self.state.live & may_stop
            why = control.reason if not isinstance(control.reason, str) else [control.reason] * len(stop)
            self.state.reasons |= {
                head: f"{why[head] or key} (step {self.state.step})" for head in np.flatnonzero(stop).tolist()
            }
            self.state.live = sealed(self.state.live & ~stop)
            self.state.heads = self._engine.freeze(self.state.heads, stop)
        if control.restore is not None:
            # Before `min_steps` a head continues in spite of its callback, and continues with its present model.
            restore = control.restore if may_stop or control.stop is None else control.restore & ~control.stop
            if restore.any():
                self._restore(key, restore)
                # Of heads that are done, the steps in flight are thrown away, too.
                done = restore & ~self.state.live
                self._pending = collections.deque(one._replace(live=one.live & ~done) for one in self._pending)

    def _restore(self, key: str, heads: np.ndarray) -> None:
        if key not in self.state.snapshots:
            raise CallbackError(
                f"No snapshot to restore: {key}. Got Control(restore=...) before any snapshot, expected one after. "
                "Fix: return Control(snapshot=...) first."
            )
        # Callbacks that are called later for this event take snapshots of what was scored, not of what was restored.
        self._scored = self._scored or (jax.tree.map(jnp.copy, self.state.models(self._engine)), self.state.known())
        models = self._engine.select(heads, self.state.snapshots[key], heads_of(self.state.heads))
        parts = zip(self.state.heads, models, strict=True)
        self.state.heads = tuple(one._replace(trainable=trainable, state=state) for one, (trainable, state) in parts)
        # A head that trains on takes the model as the parameters to train; at the end of a fit all heads rest.
        self.state.restored = self.state.restored | (heads & ~(self.state.live & (not self._ended)))
        self.state.restore(key, heads & ~self.lost)  # a head in quarantine has no metrics

    def _step_name(self, name: str) -> str:
        return f"{name}_step" if self._fit.logged["training"][name].on_epoch else name

    def _epoch_name(self, name: str) -> str:
        return f"{name}_epoch" if self._fit.logged["training"][name].on_step else name


def _carried(rows: np.ndarray, stepped: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """Step values `[K, H]` in which a head that did not step (bool[K, H]) keeps its previous value, or NaN."""
    last = np.maximum.accumulate(np.where(stepped, np.arange(len(rows))[:, None], -1))
    found = np.take_along_axis(rows, np.maximum(last, 0), axis=0)
    return np.where(last >= 0, found, np.nan if before is None else before)
