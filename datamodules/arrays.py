"""ArrayDataModule: data in memory, as arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hydrax import DataModule, NamedSets, Slices
from hydrax.arguments import require


class ArrayDataModule(DataModule):
    """Wraps arrays in a DataModule.

    A table of pandas, polars or PyArrow is taken as a dict of its columns, which must be numbers; `TabularDataModule`
    also encodes words.

    Memory maps (`np.memmap`, `np.load(mmap_mode="r")`) are arrays too. With `residence="host"`, or if the device has no
    room for them, each superstep reads the rows it needs; otherwise they are read as a whole.

    >>> from hydrax.datamodules import ArrayDataModule
    >>> rows = {"x": np.zeros((6, 2)), "y": np.arange(6)}
    >>> print(ArrayDataModule(rows, slices=hx.Slices.prefix([2, 6], num_rows=6), batch_size=4))
    ArrayDataModule
      train   N=6: x float64[2], y int64
      heads   Slices of 2 heads on 6 rows
                recipes: prefix x 2
                lengths: min 2, median 4, max 6, total 8
                share: 33.33% to 100.00% of the dataset
                rows in no slice: 0
                repeats: no head holds a row twice
                memory: ...
      epoch   2 batches

    Args:
      train: pytree of arrays (dict, tuple or one array) with the same leading length N, or a table.
      val: rows for validation, with the same structure, or None. A dict of several such sets, as in
        `{"clean": ..., "shifted": ...}`, gives metrics by set: `val_loss/clean`, `val_loss/shifted`.
      test: rows for testing, one set or several, or None.
      predict: rows to predict, or None.
      slices: which rows of `train` each head learns from, or a function that makes the slices from `train`.
      val_slices: which rows of `val` each head is validated on, or a function of `val` that makes them; None takes all.
      settings: attributes of `DataModule`: batch_size, eval_batch_size, small_slices, check_finite, residence, ...

    Raises:
      ArgumentError: there is no such setting, or val_slices are given without val.
    """

    def __init__(
        self,
        train: Any,
        *,
        slices: Slices | Callable[[Any], Slices],
        val: Any | None = None,
        test: Any | None = None,
        predict: Any | None = None,
        val_slices: Slices | Callable[[Any], Slices] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(slices=slices, val_slices=val_slices, **settings)
        where = "ArrayDataModule(val_slices=)"
        require(val is not None or val_slices is None, where, val_slices, "None without val", "pass val=, or drop it")
        self._train, self._predict = train, predict
        self._val = NamedSets.like(train, val, "ArrayDataModule(val=)")
        self._test = NamedSets.like(train, test, "ArrayDataModule(test=)")

    def train_dataset(self) -> Any:
        return self._train

    def val_dataset(self) -> Any | None:
        return self._val

    def test_dataset(self) -> Any | None:
        return self._test

    def predict_dataset(self) -> Any | None:
        return self._predict
