"""ArrayDataModule: data that is already there as arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hydrax import ArgumentError, DataModule, Slices


class ArrayDataModule(DataModule):
    """Arrays as a DataModule.

    Memory maps (`np.memmap`, `np.load(mmap_mode="r")`) are arrays too. With `residence="host"`, or where the device has
    no room for them all, their rows are read when they are due; else they are read whole.

    Args:
      train: pytree of arrays (dict, tuple or one array) with the same leading length N.
      val: rows for validation, same structure, or None.
      test: rows for testing, or None.
      predict: rows to predict, or None.
      slices: which rows of `train` each head learns from, or a function from `train` to that.
      val_slices: which rows of `val` each head is validated on, or a function from `val` to that; None: all of them.
      settings: attributes of `DataModule`: batch_size, eval_batch_size, small_slices, check_finite, residence, ...

    Raises:
      ArgumentError: there is no such setting, or val_slices come without val.
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
        if val is None and val_slices is not None:
            raise ArgumentError(
                "Validation slices have no dataset: ArrayDataModule(val_slices=). Got val_slices without val, expected "
                "both or neither. Fix: pass val=, the rows that they count, or drop val_slices."
            )
        self._train, self._val, self._test, self._predict = train, val, test, predict

    def train_dataset(self) -> Any:
        return self._train

    def val_dataset(self) -> Any | None:
        return self._val

    def test_dataset(self) -> Any | None:
        return self._test

    def predict_dataset(self) -> Any | None:
        return self._predict
