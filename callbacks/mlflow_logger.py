"""Logs a run to MLflow, one run for all heads."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hydrax.files import table_text
from hydrax.loggers import RemoteLogger, missing_package

MAX_METRICS = 1_000
"""Most numbers in one request that MLflow accepts."""


class MLflowLogger(RemoteLogger):
    """Logs a fit to MLflow as one run for all heads, which a resumed fit continues.

    In addition to the numbers of `hydrax.loggers.RemoteLogger` it logs

    - the parameters of the run: the module's hyper-parameters, each `PerHead` in its short form;
    - the artifacts `heads/<metric>_<step>.csv`: the values of all heads at each validation (MLflow has no histograms);
    - at the end the artifact `heads.csv`, with one row per head (slice, seed, hyper-parameters, score, status), and
      learning curves as images.

    If `trainer.log_dir` is None, nothing is logged.

    Args:
      experiment: name of the experiment that the run belongs to; made if it is missing. Default: "hydrax".
      name: name of the run; by default MLflow makes one up.
      tracking_uri: address of the tracking server; by default MLflow takes it from the environment.

    Raises:
      ArgumentError: mlflow is not installed; `mlflow-skinny` is enough.
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
            # MLflow keeps duplicates, and an interrupted run may have logged beyond its last checkpoint.
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
        for first in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[first : first + MAX_METRICS])
        for name, values in heads.items():
            rows = [{"place": place, name: value} for place, value in enumerate(values.tolist())]
            self._client.log_text(self.run_id, table_text(rows), f"heads/{name.replace('/', '_')}_{step}.csv")

    def finish_run(
        self, step: int, table: Sequence[Mapping[str, Any]], figures: Mapping[str, Any], failed: bool
    ) -> None:
        if table:
            self._client.log_text(self.run_id, table_text(table), "heads.csv")
        for name, figure in figures.items():
            self._client.log_figure(self.run_id, figure, f"{name}.png")
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
