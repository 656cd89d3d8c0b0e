"""SourceDataModule: data that does not fit on the device, or not into memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydrax import DataError, DataModule, NamedSets, Slices
from hydrax.arguments import require

Decode = Callable[[bytes], Any]


class SourceDataModule(DataModule):
    """Keeps rows on the host or on disk; each superstep fetches the rows it needs.

    A dataset is one of the following:

    - a pytree of arrays or memory maps (`np.memmap`, `np.load(mmap_mode="r")`) with the same leading length N;
    - a random-access source with `__len__` and `__getitem__(row)`, which returns a pytree of arrays and numbers with
      the same structure, shapes and dtypes for every row. Grain's sources, `grain.MapDataset` and PyTorch's map-style
      datasets are such sources;
    - with `decode`, the path of an ArrayRecord file, or a list of paths, whose rows are concatenated.

    Several threads read a source at the same time; with `read_processes`, each process has its own copy.

    >>> from hydrax.datamodules import SourceDataModule
    >>> class Squares:
    ...     def __len__(self):
    ...         return 10
    ...     def __getitem__(self, row):
    ...         return {"x": np.float32(row), "y": np.float32(row**2)}
    >>> print(SourceDataModule(Squares(), slices=hx.Slices.full(3, num_rows=10)))
    SourceDataModule
      train   N=10: x float32, y float32 (Squares)
      heads   Slices of 3 heads on 10 rows
      ...
      epoch   1 batches

    Args:
      train: rows to learn from.
      val: rows for validation, or None.
      test: rows for testing, or None.
      predict: rows to predict, or None.
      slices: which rows of `train` each head learns from, or a function that makes the slices from `train`.
      val_slices: which rows of `val` each head is validated on, or a function of `val` that makes them; None takes all.
      decode: turns the bytes of a record into a row, a pytree of arrays and numbers.
      settings: attributes of `DataModule`: batch_size, check_finite, read_threads, ...; residence is "host" by default.

    Raises:
      ArgumentError: an argument has the wrong type, or val_slices are given without val, paths without `decode`, or
        `decode` without paths.
      DataError: a file is missing or is not an ArrayRecord file, or the package array_record is missing (raised when
        the dataset is first used).
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
        for name, value in (("slices", slices), ("val_slices", val_slices)):
            known = isinstance(value, Slices) or callable(value) or (name == "val_slices" and value is None)
            expected, fix = "hydrax.Slices or a function that makes them", "call a constructor such as Slices.full"
            require(known, f"SourceDataModule({name}=)", value, expected, fix)
        where = "SourceDataModule(val_slices=)"
        require(val is not None or val_slices is None, where, val_slices, "None without val", "pass val=, or drop it")
        given = {"train": train, "val": val, "test": test, "predict": predict}
        has_paths = any(_is_paths(dataset) for dataset in given.values())
        where, record = "SourceDataModule(decode=)", "a function of the bytes of a record, since paths are given"
        require(not has_paths or callable(decode), where, decode, record, "return a dict of arrays from it")
        require(has_paths or decode is None, where, decode, "None without paths", "drop it; a source decodes its rows")
        rows = "arrays, a source or paths"
        require(train is not None, "SourceDataModule(train=)", train, rows, "pass the rows that heads learn from")
        for name in ("val", "test"):
            if not _is_paths(given[name]):
                given[name] = NamedSets.like(train, given[name], f"SourceDataModule({name}=)")
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
    """Reads decoded records of ArrayRecord files, as a random-access source.

    Args:
      argument: names the files in errors.
      paths: the path of one file, or a list of paths.
      decode: turns a record into a row.
    """

    def __init__(self, argument: str, paths: Any, decode: Decode) -> None:
        files = [Path(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
        where = f"SourceDataModule({argument}=)"
        for file in files:
            if not file.is_file():
                raise DataError(
                    f"A file is missing: {where}, {file}. Got {'a folder' if file.is_dir() else 'nothing'} there, "
                    "expected an ArrayRecord file. Fix: write it with array_record's ArrayRecordWriter, or correct the "
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
            f"Missing package: {where}. Got no package array_record, expected it for ArrayRecord files. Fix: pip "
            "install array_record."
        ) from error
    try:
        return ArrayRecordDataSource([str(file) for file in files])
    except Exception as error:
        raise DataError(
            f"A file is not an ArrayRecord file: {where}, {', '.join(map(str, files)):.200}. Got {error!s:.120}, "
            "expected files that array_record's ArrayRecordWriter wrote and closed. Fix: write them again."
        ) from error


def _is_paths(dataset: Any) -> bool:
    if isinstance(dataset, str | os.PathLike):
        return True
    return (
        isinstance(dataset, list | tuple) and bool(dataset) and all(isinstance(d, str | os.PathLike) for d in dataset)
    )
