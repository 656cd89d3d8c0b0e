"""CIFAR10DataModule: CIFAR-10, read from its binary version."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrax import DataError, DataModule, Slices
from hydrax.arguments import require

Dataset = dict[str, NDArray[Any]]

_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = ("test_batch.bin",)
_RECORD_BYTES = 1 + 3 * 32 * 32
_NUM_CLASSES = 10


class CIFAR10DataModule(DataModule):
    """Reads CIFAR-10 from the six files of its binary version.

    A dataset is `{"image": uint8[N, 32, 32, 3], "label": int32[N]}`. Images stay bytes, which take a quarter of the
    memory of floats: convert the rows of a batch in your step, `batch["image"] / 255`. With precision "bf16-mixed" or
    "bf16-true", write `batch["image"].astype(jnp.bfloat16) / 255`: bytes / 255 are float32, and so would be the model.

    `predict` uses the test images too. Each file is read once, and only the files of the stage need to exist.

    Args:
      folder: the folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin. A file may hold fewer than the
        official 10,000 records, if the records are whole and the five training files hold equally many.
      slices: which training rows each head learns from, or a function that makes the slices from the training dataset.
        Rows held out for validation are not among the training rows; the others keep the order of the files.
      val_rows: how many training images to hold out for validation (int), or which fraction of them (float); 0: none.
      seed: seed of the choice of the images held out, 0 <= seed < 2**32; None holds out the last ones.
      val_slices: which validation rows each head is validated on, or a function that makes them from the validation
        dataset; None takes all.
      settings: attributes of `DataModule`: batch_size, eval_batch_size, small_slices, check_finite, residence, ...

    Attributes:
      class_names: the names of the labels 0 to 9.

    Raises:
      DataError: a file is missing or damaged (raised by `setup`).
      ArgumentError: folder is not a path, or val_rows leaves no training row (raised by `setup`).

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
        where, fix = "CIFAR10DataModule(folder=)", "pass the folder that holds the six files"
        require(isinstance(folder, str | os.PathLike), where, folder, "a str or a Path", fix)
        self._folder, self._val_rows, self._seed = Path(folder).absolute(), val_rows, seed

    def setup(self, stage: str) -> None:
        """Reads the files of the stage that have not been read yet."""
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
    """Reads the records of some files, uint8[N, 3073]: a label, then 1,024 red, green and blue values each."""
    files = [_read_file(folder / name) for name in names]
    for name, records in zip(names, files, strict=True):
        # A file that was cut between two records looks whole by itself.
        if len(records) != len(files[0]):
            raise DataError(
                f"Training files differ in length: {folder / name}. Got {len(records)}, expected {len(files[0])}, the "
                f"records of {names[0]} (CIFAR-10 has 10,000 in each). Fix: download the files again."
            )
    return np.concatenate(files)


def _read_file(path: Path) -> NDArray[np.uint8]:
    if not path.is_file():
        raise DataError(
            f"A file is missing: {path}. Got no such file, expected {', '.join(_TRAIN + _TEST)} of CIFAR-10's binary "
            "version (cifar-10-binary.tar.gz). Fix: unpack it, and pass the folder that holds these files."
        )
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % _RECORD_BYTES:
        raise DataError(
            f"A file does not hold whole records: {path}. Got {content.size:,} bytes, expected a multiple of "
            f"{_RECORD_BYTES:,} (30,730,000 in CIFAR-10, 10,000 records). Fix: download the binary version again."
        )
    records = content.reshape(-1, _RECORD_BYTES)
    wrong = records[:, 0] >= _NUM_CLASSES
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"A label is out of range: {path}, record {row}. Got {records[row, 0]}, expected 0 to 9. Fix: use the "
            "binary version of CIFAR-10; CIFAR-100 and the Python version have another layout."
        )
    return records


def _dataset(records: NDArray[np.uint8]) -> Dataset:
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return {"image": np.ascontiguousarray(images), "label": records[:, 0].astype(np.int32)}
