"""The table of heads: what each was made of and what became of it."""

import csv
import sys
import time

import jax.numpy as jnp
import numpy as np
import pandas
import pytest

import hydrax as hx
from hydrax.files import encoded, table_text
from hydrax.results.fit_result import FitResult
from hydrax.results.ledger import ledger, shortest, write_csv

HEADS = 3
SLICES = hx.Slices.concatenate(
    [hx.Slices.prefix([2], num_rows=9), hx.Slices.random_subset([4], num_rows=9, seed=7), hx.Slices.window(1, [5], 9)]
).with_ids([10, 11, 12])


class Module(hx.HydraModule):
    def __init__(self, lr, width=3):
        self.save_hyperparameters()


NONE = np.zeros(HEADS, bool)


def rows(score=(0.1, 0.25, np.nan), live=(True, False, True), finite=(True, True, False), lost=NONE):
    module = Module(hx.PerHead([1.0, 2.0, 3.0]))
    scores = None if score is None else np.array(score, np.float32)
    return ledger(
        SLICES, module, score=scores, live=np.array(live), finite=np.array(finite), lost=lost, reasons={1: "by hand"}
    )


def test_a_row_names_head_recipe_seed_length_score_status_and_per_head_values():
    assert rows()[1] == {
        "head": 11,
        "recipe": "random_subset(4)",
        "seed": 7,
        "length": 4,
        "score": 0.25,
        "status": "stopped",
        "reason": "by hand",
        "lr": 2.0,
    }


def test_the_status_tells_live_stopped_and_broken_heads_apart():
    assert [row["status"] for row in rows()] == ["ok", "stopped", "not finite"]
    assert [row["status"] for row in rows(lost=np.array([True, False, True]))] == [
        "quarantined",
        "stopped",
        "quarantined",
    ]
    assert [row["reason"] for row in rows()] == ["", "by hand", ""]


def test_a_slice_that_depends_on_no_seed_has_none():
    assert [row["seed"] for row in rows()] == [None, 7, None]


def test_a_score_has_the_digits_of_its_float32_and_no_more():
    assert repr(rows()[0]["score"]) == "0.1"


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_shortest_numbers_are_those_of_their_texts(dtype):
    draws = np.random.default_rng(0)
    bits = draws.integers(0, 2**32, 100_000, np.uint32).view(np.float32)
    decimals = [draws.integers(0, 10**6, 20_000) * 10.0 ** draws.integers(-14, 9, 20_000), 10.0 ** np.arange(-40, 39)]
    # Ties between two decimals, such as 1024.03125, and neighbours of powers of two.
    edges = [np.arange(1, 20_001, 2) / 32, 2.0 ** np.arange(-140, 127), [0.0, -0.0, np.nan, np.inf, -np.inf, -0.5]]
    with np.errstate(over="ignore", invalid="ignore"):
        column = np.concatenate([bits, *decimals, *edges, -(2.0 ** np.arange(30)) * (1 + 2**-23)]).astype(dtype)
    expected, found = np.array([float(str(value)) for value in column]), shortest(column)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.copysign(1, found)[found == 0], np.copysign(1, expected)[found == 0])


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


def test_a_ledger_reads_like_the_list_of_its_rows_and_is_kept_in_columns():
    found, listed = rows(score=(1, 2, 3)), list(rows(score=(1, 2, 3)))
    assert (len(found), found[-1], found[1:]) == (HEADS, listed[2], listed[1:])
    assert (found == listed, found == listed[1:]) == (True, False)
    assert (rows() == rows(), rows() == rows(live=NONE)) == (True, False)  # with a score that is NaN
    with pytest.raises(IndexError):
        found[HEADS]
    assert {type(column).__module__.partition(".")[0] for column in found.columns.values()} == {"numpy"}
    np.testing.assert_array_equal(found.columns["length"], [2, 4, 5])


def test_the_csv_of_columns_has_the_bytes_of_that_of_the_rows(tmp_path):
    reasons = {0: "=1+1", 1: 'a, "b"', 2: "line\nbreak \udc80"}
    state = {"live": ~NONE, "finite": ~NONE, "lost": NONE, "reasons": reasons}
    slices = hx.Slices.product(hx.Slices.full(1, num_rows=9), name=["@x", "plain", "ä"])
    module, more = Module(hx.PerHead([[1, 2], [3, 4], [5, 6]])), {"step": np.array([5, 6, 7])}
    found = ledger(slices, module, score=np.float32([1e-5, np.inf, 16777216]), more=more, **state)
    write_csv(tmp_path / "heads.csv", found)
    assert (tmp_path / "heads.csv").read_bytes() == encoded(table_text(list(found)))


