"""Hands what a run logs to MLflow: one run for all heads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from hydrax.files import table_text
from hydrax.loggers import RemoteLogger, missing_package

MOST_METRICS = 1_000
"""Numbers of one request: MLflow takes no more."""


class MLflowLogger(RemoteLogger):
    """Hands a fit to MLflow: one run for all heads, whose id a resumed fit goes on with.

    Beside the numbers of `RemoteLogger` it writes the artifacts `heads/<metric>_<step>.csv`, the values of all heads at
    each validation, as MLflow has no histograms; and at the end `heads.csv`, one row a head (slice, seed,
    hyper-parameters, score, status), and learning curves as images. The run's parameters are the module's
    hyper-parameters, a `PerHead` in short. Where `trainer.log_dir` is None nothing is written.

    Args:
      experiment: that the run belongs to; made if it is not there.
      name: of the run; None: the service makes one up.
      tracking_uri: where the service is; None: as the environment says.

    Raises:
      ArgumentError: mlflow is not installed; `mlflow-skinny` will do.
    """

    def __init__(self, experiment: str = "hydrax", name: str | None = None, tracking_uri: str | None = None) -> None:
        try:
            import mlflow  # noqa: F401
        except ImportError as error:
            raise missing_package("MLflowLogger", "mlflow", "mlflow") from error
        super().__init__()
        self.experiment, self.name, self.tracking_uri = experiment, name, tracking_uri
        self._client: Any = None
        self._first_step = 0

    def open_run(self, folder: str, hparams: Mapping[str, Any], first_step: int) -> str:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client, self._first_step = MlflowClient(tracking_uri=self.tracking_uri), 0
        if self.run_id is not None:
            # MLflow keeps what comes twice, and a run that was cut off may have logged beyond its checkpoint.
            known = self._client.get_metric_history(self.run_id, "heads/live")
            self._first_step = 1 + max((metric.step for metric in known), default=-1)
            return self.run_id
        experiment = self._client.get_experiment_by_name(self.experiment)
        number = experiment.experiment_id if experiment else self._client.create_experiment(self.experiment)
        found: str = self._client.create_run(number, run_name=self.name).info.run_id
        self._client.log_batch(found, params=[Param(name, str(value)[:500]) for name, value in hparams.items()])
        return found

    def write_run(self, step: int, numbers: Mapping[str, float], heads: Mapping[str, np.ndarray]) -> None:
        from mlflow.entities import Metric

        if step < self._first_step:
            return
        now = int(time.time() * 1e3)
        metrics = [Metric(name, value, now, step) for name, value in numbers.items()]
        for first in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[first : first + MOST_METRICS])
        for name, values in heads.items():
            rows = [{"place": place, name: value} for place, value in enumerate(values.tolist())]
            self._client.log_text(self.run_id, table_text(rows), f"heads/{name.replace('/', '_')}_{step}.csv")

    def finish_run(self, step: int, table: list[dict[str, Any]], figures: Mapping[str, Any], failed: bool) -> None:
        if table:
            self._client.log_text(self.run_id, table_text(table), "heads.csv")
        for name, figure in figures.items():
            self._client.log_figure(self.run_id, figure, f"{name}.png")
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
