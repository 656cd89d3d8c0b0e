"""MNISTDataModule: MNIST, and the sets that come in files of the same form."""

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

from hydrax import ArgumentError, DataError, DataModule, Slices

Dataset = dict[str, NDArray[Any]]

_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_SIDE, _NUM_CLASSES = 28, 10


class MNISTDataModule(DataModule):
    """MNIST from its IDX files; Fashion-MNIST and Kuzushiji-MNIST come in the same four files.

    A dataset is `{"image": uint8[N, 28, 28], "label": int32[N]}`. Images stay bytes, a quarter of the room of floats:
    your step makes floats of the rows it is given, `batch["image"] / 255`. With precision "bf16-mixed" or "bf16-true"
    write `batch["image"].astype(jnp.bfloat16) / 255`: bytes / 255 are float32, and take the model there.

    The test images are what `predict` walks, too. Files are read once, and only those of the stage need to be there.

    Args:
      folder: holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte,
        as they are or with .gz.
      slices: which training rows each head learns from, or a function from the training dataset to that. The rows held
        out for validation are no training rows; the others keep the order of the file.
      val_rows: training images held out for validation: an int counts them, a float is a fraction, 0 is none.
      seed: draws the images held out, 0 <= seed < 2**32; None holds out the last ones.
      val_slices: which validation rows each head is validated on, or a function from the validation dataset to that;
        None: all of them.
      settings: attributes of `DataModule`: batch_size, eval_batch_size, small_slices, check_finite, residence, ...

    Raises:
      DataError: a file is missing, damaged, or does not fit the others; said in `setup`.
      ArgumentError: folder is no path; or val_rows leaves no training row, said in `setup`.

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
        if not isinstance(folder, str | os.PathLike):
            raise ArgumentError(
                f"A folder has the wrong type: MNISTDataModule(folder=). Got {folder!r:.60}, expected a str or a "
                "Path. Fix: pass the folder that holds the four files."
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
        dataset = _read(self._folder, "train")
        held = self.hold_out(len(dataset["label"]), self._val_rows, self._seed)
        train = {name: column[~held] for name, column in dataset.items()}
        return train, {name: column[held] for name, column in dataset.items()} if held.any() else None

    @cached_property
    def _test(self) -> Dataset:
        return _read(self._folder, "t10k")


def _read(folder: Path, part: str) -> Dataset:
    """Images and labels of "train" or "t10k", checked against each other."""
    images_path, images = _read_idx(folder, f"{part}-{_IMAGES}", (_SIDE, _SIDE))
    labels_path, labels = _read_idx(folder, f"{part}-{_LABELS}", ())
    if len(labels) != len(images):
        raise _bad_file(
            "Images and labels differ in number",
            labels_path,
            len(labels),
            f"{len(images)}, as there are images in {images_path.name}",
            "take both files from the same set",
        )
    if labels.max() >= _NUM_CLASSES:
        row = int(np.argmax(labels >= _NUM_CLASSES))
        raise _bad_file(
            "A label is out of range",
            labels_path,
            f"{labels[row]} at row {row}",
            "0 to 9",
            "take a set of ten classes, or write a data module for yours",
        )
    return {"image": images, "label": labels.astype(np.int32)}


def _read_idx(folder: Path, name: str, shape: tuple[int, ...]) -> tuple[Path, NDArray[np.uint8]]:
    """One IDX file: 00 00, the code of its dtype, its number of axes, each axis as a big-endian uint32, its bytes."""
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
            "Not the IDX file its name says",
            path,
            f"first bytes {content[:4].hex(' ') or 'none'}",
            f"{magic.hex(' ')}: unsigned bytes, {1 + len(shape)} axes",
        )
    if len(content) < start:
        raise _bad_file("A file is truncated", path, f"{len(content)} bytes", f"a header of {start}")
    num_rows, *found = struct.unpack(f">{1 + len(shape)}I", content[4:start])
    if tuple(found) != shape or num_rows == 0:
        raise _bad_file(
            "An IDX file has other axes", path, [num_rows, *found], f"[1 or more{', 28, 28' * bool(shape)}]"
        )
    expected = start + num_rows * math.prod(shape)
    if len(content) != expected:
        wrong = "truncated" if len(content) < expected else "too long"
        raise _bad_file(f"A file is {wrong}", path, f"{len(content)} bytes", f"{expected} for {num_rows} rows")
    return path, np.frombuffer(content, np.uint8, offset=start).reshape(num_rows, *shape)


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":  # what a file is shows in it: browsers unpack, and leave the name as it was
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise _bad_file("A gzip file is damaged", path, f"{error} in {len(content)} bytes", "a whole file") from error


def _bad_file(what: str, path: Path, got: object, expected: str, fix: str = "download the file again") -> DataError:
    return DataError(f"{what}: {path}. Got {got}, expected {expected}. Fix: {fix}.")
