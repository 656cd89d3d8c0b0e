"""TabularDataModule: tables in memory, or in CSV or Parquet files."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from hydrax import DataError, DataModule, PerHead, Slices
from hydrax.arguments import is_choice, is_number, require
from hydrax.data import frame_columns, is_frame

Dataset = dict[str, NDArray[Any]]

_MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null")
_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}.*|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}.*")
_BLOCK = 2**20  # The most rows, over all heads of a block, whose statistics are taken at once: 8 MB for each column.
_MANY_WORDS = 50  # A column with more words than this, most of them once, is text and no category.


class TabularDataModule(DataModule):
    """Reads a table as features `x` and target `y`: a table of pandas, polars or PyArrow, or a file.

    A file is CSV with one header line or, if pyarrow is installed, Parquet.

    A dataset is `{"x": float32[N, D], "y": [N]}`. A column of words is encoded as each word's place in sorted order;
    `categories` lists the words. A target of words or whole numbers is int32, any other is float32. A missing feature
    (an empty cell, NA, N/A, NaN, NULL) is NaN in the dataset. `predict` uses the test rows too. `print(data)` says what
    became of each column. Dates and free text are refused: turn them into numbers first, or put them aside.

    A head must not learn from rows outside its slice, not even their mean, or its score on them would be too good. So
    `impute`, `standardize` and `target_encode` take the statistics of each head's own training rows, and apply them to
    its batches inside the compiled program: when it trains, and to the rows that it is validated and tested on or
    predicts. There is one copy of the table, and the steps of a module see `batch["x"]` ready to use:

        data = TabularDataModule("cars.csv", target="price", slices=folds, one_hot=True, standardize=True)
        trainer.fit(Regressor(), data)  # Regressor knows nothing of missing values

    For a head alone this is scikit-learn's pipeline of `SimpleImputer` and `StandardScaler`, `OneHotEncoder` and
    `TargetEncoder(smooth=...)`, fitted on its rows. The models expect such rows, too: `transformed(dataset, head)`
    returns them for `heads[head](x)`. A word that is not among the rows of a head is 0 in all its columns of `one_hot`,
    and a feature without any value there is 0 for that head.

    >>> import pathlib, tempfile
    >>> from hydrax.datamodules import TabularDataModule
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "cars.csv"
    >>> _ = path.write_text("colour,age,price\\nred,3,9.5\\nblue,,4\\nred,1,12\\n")
    >>> data = TabularDataModule(path, target="price", slices=lambda train: hx.Slices.full(1, len(train["y"])))
    >>> data.train_dataset()["x"]
    array([[ 1.,  3.],
           [ 0., nan],
           [ 1.,  1.]], dtype=float32)
    >>> data.feature_names, data.categories
    (('colour', 'age'), {'colour': ('blue', 'red')})

    Args:
      path: the training file: Parquet if its name ends in .parquet, otherwise CSV in UTF-8; or a table in memory.
      target: the column to predict; none of its cells may be missing.
      slices: which training rows each head learns from, or a function that makes the slices from the training dataset,
        such as `lambda train: Slices.partition_by(data.columns["site"])`. Rows held out for validation are not among
        the training rows; the others keep the order of the file.
      features: the columns of x, in this order, each once; None takes all except the target and `aside`.
      aside: columns that are not features, such as groups.
      categorical: columns that hold names although their cells look like numbers, such as post codes.
      val_rows: how many training rows to hold out for validation (int), or which fraction of them (float); 0: none.
      seed: seed of the choice of the rows held out, 0 <= seed < 2**32; None holds out the last ones.
      val_path: a file or table of validation rows, instead of val_rows.
      test_path: a file or table of test rows.
      one_hot: makes one column of x for each word of a categorical feature, 1 where the row has it, in place of one
        column with the word's place. A missing word is 0 in all of them. `feature_names` has names such as
        "colour=red".
      unseen: what happens to a word that the training file does not have: "error", or "missing" (it counts as an empty
        cell).
      impute: what replaces a missing value: "mean" or "median" of the feature over each head's own training rows. A
        missing word becomes the most frequent one of these rows, unless it is encoded by `one_hot` or `target_encode`.
        With None, a missing value stays NaN, which `check_finite` reports, and the module must deal with it.
      standardize: scales each feature that is not a category to mean 0 and standard deviation 1 over each head's own
        training rows, after missing values were replaced.
      target_encode: categorical features of which each word is replaced by the mean target of the rows that have it,
        among each head's own training rows. Missing words count as one more word. The target must be a number or one of
        two words.
      smoothing: how many rows with the mean target of all rows of the head are added to those of each word.
      delimiter: the character between two cells of a CSV line.
      val_slices: which validation rows each head is validated on, or a function that makes them from the validation
        dataset; None takes all.
      settings: attributes of `DataModule`: batch_size, eval_batch_size, small_slices, check_finite, residence, ...

    Raises:
      ArgumentError: an argument has an invalid value.
      DataError: a file is missing or damaged, or a column or cell cannot be used (raised by `setup`).
    """

    def __init__(
        self,
        path: str | Path | Any,
        *,
        target: str,
        slices: Slices | Callable[[Dataset], Slices],
        features: Sequence[str] | None = None,
        aside: Sequence[str] = (),
        categorical: Sequence[str] = (),
        val_rows: int | float = 0,
        seed: int | None = 0,
        val_path: str | Path | Any | None = None,
        test_path: str | Path | Any | None = None,
        one_hot: bool = False,
        unseen: Literal["error", "missing"] = "error",
        impute: Literal["mean", "median"] | None = "mean",
        standardize: bool = False,
        target_encode: Sequence[str] = (),
        smoothing: float = 10.0,
        delimiter: str = ",",
        val_slices: Slices | Callable[[Dataset], Slices] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(slices=slices, val_slices=val_slices, **settings)
        self._path, self._val_path, self._test_path = map(_absolute, (path, val_path, test_path))
        self._target, self._features, self._aside, self._categorical = target, features, aside, categorical
        self._impute, self._target_encode, self._smoothing = impute, target_encode, smoothing
        self._val_rows, self._seed, self._standardize, self._delimiter = val_rows, seed, standardize, delimiter
        self._one_hot, self._unseen = one_hot, unseen
        # Only sequences count: the order of a set is arbitrary, and that of a dict may not be meant.
        names = list(features) if isinstance(features, Sequence) and _are_names(features) else []
        for name, value, wrong, expected in (
            ("path", path, not _is_table(path), "a str, a Path, or a table of pandas, polars or PyArrow"),
            ("target", target, not isinstance(target, str), "the name of a column"),
            ("features", features, features is not None and not names, "a list of names, or None"),
            ("features", features, len(set(names)) < len(names), "each name once"),
            ("features", features, target in names, f"names without the target {target!r}"),
            ("aside", aside, not _are_names(aside), "a list of names"),
            ("categorical", categorical, not _are_names(categorical), "a list of names"),
            ("val_path", val_path, val_path is not None and not _is_table(val_path), "a path, a table or None"),
            ("test_path", test_path, test_path is not None and not _is_table(test_path), "a path, a table or None"),
            ("val_path", val_path, val_path is not None and val_rows != 0, f"None beside val_rows={val_rows}"),
            ("one_hot", one_hot, not isinstance(one_hot, bool), "True or False"),
            ("unseen", unseen, not is_choice(unseen, ("error", "missing")), '"error" or "missing"'),
            ("impute", impute, not is_choice(impute, ("mean", "median", None)), '"mean", "median" or None'),
            ("standardize", standardize, not isinstance(standardize, bool), "True or False"),
            ("target_encode", target_encode, not _are_names(target_encode), "a list of names"),
            ("smoothing", smoothing, not is_number(smoothing) or not 0 <= smoothing < np.inf, "a number of 0 or more"),
            ("delimiter", delimiter, not isinstance(delimiter, str) or len(delimiter) != 1, "one character"),
        ):
            require(not wrong, f"TabularDataModule({name}=)", value, expected, f"correct {name}")
        self._categorical = [*categorical, *target_encode]
        if impute is not None:
            self.check_finite = "off"  # What is missing is replaced, and `_dataset` refuses infinite values.

    def setup(self, stage: str) -> None:
        """Reads the files of the stage that have not been read yet."""
        if stage in ("fit", "validate"):
            self.train_dataset()
            self.val_dataset()
        else:
            self.test_dataset()

    def train_dataset(self) -> Dataset:
        return self._train

    def val_dataset(self) -> Dataset | None:
        return self._val

    def test_dataset(self) -> Dataset | None:
        return self._test

    def predict_dataset(self) -> Dataset | None:
        return self._test

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Every column of the training rows, [N]: int64 if all are whole, else float64; or words, "" where missing."""
        return self._split[0].arrays()

    @property
    def val_columns(self) -> dict[str, NDArray[Any]]:
        """Every column of the validation rows; empty if there are none."""
        return {} if self._split[1] is None else self._split[1].arrays()

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns of x, D of them."""
        names = [
            [f"{name}={word}" for word in self.categories[name]] if self._kind(name) == "one-hot" else [name]
            for name in self._features_used
        ]
        return tuple(itertools.chain.from_iterable(names))

    @cached_property
    def _sources(self) -> tuple[str, ...]:
        """For each column of x, the column of the table that it is made of."""
        widths = [len(self.categories[name]) if self._kind(name) == "one-hot" else 1 for name in self._features_used]
        return tuple(np.repeat(self._features_used, widths).tolist())

    def batch_transform(self) -> Callable[..., Any] | None:
        if self._impute is None and not self._standardize and not self._target_encode:
            return None
        words = self.categories.get(self._target, ())
        if self._target_encode and len(words) > 2:
            where, fix = f"{self._table.path}, {self._target!r}", "encode it as numbers, or leave target_encode out"
            raise _error(
                "A target has no mean: target_encode", where, f"{len(words)} words", "numbers or two words", fix
            )
        return self._transform

    @cached_property
    def _transform(self) -> Callable[..., Any]:
        """Makes of the columns of x what the arguments say, by the statistics of each head's own rows."""
        train, slices = self.train_dataset(), self.slices()
        kinds = [self._kind(name) for name in self._sources]
        words = [len(self.categories.get(name, ())) for name in self._sources]
        tables = {at: np.empty((len(slices), words[at] + 1)) for at, kind in enumerate(kinds) if kind == "encoded"}
        fill, mean, scale = np.zeros((3, len(slices), len(kinds)))
        scale += 1
        for heads, rows, live in _blocks(slices, max(words) + 1):
            for at, kind in enumerate(kinds):
                values = train["x"][rows, at].astype(np.float64)
                if kind == "number":
                    found = _of_numbers(values, live, self._impute, self._standardize)
                    fill[heads, at], mean[heads, at], scale[heads, at] = found
                elif kind == "encoded":
                    found = _of_targets(values, live, words[at], train["y"][rows], self._smoothing, self._standardize)
                    tables[at][heads], mean[heads, at], scale[heads, at] = found
                elif kind == "place":
                    fill[heads, at] = _counts(values, live, words[at])[:, :-1].argmax(axis=1)
                else:
                    # A word that no row of a head has would keep the random weights that the model began with.
                    scale[heads, at] = (live & (values > 0)).any(axis=1)
        firsts = np.cumsum([0, *(words[at] + 1 for at in tables)]).tolist()
        return functools.partial(
            _transformed,
            encoded=tuple((at, first, words[at]) for at, first in zip(tables, firsts, strict=False)),
            table=PerHead(np.concatenate([*tables.values()], axis=1)) if tables else None,
            fill=None if self._impute is None else PerHead(fill),
            mean=PerHead(mean),
            scale=PerHead(scale),
        )

    @cached_property
    def _features_used(self) -> tuple[str, ...]:
        """The columns of the table that x is made of."""
        known = self._table.columns
        self._table.expect(self._target, *(self._features or ()), *self._aside, *self._categorical)
        names = self._features or [name for name in known if name != self._target and name not in self._aside]
        if not names:
            raise _error(
                "A table has no features", self._table.path, ", ".join(known), "another column than target and aside"
            )
        for name in self._target_encode:
            if name not in names:
                what, expected = "No such feature: target_encode", f"one of the features {', '.join(names)}"
                raise _error(what, self._table.path, repr(name), expected, "name one of them")
        return tuple(names)

    @cached_property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """The sorted words of each categorical column of x and y; a word is encoded as its place."""
        found = {}
        for name in (*self._features_used, self._target):
            column = self._table.columns[name]
            if _is_missing(column).all():
                raise _error("A column is empty", f"{self._table.path}, {name!r}", "no value", "one or more")
            if column.dtype.kind == "U":
                words = sorted(set(column.tolist()) - {""})
                # A typing error in one cell must not silently turn a column of numbers into categories.
                numeric = [_is_number(word.replace("_", "")) for word in words]
                if name not in self._categorical and any(numeric) and not all(map(_is_number, words)):
                    raise self._table.not_a_number(name)
                if name not in self._categorical and name != self._target:
                    self._table.refuse_text(name, words)
                found[name] = tuple(words)
        return found

    # ---- from files to datasets

    @cached_property
    def _table(self) -> _Table:
        return self._read(self._path, self._categorical)

    @cached_property
    def _split(self) -> tuple[_Table, _Table | None]:
        """The rows to train on and the rows to validate on."""
        if self._val_path is not None:
            return self._table, self._read(self._val_path, [*self._categorical, *self.categories])
        held = self.hold_out(len(self._table.lines), self._val_rows, self._seed)
        return self._table.pick(~held), self._table.pick(held) if held.any() else None

    @cached_property
    def _train(self) -> Dataset:
        return self._dataset(self._split[0])

    @cached_property
    def _val(self) -> Dataset | None:
        return None if self._split[1] is None else self._dataset(self._split[1])

    @cached_property
    def _test(self) -> Dataset | None:
        if self._test_path is None:
            return None
        return self._dataset(self._read(self._test_path, [*self._categorical, *self.categories]))

    @cached_property
    def _scales(self) -> list[tuple[float, float]]:
        """Mean and standard deviation of each feature over the training rows; 0 and 1 if it is not scaled.

        Each head scales the scaled rows again by its own. float32 would lose the differences between large numbers.
        """
        scales = []
        for name in self._features_used:
            column = self._split[0].columns[name]
            known = column[:0] if name in self.categories or not self._standardize else column[~np.isnan(column)]
            if not known.size:
                scales.append((0.0, 1.0))
                continue
            with np.errstate(invalid="ignore", over="ignore"):  # infinite values are reported elsewhere
                mean = known.mean()
                scales.append((float(mean), float(_deviation(known.var(), mean, known.size))))
        return scales

    @cached_property
    def _target_dtype(self) -> Any:
        return np.int32 if _are_whole(self._table.numbers(self._target, self.categories)).all() else np.float32

    def _read(self, path: str | Path | Any, words: Sequence[str]) -> _Table:
        if is_frame(path):
            return _read_frame(path, words)
        path = Path(path)
        if not path.is_file():
            raise _error(
                "A file is missing", path, "no such file", "a CSV file with one header line, or a Parquet file"
            )
        return _read_parquet(path, words) if path.suffix == ".parquet" else _read_csv(path, words, self._delimiter)

    def _kind(self, name: str) -> Literal["number", "encoded", "one-hot", "place"]:
        """How a feature is encoded; words that are not told otherwise as their place in sorted order."""
        if name not in self.categories:
            return "number"
        return "encoded" if name in self._target_encode else "one-hot" if self._one_hot else "place"

    def __str__(self) -> str:
        """Describes datasets and slices as every data module does, and what became of each column."""
        return "\n".join([super().__str__(), *self._lines("columns", self._account)])

    def _account(self) -> str:
        hows = {
            "number": "number",
            "place": "by place in sorted order",
            "one-hot": "0 or 1 for each",
            "encoded": "by the mean target of each head's rows",
        }

        def fate(name: str) -> str:
            if name != self._target and name not in self._features_used:
                return "aside"
            if name == self._target:
                words = f"{len(self.categories[name])} words, {hows['place']}" if name in self.categories else "number"
                return f"target, {words}"
            kind, missing = self._kind(name), int(np.count_nonzero(_is_missing(self._table.columns[name])))
            words = "" if kind == "number" else f"{len(self.categories[name])} words, "
            text = f"feature, {words}{hows[kind]}"
            scaled = ", scaled by each head's rows" if self._standardize and kind in ("number", "encoded") else ""
            by = {"number": self._impute, "place": "most frequent"}.get(kind)
            filled = f", replaced by the {by} of each head's rows" if self._impute is not None and by else ""
            return text + scaled + (f", {missing:,} missing{filled}" if missing else "")

        return "\n".join(f"{name}: {fate(name)}" for name in self._table.columns)

    def _dataset(self, table: _Table) -> Dataset:
        table.expect(*self._features_used, self._target)
        numbers = {name: table.numbers(name, self.categories, self._unseen) for name in self._features_used}
        for name, column in numbers.items():
            infinite = np.abs(column) > np.finfo(np.float32).max
            if self._impute is not None and infinite.any():
                at = int(np.argmax(infinite))
                fix = "correct the cell, or pass impute=None and replace it in the module"
                raise _error("A feature is infinite", table.place(name, at), column[at], "a float32 or none", fix)
        columns: list[NDArray[Any]] = []
        for (name, column), (mean, scale) in zip(numbers.items(), self._scales, strict=True):
            if self._kind(name) == "one-hot":
                columns += list(column == np.arange(len(self.categories[name]))[:, None])
            else:
                columns.append((column - mean) / scale)
        x = np.stack(columns, 1)
        y = table.numbers(self._target, self.categories)
        for what, wrong, expected in (
            ("A target is missing", ~np.isfinite(y), "a finite number"),
            ("A target is not an int32", ~_are_whole(y) & (self._target_dtype == np.int32), "an int32, as in training"),
        ):
            if wrong.any():
                at = int(np.argmax(wrong))
                raise _error(what, table.place(self._target, at), y[at], expected, "correct the cell, or drop the row")
        with np.errstate(over="ignore"):  # a number beyond float32 becomes Inf, which check_finite reports
            return {"x": x.astype(np.float32), "y": y.astype(self._target_dtype)}


