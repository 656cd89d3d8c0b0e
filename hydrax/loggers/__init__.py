"""Shared parts of the loggers among the callbacks.

Files, in reading order:
  plots.py          figures that show all heads at once
  quantiles.py      mean and quantiles of a metric over the heads
  summaries.py      metrics as TensorBoard's protocol buffers
  background.py     the thread that writes what training hands over
  event_files.py    TensorBoard's event files
  remote_logger.py  the base class of loggers that write to a remote service
"""

from hydrax.loggers import summaries
from hydrax.loggers.event_files import EventFiles, summary_writer
from hydrax.loggers.plots import (
    CURVE_COLUMNS,
    HeadsOverTime,
    can_draw,
    curve_of,
    heat_map,
    learning_curve,
    to_pixels,
    to_png,
)
from hydrax.loggers.quantiles import finite, of_live_heads
from hydrax.loggers.remote_logger import RemoteLogger, missing_package

__all__ = [
    "CURVE_COLUMNS",
    "EventFiles",
    "HeadsOverTime",
    "RemoteLogger",
    "can_draw",
    "curve_of",
    "finite",
    "heat_map",
    "learning_curve",
    "missing_package",
    "of_live_heads",
    "summaries",
    "summary_writer",
    "to_pixels",
    "to_png",
]
