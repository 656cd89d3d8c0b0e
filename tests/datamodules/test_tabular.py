"""TabularDataModule, compared with small tables that can be read by eye, and with statistics by NumPy."""

import re
import sys

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.preprocessing import OneHotEncoder

import hydrax as hx
from hydrax.datamodules import TabularDataModule

FORM = re.compile(r"\S.*: .+\. Got .+, expected .+\. Fix: .+\.", re.DOTALL)
TABLE = """age,site,colour,price
30,3,red,1.5
,1,blue,2
41.5,3,NA,-3
"""


@pytest.fixture
def write(tmp_path):
    def write(content, name="train.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return write


def module(path, **how):
    how = {"slices": lambda train: hx.Slices.full(2, len(train["y"])), "target": "price", **how}
    return TabularDataModule(path, **how)


# ---- columns


def test_a_csv_file_becomes_features_and_target(write):
    data = module(write(TABLE))
    train = data.train_dataset()
    assert data.feature_names == ("age", "site", "colour")
    assert data.categories == {"colour": ("blue", "red")}
    assert train["x"].dtype == train["y"].dtype == np.float32
    np.testing.assert_array_equal(train["x"], [[30, 3, 1], [np.nan, 1, 0], [41.5, 3, np.nan]])
    np.testing.assert_array_equal(train["y"], [1.5, 2, -3])


def test_features_are_the_columns_asked_for_in_that_order(write):
    data = module(write(TABLE), features=["site", "age"])
    np.testing.assert_array_equal(data.train_dataset()["x"], [[3, 30], [1, np.nan], [3, 41.5]])


def test_columns_put_aside_are_no_features_and_make_slices(write):
    data = module(
        write(TABLE),
        aside=["site"],
        slices=lambda train: hx.Slices.from_mask(data.columns["site"] == [[1], [3]]),
    )
    assert data.feature_names == ("age", "colour")
    assert data.slices().mask().tolist() == [[False, True, False], [True, False, True]]


def test_columns_are_as_in_the_file(write):
    columns = module(write(TABLE)).columns
    np.testing.assert_array_equal(columns["age"], [30, np.nan, 41.5])
    assert (columns["site"].dtype, columns["site"].tolist()) == (np.int64, [3, 1, 3])
    assert columns["colour"].tolist() == ["red", "blue", ""]


@pytest.mark.parametrize(
    ("cells", "dtype", "expected"),
    [
        (["1", "0", "7"], np.int32, [1, 0, 7]),
        (["1.0", "0.0", "7.0"], np.int32, [1, 0, 7]),
        (["yes", "no", "yes"], np.int32, [1, 0, 1]),
        (["1", "0.5", "7"], np.float32, [1, 0.5, 7]),
        (["1", "-1e3", "7e-1"], np.float32, [1, -1000, 0.7]),
        (["1", "0", "3e9"], np.float32, [1, 0, 3e9]),
    ],
)
def test_a_target_of_whole_numbers_or_words_is_int32_and_any_other_float32(write, cells, dtype, expected):
    y = module(write("x,price\n" + "".join(f"0,{cell}\n" for cell in cells))).train_dataset()["y"]
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, np.array(expected, dtype))


def test_names_that_look_like_numbers_are_categories_on_request(write):
    data = module(write("code,price\n10,1\n9,2\n10,3\n"), categorical=["code"])
    assert data.categories == {"code": ("10", "9")}
    np.testing.assert_array_equal(data.train_dataset()["x"], [[0], [1], [0]])


def test_words_and_names_may_hold_underscores(write):
    data = module(write("site,code,price\nnorth_1,1_2,1\nsouth_1,3_4,2\n"), categorical=["code"])
    assert data.categories == {"site": ("north_1", "south_1"), "code": ("1_2", "3_4")}


