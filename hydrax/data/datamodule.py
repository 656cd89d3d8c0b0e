"""DataModule: the datasets and slices of a run, and the Grain datasets of index batches."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.arguments import check_init_calls, checked_call, is_choice, is_int, naming, no_attribute, require
from hydrax.data.access import is_source
from hydrax.data.columns import check_form
from hydrax.errors import DataError, SliceError
from hydrax.lightning import DATA_ATTRIBUTES
from hydrax.notebook import text_box
from hydrax.slices import Slices, rotation
from hydrax.step import PerHead

if TYPE_CHECKING:
    import grain

_SETTINGS = (
    *("batch_size", "eval_batch_size", "small_slices", "check_finite"),
    *("residence", "read_threads", "read_processes"),
)


class NamedSets(dict[str, Any]):
    """Several datasets for one stage, by name: what `val_dataset` or `test_dataset` may return.

    Each adds its name to those of its metrics: with `NamedSets(clean=..., shifted=...)`, `val_loss` becomes
    `val_loss/clean` and `val_loss/shifted`. The sets may have unequal lengths. All heads see all rows of each.
    """

    @classmethod
    def like(cls, train: Any, given: Any, where: str) -> Any:
        """Returns a dataset as it is, or as `NamedSets` if it is a dict of datasets such as the training rows.

        Args:
          train: the training rows.
          given: the dataset, or a dict of several.
          where: the argument, for errors.

        Raises:
          DataError: it is a list of datasets, which have no names, or a dict without any.
        """
        if isinstance(given, cls) or not isinstance(given, dict | list | tuple) or _form(given) == _form(train):
            return given
        values = list(given.values() if isinstance(given, dict) else given)
        if not values or any(_form(value) != _form(train) for value in values):
            return given
        if isinstance(given, dict):
            return cls(given)
        raise DataError(
            f"Several datasets without names: {where}. Got a {type(given).__name__} of {len(values)}, expected one "
            f'dataset, or a dict of several. Fix: name them, as in {where[:-1]}{{"clean": ..., "shifted": ...}}).'
        )


def _form(dataset: Any) -> str:
    """Describes the structure of a dataset; only its rows tell that of a source."""
    return "source" if is_source(dataset) else str(jax.tree.structure(dataset))


class DataModule:
    """The datasets and slices of a run. Override `train_dataset` and `slices`, and other methods as needed.

    A dataset is a pytree of arrays (dict, tuple, one array) with the same leading length N; a batch has the same
    structure. A table of pandas, polars or PyArrow becomes a dict of its columns.

    Attributes:
      batch_size: slots B in a head's training batch.
      eval_batch_size: rows in a validation, test or predict batch; None takes `batch_size`.
      small_slices: what happens to slices of fewer than B rows: "mask" (each row once, the other slots are padding) or
        "wrap" (rows repeat).
      check_finite: reaction to NaN or Inf in a dataset: "warn", "raise" or "off".
      residence: where the rows lie while heads learn from them: "device" (all of them), "host" (each superstep fetches
        the rows it needs), or "auto" (the device if it has room for all, otherwise the host).
      read_threads: threads that read rows from the host.
      read_processes: processes that read rows of a source; with 0, the threads read them.
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

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        check_init_calls(cls)

    if not TYPE_CHECKING:  # a type checker must go on to report unknown attributes

        def __getattr__(self, name: str) -> None:
            no_attribute(type(self).__name__, name, DATA_ATTRIBUTES)

    @checked_call
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
    ) -> None:
        """Sets the slices and attributes. A subclass that defines methods and class attributes need not call it.

        Args:
          slices: what `slices()` returns, or a function that makes it from the training dataset.
          val_slices: what `val_slices()` returns, or a function that makes it from the validation dataset.
          Others: the attributes above; None keeps the value of the class.

        Raises:
          ArgumentError: there is no such attribute.
        """
        given: dict[str, Any] = dict(locals())  # a signature with every name serves editors better than **settings
        self._given_slices, self._given_val_slices = slices, val_slices
        for name in _SETTINGS:
            if given[name] is not None:
                setattr(self, name, given[name])

    def prepare_data(self) -> None:
        """Downloads and unpacks data if that was not done yet. Called before `setup` of each stage."""

    def setup(self, stage: str) -> None:
        """Prepares a stage: "fit", "validate", "test" or "predict". Called before the stage starts."""

    def teardown(self, stage: str) -> None:
        """Cleans up. Called after a stage has ended, even with an error."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint must save: a dict of NumPy arrays, numbers, bools, strings and None."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned. Called after `setup`, before the datasets and slices are asked for."""

    def train_dataset(self) -> Any:
        """Returns the rows that heads learn from, in columns `[N, ...]`.

        Raises:
          DataError: the data module does not define this method.
        """
        raise DataError(
            f"A dataset is missing: {type(self).__name__}.train_dataset. Got none, expected a pytree of arrays. Fix: "
            "define `def train_dataset(self)` and return the arrays."
        )

    def slices(self) -> Slices:
        """Returns which rows of `train_dataset` each head may learn from; the same at every call.

        Raises:
          DataError: the data module has no slices.
        """
        if self._given_slices is None:
            raise DataError(
                f"The slices are missing: {type(self).__name__}.slices. Got none, expected hydrax.Slices. Fix: define "
                "`def slices(self)`, for example `return Slices.full(num_heads, num_rows)`."
            )
        slices: Slices = self._slices_of(self._given_slices, self.train_dataset)
        return slices

    def val_dataset(self) -> Any | None:
        """Returns the rows that heads are validated on, or None."""
        return None

    def val_slices(self) -> Slices | None:
        """Returns which rows of `val_dataset` each head is validated on; if None, all heads see all rows."""
        slices: Slices | None = self._slices_of(self._given_val_slices, self.val_dataset)
        return slices

    def _slices_of(self, given: Any, dataset: Callable[[], Any]) -> Any:
        """Returns slices as they were given, or what the given function makes of the dataset, if there is one."""
        if not callable(given) or isinstance(given, type):  # `check_slices` refuses a class, as it does a list
            return given
        rows = dataset()
        if rows is None:
            return None
        with naming(f"{type(self).__name__}({'val_' * (dataset == self.val_dataset)}slices=)", SliceError):
            return given(rows)

    def test_dataset(self) -> Any | None:
        """Returns the rows that heads are tested on, or None."""
        return None

    def predict_dataset(self) -> Any | None:
        """Returns the rows that heads predict, or None."""
        return None

    def batch_transform(self) -> Callable[..., Any] | None:
        """Returns a function that transforms the batch of one head before a step receives it, or None.

        Use it for statistics that differ between heads, such as the mean of the rows that a head may learn from: the
        dataset is kept once, and the compiled program transforms each batch. Write the function with `jax.numpy`; it
        applies to `training_step`, `validation_step`, `test_step` and `predict_step`. If it is a `functools.partial`,
        each keyword argument that is a `PerHead` is replaced by the value of the head:

            def batch_transform(self):
                return functools.partial(centre, mean=hx.PerHead([self.rows[own].mean(0) for own in self.lists]))

            def centre(batch, mean):
                return batch - mean

        The models learn from transformed rows, so `heads[k](x)` expects transformed rows too; see `transformed`.
        """
        return None

    def transformed(self, dataset: Any, head: int) -> Any:
        """Transforms rows as the steps of one head receive them, for calls of `heads[head]`; in NumPy arrays.

        Args:
          dataset: columns `[rows, ...]`, such as `test_dataset()`.
          head: its place in `slices()`.
        """
        transform = self.batch_transform()
        if transform is None:
            return dataset
        keywords = getattr(transform, "keywords", {})
        own = {name: jnp.asarray(value[head]) for name, value in keywords.items() if isinstance(value, PerHead)}
        return jax.tree.map(np.asarray, functools.partial(transform, **own)(jax.tree.map(jnp.asarray, dataset)))

    def dataset(self, stage: str) -> Any | None:
        """Returns the dataset of "train", "val", "test" or "predict"."""
        with naming(f"{type(self).__name__}.{stage}_dataset", DataError):
            found = getattr(self, f"{stage}_dataset")()
        return None if found is None else check_form(found, stage)

    def hold_out(self, num_rows: int, val_rows: int | float, seed: int | None = 0) -> np.ndarray:
        """Chooses the rows to hold out for validation, bool[num_rows].

        >>> hx.DataModule().hold_out(5, 2, seed=None)
        array([False, False, False,  True,  True])

        Args:
          num_rows: number of rows.
          val_rows: how many rows to hold out (int), or which fraction of them (float); 0: none.
          seed: seed of a random choice, 0 <= seed < 2**32; None takes the last rows.

        Raises:
          ArgumentError: val_rows is not such a number, or no row would be left for training.
        """
        whole = is_int(val_rows)
        require(
            0 <= val_rows < num_rows if whole else isinstance(val_rows, float) and 0 < val_rows < 1,
            f"{type(self).__name__}(val_rows=)",
            val_rows,
            f"an int from 0 to {num_rows - 1} or a fraction between 0 and 1",
            "set val_rows=0.1 for a tenth of the rows",
        )
        count = int(val_rows) if whole else min(max(1, round(val_rows * num_rows)), num_rows - 1)
        if count == 0 or seed is None:
            return np.arange(num_rows) >= num_rows - count
        return Slices.random_subset(count, num_rows, seed).mask()[0, :]

    def index_dataset(self, seed: int = 0, *, sampling: str = "own", passes: int | None = None) -> grain.MapDataset:
        """Returns the training batches as row numbers, by batch number.

        >>> class Halves(hx.DataModule):
        ...     batch_size = 2
        ...     def train_dataset(self):
        ...         return np.arange(8.0)
        ...     def slices(self):
        ...         return hx.Slices.partition_by(np.arange(8) // 4)  # rows 0 to 3 and rows 4 to 7
        >>> batches = Halves().index_dataset(seed=0)
        >>> np.concatenate([batches[0]["rows"], batches[1]["rows"]], axis=1)  # one pass of each head
        array([[1, 3, 2, 0],
               [7, 5, 4, 6]], dtype=int32)

        Args:
          seed: seed of the rotation; the Trainer passes its own.
          sampling: "own" (each head meets its own rows) or "shared" (all heads meet the same rows).
          passes: number of passes of each head, after which its slots are padding; None sets no limit.

        Returns:
          A MapDataset whose element t is `{"step": t, "rows": int32[H, B], "mask": bool[H, B]}`; with shared sampling
          rows are int32[B]. A head meets each row of its slice once per pass, and which rows it meets does not depend
          on the other heads. With `accumulate_grad_batches`, one optimiser step takes several elements.

        Raises:
          ArgumentError: `sampling` is neither "own" nor "shared".
        """
        where = f"{type(self).__name__}.index_dataset(sampling=)"
        require(is_choice(sampling, ("own", "shared")), where, sampling, "'own' or 'shared'", "omit it for 'own'")
        draw = functools.partial(
            rotation.index_batch,
            self.slices(),
            batch_size=self.batch_size,
            seed=seed,
            small_slices=self.small_slices,
            passes=passes,
            shared=sampling == "shared",
        )
        return _map_dataset(_Rotation(draw))

    def eval_index_dataset(self, stage: str, num_rows: int, *, heads: np.ndarray | None = None) -> grain.MapDataset:
        """Returns the batches of an evaluation as row numbers: every row once, in order.

        Args:
          stage: "val", "test", "predict", or "held_out" (the rows of `train_dataset` in `slices().held_out()`).
          num_rows: length of the dataset.
          heads: int[H], positions of the heads to evaluate; None takes all.

        Returns:
          A MapDataset of `{"step", "rows", "mask"}`; rows and mask are int32[B] and bool[B] if all heads see the same
          rows, otherwise [H, B]. In the first case the last batch may have fewer slots, none of which is padding.

        Raises:
          DataError: the stage is "held_out" and every slice holds every row.
        """
        slices = self.val_slices() if stage == "val" else self.slices() if stage == "held_out" else None
        if slices is not None and heads is not None:
            slices = slices[heads]
        if slices is not None and stage == "held_out":
            slices = slices.held_out()
            if not slices.lengths.any():
                raise DataError(
                    f"No rows are held out: {type(self).__name__}.slices. Got slices that hold all {num_rows} rows "
                    "each, expected some that do not. Fix: use k-fold, bootstrap or window slices, or use predict()."
                )
        return _map_dataset(_InOrder(num_rows, self.eval_batch_size or self.batch_size, slices))

    def __str__(self) -> str:
        """Describes the datasets, the slices and an epoch, and says what is not there before `setup` has run."""
        lines = [type(self).__name__]
        for stage in ("train", "val", "test", "predict"):
            lines += self._lines(stage, functools.partial(lambda stage: _shown(self.dataset(stage)), stage))
        lines += self._lines("heads", lambda: self.slices().describe())
        lines += self._lines("epoch", lambda: f"{-(-int(self.slices().lengths.max()) // self.batch_size)} batches")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return text_box(str(self))

    def _lines(self, name: str, show: Callable[[], str | None]) -> list[str]:
        try:
            text = show()
        except Exception as error:  # before setup() has run, anything may be missing
            cause = error.__cause__ or error  # the user's own error says more than the one that names the method
            text = f"not available ({type(cause).__name__}: {cause!s:.60}); has setup run?"
        return [] if text is None else [f"  {name:<8}" + text.replace("\n", "\n" + " " * 10)]


