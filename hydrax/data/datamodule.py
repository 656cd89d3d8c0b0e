"""DataModule: the datasets, the slices, and the Grain pipelines of index batches that walk them."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Never

import jax
import numpy as np

from hydrax.errors import ArgumentError, DataError, SliceError
from hydrax.slices import Slices, rotation

if TYPE_CHECKING:
    import grain

_SETTINGS = (
    *("batch_size", "eval_batch_size", "small_slices", "check_finite"),
    *("residence", "read_threads", "read_processes"),
)


class DataModule:
    """Datasets and slices of a run. Override `train_dataset` and `slices`; the rest as needed.

    A dataset is a pytree of arrays (dict, tuple, one array) with the same leading length N; a batch has the same
    structure.

    Attributes:
      batch_size: slots B in a head's training batch.
      eval_batch_size: rows in a validation, test or predict batch; `batch_size` where None.
      small_slices: for slices of fewer than B rows, "mask" (each row once, the other slots padding) or "wrap" (rows
        repeat).
      check_finite: NaN or Inf in a dataset: "warn", "raise" or "off".
      residence: where a dataset lies while heads learn from it: "device" (all of it), "host" (the rows of a superstep
        are fetched when they are due), or "auto": the device, unless it has no room.
      read_threads: threads that read rows from the host.
      read_processes: processes that read rows from the host; 0: none, the threads read.
    """

    batch_size: int = 32
    eval_batch_size: int | None = None
    small_slices: rotation.SmallSlices = "mask"
    check_finite: Literal["warn", "raise", "off"] = "warn"
    residence: Literal["auto", "device", "host"] = "auto"
    read_threads: int = 4
    read_processes: int = 0

    _given_slices: Slices | Callable[[Any], Slices] | None = None
    _given_val_slices: Slices | Callable[[Any], Slices] | None = None

    def __init__(
        self,
        *,
        slices: Slices | Callable[[Any], Slices] | None = None,
        val_slices: Slices | Callable[[Any], Slices] | None = None,
        batch_size: int | None = None,
        eval_batch_size: int | None = None,
        small_slices: rotation.SmallSlices | None = None,
        check_finite: Literal["warn", "raise", "off"] | None = None,
        residence: Literal["auto", "device", "host"] | None = None,
        read_threads: int | None = None,
        read_processes: int | None = None,
        **unknown: Never,
    ) -> None:
        """A subclass that defines the methods and gives the attributes as class attributes need not call it.

        Args:
          slices: what `slices()` returns, or a function from the training dataset to that.
          val_slices: what `val_slices()` returns, or a function from the validation dataset to that.
          Others: the attributes above; None keeps what the class has.

        Raises:
          ArgumentError: there is no such attribute.
        """
        given: dict[str, Any] = dict(locals())
        for name, value in given["unknown"].items():
            near = difflib.get_close_matches(name, _SETTINGS, n=1, cutoff=0.0)[0]
            raise ArgumentError(
                f"No such setting: {type(self).__name__}({name}=). Got {value!r:.60}, expected one of "
                f"{', '.join(_SETTINGS)}. Fix: the nearest name is {near}."
            )
        self._given_slices, self._given_val_slices = slices, val_slices
        for name in _SETTINGS:
            if given[name] is not None:
                setattr(self, name, given[name])

    def prepare_data(self) -> None:
        """Called before `setup` of each stage: downloads and unpacking, where they are not done yet."""

    def setup(self, stage: str) -> None:
        """Called before a stage ("fit", "validate", "test", "predict") starts."""

    def teardown(self, stage: str) -> None:
        """Called after a stage ended, also by an error."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume: names to NumPy arrays, numbers, bools, strings or None."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; called after `setup` and before the datasets and slices are asked for."""

    def train_dataset(self) -> Any:
        """The rows that heads learn from, columns `[N, ...]`.

        Raises:
          DataError: the data module defines none.
        """
        raise DataError(
            f"A dataset is missing: {type(self).__name__}.train_dataset. Got none, expected a pytree of arrays. Fix: "
            "define `def train_dataset(self)` and return the arrays."
        )

    def slices(self) -> Slices:
        """Which rows of `train_dataset` each head may learn from; the same at every call.

        Raises:
          DataError: the data module defines none.
        """
        if self._given_slices is None:
            raise DataError(
                f"The slices are missing: {type(self).__name__}.slices. Got none, expected hydrax.Slices. Fix: define "
                "`def slices(self)`, for example `return Slices.full(num_heads, num_rows)`."
            )
        return self._given_slices(self.train_dataset()) if callable(self._given_slices) else self._given_slices

    def val_dataset(self) -> Any | None:
        """The rows that heads are validated on, or None."""
        return None

    def val_slices(self) -> Slices | None:
        """Which rows of `val_dataset` each head is validated on; None: all heads see them all."""
        if not callable(self._given_val_slices):
            return self._given_val_slices
        rows = self.val_dataset()
        return None if rows is None else self._given_val_slices(rows)

    def test_dataset(self) -> Any | None:
        """The rows that heads are tested on, or None."""
        return None

    def predict_dataset(self) -> Any | None:
        """The rows that heads predict, or None."""
        return None

    def dataset(self, stage: str) -> Any | None:
        """The dataset of "train", "val", "test" or "predict"."""
        return getattr(self, f"{stage}_dataset")()

    def hold_out(self, num_rows: int, val_rows: int | float, seed: int | None = 0) -> np.ndarray:
        """Which rows to hold out for validation, bool[num_rows].

        Args:
          num_rows: rows there are.
          val_rows: an int counts those to hold out, a float is a fraction, 0 is none.
          seed: draws them, 0 <= seed < 2**32; None takes the last ones.

        Raises:
          ArgumentError: no row would be left, or val_rows is no such number.
        """
        whole = isinstance(val_rows, int | np.integer) and not isinstance(val_rows, bool)
        if not (whole and 0 <= val_rows < num_rows or isinstance(val_rows, float) and 0 < val_rows < 1):
            raise ArgumentError(
                f"Rows cannot be held out: {type(self).__name__}(val_rows=). Got {val_rows!r}, expected an int, 0 to "
                f"{num_rows - 1}, or a fraction between 0 and 1. Fix: set val_rows=0.1 for a tenth of the rows."
            )
        count = int(val_rows) if whole else min(max(1, round(val_rows * num_rows)), num_rows - 1)
        if count == 0 or seed is None:
            return np.arange(num_rows) >= num_rows - count
        return Slices.random_subset(count, num_rows, seed).mask()[0, :]

    def index_dataset(self, seed: int = 0, *, sampling: str = "own", passes: int | None = None) -> grain.MapDataset:
        """The training batches as row numbers, by batch number.

        Args:
          seed: of the rotation; the Trainer passes its own.
          sampling: "own", each head its own rows, or "shared", all heads the same rows.
          passes: of each head, after which its slots are padding; None: no end.

        Returns:
          A MapDataset whose element t is `{"step": t, "rows": int32[H, B], "mask": bool[H, B]}`; with shared sampling
          rows are int32[B]. It is the law of `hydrax.rotation`: each row of a slice once per pass, whatever else is
          trained beside a head. Under `accumulate_grad_batches` one optimiser step takes several elements.

        Raises:
          ArgumentError: there is no such sampling.
        """
        if sampling not in ("own", "shared"):
            raise ArgumentError(
                f"No such sampling: {type(self).__name__}.index_dataset(sampling=). Got {sampling!r}, expected 'own' "
                "or 'shared'. Fix: leave it out for 'own'."
            )
        return _map_dataset(
            _Rotation(
                rotation.shared_index_batch if sampling == "shared" else rotation.index_batch,
                self.slices(),
                {"batch_size": self.batch_size, "seed": seed, "small_slices": self.small_slices, "passes": passes},
            )
        )

    def eval_index_dataset(self, stage: str, num_rows: int, *, heads: np.ndarray | None = None) -> grain.MapDataset:
        """The batches of a stage as row numbers, in order, each row once.

        Args:
          stage: "val", "test", "predict", or "held_out": each head the rows of `train_dataset` outside its slice.
          num_rows: length of the dataset.
          heads: int[H], positions of the heads that are evaluated; None: all.

        Returns:
          A MapDataset of `{"step", "rows", "mask"}`; int32[B] and bool[B] where all heads see the same rows, else [H,
          B].

        Raises:
          DataError: "held_out", and every slice holds every row.
        """
        slices = self.val_slices() if stage == "val" else self.slices() if stage == "held_out" else None
        if slices is not None and heads is not None:
            slices = slices[heads]
        if slices is not None and stage == "held_out":
            slices = slices.complement(allow_empty=True)
            if not slices.lengths.any():
                raise DataError(
                    f"No row is held out: {type(self).__name__}.slices. Got slices that hold all {num_rows} rows each, "
                    "expected some that do not. Fix: k-fold, bootstrap or a window leaves rows out; else use predict()."
                )
        return _map_dataset(_InOrder(num_rows, self.eval_batch_size or self.batch_size, slices))

    def __str__(self) -> str:
        """N and columns of each dataset, H, slice lengths, steps of an epoch; says what `setup` must still bring."""
        lines = [type(self).__name__]
        for stage in ("train", "val", "test", "predict"):
            lines += self._lines(stage, functools.partial(lambda stage: _shown(self.dataset(stage)), stage))
        lines += self._lines("heads", lambda: self.slices().describe())
        lines += self._lines("epoch", lambda: f"{-(-int(self.slices().lengths.max()) // self.batch_size)} batches")
        return "\n".join(lines)

    def _lines(self, name: str, show: Callable[[], str | None]) -> list[str]:
        try:
            text = show()
        except Exception as error:  # it may be printed before setup() has made what it shows
            text = f"not there yet ({type(error).__name__}: {error!s:.60}); has setup run?"
        return [] if text is None else [f"  {name:<8}" + text.replace("\n", "\n" + " " * 10)]


def _map_dataset(source: Any) -> grain.MapDataset:
    # Imported late: half a second, and a fit whose program draws its own index batches needs none of it.
    import grain

    return grain.MapDataset.source(source)


class _Rotation:
    """Grain source of training index batches; random access, so a resumed run needs the batch number only."""

    def __init__(self, draw: Callable[..., Any], slices: Slices, how: dict[str, Any]) -> None:
        self._draw, self._slices, self._how = draw, slices, how

    def __len__(self) -> int:
        return sys.maxsize  # the rotation never ends

    def __getitem__(self, step: int) -> dict[str, Any]:
        rows, mask = self._draw(self._slices, step, **self._how)
        return {"step": step, "rows": rows, "mask": mask}


class _InOrder:
    """Grain source of evaluation index batches: rows in order, the last batch filled with padding."""

    def __init__(self, num_rows: int, batch_size: int, slices: Slices | None) -> None:
        self._lengths = np.asarray(num_rows) if slices is None else np.asarray(slices.lengths)[:, None]
        self._batch_size = max(1, min(batch_size, int(self._lengths.max())))
        self._slices = slices
        if slices is not None:
            self._some = np.flatnonzero(slices.lengths)
            self._lookup = slices[self._some].lookup

    def __len__(self) -> int:
        return -(-int(self._lengths.max()) // self._batch_size)

    def __getitem__(self, step: int) -> dict[str, Any]:
        offsets = step * self._batch_size + np.arange(self._batch_size)
        mask = offsets < self._lengths
        offsets = np.minimum(offsets, self._lengths - 1)
        if self._slices is None:
            return {"step": step, "rows": offsets.astype(np.int32), "mask": mask}
        # A head without any row has padding only, of row 0.
        rows = np.zeros(offsets.shape, np.int32)
        rows[self._some] = self._lookup(offsets[self._some])
        return {"step": step, "rows": rows, "mask": mask}


def _shown(dataset: Any) -> str | None:
    """Such as "N=1437: image float32[64], digit int64"; of a source the form of its first row."""
    if dataset is None:
        return None
    rows, of_one = dataset, False
    if not hasattr(dataset, "__array__") and jax.tree_util.all_leaves([dataset]):  # a source
        rows, of_one = dataset[0], True
    named = jax.tree_util.tree_flatten_with_path(rows)[0]
    leaves = [(path, leaf if hasattr(leaf, "dtype") else np.asarray(leaf)) for path, leaf in named]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") or "rows" for path, _ in leaves]
    forms = [f"{leaf.dtype}{list(leaf.shape[1 - of_one :]) or ''}" for _, leaf in leaves]
    columns = ", ".join(map(" ".join, zip(names, forms, strict=True)))
    length = len(dataset) if of_one else len(leaves[0][1])
    return f"N={length}: {columns}" + (f" ({type(dataset).__name__})" if of_one else "")


def check_settings(datamodule: DataModule) -> None:
    """Checks a data module's own attributes."""
    where = type(datamodule).__name__
    for name, value in (("batch_size", datamodule.batch_size), ("eval_batch_size", datamodule.eval_batch_size)):
        optional = name == "eval_batch_size" and value is None
        if not optional and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
            raise ArgumentError(
                f"A batch has no such size: {where}.{name}. Got {value!r}, expected an int of 1 or more. Fix: set "
                f"{name}=32."
            )
    for name, least in (("read_threads", 1), ("read_processes", 0)):
        value = getattr(datamodule, name)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= 1024:
            raise ArgumentError(
                f"Rows cannot be read by so many: {where}.{name}. Got {value!r}, expected an int, {least} to 1024. "
                f"Fix: set {name}={4 * least}."
            )
    for name, allowed in (
        ("small_slices", ("mask", "wrap")),
        ("check_finite", ("warn", "raise", "off")),
        ("residence", ("auto", "device", "host")),
    ):
        if getattr(datamodule, name) not in allowed:
            raise ArgumentError(
                f"No such setting: {where}.{name}. Got {getattr(datamodule, name)!r}, expected one of "
                f"{', '.join(allowed)}. "
                f'Fix: set {name}="{allowed[0]}".'
            )


