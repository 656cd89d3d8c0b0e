"""TabularDataModule: tables in memory, or in CSV or Parquet files."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hydrax import DataError, DataModule, PerHead, Slices
from hydrax.arguments import is_choice, require
from hydrax.data import frame_columns, is_frame

Dataset = dict[str, NDArray[Any]]

_MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null")
_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}.*|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}.*")
_MANY_WORDS = 50  # A column with more words than this, most of them once, is text and no category.


class TabularDataModule(DataModule):
    """Reads a table as features `x` and target `y`: a table of pandas, polars or PyArrow, or a file.

    A file is CSV with one header line or, if pyarrow is installed, Parquet.

    A dataset is `{"x": float32[N, D], "y": [N]}`. A column of words is encoded as each word's place in sorted order;
    `categories` lists the words. A target of words or whole numbers is int32, any other is float32. A missing feature
    (an empty cell, NA, N/A, NaN, NULL) becomes NaN, which `check_finite` reports. `predict` uses the test rows too.
    `print(data)` says what became of each column. Dates and free text are refused: turn them into numbers first, or
    put them aside.

    A head must not learn from rows outside its slice, not even their mean, or its score on them would be too good. So
    nothing is imputed or scaled here. `statistics()` returns mean and deviation of each head's own rows for the module:

        mean, deviation = data.statistics()
        module = Regressor(mean=mean, deviation=deviation)

        def features(self, batch):  # of Regressor: a missing value takes the mean of the head's rows
            x = jnp.where(jnp.isnan(batch["x"]), self.hparams.mean, batch["x"])
            return (x - self.hparams.mean) / self.hparams.deviation

    Target encoding is not offered.

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
      standardize: scales each feature that is not a category to mean 0 and standard deviation 1 over the training rows.
        Off by default: the statistics cover all training rows, so a head would learn about rows outside its slice, and
        its score on them (k-fold, leave-one-out) would be too good.
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
        standardize: bool = False,
        delimiter: str = ",",
        val_slices: Slices | Callable[[Dataset], Slices] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(slices=slices, val_slices=val_slices, **settings)
        self._path, self._val_path, self._test_path = map(_absolute, (path, val_path, test_path))
        self._target, self._features, self._aside, self._categorical = target, features, aside, categorical
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
            ("delimiter", delimiter, not isinstance(delimiter, str) or len(delimiter) != 1, "one character"),
        ):
            require(not wrong, f"TabularDataModule({name}=)", value, expected, f"correct {name}")

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
            [f"{name}={word}" for word in self.categories[name]] if self._is_one_hot(name) else [name]
            for name in self._features_used
        ]
        return tuple(itertools.chain.from_iterable(names))

    def statistics(self) -> tuple[PerHead, PerHead]:
        """Returns mean and standard deviation of the columns of x over the training rows of each head.

        Missing values do not count. A categorical feature has mean 0 and deviation 1, as does a column without values;
        a deviation of 0 is returned as 1.

        Returns:
          Two `PerHead`, float32[H, D].
        """
        x, slices = self.train_dataset()["x"].astype(np.float64), self.slices()
        numbers = np.array([name in self._features_used and name not in self.categories for name in self.feature_names])
        mean, deviation = np.zeros((len(slices), x.shape[1])), np.ones((len(slices), x.shape[1]))
        for head in range(len(slices)):
            own = x[slices.rows(head)]
            counts = np.count_nonzero(~np.isnan(own), axis=0)
            center = np.nansum(own, axis=0) / np.maximum(counts, 1)
            spread = np.sqrt(np.nansum((own - center) ** 2, axis=0) / np.maximum(counts, 1))
            mean[head] = np.where(numbers, center, 0)
            deviation[head] = np.where(numbers & (spread > 0), spread, 1)
        return PerHead(mean.astype(np.float32)), PerHead(deviation.astype(np.float32))

    @cached_property
    def _features_used(self) -> tuple[str, ...]:
        """The columns of the table that x is made of."""
        known = self._table.columns
        self._table.expect(self._target, *(self._features or ()), *self._aside, *self._categorical)
        names = self._features or [name for name in known if name != self._target and name not in self._aside]
        if not names:
            raise _error(
                "A table has no features", self._path, ", ".join(known), "another column than target and aside"
            )
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
        """Mean and standard deviation of each feature over the training rows; 0 and 1 if it is not scaled."""
        scales = []
        for name in self._features_used:
            column = self._split[0].columns[name]
            known = column[:0] if name in self.categories or not self._standardize else column[~np.isnan(column)]
            scales.append((float(known.mean()), float(known.std()) or 1.0) if known.size else (0.0, 1.0))
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

    def _is_one_hot(self, name: str) -> bool:
        return self._one_hot and name in self.categories

    def __str__(self) -> str:
        """Describes datasets and slices as every data module does, and what became of each column."""
        return "\n".join([super().__str__(), *self._lines("columns", self._account)])

    def _account(self) -> str:
        def fate(name: str) -> str:
            if name != self._target and name not in self._features_used:
                return "aside"
            role = "target" if name == self._target else "feature"
            missing = int(np.count_nonzero(_is_missing(self._table.columns[name])))
            if name in self.categories:
                how = "0 or 1 for each" if self._is_one_hot(name) and role == "feature" else "by place in sorted order"
                text = f"{role}, {len(self.categories[name])} words, {how}"
            else:
                is_scaled = self._standardize and role == "feature"
                text = f"{role}, number" + (", scaled by all training rows" if is_scaled else "")
            return text + (f", {missing:,} missing" if missing else "")

        return "\n".join(f"{name}: {fate(name)}" for name in self._table.columns)

    def _dataset(self, table: _Table) -> Dataset:
        table.expect(*self._features_used, self._target)
        columns: list[NDArray[Any]] = []
        for name, (mean, scale) in zip(self._features_used, self._scales, strict=True):
            column = table.numbers(name, self.categories, self._unseen)
            if self._is_one_hot(name):
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
