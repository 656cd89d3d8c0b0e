"""Callbacks, to be imported from here: hooks into the stages of a run that log, save or stop."""

from typing import TYPE_CHECKING

from hydrax.arguments import no_attribute
from hydrax.callbacks.csv_logger import CSVLogger
from hydrax.callbacks.early_stopping import EarlyStopping
from hydrax.callbacks.exponential_moving_average import ExponentialMovingAverage
from hydrax.callbacks.gradient_norm_monitor import GradientNormMonitor
from hydrax.callbacks.head_quarantine_report import HeadQuarantineReport
from hydrax.callbacks.lambda_callback import LambdaCallback
from hydrax.callbacks.learning_curve_plot import LearningCurvePlot
from hydrax.callbacks.learning_rate_monitor import LearningRateMonitor
from hydrax.callbacks.mlflow_logger import MLflowLogger
from hydrax.callbacks.model_checkpoint import ModelCheckpoint
from hydrax.callbacks.model_summary import ModelSummary
from hydrax.callbacks.progress_bar import ProgressBar
from hydrax.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from hydrax.callbacks.tensorboard_logger import TensorBoardLogger
from hydrax.callbacks.throughput_monitor import ThroughputMonitor
from hydrax.callbacks.timer import Timer
from hydrax.callbacks.wandb_logger import WandbLogger
from hydrax.lightning import CLASSES

__all__ = [
    "CSVLogger",
    "EarlyStopping",
    "ExponentialMovingAverage",
    "GradientNormMonitor",
    "HeadQuarantineReport",
    "LambdaCallback",
    "LearningCurvePlot",
    "LearningRateMonitor",
    "MLflowLogger",
    "ModelCheckpoint",
    "ModelSummary",
    "ProgressBar",
    "StochasticWeightAveraging",
    "TensorBoardLogger",
    "ThroughputMonitor",
    "Timer",
    "WandbLogger",
]


if not TYPE_CHECKING:  # a type checker must go on to report unknown names

    def __getattr__(name: str) -> None:
        no_attribute(__name__, name, CLASSES, __all__)
