"""Plug-ins that hear a run: import them from here."""

from hydrax.callbacks.model_checkpoint import ModelCheckpoint
from hydrax.callbacks.progress_bar import ProgressBar
from hydrax.callbacks.tensorboard_logger import TensorBoardLogger

__all__ = ["ModelCheckpoint", "ProgressBar", "TensorBoardLogger"]
