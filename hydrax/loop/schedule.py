"""Schedule: when logs, validations and epochs are due, in whole steps and batches from the start of training."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When things are due in a fit. Everything follows from the step number, so a resumed fit needs nothing else.

    Attributes:
      batches_per_epoch: index batches in which the longest slice makes one pass, after `limit_train_batches`.
      accumulate: batches of one optimiser step; the last step of an epoch takes what is left.
      max_steps: steps after which the fit ends.
      min_steps: no callback can end the fit or stop a head before this step.
      val_every_batches: batches between validations, or None for none.
      val_every_epochs: validate in every n-th epoch only; None counts `val_every_batches` across epochs.
      log_every: steps between logs.
      stop_at_epochs: whether a superstep must end where an epoch does, because the host is needed there.
      stop_at_logs: whether a superstep must end at each log, because a callback receives training metrics.
    """

    batches_per_epoch: int
    accumulate: int
    max_steps: int
    val_every_batches: int | None
    val_every_epochs: int | None
    log_every: int
    stop_at_epochs: bool = True
    stop_at_logs: bool = True
    min_steps: int = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.batches_per_epoch // self.accumulate)

    def epoch(self, step: int) -> int:
        """Returns the epoch of the step after `step`, which is the number of epochs finished after `step` steps."""
        return step // self.steps_per_epoch

    def is_epoch_end(self, step: int) -> bool:
        """Whether an epoch is finished once `step` steps are done."""
        return step % self.steps_per_epoch == 0

    def batches(self, step: int) -> int:
        """Batches consumed once `step` steps are done."""
        # An epoch begins with a new window, so its last step may have fewer batches than the others.
        epochs, rest = divmod(step, self.steps_per_epoch)
        return epochs * self.batches_per_epoch + min(rest * self.accumulate, self.batches_per_epoch)

    def steps_of(self, batches: int) -> int:
        """Returns the number of steps that consume this many batches."""
        epochs, rest = divmod(batches, self.batches_per_epoch)
        return epochs * self.steps_per_epoch + -(-rest // self.accumulate)

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
        """Length of the superstep that starts at `step`: to the next boundary, log or `due`, at most `limit` steps."""
        end = step + 1
        while end - step < limit and not (self.is_boundary(end) or self._is_log(end) or end == due):
            end += 1
        return end - step

    @property
    def longest_superstep(self) -> int | None:
        """An upper bound for the steps of a superstep; None if only the end of the fit ends one."""
        ends = [self.steps_per_epoch] * self.stop_at_epochs + [self.log_every] * self.stop_at_logs
        return min(ends, default=None)

    def _is_log(self, step: int) -> bool:
        return self.stop_at_logs and step % self.log_every == 0
