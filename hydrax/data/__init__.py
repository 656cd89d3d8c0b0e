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
  stage.py       what a stage asks of the user's data module
"""

from hydrax.data.columns import check_dataset, num_rows
from hydrax.data.datamodule import DataModule
from hydrax.data.dataset import Dataset
from hydrax.data.feed import Batches, DrawnBatches, Feed, IndexBatches, RotationBatches
from hydrax.data.stage import EvaluationSet, TrainingSet, known_ids, positions, stage_evaluation, stage_training

__all__ = [
    "Batches",
    "DataModule",
    "Dataset",
    "DrawnBatches",
    "EvaluationSet",
    "Feed",
    "IndexBatches",
    "RotationBatches",
    "TrainingSet",
    "check_dataset",
    "known_ids",
    "num_rows",
    "positions",
    "stage_evaluation",
    "stage_training",
]
