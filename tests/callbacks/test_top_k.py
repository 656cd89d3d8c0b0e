"""ModelCheckpoint(save_top_k=): each head's k best models, against a plain record of all scores and all models."""

import csv

import jax
import numpy as np
import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of

import hydrax as hx
from hydrax.callbacks import ModelCheckpoint

SLICES = hx.Slices.random_subset([40, 17, 9, 3, 1], NUM_ROWS, seed=1)
HEADS, K = len(SLICES), 3


class Records(hx.Callback):
    """All scores and all models of all validations of a fit."""

    def __init__(self):
        self.steps, self.scores, self.models = [], [], []

    def on_validation_end(self, event):
        self.steps.append(event.step)
        self.scores.append(event.metrics["val_loss"])
        self.models.append(jax.tree.map(np.array, event.trainer.heads.trainable))


def fit(root, records, *, steps, ckpt_path=None, mode="min", k=K):
    best = ModelCheckpoint("val_loss", mode, save_top_k=k, every_n_train_steps=10)
    trainer = hx.Trainer(
        max_steps=steps,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        chunk=4,
        callbacks=[records, best],
        default_root_dir=root,
        **QUIET,
    )
    trainer.fit(PlainClassifier(lr=0.5), data_of(SLICES), ckpt_path)  # a rate at which losses go up and down
    return best


@pytest.fixture(scope="module", params=["min", "max"])
def kept(request, tmp_path_factory):
    """A fit in two parts, whose second goes on from the first's checkpoint."""
    root, records, mode = tmp_path_factory.mktemp("kept"), Records(), request.param
    fit(root, records, steps=21, mode=mode)
    best = fit(root, records, steps=45, ckpt_path="last", mode=mode)
    assert records.steps == list(range(3, 46, 3))
    return best, records, (1 if mode == "min" else -1)


def ranked(records, sign):
    """int[K, H]: which validations scored best, by head."""
    return np.argsort(sign * np.stack(records.scores), axis=0, kind="stable")[:K]


def test_each_folder_holds_of_each_head_the_model_that_scored_so(kept):
    best, records, sign = kept
    folders = [best.best_model_path.with_name(name) for name in ("best", "best-2", "best-3")]
    saved = [hx.Heads.load(folder, PlainClassifier()).trainable["kernel"] for folder in folders]
    kernels = np.stack([models["kernel"] for models in records.models])
    np.testing.assert_array_equal(np.stack(saved), kernels[ranked(records, sign), np.arange(HEADS)])


def test_best_scores_and_steps_are_those_of_the_best(kept):
    best, records, sign = kept
    first = ranked(records, sign)[0]
    np.testing.assert_array_equal(best.best_scores, np.stack(records.scores)[first, np.arange(HEADS)])
    np.testing.assert_array_equal(best.best_steps, np.array(records.steps)[first])


def test_heads_csv_has_a_score_and_its_step_for_each_of_the_best(kept):
    best, records, sign = kept
    with best.best_model_path.with_name("heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [[int(row[name]) for row in rows] for name in ("step", "step_2", "step_3")]
    np.testing.assert_array_equal(steps, np.array(records.steps)[ranked(records, sign)])
    scores = [[float(row[name]) for row in rows] for name in ("score", "score_2", "score_3")]
    expected = np.take_along_axis(np.stack(records.scores), ranked(records, sign), axis=0)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_a_resumed_fit_may_keep_more_but_not_fewer(kept):
    state = kept[0].state_dict()
    more, fewer = ModelCheckpoint("val_loss", state["mode"], save_top_k=5), ModelCheckpoint("val_loss", state["mode"])
    more.load_state_dict(state)
    np.testing.assert_array_equal(more.best_scores, kept[0].best_scores)
    assert more.state_dict()["best_steps"].shape == (5, HEADS)
    with pytest.raises(hx.ArgumentError, match=r"save_top_k=\.\.\.\). Got 1, expected at least the 3"):
        fewer.load_state_dict(state)


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_a_count_that_is_none_is_refused(k):
    with pytest.raises(hx.ArgumentError, match="save_top_k"):
        ModelCheckpoint("val_loss", save_top_k=k)