@pytest.mark.parametrize("word", ["", " ", "NA", "N/A", "NaN", "nan", "NULL", "null"])
def test_a_missing_feature_is_nan(write, word):
    x = module(write(f"a,b,price\n1,red,1\n{word},{word},2\n")).train_dataset()["x"]
    np.testing.assert_array_equal(x, [[1, 0], [np.nan, np.nan]])


@pytest.mark.parametrize(
    "text",
    [
        b"a,price\r\n1,2\r\n3,4\r\n",
        b"\xef\xbb\xbfa,price\n1,2\n3,4\n",
        b'"a", "price"\n"1", 2\n\n 3 , 4\n\n',
        b"a,price\n1,2\n3,4",
    ],
    ids=["Windows", "byte order mark", "quotes, spaces, empty lines", "no last line end"],
)
def test_csv_as_programs_write_it_is_read(write, text):
    train = module(write(text)).train_dataset()
    np.testing.assert_array_equal(train["x"], [[1], [3]])
    np.testing.assert_array_equal(train["y"], [2, 4])


def test_cells_may_be_divided_by_another_character(write):
    data = module(write("a;price\n1;2\n"), delimiter=";")
    np.testing.assert_array_equal(data.train_dataset()["x"], [[1]])


# ---- splits

TEN = "a,b,price\n" + "".join(f"{row},{'even' if row % 2 == 0 else 'odd'},{row / 2}\n" for row in range(10))


@pytest.mark.parametrize(("val_rows", "held"), [(3, 3), (0.3, 3), (0.01, 1)])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_each_row_is_either_trained_or_validated_on_and_keeps_its_place(write, val_rows, held, seed):
    data = module(write(TEN), val_rows=val_rows, seed=seed)
    train, val = (dataset["x"][:, 0].tolist() for dataset in (data.train_dataset(), data.val_dataset()))
    assert len(val) == held
    assert sorted(train + val) == list(range(10))
    assert (train, val) == (sorted(train), sorted(val))
    assert data.columns["a"].tolist() == train
    assert data.val_columns["a"].tolist() == val


def test_no_rows_held_out_mean_no_validation(write):
    data = module(write(TEN), val_slices=lambda val: hx.Slices.full(2, len(val["y"])))
    assert (data.val_dataset(), data.val_slices(), data.val_columns) == (None, None, {})


def test_other_files_are_read_with_the_categories_and_the_target_of_the_training_file(write):
    other = "price,b,extra,a\n1,odd,?,12\n"
    data = module(write(TEN), val_path=write(other, "val.csv"), test_path=write(other, "test.csv"))
    for dataset in (data.val_dataset(), data.test_dataset()):
        np.testing.assert_array_equal(dataset["x"], [[12, 1]])
        assert (dataset["y"].dtype, dataset["y"].tolist()) == (np.float32, [1])
    assert data.val_columns["extra"].tolist() == ["?"]
    assert data.predict_dataset() is data.test_dataset()


def test_without_a_test_file_there_is_no_test(write):
    assert module(write(TEN)).test_dataset() is None


# ---- Parquet


@pytest.fixture
def write_parquet(tmp_path):
    def write(columns, name="train.parquet"):
        pq.write_table(pa.table(columns), tmp_path / name)
        return tmp_path / name

    return write


def test_a_parquet_file_becomes_features_and_target(write_parquet):
    data = module(
        write_parquet(
            {
                "whole": [1, None, 3],
                "float": pa.array([1.5, None, 2.5], pa.float32()),
                "yes": [True, False, None],
                "word": ["b", None, "a"],
                "digits": ["1", "02", "1"],
                "kind": pa.array(["u", "v", "u"]).dictionary_encode(),
                "price": [0.5, 1, 2],
            }
        )
    )
    assert data.categories == {"word": ("a", "b"), "digits": ("02", "1"), "kind": ("u", "v")}
    np.testing.assert_array_equal(
        data.train_dataset()["x"],
        [[1, 1.5, 1, 1, 1, 0], [np.nan, np.nan, 0, np.nan, 0, 1], [3, 2.5, np.nan, 0, 1, 0]],
    )
    assert data.columns["digits"].tolist() == ["1", "02", "1"]


