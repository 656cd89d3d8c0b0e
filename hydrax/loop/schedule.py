"""Schedule: when logs, validations and epochs are due, in whole steps and batches from the start of training."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple


class _Phase(NamedTuple):
    """Epochs whose steps take equally many batches: the first of them, the step it begins at, and the batches."""

    epoch: int
    step: int
    accumulate: int


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When things are due in a fit. Everything follows from the step number, so a resumed fit needs nothing else.

    Attributes:
      batches_per_epoch: index batches in which the longest slice makes one pass, after `limit_train_batches`.
      accumulate: batches of one optimiser step; the last step of an epoch takes what is left. Or, for several numbers,
        `(first epoch, batches)` of each, in order from epoch 0.
      max_steps: steps after which the fit ends.
      min_steps: no callback can end the fit or stop a head before this step.
      val_every_batches: batches between validations, or None for none.
      val_every_epochs: validate in every n-th epoch only; None counts `val_every_batches` across epochs.
      log_every: steps between logs. No superstep ends for a log: loggers find its step among those of a superstep.
      stop_at_epochs: whether a superstep must end where an epoch does, because the host is needed there.
    """

    batches_per_epoch: int
    accumulate: int | tuple[tuple[int, int], ...]
    max_steps: int
    val_every_batches: int | None
    val_every_epochs: int | None
    log_every: int
    stop_at_epochs: bool = True
    min_steps: int = 0

    @functools.cached_property
    def _phases(self) -> list[_Phase]:
        given = ((0, self.accumulate),) if isinstance(self.accumulate, int) else self.accumulate
        phases: list[_Phase] = []
        for epoch, accumulate in given:
            before = phases[-1] if phases else None
            step = before.step + (epoch - before.epoch) * self._steps(before) if before else 0
            phases.append(_Phase(epoch, step, accumulate))
        return phases

    def _steps(self, phase: _Phase) -> int:
        """Steps of each epoch of a phase."""
        return -(-self.batches_per_epoch // phase.accumulate)

    def _phase_at(self, step: int) -> _Phase:
        """Returns the phase of the step after `step`."""
        phases = self._phases
        # Nearly always there is one; this is asked for every step.
        return phases[0] if len(phases) == 1 else next(one for one in reversed(phases) if one.step <= step)

    def steps_in(self, epoch: int) -> int:
        """Steps of an epoch."""
        return self._steps(next(phase for phase in reversed(self._phases) if phase.epoch <= epoch))

    def epoch(self, step: int) -> int:
        """Returns the epoch of the step after `step`, which is the number of epochs finished after `step` steps."""
        phase = self._phase_at(step)
        return phase.epoch + (step - phase.step) // self._steps(phase)

    def is_epoch_end(self, step: int) -> bool:
        """Whether an epoch is finished once `step` steps are done."""
        phase = self._phase_at(step)
        return (step - phase.step) % self._steps(phase) == 0

    def batches(self, step: int) -> int:
        """Batches consumed once `step` steps are done."""
        phase = self._phase_at(step)
        # An epoch begins with a new window, so its last step may have fewer batches than the others.
        epochs, rest = divmod(step - phase.step, self._steps(phase))
        whole = (phase.epoch + epochs) * self.batches_per_epoch
        return whole + min(rest * phase.accumulate, self.batches_per_epoch)

    def steps_of(self, batches: int) -> int:
        """Returns the number of steps that consume this many batches."""
        epochs, rest = divmod(batches, self.batches_per_epoch)
        phase = next(phase for phase in reversed(self._phases) if phase.epoch <= epochs)
        return phase.step + (epochs - phase.epoch) * self._steps(phase) + -(-rest // phase.accumulate)

    def counts(self, step: int, num_steps: int) -> list[int]:
        """Batches of each of the next `num_steps` steps."""
        return [self.batches(s + 1) - self.batches(s) for s in range(step, step + num_steps)]

    def is_validation(self, step: int) -> bool:
        """Whether a validation is due once `step` steps are done."""
        every = self.val_every_batches
        if every is None or step == 0:
            return False
        if self.val_every_epochs is None:
            # By crossing and not by equality: one step may take several batches, and pass the exact number.
            return self.batches(step) // every > self.batches(step - 1) // every
        epoch = self.epoch(step - 1)
        if (epoch + 1) % self.val_every_epochs:
            return False
        start = epoch * self.batches_per_epoch
        return (self.batches(step) - start) // every > (self.batches(step - 1) - start) // every

    def is_boundary(self, step: int) -> bool:
        """Whether a superstep must end after `step` steps, because the host needs the heads as they then are."""
        at_epoch = self.stop_at_epochs and self.is_epoch_end(step)
        return step >= self.max_steps or at_epoch or self.is_validation(step)

    def superstep(self, step: int, limit: int, due: int | None) -> int:
        """Length of the superstep that starts at `step`: to the next boundary or `due`, at most `limit` steps."""
        end = step + 1
        while end - step < limit and not (self.is_boundary(end) or end == due):
            end += 1
        return end - step

    @property
    def longest_superstep(self) -> int | None:
        """An upper bound for the steps of a superstep; None if only the end of the fit ends one."""
        return max(map(self._steps, self._phases)) if self.stop_at_epochs else None
