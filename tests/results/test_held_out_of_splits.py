"""Rows held out by splits that leave rows out of both parts: each head is tested on the test rows of its own split."""

import numpy as np
import optax
import pytest
from heads_under_test import QUIET
from sklearn.model_selection import KFold, LeavePOut, PredefinedSplit, ShuffleSplit, TimeSeriesSplit

import hydrax as hx
from hydrax import Slices
from hydrax.datamodules import ArrayDataModule

ROWS = 12
X = np.arange(ROWS, dtype=np.float32)
SPLITTERS = {
    "ShuffleSplit": ShuffleSplit(4, test_size=0.25, train_size=0.5, random_state=0),
    "TimeSeriesSplit": TimeSeriesSplit(3, gap=1),
    "KFold": KFold(4, shuffle=True, random_state=0),
    "PredefinedSplit": PredefinedSplit([-1, 0, 1, -1, 0, 1, 1, 0, -1, 2, 2, 2]),
    "LeavePOut": LeavePOut(11),
}


def held(slices):
    """The rows that each head is tested on."""
    outside = slices.held_out()
    return [sorted(outside.rows(head).tolist()) for head in range(len(outside))]


def pairs(splitter):
    return [(train.tolist(), test.tolist()) for train, test in splitter.split(X)]


class Mean(hx.HydraModule):
    """Predicts, for a row, 100 times the id of the head plus the row."""

    def configure_model(self, key):
        return {"w": np.ones(())}

    def configure_optimizers(self):
        return optax.sgd(0.1)

    def training_step(self, model, batch, ctx):
        return (model["w"] - batch) ** 2

    def predict_step(self, model, batch, ctx):
        return 100.0 * ctx.head + batch


@pytest.mark.parametrize("splitter", SPLITTERS.values(), ids=SPLITTERS)
def test_predict_held_out_predicts_the_test_rows_of_each_split(splitter):
    slices = Slices.from_splits(splitter.split(X), ROWS)
    trainer = hx.Trainer(max_steps=1, **QUIET)
    trainer.fit(Mean(), ArrayDataModule(X, slices=slices, batch_size=4))
    found = trainer.predict_held_out()
    # As in a loop over the splits with scikit-learn.
    expected = np.full((len(slices), ROWS), np.nan)
    for head, (_, test) in enumerate(splitter.split(X)):
        expected[head, test] = 100 * head + X[test]
    np.testing.assert_array_equal(found.per_head(), expected)
    tested = ~np.isnan(expected)
    with np.errstate(invalid="ignore"):  # a row of no test set has no mean
        mean = np.where(tested, expected, 0).sum(axis=0) / tested.sum(axis=0)
    np.testing.assert_allclose(found.per_row(), mean, rtol=1e-6)


def test_heads_picked_out_of_a_fit_find_their_own_test_rows():
    splitter = SPLITTERS["ShuffleSplit"]
    data = ArrayDataModule(X, slices=Slices.from_splits(splitter.split(X), ROWS), batch_size=4)
    trainer = hx.Trainer(max_steps=1, **QUIET)
    result = trainer.fit(Mean(), data)
    found = trainer.predict_held_out(heads=result.heads[[3, 1]])
    tests = [test for _, test in pairs(splitter)]
    assert [sorted(found.rows[found.heads == head].tolist()) for head in (0, 1)] == [sorted(tests[3]), sorted(tests[1])]


SHUFFLED = Slices.from_splits(SPLITTERS["ShuffleSplit"].split(X), ROWS)
TESTS = [sorted(test) for _, test in pairs(SPLITTERS["ShuffleSplit"])]
FOLDS = Slices.from_splits(SPLITTERS["KFold"].split(X), ROWS)
FOLDS_LEFT = [sorted(test) for _, test in pairs(SPLITTERS["KFold"])]
PREFIX = Slices.prefix([10, 12], ROWS)
TRAVELS = {
    "some heads": (lambda: SHUFFLED[[2, 0]], [TESTS[2], TESTS[0]]),
    "one head": (lambda: SHUFFLED[3], [TESTS[3]]),
    "other ids": (lambda: SHUFFLED.with_ids([9, 7, 5, 3]), TESTS),
    "a product": (lambda: Slices.product(SHUFFLED, lr=[0.1, 0.2]), [rows for rows in TESTS for _ in range(2)]),
    "joined with others": (lambda: Slices.concatenate([PREFIX, SHUFFLED]), [[10, 11], [], *TESTS]),
    "joined, and picked": (lambda: Slices.concatenate([SHUFFLED, PREFIX])[[4, 1]], [[10, 11], TESTS[1]]),
    "joined folds": (lambda: Slices.concatenate([FOLDS, FOLDS]), FOLDS_LEFT * 2),
    "the other part": (
        lambda: Slices.from_splits(SPLITTERS["ShuffleSplit"].split(X), ROWS, part="test"),
        [sorted(train) for train, _ in pairs(SPLITTERS["ShuffleSplit"])],
    ),
    "splits of both kinds": (
        lambda: Slices.from_splits([([0, 1], [2]), (range(6), range(6, 12)), ([5], [])], ROWS),
        [[2], [6, 7, 8, 9, 10, 11], []],
    ),
    "a complement": (lambda: SHUFFLED.complement(), [sorted(train) for train, _ in pairs(SPLITTERS["ShuffleSplit"])]),
    "other slices": (lambda: Slices.leave_one_out(3), [[0], [1], [2]]),
}


@pytest.mark.parametrize(("slices", "expected"), TRAVELS.values(), ids=TRAVELS)
def test_the_test_rows_of_a_split_stay_with_its_head_through(slices, expected):
    assert held(slices()) == expected


def test_splits_with_other_test_rows_are_other_slices():
    with_test = [Slices.from_splits([([0, 1], test)], 4) for test in ([2], [3], [2, 3], [2])]
    assert [one == with_test[0] for one in with_test] == [True, False, False, True]


def test_the_digest_of_splits_that_cover_the_dataset_is_that_of_their_train_rows():
    assert FOLDS.digest() == Slices.from_mask(FOLDS.mask()).digest()


def test_a_row_in_both_parts_of_a_split_is_refused():
    with pytest.raises(hx.SliceError, match="Train and test rows of a split overlap: head 1. Got row 3"):
        Slices.from_splits([([0, 1], [2]), ([1, 3], [2, 3])], 4)


def test_validation_on_the_test_rows_of_each_split():
    module = type("Scored", (Mean,), {"validation_step": lambda self, m, b, c: self.log("mean", b)})()
    data = ArrayDataModule(X, val=X, slices=SHUFFLED, val_slices=SHUFFLED.held_out(), batch_size=4)
    found = hx.Trainer(max_steps=1, **QUIET).fit(module, data).metrics["mean"]
    np.testing.assert_allclose(found, [np.mean(rows) for rows in TESTS], rtol=1e-6)
