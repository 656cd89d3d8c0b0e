"""From the user's rows to the device.

Files, in reading order:
  datamodule.py  `DataModule`: the user's datasets and slices, and the Grain datasets of index batches
  frames.py      tables of pandas, polars and PyArrow as columns
  columns.py     dtypes and values that a column may have
  access.py      rows of arrays and sources on the host
  maps.py        columns in memory-mapped files
  workers.py     processes that read the rows of a source
  reader.py      `RowReader`: reads the rows of a superstep with threads or processes
  dataset.py     `Dataset`: a checked dataset
  stage.py       asks the data module for what a stage needs, once
  batches.py     who draws the index batches: the compiled program or the host
  feed.py        where the rows lie: on the device or on the host

The last two files answer two independent questions:

                          rows on the device, `DeviceFeed`        rows on the host, `HostFeed`
  drawn by the program,   each superstep draws row numbers        a separate program draws row numbers one superstep
  `ProgramBatches`        and looks the rows up                   ahead, and their rows are fetched
  drawn by the host,      row numbers are sent to the device      row numbers are drawn one superstep ahead, and
  `GrainBatches`          with each superstep                     their rows are fetched

`hydrax.train.sampling` decides who draws; `DataModule.residence` and the size of the dataset decide where rows lie.
"""

from hydrax.data.batches import Batches, GrainBatches, ProgramBatches
from hydrax.data.columns import check_dataset, check_form, num_rows
from hydrax.data.datamodule import DataModule, NamedSets
from hydrax.data.dataset import Dataset
from hydrax.data.feed import Feed, open_feed
from hydrax.data.frames import frame_columns, is_frame
from hydrax.data.stage import (
    EvaluationSet,
    TrainingSet,
    find_transform,
    known_ids,
    positions,
    stage_evaluation,
    stage_training,
)
