"""SourceDataModule: data that does not fit on the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydrax import ArgumentError, DataError, DataModule, Slices

Decode = Callable[[bytes], Any]


class SourceDataModule(DataModule):
    """Rows that stay on the host or on disk, as a DataModule: a superstep fetches the rows it needs.

    Each dataset is one of

    - a pytree of arrays or memory maps (`np.memmap`, `np.load(mmap_mode="r")`) with the same leading length N;
    - a random-access source: `__len__` and `__getitem__(row)`, which gives a pytree of arrays and numbers, of the same
      structure, shapes and dtypes for every row. Grain's sources and `grain.MapDataset` are such, and PyTorch's
      map-style datasets;
    - with `decode`, the path of an ArrayRecord file, or a list of paths, whose rows follow one another.

    Several threads ask a source at a time; with `read_processes`, each process has a copy of it.

    Args:
      train: rows to learn from.
      val: rows for validation, or None.
      test: rows for testing, or None.
      predict: rows to predict, or None.
      slices: which rows of `train` each head learns from, or a function from `train` to that.
      val_slices: which rows of `val` each head is validated on, or a function from `val` to that; None: all of them.
      decode: makes a row, a pytree of arrays and numbers, of the bytes of a record.
      settings: attributes of `DataModule`: batch_size, check_finite, read_threads, ...; residence is "host" by default.

    Raises:
      ArgumentError: an argument has the wrong type, val_slices come without val, paths without `decode`, or `decode`
        without paths.
      DataError: a file is missing or is no ArrayRecord file, or the package array_record is missing; said when the
        dataset is first asked for.
    """

    residence = "host"

    def __init__(
        self,
        train: Any,
        *,
        slices: Slices | Callable[[Any], Slices],
        val: Any | None = None,
        test: Any | None = None,
        predict: Any | None = None,
        val_slices: Slices | Callable[[Any], Slices] | None = None,
        decode: Decode | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(slices=slices, val_slices=val_slices, **settings)
        _check_slices("slices", slices)
        if val_slices is not None:
            _check_slices("val_slices", val_slices)
        if val is None and val_slices is not None:
            raise ArgumentError(
                "Validation slices have no dataset: SourceDataModule(val_slices=). Got val_slices without val, "
                "expected both or neither. Fix: pass val=, the rows that they count, or drop val_slices."
            )
        given = {"train": train, "val": val, "test": test, "predict": predict}
        _check_decode(decode, any(_is_paths(dataset) for dataset in given.values()))
        if train is None:
            raise ArgumentError(
                "A dataset is missing: SourceDataModule(train=). Got None, expected arrays, a source or paths. Fix: "
                "pass what the heads learn from."
            )
        self._datasets, self._decode = given, decode

    def train_dataset(self) -> Any:
        return self._opened("train")

    def val_dataset(self) -> Any | None:
        return self._opened("val")

    def test_dataset(self) -> Any | None:
        return self._opened("test")

    def predict_dataset(self) -> Any | None:
        return self._opened("predict")

    def _opened(self, name: str) -> Any:
        dataset = self._datasets[name]
        if self._decode is not None and _is_paths(dataset):
            dataset = self._datasets[name] = ArrayRecords(name, dataset, self._decode)
        return dataset


class ArrayRecords:
    """Decoded records of ArrayRecord files, a random-access source.

    Args:
      argument: names the files in errors.
      paths: of one file, or a list.
      decode: makes a row of a record.
    """

    def __init__(self, argument: str, paths: Any, decode: Decode) -> None:
        files = [Path(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
        where = f"SourceDataModule({argument}=)"
        for file in files:
            if not file.is_file():
                raise DataError(
                    f"A file is missing: {where}, {file}. Got {'a folder' if file.is_dir() else 'nothing'} there, "
                    "expected an ArrayRecord file. Fix: write it with array_record's ArrayRecordWriter, or mend the "
                    "path."
                )
        self._records = _open(where, files)
        self._decode = decode

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: int) -> Any:
        return self._decode(self._records[row])

    def __getitems__(self, rows: Sequence[int]) -> list[Any]:
        return [self._decode(record) for record in self._records.__getitems__(rows)]


def _open(where: str, files: list[Path]) -> Any:
    try:
        from grain.sources import ArrayRecordDataSource
    except ImportError as error:
        raise DataError(
            f"ArrayRecord files cannot be read: {where}. Got no package array_record, expected it beside grain. Fix: "
            "pip install array_record."
        ) from error
    try:
        return ArrayRecordDataSource([str(file) for file in files])
    except Exception as error:
        raise DataError(
            f"A file is no ArrayRecord file: {where}, {', '.join(map(str, files)):.200}. Got {error!s:.120}, expected "
            "files that array_record's ArrayRecordWriter wrote and closed. Fix: write them anew."
        ) from error


def _is_paths(dataset: Any) -> bool:
    if isinstance(dataset, str | os.PathLike):
        return True
    return (
        isinstance(dataset, list | tuple) and bool(dataset) and all(isinstance(d, str | os.PathLike) for d in dataset)
    )


def _check_slices(name: str, slices: Any) -> None:
    if not (isinstance(slices, Slices) or callable(slices)):
        raise ArgumentError(
            f"Slices have the wrong type: SourceDataModule({name}=). Got {type(slices).__name__}, expected "
            "hydrax.Slices. Fix: build them with a constructor such as Slices.full(num_heads, num_rows)."
        )


def _check_decode(decode: Any, has_paths: bool) -> None:
    if decode is not None and not callable(decode):
        raise ArgumentError(
            f"Records cannot be decoded: SourceDataModule(decode=). Got {type(decode).__name__}, expected a function "
            "of the bytes of a record. Fix: return a dict of arrays, for example by numpy.frombuffer."
        )
    if has_paths and decode is None:
        raise ArgumentError(
            "Records cannot be decoded: SourceDataModule(decode=). Got None, expected a function of the bytes of a "
            "record, as paths of files are given. Fix: return a dict of arrays, for example by numpy.frombuffer."
        )
    if decode is not None and not has_paths:
        raise ArgumentError(
            "There is nothing to decode: SourceDataModule(decode=). Got a function, but no path of an ArrayRecord "
            "file, expected both or neither. Fix: drop it; a source decodes its own rows."
        )