def test_csv_and_parquet_of_one_table_give_the_same_rows(write, write_parquet):
    columns = {"age": [30, None, 41.5], "site": [3, 1, 3], "colour": ["red", "blue", None], "price": [1.5, 2, -3]}
    one, two = module(write(TABLE)).train_dataset(), module(write_parquet(columns)).train_dataset()
    np.testing.assert_array_equal(one["x"], two["x"])
    np.testing.assert_array_equal(one["y"], two["y"])


def test_numbers_of_a_parquet_file_are_categories_on_request(write_parquet):
    data = module(write_parquet({"code": [10, 9, None], "price": [1, 2, 3]}), categorical=["code"])
    assert data.categories == {"code": ("10", "9")}
    np.testing.assert_array_equal(data.train_dataset()["x"], [[0], [1], [np.nan]])


def test_without_pyarrow_the_package_is_named(write_parquet, monkeypatch):
    path = write_parquet({"a": [1], "price": [1]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(hx.DataError, match="pip install pyarrow") as raised:
        module(path).setup("fit")
    assert isinstance(raised.value.__cause__, ImportError)


BAD_PARQUET = {
    "no Parquet": (b"a,price\n1,2\n", "expected numbers and words"),
    "empty": (b"", "expected numbers and words"),
    "cut": (slice(0, -5), "expected numbers and words"),
    "no magic number": (slice(4, None), "expected numbers and words"),
}


@pytest.mark.parametrize(("damage", "got"), BAD_PARQUET.values(), ids=BAD_PARQUET)
def test_a_damaged_parquet_file_is_refused_by_name(write_parquet, damage, got):
    path = write_parquet({"a": [1, 2], "price": [1, 2]})
    path.write_bytes(damage if isinstance(damage, bytes) else path.read_bytes()[damage])
    with pytest.raises(hx.DataError, match=FORM) as raised:
        module(path).setup("fit")
    assert got in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("columns", "got"),
    [
        ({"a": [[1, 2]], "price": [1]}, "'a' of list<"),
        ({"a": pa.array([], pa.int64()), "price": pa.array([], pa.int64())}, "Got 2 columns and 0 rows"),
        ({"a": pa.array([None], pa.string()), "price": [1]}, "A column is empty"),
    ],
    ids=["nested", "no rows", "no values"],
)
def test_a_parquet_file_without_numbers_and_words_is_refused(write_parquet, columns, got):
    with pytest.raises(hx.DataError, match=FORM) as raised:
        module(write_parquet(columns)).setup("fit")
    assert got in str(raised.value)


# ---- refused

BAD_TABLES = {
    "empty": ("", {}, "Got 0 columns and 0 rows"),
    "header only": ("a,price\n", {}, "Got 2 columns and 0 rows"),
    "short line": ("a,price\n1,2\n3\n", {}, "line 3. Got 1 cells, expected 2"),
    "long line": ("a,price\n1,2,3\n", {}, "line 2. Got 3 cells, expected 2"),
    "open quote": ('a,price\n1,2\n"3,4\n', {}, "line 3. Got unexpected end of data"),
    "text after a quote": ('a,price\n"1"2,2\n', {}, "line 2. Got"),
    "not UTF-8": (b"a,price\n1,2\n\xff,2\n", {}, "byte 12. Got 0xff"),
    "two of a name": ("a,a,price\n1,2,3\n", {}, "'a'"),
    "column without a name": (",a,price\n0,1,2\n", {}, "one without a name"),
    "no such target": ("a,b\n1,2\n", {}, "Got 'price', expected one of a, b"),
    "no such feature": ("a,price\n1,2\n", {"features": ["b"]}, "Got 'b', expected one of a, price"),
    "no such column aside": ("a,price\n1,2\n", {"aside": ["site"]}, "Got 'site', expected one of a, price"),
    "no such category": ("a,price\n1,2\n", {"categorical": ["c"]}, "Got 'c', expected one of a, price"),
    "no feature": ("site,price\n1,2\n", {"aside": ["site"]}, "A table has no features"),
    "empty column": ("a,b,price\n1,,2\n1,NA,2\n", {}, "A column is empty"),
    "word among numbers": ("a,price\n1,2\n\n3x,4\n", {}, "line 4, column 'a'. Got '3x', expected a number"),
    "word after a quoted line end": ('b,a,price\n"u\nv",1,2\nw,x,4\n', {}, "line 4, column 'a'. Got 'x'"),
    "underscore among numbers": ("a,price\n1,2\n1_000,4\n", {}, "line 3, column 'a'. Got '1_000', expected a number"),
    "underscores in all numbers": ("a,price\n1_000,2\n2_000,4\n", {}, "line 2, column 'a'. Got '1_000', expected"),
    "underscore in a target": ("a,price\n1,2\n3,4_0\n", {}, "line 3, column 'price'. Got '4_0', expected a number"),
    "word among targets": ("a,price\n1,2\n3,free\n", {}, "line 3, column 'price'. Got 'free', expected a number"),
    "missing target": ("a,price\n1,2\n3,\n", {}, "A target is missing"),
    "missing word for a target": ("a,price\n1,yes\n3,no\n4,NA\n", {}, "line 4, column 'price'. Got nan"),
    "infinite target": ("a,price\n1,2\n3,inf\n", {}, "line 3, column 'price'. Got inf"),
    "other delimiter": ("a;price\n1;2\n", {}, "Got 'price', expected one of a;price"),
}


@pytest.mark.parametrize(("content", "how", "got"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_table_that_cannot_be_learnt_from_is_refused_by_name(write, content, how, got):
    path = write(content)
    with pytest.raises(hx.DataError, match=FORM) as raised:
        module(path, **how).setup("fit")
    assert got in str(raised.value)
    assert str(path) in str(raised.value)


BAD_OTHERS = {
    "unknown word": ("a,b,price\n1,odd,2\n1,none,2\n", "line 3, column 'b'. Got 'none', expected one of the 2 words"),
    "word for a number": ("a,b,price\nx,odd,2\n", "line 2, column 'a'. Got 'x', expected a number"),
    "underscore in a number": ("a,b,price\n1_0,odd,2\n", "line 2, column 'a'. Got '1_0', expected a number"),
    "column missing": ("b,price\nodd,2\n", "Got 'a', expected one of b, price"),
    "target missing": ("a,b\n1,odd\n", "Got 'price', expected one of a, b"),
    "target not whole": ("a,b,price\n1,odd,1\n1,odd,2.5\n", "line 3, column 'price'. Got 2.5, expected an int32"),
}


@pytest.mark.parametrize(("content", "got"), BAD_OTHERS.values(), ids=BAD_OTHERS)
@pytest.mark.parametrize(("argument", "stage"), [("val_path", "fit"), ("test_path", "test")])
def test_a_file_that_differs_from_the_training_file_is_refused_by_name(write, argument, stage, content, got):
    path = write(content, "other.csv")
    data = module(write("a,b,price\n1,odd,2\n2,even,3\n"), **{argument: path})
    with pytest.raises(hx.DataError, match=FORM) as raised:
        data.setup(stage)
    assert got in str(raised.value)
    assert str(path) in str(raised.value)


def test_digits_kept_as_words_are_no_numbers_where_training_had_numbers(write_parquet):
    data = module(
        write_parquet({"a": [1, 2], "price": [1, 2]}),
        test_path=write_parquet({"a": ["1", "2"], "price": [1, 2]}, "test.parquet"),
    )
    with pytest.raises(hx.DataError, match="row 0, column 'a'. Got '1', expected a number"):
        data.setup("test")


BAD_ARGUMENTS = {
    "no features": ({"features": []}, "features="),
    "one name for features": ({"features": "age"}, "features="),
    "target among features": ({"features": ["age", "price"]}, "features="),
    "one name aside": ({"aside": "site"}, "aside="),
    "one name of a category": ({"categorical": "site"}, "categorical="),
    "no path": ({"path": None}, "path="),
    "number for a path": ({"path": 5}, "path="),
    "no target": ({"target": None}, "target="),
    "several targets": ({"target": ["age", "site"]}, "target="),
    "a feature twice": ({"features": ["age", "age"]}, "Got ['age', 'age'], expected each name once"),
    "features without an order": ({"features": {"age", "site"}}, "features="),
    "features with their kinds": ({"features": {"age": float}}, "features="),
    "number for features": ({"features": 5}, "features="),
    "numbers for features": ({"features": [0, 1]}, "features="),
    "none aside": ({"aside": None}, "aside="),
    "numbers of categories": ({"categorical": [1]}, "categorical="),
    "number for validation": ({"val_path": 5}, "val_path="),
    "number for a test": ({"test_path": 5}, "test_path="),
    "two kinds of validation": ({"val_path": "val.csv", "val_rows": 0.1}, "val_path="),
    "a word for one_hot": ({"one_hot": "colour"}, "one_hot="),
    "no such treatment": ({"unseen": "drop"}, "unseen="),
    "long delimiter": ({"delimiter": "::"}, "delimiter="),
    "no delimiter": ({"delimiter": None}, "delimiter="),
}


@pytest.mark.parametrize(("how", "got"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_an_argument_out_of_range_is_refused_at_once(how, got):
    with pytest.raises(hx.ArgumentError, match=FORM) as raised:
        module(**{"path": "train.csv", **how})
    assert got in str(raised.value)


@pytest.mark.parametrize("val_rows", [-1, 10, 1.0, True, "5"])
def test_rows_that_cannot_be_held_out_are_refused(write, val_rows):
    with pytest.raises(hx.ArgumentError, match=FORM) as raised:
        module(write(TEN), val_rows=val_rows).setup("fit")
    assert "TabularDataModule(val_rows=)" in str(raised.value)


# ---- tables in memory


def in_memory(kind, path):
    table = pandas.read_csv(path)
    return table if kind == "pandas" else pa.Table.from_pandas(table, preserve_index=False)


@pytest.mark.parametrize("kind", ["pandas", "pyarrow"])
def test_a_table_in_memory_gives_the_rows_that_its_file_gives(write, kind):
    path = write(TABLE)
    files, tables = module(path, test_path=path), module(in_memory(kind, path), test_path=in_memory(kind, path))
    assert (tables.feature_names, tables.categories) == (files.feature_names, files.categories)
    for stage in ("train", "test"):
        for name, column in files.dataset(stage).items():
            assert column.dtype == tables.dataset(stage)[name].dtype
            np.testing.assert_array_equal(column, tables.dataset(stage)[name])


def test_missing_values_of_nullable_columns_are_nan_and_categories_are_words():
    table = pandas.DataFrame(
        {
            "count": pandas.array([1, None, 3], "Int64"),
            "known": pandas.array([True, None, False], "boolean"),
            "kind": pandas.Categorical(["b", None, "a"]),
            "y": [0.5, 1.0, 2.0],
        }
    )
    data = module(table, target="y")
    np.testing.assert_array_equal(data.train_dataset()["x"], [[1, 1, 1], [np.nan, np.nan, np.nan], [3, 0, 0]])
    assert data.categories == {"kind": ("a", "b")}


@pytest.mark.parametrize(
    ("values", "got"),
    [(np.array(["2020-01-01"] * 2, "M8[ns]"), "datetime64[ns]"), ([{"a": 1}, {}], "dict"), ([[1], [2]], "list")],
    ids=["dates", "dicts", "lists"],
)
def test_a_column_of_a_table_that_is_neither_numbers_nor_words_is_refused(values, got):
    with pytest.raises(hx.DataError) as refused:
        module(pandas.DataFrame({"x": values, "price": [1, 2]})).train_dataset()
    assert FORM.fullmatch(str(refused.value))
    assert f"'x': the pandas DataFrame. Got {got}" in str(refused.value)


# ---- ready to train on


def test_categories_become_the_columns_that_scikit_learn_makes(write):
    data = module(write(TABLE), one_hot=True, categorical=["site"])
    encoder = OneHotEncoder(sparse_output=False, handle_unknown="ignore")
    words = np.array([["3", "red"], ["1", "blue"], ["3", "NA"]])
    expected = encoder.fit(words[:2]).transform(words)  # a missing word is 0 in all columns
    np.testing.assert_array_equal(data.train_dataset()["x"][:, 1:], expected)
    assert data.feature_names == ("age", "site=1", "site=3", "colour=blue", "colour=red")


@pytest.mark.parametrize(("one_hot", "expected"), [(True, [7, 0, 0, 0]), (False, [7, np.nan, 0])])
def test_a_word_that_training_did_not_have_may_count_as_missing(write, one_hot, expected):
    train = write("age,colour,size,price\n1,red,9,1\n2,blue,9,2\n")
    test = write("age,colour,size,price\n7,green,0,3\n", "test.csv")
    data = module(train, test_path=test, unseen="missing", one_hot=one_hot)
    np.testing.assert_array_equal(data.test_dataset()["x"], [expected])


def test_a_target_that_training_did_not_have_stays_an_error(write):
    train, test = write("age,kind\n1,a\n2,b\n"), write("age,kind\n1,c\n", "test.csv")
    with pytest.raises(hx.DataError, match="Unknown category|A target is missing"):
        module(train, target="kind", test_path=test, unseen="missing").test_dataset()


TEXTS = [f"the {number}th remark" for number in range(60)]


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        (TEXTS, "A column holds free text"),
        (["2024-01-03", "2024-01-04", ""], "A column holds dates"),
        (["3.1.2024", "14.12.24"], "A column holds dates"),
        (["2024-01-03T12:00:00"], "A column holds dates"),
    ],
)
def test_dates_and_free_text_are_refused_unless_they_are_named(cells, what):
    table = pandas.DataFrame({"age": range(len(cells)), "note": cells, "price": 1.5})
    slices = hx.Slices.full(1, len(cells))
    with pytest.raises(hx.DataError, match=FORM) as raised:
        TabularDataModule(table, target="price", slices=slices).train_dataset()
    assert what in str(raised.value)
    assert 'aside=("note",)' in str(raised.value)
    known = len({cell for cell in cells if cell})
    named = TabularDataModule(table, target="price", slices=slices, categorical=["note"])
    assert len(named.categories["note"]) == known
    assert TabularDataModule(table, target="price", slices=slices, aside=["note"]).feature_names == ("age",)


def test_many_words_that_repeat_are_categories():
    table = pandas.DataFrame({"code": [f"code {row % 60}" for row in range(300)], "price": 1.5})
    data = TabularDataModule(table, target="price", slices=hx.Slices.full(1, 300))
    assert len(data.categories["code"]) == 60


def test_printing_says_what_became_of_each_column(write):
    lines = str(module(write(TABLE), aside=["site"], one_hot=True, standardize=True)).splitlines()
    assert [line.strip() for line in lines[-4:]] == [
        "columns age: feature, number, scaled by each head's rows, 1 missing, replaced by the mean of each head's rows",
        "site: aside",
        "colour: feature, 2 words, 0 or 1 for each, 1 missing",
        "price: target, number",
    ]