def check_slices(make: Callable[[], Any], num_rows: int, num_heads: int | None = None) -> Slices:
    """Checks that slices are Slices, count the dataset's rows, and have one entry for each head.

    Args:
      make: the data module's method; it is called twice, since it must give the same slices whenever it is asked.
      num_rows: N.
      num_heads: H, if it is known already.
    """
    slices, name = make(), make.__name__
    if not isinstance(slices, Slices):
        raise SliceError(
            f"Slices have the wrong type: DataModule.{name}. Got {type(slices).__name__}, expected hydrax.Slices. Fix: "
            "build them with a constructor such as Slices.from_indices(lists, num_rows)."
        )
    if slices.num_rows != num_rows:
        raise SliceError(
            f"Slices and dataset differ in rows: DataModule.{name}. Got slices of {slices.num_rows} rows, expected "
            f"{num_rows}, the dataset's length. Fix: pass num_rows={num_rows} when you build the slices."
        )
    if num_heads is not None and slices.num_heads != num_heads:
        raise SliceError(
            f"Slices differ in heads: DataModule.{name}. Got {slices.num_heads} heads, expected {num_heads}, as "
            "slices() has. Fix: give one slice for each head."
        )
    empty = np.flatnonzero(slices.lengths == 0)
    if empty.size:
        raise SliceError(
            f"A slice is empty: DataModule.{name}, head {slices.ids[empty[0]]}. Got 0 rows for {empty.size} heads, "
            "expected 1 or more for each. Fix: leave such heads out: slices[slices.lengths > 0]."
        )
    again = make()
    if again is not slices and again != slices:
        raise SliceError(
            f"Slices change from call to call: DataModule.{name}. Got other rows at the second call, expected the "
            "same. Fix: give the splitter or the generator a seed, or make the slices once in setup()."
        )
    return slices
