"""The table of heads: what each was made of and what became of it."""

import csv

import numpy as np

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
