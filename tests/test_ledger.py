"""The table of heads: what each was made of and what became of it."""

import csv
import sys

import numpy as np
import pandas
import pytest

import hydrax as hx
from hydrax.ledger import ledger, write_csv
from hydrax.result import FitResult

HEADS = 3
SLICES = hx.Slices.concatenate(
    [hx.Slices.prefix([2], num_rows=9), hx.Slices.random_subset([4], num_rows=9, seed=7), hx.Slices.window(1, [5], 9)]
).with_ids([10, 11, 12])


class Module(hx.HydraModule):
    def __init__(self, lr, width=3):
        self.save_hyperparameters()


def rows(score=(0.1, 0.25, np.nan), live=(True, False, True), finite=(True, True, False)):
    module = Module(hx.PerHead([1.0, 2.0, 3.0]))
    scores = None if score is None else np.array(score, np.float32)
    return ledger(SLICES, module, score=scores, live=np.array(live), finite=np.array(finite))


def test_a_row_names_head_recipe_seed_length_score_status_and_per_head_values():
    assert rows()[1] == {
        "head": 11,
        "recipe": "random_subset(4)",
        "seed": 7,
        "length": 4,
        "score": 0.25,
        "status": "stopped",
        "lr": 2.0,
    }


def test_the_status_tells_live_stopped_and_broken_heads_apart():
    assert [row["status"] for row in rows()] == ["ok", "stopped", "not finite"]


def test_a_slice_that_depends_on_no_seed_has_none():
    assert [row["seed"] for row in rows()] == [None, 7, None]


def test_a_score_has_the_digits_of_its_float32_and_no_more():
    assert repr(rows()[0]["score"]) == "0.1"


def test_without_scores_the_column_is_empty(tmp_path):
    write_csv(tmp_path / "heads.csv", rows(score=None))
    with (tmp_path / "heads.csv").open() as file:
        assert [row["score"] for row in csv.DictReader(file)] == ["", "", ""]


def test_the_csv_reads_back_as_written_and_leaves_no_draft(tmp_path):
    write_csv(tmp_path / "deep" / "heads.csv", rows())
    with (tmp_path / "deep" / "heads.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {name: "" if value is None else str(value) for name, value in row.items()} for row in rows()
        ]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["heads.csv"]


def test_a_result_writes_its_ledger_with_the_scores_it_is_given(tmp_path):
    result = FitResult(None, {}, np.ones(HEADS, bool), 1, None, rows())
    with result.save_ledger(tmp_path / "heads.csv", scores=[1, 2, 3]).open() as file:
        assert [row["score"] for row in csv.DictReader(file)] == ["1.0", "2.0", "3.0"]


# ---- the axes of a product

CROSSED = hx.Slices.product(hx.Slices.random_subset([4], num_rows=9, seed=7), seed=[3, 5], rate=[0.1, 0.2])


def crossed(slices=CROSSED, module=None):
    all_true = np.ones(len(slices), bool)
    return ledger(slices, module or hx.HydraModule(), score=None, live=all_true, finite=all_true)


def test_a_row_names_the_values_of_its_head_on_every_axis():
    found = [(row["slice"], row["seed"], row["rate"]) for row in crossed()]
    assert found == [(0, 3, 0.1), (0, 3, 0.2), (0, 5, 0.1), (0, 5, 0.2)]


def test_an_axis_of_seeds_is_the_heads_seed_and_that_of_its_slice_stands_apart():
    assert [(row["seed"], row["slice_seed"]) for row in crossed()] == [(3, 7), (3, 7), (5, 7), (5, 7)]
    assert "axis.seed" not in crossed()[0]


def test_without_an_axis_of_seeds_the_seed_is_that_of_the_slice():
    slices = hx.Slices.product(hx.Slices.random_subset([4], num_rows=9, seed=7), rate=[0.1, 0.2])
    assert [row["seed"] for row in crossed(slices)] == [7, 7]
    assert "slice_seed" not in crossed(slices)[0]


@pytest.mark.parametrize("name", ["head", "recipe", "length", "score", "status"])
def test_an_axis_of_the_name_of_a_column_says_that_it_is_an_axis(name):
    row = crossed(hx.Slices.product(hx.Slices.full(1, 9), **{name: ["a", "b"]}))[1]
    assert row[f"axis.{name}"] == "b"
    assert row[name] == {"head": 1, "recipe": "full", "length": 9, "score": None, "status": "ok"}[name]


def test_values_of_an_axis_are_plain_ones():
    assert [type(crossed()[0][name]) for name in ("slice", "seed", "rate")] == [int, int, float]


def test_a_hyper_parameter_made_of_an_axis_stands_once():
    module = Module(hx.PerHead(CROSSED.axes["rate"]))
    assert [row["lr"] for row in crossed(module=module)] == [0.1, 0.2, 0.1, 0.2]


# ---- the tidy table

METRICS = {"val_loss": np.array([0.5, 0.25, np.nan], np.float32), "score": np.zeros(HEADS, np.float32)}
COLUMNS = ["head", "recipe", "seed", "length", "score", "status", "lr", "val_loss"]


def result(rows_=None, metrics=METRICS):
    return FitResult(None, metrics, np.ones(HEADS, bool), 1, None, rows_ or rows())


@pytest.fixture(params=["pandas", "no pandas"])
def table(request, monkeypatch):
    """The table, where pandas is installed and where it is not."""
    hidden = {"pandas": {}, "no pandas": {"pandas": None}}[request.param]
    for name, found in hidden.items():
        monkeypatch.setitem(sys.modules, name, found)
    return result().table()


def test_a_table_has_the_columns_of_the_ledger_and_then_what_was_logged(table):
    assert list(table) == COLUMNS  # a metric called score gives way to the ledger's


def test_a_table_has_one_entry_a_head(table):
    assert np.asarray(table["head"]).tolist() == [10, 11, 12]
    assert np.asarray(table["recipe"]).tolist() == ["prefix(2)", "random_subset(4)", "window(1, 5)"]
    assert np.asarray(table["lr"]).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("column", "expected"),
    [("seed", [np.nan, 7, np.nan]), ("score", [0.1, 0.25, np.nan]), ("val_loss", [0.5, 0.25, np.nan])],
)
def test_what_a_head_does_not_have_is_nan_among_numbers(table, column, expected):
    np.testing.assert_array_equal(np.asarray(table[column]), expected)


def test_a_table_is_a_data_frame_where_pandas_is_installed():
    found = result().table()
    assert isinstance(found, pandas.DataFrame)
    assert found.shape == (HEADS, len(COLUMNS))


def test_a_table_is_a_dict_of_arrays_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    found = result().table()
    assert {type(column) for column in found.values()} == {np.ndarray}
    assert {column.shape for column in found.values()} == {(HEADS,)}


def test_a_table_without_any_score_has_nan_for_it(table):
    assert np.isnan(np.asarray(result(rows(score=None)).table()["score"])).all()


def test_a_table_can_be_grouped_by_an_axis():
    found = FitResult(None, {"loss": np.array([1.0, 2.0, 3.0, 6.0])}, np.ones(4, bool), 1, None, crossed()).table()
    assert found.groupby("rate")["loss"].mean().to_dict() == {0.1: 2.0, 0.2: 4.0}
