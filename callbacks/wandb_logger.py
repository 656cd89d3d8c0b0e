"""Hands what a run logs to Weights & Biases: one run for all heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hydrax.errors import ArgumentError
from hydrax.loggers import RemoteLogger, finite, missing_package, to_pixels


class WandbLogger(RemoteLogger):
    """Hands a fit to Weights & Biases: one run for all heads, whose id a resumed fit goes on with.

    Beside the numbers of `RemoteLogger` it has a histogram over heads of each validation metric (`<metric>/heads`); and
    at the end a table `heads` with one row a head (slice, seed, hyper-parameters, score, status), and learning curves
    as images. The config holds the module's hyper-parameters, a `PerHead` in short. Logs lie in `trainer.log_dir` until
    they are sent; where that is None nothing is written.

    Args:
      project: that the run belongs to.
      name: of the run; None: the service makes one up.
      mode: "online", "offline" (to be sent later, by `wandb sync`), "disabled"; None: as the environment says.
      init: further arguments of `wandb.init`, such as `{"entity": ..., "tags": [...]}`.

    Raises:
      ArgumentError: an argument is none of these, or wandb is not installed.
    """

    def __init__(
        self,
        project: str = "hydrax",
        name: str | None = None,
        mode: str | None = None,
        init: Mapping[str, Any] | None = None,
    ) -> None:
        if mode not in (None, "online", "offline", "disabled"):
            raise ArgumentError(
                f'An argument has no meaning: WandbLogger(mode=...). Got {mode!r}, expected "online", "offline", '
                '"disabled" or None. Fix: leave it out to go by the environment.'
            )
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise missing_package("WandbLogger", "wandb", "wandb") from error
        super().__init__()
        self.project, self.name, self.mode, self.init_arguments = project, name, mode, dict(init or {})
        self._run: Any = None

    # `init` is a hook of every callback, so the arguments have another name here.

    def open_run(self, folder: str, hparams: Mapping[str, Any], first_step: int) -> str:
        import wandb

        arguments: dict[str, Any] = {
            "project": self.project,
            "name": self.name,
            "mode": self.mode,
            "dir": folder,
            "id": self.run_id,
            "resume": "allow",
            "reinit": "create_new",
            "config": {name: _plain(value) for name, value in hparams.items()},
            "settings": wandb.Settings(silent=True, console="off"),
        }
        self._run = wandb.init(**{**arguments, **self.init_arguments})
        return str(self._run.id)

    def write_run(self, step: int, numbers: Mapping[str, float], heads: Mapping[str, np.ndarray]) -> None:
        import wandb

        known = {name: finite(values) for name, values in heads.items()}
        histograms = {
            f"{name}/heads": wandb.Histogram(np_histogram=np.histogram(values, 64))
            for name, values in known.items()
            if values.size
        }
        # Steps only go up in a run: the service drops what a fit that was cut off had logged already.
        self._run.log({**numbers, **histograms}, step=step)

    def finish_run(self, step: int, table: list[dict[str, Any]], figures: Mapping[str, Any], failed: bool) -> None:
        import wandb

        if table:
            rows = [[_plain(value) for value in row.values()] for row in table]
            images = {name: wandb.Image(to_pixels(figure)) for name, figure in figures.items()}
            self._run.log({"heads": wandb.Table(columns=list(table[0]), data=rows), **images}, step=step)
        self._run.finish(exit_code=int(failed))


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else repr(value)
