"""MNISTDataModule: MNIST, and the datasets that come in the same file format."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrax import DataError, DataModule, Slices
from hydrax.arguments import require

Dataset = dict[str, NDArray[Any]]

_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_SIDE, _NUM_CLASSES = 28, 10


class MNISTDataModule(DataModule):
    """Reads MNIST from its four IDX files. Fashion-MNIST and Kuzushiji-MNIST come in the same files.

    A dataset is `{"image": uint8[N, 28, 28], "label": int32[N]}`. Images stay bytes, which take a quarter of the memory
    of floats: convert the rows of a batch in your step, `batch["image"] / 255`. With precision "bf16-mixed" or
    "bf16-true", write `batch["image"].astype(jnp.bfloat16) / 255`: bytes / 255 are float32, and so would be the model.

    `predict` uses the test images too. Each file is read once, and only the files of the stage need to exist.

    Args:
      folder: the folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
        t10k-labels-idx1-ubyte, each with or without .gz.
      slices: which training rows each head learns from, or a function that makes the slices from the training dataset.
        Rows held out for validation are not among the training rows; the others keep the order of the file.
      val_rows: how many training images to hold out for validation (int), or which fraction of them (float); 0: none.
      seed: seed of the choice of the images held out, 0 <= seed < 2**32; None holds out the last ones.
      val_slices: which validation rows each head is validated on, or a function that makes them from the validation
        dataset; None takes all.
      settings: attributes of `DataModule`: batch_size, eval_batch_size, small_slices, check_finite, residence, ...

    Raises:
      DataError: a file is missing, damaged, or does not fit the others (raised by `setup`).
      ArgumentError: folder is not a path, or val_rows leaves no training row (raised by `setup`).

    Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", which defines the IDX format.
    """

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
        where, fix = "MNISTDataModule(folder=)", "pass the folder that holds the four files"
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
        dataset = _read(self._folder, "train")
        held = self.hold_out(len(dataset["label"]), self._val_rows, self._seed)
        train = {name: column[~held] for name, column in dataset.items()}
        return train, {name: column[held] for name, column in dataset.items()} if held.any() else None

    @cached_property
    def _test(self) -> Dataset:
        return _read(self._folder, "t10k")


def _read(folder: Path, part: str) -> Dataset:
    """Reads images and labels of "train" or "t10k", and checks them against each other."""
    images_path, images = _read_idx(folder, f"{part}-{_IMAGES}", (_SIDE, _SIDE))
    labels_path, labels = _read_idx(folder, f"{part}-{_LABELS}", ())
    if len(labels) != len(images):
        raise _bad_file(
            "Images and labels differ in length",
            labels_path,
            f"{len(labels)} labels",
            f"{len(images)}, the number of images in {images_path.name}",
            "use two files of the same dataset",
        )
    if labels.max() >= _NUM_CLASSES:
        row = int(np.argmax(labels >= _NUM_CLASSES))
        raise _bad_file(
            "A label is out of range",
            labels_path,
            f"{labels[row]} at row {row}",
            "0 to 9",
            "use a dataset of ten classes, or write your own data module",
        )
    return {"image": images, "label": labels.astype(np.int32)}


def _read_idx(folder: Path, name: str, shape: tuple[int, ...]) -> tuple[Path, NDArray[np.uint8]]:
    """Reads an IDX file: 00 00, a dtype code, the number of axes, each length as big-endian uint32, then the bytes."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise _bad_file(
            "A file is missing",
            folder / name,
            "no such file",
            f"the MNIST IDX file {name} or {name}.gz",
            f"download train- and t10k-{_IMAGES}.gz and -{_LABELS}.gz into {folder}",
        )
    content = _unpacked(path)
    magic, start = bytes([0, 0, 8, 1 + len(shape)]), 8 + 4 * len(shape)
    if content[:4] != magic:
        raise _bad_file(
            "A file is not the IDX file that its name says",
            path,
            f"first bytes {content[:4].hex(' ') or 'none'}",
            f"{magic.hex(' ')}: unsigned bytes, {1 + len(shape)} axes",
        )
    if len(content) < start:
        raise _bad_file("A file is truncated", path, f"{len(content)} bytes", f"a header of {start}")
    num_rows, *found = struct.unpack(f">{1 + len(shape)}I", content[4:start])
    if tuple(found) != shape or num_rows == 0:
        raise _bad_file(
            "An IDX file has the wrong shape", path, [num_rows, *found], f"[1 or more{', 28, 28' * bool(shape)}]"
        )
    expected = start + num_rows * math.prod(shape)
    if len(content) != expected:
        wrong = "truncated" if len(content) < expected else "too long"
        raise _bad_file(f"A file is {wrong}", path, f"{len(content)} bytes", f"{expected} for {num_rows} rows")
    return path, np.frombuffer(content, np.uint8, offset=start).reshape(num_rows, *shape)


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    # The name does not tell: browsers unpack a file and keep the .gz in its name.
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise _bad_file("A gzip file is damaged", path, f"{error} in {len(content)} bytes", "a whole file") from error


def _bad_file(what: str, path: Path, got: object, expected: str, fix: str = "download the file again") -> DataError:
    return DataError(f"{what}: {path}. Got {got}, expected {expected}. Fix: {fix}.")