def test_recipes_of_a_million_heads_are_one_text_where_they_are_equal():
    recipes = hx.Slices.random_subset([5] * 1_000_000, num_rows=9).recipes()
    assert (recipes[0], len({id(recipe) for recipe in recipes})) == ("random_subset(5)", 1)


# ---- the axes of a product

CROSSED = hx.Slices.product(hx.Slices.random_subset([4], num_rows=9, seed=7), seed=[3, 5], rate=[0.1, 0.2])


def crossed(slices=CROSSED, module=None):
    all_true = np.ones(len(slices), bool)
    return ledger(
        slices, module or hx.HydraModule(), score=None, live=all_true, finite=all_true, lost=~all_true, reasons={}
    )


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


def test_values_of_an_axis_are_plain_ones():
    assert [type(crossed()[0][name]) for name in ("slice", "seed", "rate")] == [int, int, float]


def test_a_hyper_parameter_made_of_an_axis_stands_once():
    slices = hx.Slices.product(hx.Slices.full(1, num_rows=9), lr=[0.1, 0.2])
    row = crossed(slices, Module(hx.PerHead(slices.axes["lr"])))[1]
    assert row["lr"] == 0.2
    assert [name for name in row if "lr" in name] == ["lr"]


def test_an_axis_and_a_hyper_parameter_of_one_name_and_other_values_both_stand():
    slices = hx.Slices.product(hx.Slices.full(1, num_rows=9), lr=[0.1, 0.2])
    row = crossed(slices, Module(hx.PerHead([1.0, 2.0])))[1]
    assert {name: value for name, value in row.items() if "lr" in name} == {"axis.lr": 0.2, "hparams.lr": 2.0}


def test_an_axis_of_text_and_a_hyper_parameter_of_one_name_both_stand():
    slices = hx.Slices.product(hx.Slices.full(1, num_rows=9), lr=["low", "high"])
    row = crossed(slices, Module(hx.PerHead([1.0, 2.0])))[1]
    assert (row["axis.lr"], row["hparams.lr"]) == ("high", 2.0)


def test_an_axis_that_has_nan_among_its_values_keeps_its_name():
    assert crossed(hx.Slices.product(hx.Slices.full(1, num_rows=9), clip=[0.5, np.nan]))[0]["clip"] == 0.5


def test_per_head_attributes_hide_neither_columns_nor_hyper_parameters():
    module = Module(hx.PerHead([1.0, 2.0, 3.0]))
    module.lr, module.score = hx.PerHead([4.0, 5.0, 6.0]), hx.PerHead([7.0, 8.0, 9.0])
    live = np.ones(HEADS, bool)
    row = ledger(SLICES, module, score=np.zeros(HEADS, np.float32), live=live, finite=live, lost=~live, reasons={})[1]
    named = {"hparams.lr": 2.0, "module.lr": 5.0, "module.score": 8.0, "score": 0.0}
    assert {name: value for name, value in row.items() if "lr" in name or "score" in name} == named


def test_four_times_the_heads_take_about_four_times_as_long():
    def seconds(num_heads):
        slices = hx.Slices.product(hx.Slices.random_subset([4] * (num_heads // 2), num_rows=9), rate=[0.1, 0.2])
        began = time.process_time()
        crossed(slices)
        return time.process_time() - began

    small, large = (min(seconds(num_heads) for _ in range(3)) for num_heads in (4_000, 16_000))
    assert large < 8 * small  # Were it quadratic, 16.


# ---- the tidy table

METRICS = {"val_loss": np.array([0.5, 0.25, np.nan], np.float32), "score": np.zeros(HEADS, np.float32)}
COLUMNS = ["head", "recipe", "seed", "length", "score", "status", "reason", "lr", "val_loss"]


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


def test_without_a_slice_that_was_drawn_at_random_a_table_has_no_column_of_seeds():
    slices = hx.Slices.full(2, num_rows=9)
    state = {"live": np.ones(2, bool), "finite": np.ones(2, bool), "lost": np.zeros(2, bool), "reasons": {}}
    found = FitResult(None, {}, np.ones(2, bool), 1, None, ledger(slices, hx.HydraModule(), score=None, **state))
    assert "seed" not in found.table()
