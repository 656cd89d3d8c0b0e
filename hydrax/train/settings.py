"""Settings: the Trainer's arguments, checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hydrax.arguments import invalid_argument, is_choice, is_int, is_number
from hydrax.errors import ArgumentError

MATMUL_PRECISIONS = ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "64-true")
_MAX_PASSES = 2**31
_TINY = float(np.finfo(np.float32).tiny)
_MAX_STEPS_PER_CALL = 100_000
_LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The Trainer's arguments that shape a run, checked; the docstring of `Trainer` explains them."""

    max_steps: int | None = None
    max_epochs: int | None = None
    min_steps: int | None = None
    min_epochs: int | None = None
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    limit_test_batches: int | float = 1.0
    limit_predict_batches: int | float = 1.0
    overfit_batches: int | float = 0
    num_sanity_val_steps: int = 2
    fast_dev_run: bool | int = False
    val_check_interval: int | float = 1.0
    check_val_every_n_epoch: int | None = 1
    log_every_n_steps: int = 50
    accumulate_grad_batches: int | Mapping[int, int] = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str = "norm"
    precision: str = "32-true"
    matmul_precision: str | None = None
    seed: int = 0
    sampling: str = "own"
    budget: str = "steps"
    devices: int | str | Sequence[Any] = "auto"
    lowering: str = "auto"
    device_memory: int | str = "auto"
    deterministic: bool = False
    chunk: int | str = "auto"
    steps_per_call: int | str = "auto"
    on_nonfinite: str = "quarantine"
    profiler: str | None = None
    detect_anomaly: bool = False
    barebones: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.integer | np.floating):
                object.__setattr__(self, name, value.item())
            elif hasattr(value, "__array__") and not isinstance(value, np.generic):  # `==` would compare its items
                raise _error(
                    name, value, "a plain value instead of an array", "pass value.item(), or a list of devices"
                )
        for name in ("max_steps", "max_epochs", "min_steps", "min_epochs", "check_val_every_n_epoch"):
            if getattr(self, name) is not None:
                self._check_count(name)
        for unit in ("steps", "epochs"):
            least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if least is not None and most is not None and least > most:
                raise _error(
                    f"min_{unit}",
                    least,
                    f"at most max_{unit}={most}",
                    f"leave min_{unit} out, or pass a larger max_{unit}",
                )
        self._check_count("log_every_n_steps")
        self._check_accumulation()
        for name in ("chunk", "steps_per_call", "device_memory"):
            if getattr(self, name) != "auto":
                self._check_count(name, '"auto" or an int of 1 or more', 'leave it at "auto"')
        if is_int(self.steps_per_call, _MAX_STEPS_PER_CALL + 1):
            expected = f"at most {_MAX_STEPS_PER_CALL:,}, as Ctrl-C waits for the end of a call"
            raise _error("steps_per_call", self.steps_per_call, expected, 'leave it at "auto"')
        for name in _LIMITS:
            self._check_limit(name)
        if self.overfit_batches != 0:
            self._check_limit("overfit_batches")
        if not is_int(self.num_sanity_val_steps, -1):
            expected = "an int of -1 or more; -1 runs all"
            raise _error("num_sanity_val_steps", self.num_sanity_val_steps, expected, "leave it out for 2")
        self._check_val_interval()
        self._check_choice("gradient_clip_algorithm", ("norm", "value"))
        if self.precision in ("16-mixed", "16-true", 16, "16"):
            raise _error(
                "precision",
                self.precision,
                f"one of {', '.join(PRECISIONS)}; float16 overflows without loss scaling, and a scale shared by heads "
                "would tie them together",
                'use "bf16-mixed"',
            )
        self._check_choice("precision", PRECISIONS)
        if self.matmul_precision is not None:
            self._check_choice("matmul_precision", MATMUL_PRECISIONS)
        self._check_devices()
        self._check_choice("sampling", ("own", "shared"))
        self._check_choice("lowering", ("auto", "fast", "plain"))
        self._check_choice("on_nonfinite", ("quarantine", "raise", "ignore"))
        if self.profiler is not None:
            self._check_choice("profiler", ("simple", "jax"))
        self._check_budget()
        clip = self.gradient_clip_val
        # Below float32's smallest normal number, the bound would be 0 in the program.
        if clip is not None and not (is_number(clip) and _TINY <= clip < math.inf):
            raise _error("gradient_clip_val", clip, "a number above 0, or None", "leave it out for no clipping")
        if not is_int(self.seed, 0) or self.seed >= 2**32:
            raise _error("seed", self.seed, "an int, 0 <= seed < 2**32", "pass for example seed=0")
        for name in ("barebones", "deterministic", "detect_anomaly"):
            if not isinstance(getattr(self, name), bool):
                raise _error(name, getattr(self, name), "True or False", "pass a bool")
        if not isinstance(self.fast_dev_run, bool | int) or self.fast_dev_run < 0:
            raise _error("fast_dev_run", self.fast_dev_run, "a bool, or a number of batches", "pass fast_dev_run=True")

    def limit(self, stage: str, batches: int) -> int:
        """Computes how many of a dataset's batches to use; at least one."""
        if self.fast_dev_run:
            return min(batches, int(self.fast_dev_run))
        overfits = self.overfit_batches and stage in ("train", "val")
        limit = self.overfit_batches if overfits else getattr(self, f"limit_{stage}_batches")
        return min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))

    def validation_batches(self, batches_per_epoch: int) -> int:
        """Training batches between two validations."""
        interval = self.val_check_interval
        if isinstance(interval, float):
            return max(1, int(batches_per_epoch * interval))
        # The count starts again with each epoch, so an interval beyond its end would never be reached.
        if interval > batches_per_epoch and self.check_val_every_n_epoch is not None and not self.fast_dev_run:
            raise _error(
                "val_check_interval",
                interval,
                f"at most {batches_per_epoch}, the batches of an epoch",
                "pass check_val_every_n_epoch=None to count batches across epochs",
            )
        return interval

    @property
    def of_plan(self) -> dict[str, Any]:
        """The arguments that `make_plan` takes, as the user gave them."""
        return {name: getattr(self, name) for name in ("chunk", "steps_per_call", "lowering", "sampling")}

    @property
    def accumulation(self) -> tuple[tuple[int, int], ...]:
        """`(first epoch, batches of one update)` of each number of batches, in order from epoch 0."""
        given = self.accumulate_grad_batches
        # As in Lightning: an update takes one batch before the first epoch that is named.
        return ((0, given),) if isinstance(given, int) else tuple(sorted({0: 1, **given}.items()))

    @property
    def most_batches(self) -> int:
        """The most batches of one update."""
        return max(batches for _, batches in self.accumulation)

    def total_steps(self, steps_of_epochs: Callable[[int], int]) -> int:
        """Steps of a fit: whichever of `max_steps` and `max_epochs` is reached first.

        Args:
          steps_of_epochs: from a number of epochs to the steps that they take together.
        """
        if self.fast_dev_run:
            return steps_of_epochs(1)  # of an epoch that `limit` has shortened
        ends = [self.max_steps] if self.max_steps is not None else []
        ends += [steps_of_epochs(self.max_epochs)] if self.max_epochs is not None else []
        if not ends:
            raise ArgumentError(
                "A fit has no end: Trainer(max_steps=, max_epochs=). Got neither, expected one of them. Fix: pass for "
                "example max_steps=300."
            )
        return min(ends)

    def least_steps(self, steps_of_epochs: Callable[[int], int]) -> int:
        """Returns the step before which no callback can end the fit or stop a head."""
        return max(self.min_steps or 0, steps_of_epochs(self.min_epochs or 0))

    @property
    def passes(self) -> int | None:
        """Passes after which a head is done, or None."""
        return self.max_epochs if self.budget == "passes" else None

    def end(self, total_steps: int) -> str:
        """Names the argument that ends a fit of this many steps."""
        if self.fast_dev_run:
            return f"`fast_dev_run={self.fast_dev_run}`"
        return f"`max_steps={self.max_steps}`" if self.max_steps == total_steps else f"`max_epochs={self.max_epochs}`"

    def _check_count(self, name: str, expected: str = "an int of 1 or more", fix: str | None = None) -> None:
        value = getattr(self, name)
        if not is_int(value, 1):
            raise _error(name, value, expected, fix or f"pass for example {name}=8")

    def _check_accumulation(self) -> None:
        value, name = self.accumulate_grad_batches, "accumulate_grad_batches"
        expected = "an int of 1 or more, or a dict of such numbers by first epoch"
        if not isinstance(value, Mapping):
            self._check_count(name, expected)
        elif not (value and all(is_int(epoch, 0) and is_int(count, 1) for epoch, count in value.items())):
            raise _error(name, value, expected, "pass for example {0: 8, 4: 1}")

    def _check_limit(self, name: str) -> None:
        value = getattr(self, name)
        # As in Lightning, 0 switches these two off: validation, overfitting.
        least = 0 if name in ("limit_val_batches", "overfit_batches") else 1
        if not is_int(value, least) and not (isinstance(value, float) and (0 < value <= 1 or value == least)):
            raise _error(
                name,
                value,
                f"an int of {least} or more (batches), or a float in (0, 1] (fraction)",
                f"pass {name}=1.0 for all",
            )

    def _check_devices(self) -> None:
        value, fix = self.devices, 'pass for example devices=1, or "auto" for all'
        if isinstance(value, Sequence) and not isinstance(value, str):
            # One program serves all devices, so they must be of one kind.
            kinds = {getattr(device, "device_kind", None) for device in value}
            if len(kinds) != 1 or None in kinds or len(set(value)) < len(value):
                raise _error("devices", value, "different JAX devices of one kind", "pick them from jax.devices()")
        elif value != "auto":
            self._check_count("devices", '"auto", an int of 1 or more, or a list of JAX devices', fix)

    def _check_budget(self) -> None:
        self._check_choice("budget", ("steps", "passes"))
        if self.budget == "passes" and self.max_epochs is None and not self.fast_dev_run:
            raise _error("budget", "passes", "max_epochs too, the passes of each head", "pass max_epochs too")
        if self.budget == "passes" and (self.max_epochs or 0) > _MAX_PASSES:
            raise _error("max_epochs", self.max_epochs, f"at most {_MAX_PASSES} passes", "pass fewer")
        cuts = {
            "limit_train_batches": isinstance(self.limit_train_batches, int) or self.limit_train_batches != 1.0,
            "overfit_batches": self.overfit_batches != 0,
        }
        for name in (name for name, is_cut in cuts.items() if is_cut and self.budget == "passes"):
            raise _error("budget", "passes", f"whole passes, not {name}={getattr(self, name)}", f"leave {name} out")

    def _check_val_interval(self) -> None:
        value = self.val_check_interval
        is_count = is_int(value, 1)
        if not is_count and not (isinstance(value, float) and 0 < value <= 1):
            raise _error(
                "val_check_interval",
                value,
                "an int of 1 or more (batches), or a float in (0, 1]",
                "pass 1.0: once an epoch",
            )
        if self.check_val_every_n_epoch is None and not is_count:
            raise _error(
                "val_check_interval",
                value,
                "an int of batches, since check_val_every_n_epoch=None counts across epochs",
                "pass an int",
            )

    def _check_choice(self, name: str, allowed: tuple[str, ...]) -> None:
        if not is_choice(getattr(self, name), allowed):
            raise _error(name, getattr(self, name), f"one of {', '.join(allowed)}", f'pass {name}="{allowed[0]}"')


def check_switches(**switches: Any) -> None:
    """Refuses anything but True or False; Lightning takes a logger object for `logger`."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise _error(name, value, "True or False", "pass your own objects with callbacks=[...]")


def _error(name: str, value: Any, expected: str, fix: str) -> ArgumentError:
    return invalid_argument("Trainer", name, value, expected, fix)