def _map_dataset(source: Any) -> grain.MapDataset:
    # Imported late: it takes half a second, and a fit whose program draws the index batches does not need it.
    import grain

    return grain.MapDataset.source(source)


class _Rotation:
    """Grain source of training index batches. Access is random, so a resumed run needs only the batch number."""

    def __init__(self, draw: Callable[[int], tuple[Any, Any]]) -> None:
        self._draw = draw

    def __len__(self) -> int:
        return sys.maxsize  # a rotation never ends

    def __getitem__(self, step: int) -> dict[str, Any]:
        rows, mask = self._draw(step)
        return {"step": step, "rows": rows, "mask": mask}


class _InOrder:
    """Grain source of evaluation index batches: rows in order.

    The last batch of rows that all heads share is as long as its rows; where heads have rows of their own, and so last
    batches of unequal length, padding fills it.
    """

    def __init__(self, num_rows: int, batch_size: int, slices: Slices | None) -> None:
        self._lengths = np.asarray(num_rows) if slices is None else np.asarray(slices.lengths)[:, None]
        self._batch_size = max(1, min(batch_size, int(self._lengths.max())))
        self._slices = slices
        if slices is not None:
            self._some = np.flatnonzero(slices.lengths)  # heads with rows: a held-out set may be empty
            self._lookup = slices[self._some].lookup

    def __len__(self) -> int:
        return -(-int(self._lengths.max()) // self._batch_size)

    def __getitem__(self, step: int) -> dict[str, Any]:
        offsets = step * self._batch_size + np.arange(self._batch_size)
        mask = offsets < self._lengths
        offsets = np.minimum(offsets, self._lengths - 1)
        if self._slices is None:
            return {"step": step, "rows": offsets[mask].astype(np.int32), "mask": mask[mask]}
        # A head without rows has only padding, of row 0.
        rows = np.zeros(offsets.shape, np.int32)
        rows[self._some] = self._lookup(offsets[self._some])
        return {"step": step, "rows": rows, "mask": mask}


def _shown(dataset: Any) -> str | None:
    """Describes a dataset, such as "N=1437: image float32[64], digit int64"; a source by its first row."""
    if dataset is None:
        return None
    if isinstance(dataset, NamedSets):
        return "\n".join(f"{name}: {_shown(one)}" for name, one in dataset.items())
    of_source = is_source(dataset)
    named = jax.tree_util.tree_flatten_with_path(dataset[0] if of_source else dataset)[0]
    leaves = [leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for _, leaf in named]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") or "rows" for path, _ in named]
    forms = [f"{leaf.dtype}{list(leaf.shape if of_source else leaf.shape[1:]) or ''}" for leaf in leaves]
    columns = ", ".join(map(" ".join, zip(names, forms, strict=True)))
    length = len(dataset) if of_source else len(leaves[0])
    return f"N={length}: {columns}" + (f" ({type(dataset).__name__})" if of_source else "")


def check_settings(datamodule: DataModule) -> None:
    """Checks the attributes of a data module."""
    kind = type(datamodule).__name__
    for name, least, most, fix in (
        ("batch_size", 1, None, 32),
        ("eval_batch_size", 1, None, 32),
        ("read_threads", 1, 1024, 4),
        ("read_processes", 0, 1024, 0),
    ):
        value = getattr(datamodule, name)
        if name != "eval_batch_size" or value is not None:
            fits = is_int(value, least) and (most is None or value <= most)
            expected = f"an int of {least} or more" if most is None else f"an int from {least} to {most}"
            require(fits, f"{kind}.{name}", value, expected, f"set {name}={fix}")
    for name, allowed in (
        ("small_slices", ("mask", "wrap")),
        ("check_finite", ("warn", "raise", "off")),
        ("residence", ("auto", "device", "host")),
    ):
        value = getattr(datamodule, name)
        require(
            is_choice(value, allowed),
            f"{kind}.{name}",
            value,
            f"one of {', '.join(allowed)}",
            f'set {name}="{allowed[0]}"',
        )


def check_slices(
    slices: Any, make: Callable[[], Any], num_rows: int, num_heads: int | None = None, *, some_empty: bool = False
) -> Slices:
    """Returns the slices of a data module, checked against the dataset and the number of heads.

    Args:
      slices: what the data module's method returned.
      make: the method. It is called once more, because it must return the same slices at every call.
      num_rows: N.
      num_heads: H, if it is already known.
      some_empty: whether heads may have no rows, as long as one has some.
    """
    name = make.__name__
    if not isinstance(slices, Slices):
        got = f"the class {slices.__name__}" if isinstance(slices, type) else type(slices).__name__
        raise SliceError(
            f"Slices have the wrong type: DataModule.{name}. Got {got}, expected hydrax.Slices. Fix: "
            "build them with a constructor such as Slices.from_indices(lists, num_rows)."
        )
    if slices.num_rows != num_rows:
        raise SliceError(
            f"Slices and dataset differ in rows: DataModule.{name}. Got slices of {slices.num_rows} rows, expected "
            f"{num_rows}, the dataset's length. Fix: pass num_rows={num_rows} when you build the slices."
        )
    if num_heads is not None and slices.num_heads != num_heads:
        raise SliceError(
            f"Slices have the wrong number of heads: DataModule.{name}. Got {slices.num_heads} heads, expected "
            f"{num_heads}, as in slices(). Fix: give one slice per head."
        )
    empty = np.flatnonzero(slices.lengths == 0)
    if some_empty and empty.size == len(slices):
        raise SliceError(
            f"No head has rows: DataModule.{name}. Got {empty.size} empty slices, expected one or more with rows. Fix: "
            f"leave {name} out, and all heads see all rows."
        )
    if empty.size and not some_empty:
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
