"""Plug-ins that hear a run: import them from here."""

from hydrax.callbacks.csv_logger import CSVLogger
from hydrax.callbacks.early_stopping import EarlyStopping
from hydrax.callbacks.exponential_moving_average import ExponentialMovingAverage
from hydrax.callbacks.lambda_callback import LambdaCallback
from hydrax.callbacks.model_checkpoint import ModelCheckpoint
from hydrax.callbacks.progress_bar import ProgressBar
from hydrax.callbacks.tensorboard_logger import TensorBoardLogger

__all__ = [
    "CSVLogger",
    "EarlyStopping",
    "ExponentialMovingAverage",
    "LambdaCallback",
    "ModelCheckpoint",
    "ProgressBar",
    "TensorBoardLogger",
]