def _transformed(
    batch: Dataset, *, encoded: Sequence[tuple[int, int, int]], table: Any, fill: Any, mean: Any, scale: Any
) -> dict[str, Any]:
    """Encodes, imputes and scales the columns of x with the values of one head; runs inside the compiled program.

    Args:
      batch: x, float32[B, D], and y.
      encoded: for each column of words to encode its place, where its words begin in `table`, and their number.
      table: what each word becomes, and behind those of a column what a missing one becomes.
      fill: what replaces missing values, [D], or None.
      mean: [D].
      scale: [D].
    """
    given = x = jnp.asarray(batch["x"], mean.dtype)
    if fill is not None:  # first, since `detect_anomaly` would take a NaN that is moved for one that is made
        x = jnp.where(jnp.isnan(given), fill[None], given)
    for at, first, missing in encoded:
        places = jnp.where(jnp.isnan(given[:, at]), missing, given[:, at]).astype(jnp.int32)
        x = x.at[:, at].set(table[first + places])
    return {**batch, "x": (x - mean[None]) * scale[None]}


def _blocks(slices: Slices, num_words: int) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]]:
    """Yields heads in blocks: their places [h], their rows [h, L], and which entries of these count, bool[h, L]."""
    order = np.argsort(-slices.lengths, kind="stable")  # heads of similar lengths lie in one block
    start = 0
    while start < len(order):
        longest = int(slices.lengths[order[start]])
        heads = order[start : start + max(1, _BLOCK // max(longest, num_words))]
        offsets, lengths = np.arange(longest)[None], slices.lengths[heads][:, None]
        yield heads, slices[heads].lookup(np.minimum(offsets, lengths - 1)), offsets < lengths
        start += len(heads)


def _of_numbers(
    values: NDArray[np.float64], live: NDArray[np.bool_], impute: str | None, standardize: bool
) -> tuple[Any, Any, Any]:
    """Returns what replaces a missing number of each head, and mean and scale after that; all 0 if it has no number."""
    known = live & ~np.isnan(values)
    count = known.sum(axis=1)
    some = np.maximum(count, 1)
    fill = mean = np.where(known, values, 0).sum(axis=1) / some
    if impute == "median":
        ordered = np.sort(np.where(known, values, np.inf), axis=1)
        middle = [np.take_along_axis(ordered, at[:, None], axis=1)[:, 0] for at in ((some - 1) // 2, some // 2)]
        fill = np.where(count > 0, (middle[0] + middle[1]) / 2, 0)
    if not standardize:
        return fill, 0, count > 0
    filled = (live.sum(axis=1) - count) * (impute is not None)
    total = np.maximum(count + filled, 1)
    mean = (mean * count + fill * filled) / total
    squares = np.where(known, values - mean[:, None], 0) ** 2
    variance = (squares.sum(axis=1) + filled * (fill - mean) ** 2) / total
    return fill, mean, (count > 0) / _deviation(variance, mean, total)


def _of_targets(
    values: NDArray[np.float64],
    live: NDArray[np.bool_],
    num_words: int,
    targets: NDArray[Any],
    smoothing: float,
    standardize: bool,
) -> tuple[Any, Any, Any]:
    """Returns what each word and a missing one become for each head, [h, words + 1], and the mean and scale of that."""
    counts, sums = (_counts(values, live, num_words, of) for of in (None, targets))
    total = counts.sum(axis=1)
    prior = (sums.sum(axis=1) / total)[:, None]
    weights = counts + smoothing
    table = np.where(weights > 0, (sums + smoothing * prior) / np.where(weights > 0, weights, 1), prior)
    if not standardize:
        return table, 0, 1
    mean = (counts * table).sum(axis=1) / total
    return table, mean, 1 / _deviation((counts * (table - mean[:, None]) ** 2).sum(axis=1) / total, mean, total)


def _counts(
    values: NDArray[np.float64], live: NDArray[np.bool_], num_words: int, weights: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """Counts the rows of each word for each head, or adds up weights of theirs, [h, words + 1]; the last is missing."""
    places = np.where(np.isnan(values), num_words, values).astype(np.int64)
    cells = places + np.arange(len(values))[:, None] * (num_words + 1)
    found = np.bincount(
        cells[live], None if weights is None else weights[live].astype(np.float64), len(values) * (num_words + 1)
    )
    return found.reshape(len(values), num_words + 1).astype(np.float64)


def _deviation(variance: Any, mean: Any, count: Any) -> NDArray[np.float64]:
    """Returns the standard deviation, and 1 for what is constant but for rounding, by scikit-learn's bound."""
    eps = np.finfo(np.float64).eps
    constant = variance <= count * eps * variance + (count * mean * eps) ** 2
    return np.where(constant, 1, np.sqrt(variance))


class _Table(NamedTuple):
    """The columns of one file, float64[N] or words, str[N], and the line or row of the file for each, for messages."""

    path: Path | str
    columns: dict[str, NDArray[Any]]
    lines: NDArray[np.int64]
    unit: str

    def pick(self, rows: NDArray[np.bool_]) -> _Table:
        columns = {name: column[rows] for name, column in self.columns.items()}
        return self._replace(columns=columns, lines=self.lines[rows])

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {
            name: column.astype(np.int64) if column.dtype.kind == "f" and _are_whole(column).all() else column
            for name, column in self.columns.items()
        }

    def place(self, name: str, at: int) -> str:
        return f"{self.path}, {self.unit} {self.lines[at]}, column {name!r}"

    def expect(self, *names: str) -> None:
        for name in names:
            if name not in self.columns:
                known = ", ".join(self.columns)
                raise _error("A column is missing", self.path, repr(name), f"one of {known}", "name one of them")

    def numbers(self, name: str, categories: dict[str, tuple[str, ...]], unseen: str = "error") -> NDArray[np.float64]:
        """Returns a column as float64[N], NaN where missing; words as their places among the categories."""
        column = self.columns[name]
        if name not in categories:
            if column.dtype.kind == "U":
                raise self.not_a_number(name)
            return column
        words = np.array(categories[name])
        places = np.searchsorted(words, column).clip(max=len(words) - 1)
        unknown = (words[places] != column) & ~_is_missing(column)
        if unknown.any() and unseen == "error":
            at = int(np.argmax(unknown))
            expected = f"one of the {len(words)} words of the training file"
            raise _error("Unknown category", self.place(name, at), repr(str(column[at])), expected)
        return np.where(_is_missing(column) | unknown, np.nan, places)

    def refuse_text(self, name: str, words: Sequence[str]) -> None:
        """Refuses a column of dates or free text, whose words in sorted order would mean nothing."""
        known = int(np.count_nonzero(~_is_missing(self.columns[name])))
        are_dates = all(_DATE.fullmatch(word) for word in words)
        if are_dates or (len(words) > _MANY_WORDS and len(words) > known / 2):
            what = "dates" if are_dates else "free text"
            fix = f'turn it into numbers, or pass aside=("{name}",), or categorical=("{name}",) if these are categories'
            got = f"{len(words)} different words in {known} rows, such as {words[0]!r}"
            raise _error(f"A column holds {what}", f"{self.path}, {name!r}", got, "numbers or categories", fix)

    def not_a_number(self, name: str) -> DataError:
        """Makes the error that names the first word of a column that is not a number."""
        column = self.columns[name].tolist()
        at = next((at for at, word in enumerate(column) if word and not _is_number(word)), 0)
        fix = f'correct it, or set categorical=("{name}",)'
        return _error(
            "A cell is not a number", self.place(name, at), repr(column[at]), "a number, as in the other rows", fix
        )


def _are_names(value: Any) -> bool:
    is_list = isinstance(value, Collection) and not isinstance(value, str | bytes)
    return is_list and all(isinstance(name, str) for name in value)


def _error(what: str, where: object, got: object, expected: str, fix: str = "correct the file") -> DataError:
    return DataError(f"{what}: {where}. Got {got}, expected {expected}. Fix: {fix}.")


def _read_csv(path: Path, words: Collection[str], delimiter: str) -> _Table:
    what, rows, lines = "A CSV file is damaged", [], []
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"{error.object[error.start]:#04x} ({error.reason})"
        raise _error(what, f"{path}, byte {error.start}", got, "UTF-8", "save it as UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for row in filter(None, reader):  # an empty line is not a row
            if len(row) != len(header):
                raise _error(
                    what, f"{path}, line {reader.line_num}", f"{len(row)} cells", f"{len(header)}, as in the header"
                )
            rows.append([cell.strip() for cell in row])
            lines.append(reader.line_num)
    except csv.Error as error:
        raise _error(what, f"{path}, line {reader.line_num}", error, "cells with closed quotes") from error
    _check_header(path, header, len(rows))
    columns = {name: _parsed(cells, name in words) for name, *cells in zip(header, *rows, strict=True)}
    return _Table(path, columns, np.array(lines), "line")


def _read_parquet(path: Path, words: Collection[str]) -> _Table:
    try:
        import pyarrow
        from pyarrow import parquet, types
    except ImportError as error:
        fix = "pip install pyarrow, or save the table as CSV"
        raise _error("Missing package", path, "no package pyarrow", "pyarrow for a Parquet file", fix) from error
    what, columns = "A Parquet file is damaged", {}
    try:
        table = parquet.ParquetFile(path).read()
        _check_header(path, table.column_names, table.num_rows)
        for name, column in zip(table.column_names, table.columns, strict=True):
            what = f"A column contains neither numbers nor words, {name!r} of {column.type}"
            numeric = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
            if name not in words and any(is_kind(column.type) for is_kind in numeric):
                columns[name] = column.cast(pyarrow.float64(), safe=False).to_numpy()
            else:
                columns[name] = np.array(column.cast(pyarrow.string()).fill_null("").to_pylist(), str)
    except (pyarrow.ArrowException, OSError) as error:
        raise _error(what, path, error, "numbers and words in whole pages") from error
    return _Table(path, columns, np.arange(table.num_rows), "row")


def _absolute(path: Any) -> Any:
    """Returns a path as an absolute one, so that os.chdir has no effect, and a table as it is."""
    return Path(path).absolute() if isinstance(path, str | os.PathLike) else path


def _is_table(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) or is_frame(value)


def _read_frame(frame: Any, words: Collection[str]) -> _Table:
    where = f"the {type(frame).__module__.partition('.')[0]} {type(frame).__name__}"
    given = frame_columns(frame, where)
    _check_header(where, list(map(str, given)), len(frame))
    columns = {}
    for name, values in given.items():
        cells = ["" if _is_missing_cell(cell) else cell for cell in values.tolist()]
        known = [cell for cell in cells if cell != ""]
        numbers, texts = (all(isinstance(cell, kinds) for cell in known) for kinds in ((int, float), (str, int, float)))
        if values.dtype.kind not in "OUTiufb" or not texts:
            got = type(known[0]).__name__ if values.dtype.kind == "O" else values.dtype
            what = f"A column contains neither numbers nor words, {name!r}"
            raise _error(what, where, got, "numbers or words", "encode it, or leave it out")
        if numbers and str(name) not in words:
            columns[str(name)] = np.array([np.nan if cell == "" else float(cell) for cell in cells])
        else:
            columns[str(name)] = np.array(list(map(str, cells)), str)
    return _Table(where, columns, np.arange(len(frame)), "row")


def _is_missing_cell(cell: Any) -> bool:
    """Whether a cell is None, NaN, or the missing value of pandas, which equals nothing, not even itself."""
    return cell is None or type(cell).__name__ in ("NAType", "NaTType") or bool(cell != cell)


def _check_header(path: Path | str, names: list[str], num_rows: int) -> None:
    twice = [name for name in names if names.count(name) > 1]
    for wrong, got, expected in (
        (not names or num_rows == 0, f"{len(names)} columns and {num_rows} rows", "a header and at least one row"),
        ("" in names, f"{names}, one without a name", "a name for every column (pandas writes none for its index)"),
        (bool(twice), f"{twice[:1]} twice", "a different name for each column"),
    ):
        if wrong:
            raise _error("Invalid header", path, got, expected)


def _parsed(cells: list[str], as_words: bool) -> NDArray[Any]:
    """Returns float64[N] if every cell is a number or missing; otherwise the words, str[N], "" where missing."""
    try:
        if not as_words:
            return np.array([np.nan if cell in _MISSING else _number(cell) for cell in cells])
    except ValueError:
        pass
    return np.array(["" if cell in _MISSING else cell for cell in cells])


def _is_missing(column: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(column == "" if column.dtype.kind == "U" else np.isnan(column), np.bool_)


def _number(word: str) -> float:
    if "_" in word:  # Python accepts underscores in numbers; other programs that read tables do not
        raise ValueError
    return float(word)


def _is_number(word: str) -> bool:
    try:
        _number(word)
    except ValueError:
        return False
    return True


def _are_whole(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    whole: NDArray[np.bool_] = values == np.floor(values)
    return whole & (np.abs(values) < 2**31)
