"""hydrax.data.stage: what a stage asks of a data module, how often, and which rows the heads get."""

import collections

import numpy as np
import pytest

import hydrax as hx
from hydrax.data.stage import stage_evaluation, stage_training
from hydrax.datamodules import ArrayDataModule

NUM_ROWS, LENGTHS = 12, [3, 5, 7]
SLICES = hx.Slices.prefix(LENGTHS, num_rows=NUM_ROWS)


class Counting(ArrayDataModule):
    """Counts how often each of its methods is called."""

    def __init__(self, **how):
        rows = {"x": np.arange(NUM_ROWS, dtype=np.float32)}
        super().__init__(rows, val=rows, slices=SLICES, batch_size=4, **how)
        self.calls = collections.Counter()

    def train_dataset(self):
        self.calls["train_dataset"] += 1
        return super().train_dataset()

    def val_dataset(self):
        self.calls["val_dataset"] += 1
        return super().val_dataset()

    def slices(self):
        self.calls["slices"] += 1
        return super().slices()

    def val_slices(self):
        self.calls["val_slices"] += 1
        return super().val_slices()


def test_training_asks_for_the_dataset_once_and_for_slices_twice():
    data = Counting()
    stage_training(data, wide=False)
    assert data.calls == {"train_dataset": 1, "slices": 2}


@pytest.mark.parametrize(
    ("stage", "how", "ids", "calls"),
    [
        ("val", {}, None, {"val_dataset": 1, "val_slices": 2}),
        ("val", {"val_slices": SLICES}, None, {"val_dataset": 1, "val_slices": 3}),
        ("val", {"val_slices": SLICES}, SLICES.ids, {"val_dataset": 1, "val_slices": 3, "slices": 1}),
        ("held_out", {}, SLICES.ids, {"train_dataset": 1, "slices": 3}),
    ],
    ids=["no slices", "slices", "slices of named heads", "held out"],
)
def test_an_evaluation_asks_for_the_dataset_once_and_for_slices_thrice(stage, how, ids, calls):
    """Once for the slices, once to see that they do not change, and once by `eval_index_dataset`."""
    data = Counting(**how)
    stage_evaluation(data, stage, 3, wide=False, ids=ids)
    assert data.calls == calls


@pytest.mark.parametrize("picked", [[0, 1, 2], [2, 0], [1]])
def test_heads_picked_out_of_many_get_their_own_held_out_rows(picked):
    [found] = stage_evaluation(Counting(), "held_out", len(picked), wide=False, ids=SLICES.ids[picked]).values()
    batches = [found.index[number] for number in range(len(found.index))]
    rows = [
        np.concatenate([batch["rows"][head][batch["mask"][head]] for batch in batches]) for head in range(len(picked))
    ]
    assert [sorted(one.tolist()) for one in rows] == [list(range(LENGTHS[head], NUM_ROWS)) for head in picked]


def test_heads_of_another_fit_have_no_held_out_rows():
    with pytest.raises(hx.SliceError, match=r"A head has no slice: Counting\.slices\. Got heads of ids \[7 8 9\]"):
        stage_evaluation(Counting(), "held_out", 3, wide=False, ids=np.array([7, 8, 9]))
