"""Logs a run to Weights & Biases, one run for all heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hydrax.arguments import require
from hydrax.loggers import RemoteLogger, finite, missing_package, to_pixels


class WandbLogger(RemoteLogger):
    """Logs a fit to Weights & Biases as one run for all heads, which a resumed fit continues.

    In addition to the numbers of `hydrax.loggers.RemoteLogger` it logs

    - the config of the run: the module's hyper-parameters, each `PerHead` in its short form;
    - `<metric>/heads`: a histogram over the heads, for each validation metric;
    - at the end the table `heads`, with one row per head (slice, seed, hyper-parameters, score, status), and learning
      curves as images.

    Logs are kept in `trainer.log_dir` until they are sent; if that is None, nothing is logged.

    Args:
      project: name of the project that the run belongs to. Default: "hydrax".
      name: name of the run; by default the service makes one up.
      mode: "online", "offline" (`wandb sync` sends the logs later) or "disabled"; by default wandb takes it from the
        environment.
      init: further arguments of `wandb.init`, such as `{"entity": ..., "tags": [...]}`.

    Raises:
      ArgumentError: `mode` is unknown, or wandb is not installed.
    """

    def __init__(
        self,
        project: str = "hydrax",
        name: str | None = None,
        mode: str | None = None,
        init: Mapping[str, Any] | None = None,
    ) -> None:
        known, choices = mode in (None, "online", "offline", "disabled"), '"online", "offline", "disabled" or None'
        require(known, "WandbLogger(mode=...)", mode, choices, "leave it out to follow the environment")
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise missing_package("WandbLogger", "wandb", "wandb") from error
        super().__init__()
        # Not self.init, which is a hook of every callback.
        self.project, self.name, self.mode, self.init_arguments = project, name, mode, dict(init or {})
        self._run: Any = None

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
        # Steps only increase in a run, so the service drops what an interrupted fit had logged already.
        self._run.log({**numbers, **histograms}, step=step)

    def finish_run(
        self, step: int, table: Sequence[Mapping[str, Any]], figures: Mapping[str, Any], failed: bool
    ) -> None:
        import wandb

        if table:
            rows = [[_plain(value) for value in row.values()] for row in table]
            images = {name: wandb.Image(to_pixels(figure)) for name, figure in figures.items()}
            self._run.log({"heads": wandb.Table(columns=list(table[0]), data=rows), **images}, step=step)
        self._run.finish(exit_code=int(failed))


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else repr(value)
