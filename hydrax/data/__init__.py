"""From the user's rows to the device.

Files, in reading order:
  datamodule.py  `DataModule`: datasets, slices, index batches
  columns.py     checks the columns of a dataset in memory
  dataset.py     a checked dataset, on the device or on the host
  reader.py      reads the rows of a superstep by threads or processes
  access.py      reads rows of arrays and sources on the host
  maps.py        columns in mapped files
  workers.py     worker processes that read a source's rows
  feed.py        what each superstep gets
"""

from hydrax.data.columns import check_dataset, num_rows
from hydrax.data.datamodule import DataModule, check_settings, check_slices
from hydrax.data.dataset import Dataset, open_dataset
from hydrax.data.feed import Batches, DrawnBatches, Feed, IndexBatches, RotationBatches

__all__ = [
    "Batches",
    "DataModule",
    "Dataset",
    "DrawnBatches",
    "Feed",
    "IndexBatches",
    "RotationBatches",
    "check_dataset",
    "check_settings",
    "check_slices",
    "num_rows",
    "open_dataset",
]
