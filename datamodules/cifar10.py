"""CIFAR10DataModule: CIFAR-10 in its binary version."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrax import ArgumentError, DataError, DataModule, Slices

Dataset = dict[str, NDArray[Any]]

_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = ("test_batch.bin",)
_RECORD_BYTES = 1 + 3 * 32 * 32
_NUM_CLASSES = 10


class CIFAR10DataModule(DataModule):
    """CIFAR-10 from the six files of its binary version.

    A dataset is `{"image": uint8[N, 32, 32, 3], "label": int32[N]}`. Images stay bytes, a quarter of the room of
    floats: your step makes floats of the rows it is given, `batch["image"] / 255`. With precision "bf16-mixed" or
    "bf16-true" write `batch["image"].astype(jnp.bfloat16) / 255`: bytes / 255 are float32, and take the model there.

    The test images are what `predict` walks, too. Files are read once, and only those of the stage need to be there.

    Args:
      folder: holds data_batch_1.bin to data_batch_5.bin and test_batch.bin. Fewer records than the official 10,000 a
        file are taken, as long as they are whole and the five training files hold equally many.
      slices: which training rows each head learns from, or a function from the training dataset to that. The rows held
        out for validation are no training rows; the others keep the order of the files.
      val_rows: training images held out for validation: an int counts them, a float is a fraction, 0 is none.
      seed: draws the images held out, 0 <= seed < 2**32; None holds out the last ones.
      val_slices: which validation rows each head is validated on, or a function from the validation dataset to that;
        None: all of them.
      settings: attributes of `DataModule`: batch_size, eval_batch_size, small_slices, check_finite, residence, ...

    Attributes:
      class_names: what the labels 0 to 9 stand for.

    Raises:
      DataError: a file is missing or damaged; said in `setup`.
      ArgumentError: folder is no path; or val_rows leaves no training row, said in `setup`.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """

    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __init__(
        self,
        folder: str | Path,
        *,
        slices: Slices | Callable[[Dataset], Slices],
        val_rows: int | float = 5000,
        seed: int | None = 0,
        val_slices: Slices | Callable[[Dataset], Slices] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(slices=slices, val_slices=val_slices, **settings)
        if not isinstance(folder, str | os.PathLike):
            raise ArgumentError(
                f"A folder has the wrong type: CIFAR10DataModule(folder=). Got {folder!r:.60}, expected a str or a "
                "Path. Fix: pass the folder that holds the six files."
            )
        self._folder, self._val_rows, self._seed = Path(folder), val_rows, seed

    def setup(self, stage: str) -> None:
        """Reads the files of the stage, where they are not read yet."""
        if stage in ("fit", "validate"):
            self.train_dataset()
        else:
            self.test_dataset()

    def train_dataset(self) -> Dataset:
        return self._train_and_val[0]

    def val_dataset(self) -> Dataset | None:
        return self._train_and_val[1]

    def test_dataset(self) -> Dataset:
        return self._test

    def predict_dataset(self) -> Dataset:
        return self._test

    @cached_property
    def _train_and_val(self) -> tuple[Dataset, Dataset | None]:
        records = _read_records(self._folder, _TRAIN)
        held = self.hold_out(len(records), self._val_rows, self._seed)
        return _dataset(records[~held]), _dataset(records[held]) if held.any() else None

    @cached_property
    def _test(self) -> Dataset:
        return _dataset(_read_records(self._folder, _TEST))


def _read_records(folder: Path, names: tuple[str, ...]) -> NDArray[np.uint8]:
    """The records of some files, uint8[N, 3073]: a label, then 1,024 reds, greens and blues."""
    files = [_read_file(folder / name) for name in names]
    for name, records in zip(names, files, strict=True):
        # A file cut between two records looks whole by itself.
        if len(records) != len(files[0]):
            raise DataError(
                f"Training files differ in records: {folder / name}. Got {len(records)}, expected {len(files[0])}, as "
                f"{names[0]} has (10,000 each in CIFAR-10). Fix: download the files again."
            )
    return np.concatenate(files)


def _read_file(path: Path) -> NDArray[np.uint8]:
    if not path.is_file():
        raise DataError(
            f"A file is missing: {path}. Got no such file, expected {', '.join(_TRAIN + _TEST)} of CIFAR-10's binary "
            "version (cifar-10-binary.tar.gz). Fix: unpack it, and give the folder that holds these files."
        )
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % _RECORD_BYTES:
        raise DataError(
            f"A file does not hold whole records: {path}. Got {content.size:,} bytes, expected a multiple of "
            f"{_RECORD_BYTES:,} (30,730,000, 10,000 records, in CIFAR-10). Fix: download the binary version again."
        )
    records = content.reshape(-1, _RECORD_BYTES)
    wrong = records[:, 0] >= _NUM_CLASSES
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"A label is out of range: {path}, record {row}. Got {records[row, 0]}, expected 0 to 9. Fix: take the "
            "binary version of CIFAR-10; CIFAR-100 and the Python version are laid out otherwise."
        )
    return records


def _dataset(records: NDArray[np.uint8]) -> Dataset:
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return {"image": np.ascontiguousarray(images), "label": records[:, 0].astype(np.int32)}
