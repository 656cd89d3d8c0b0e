"""What the loggers among the callbacks share.

Files, in reading order:
  plots.py          pictures of all heads at once
  quantiles.py      the few numbers that a log keeps of a value of many heads
  summaries.py      TensorBoard's protocol buffers
  event_files.py    TensorBoard's event files
  remote_logger.py  what loggers of remote services share
"""

from hydrax.loggers import summaries
from hydrax.loggers.event_files import EventFiles
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
from hydrax.loggers.quantiles import finite
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
    "summaries",
    "to_pixels",
    "to_png",
]
