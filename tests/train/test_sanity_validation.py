"""Trainer(num_sanity_val_steps=): what is wrong with validation shows before the first step; no more comes of it."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hydrax as hx
from hydrax.datamodules import SourceDataModule

BATCH, NUM_VAL = 4, 20


class Source:
    """Rows of one number; notes which it was asked for, and cannot read one of them."""

    def __init__(self, length, broken=None):
        self.length, self.broken, self.asked = length, broken, set()

    def __len__(self):
        return self.length

    def __getitem__(self, row):
        self.asked.add(int(row))
        if row == self.broken:
            raise OSError("a broken sector")
        return {"x": np.float32(row)}


class Mean(hx.HydraModule):
    def configure_model(self, key):
        return {"w": jnp.zeros(())}

    def configure_optimizers(self):
        return optax.sgd(0.1)

    def training_step(self, model, batch, ctx):
        return (batch["x"] - model["w"]) ** 2

    def validation_step(self, model, batch, ctx):
        return (batch["x"] - model["w"]) ** 2


class Heard(hx.Callback):
    """What came, in order; and what of the validation rows had been read when training began."""

    def __init__(self, val):
        self.hooks, self.val, self.before = [], val, None

    def on_train_start(self, event):
        self.before = set(self.val.asked)

    def on_train_steps_end(self, event):
        self.hooks.append(("steps", event.step, {name: rows.tolist() for name, rows in event.metrics.items()}))

    def on_validation_start(self, event):
        self.hooks.append(("validation", event.step))


def fit(root, broken=None, ckpt_path=None, max_steps=2, **how):
    val = Source(NUM_VAL, broken)
    heard = Heard(val)
    data = SourceDataModule(Source(8), val=val, slices=hx.Slices.random_subset([8, 5], 8), batch_size=BATCH)
    trainer = hx.Trainer(
        max_steps=max_steps, check_val_every_n_epoch=None, val_check_interval=2, callbacks=[heard], logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=root, **how,
    )  # fmt: skip
    return heard, lambda: trainer.fit(Mean(), data, ckpt_path=ckpt_path)


@pytest.mark.parametrize("broken", [0, 2 * BATCH - 1])
def test_a_row_that_cannot_be_read_ends_the_fit_before_its_first_step(tmp_path, broken):
    heard, run = fit(tmp_path, broken, enable_checkpointing=False)
    with pytest.raises(hx.DataError, match="a broken sector"):
        run()
    assert (heard.before, heard.hooks) == (None, [])


@pytest.mark.parametrize("how", [{"num_sanity_val_steps": 0}, {"num_sanity_val_steps": 1}], ids=str)
def test_a_row_that_was_not_tried_ends_it_where_validation_is_due(tmp_path, how):
    heard, run = fit(tmp_path, BATCH, enable_checkpointing=False, **how)
    with pytest.raises(hx.DataError, match="a broken sector"):
        run()
    assert [hook[:2] for hook in heard.hooks] == [("steps", 2), ("validation", 2)]


@pytest.mark.parametrize(
    ("how", "batches"),
    [({}, 2), ({"num_sanity_val_steps": 0}, 0), ({"num_sanity_val_steps": 3}, 3), ({"num_sanity_val_steps": -1}, 5),
     ({"num_sanity_val_steps": 9}, 5), ({"fast_dev_run": True}, 0), ({"barebones": True}, 0)],
    ids=str,
)  # fmt: skip
def test_so_many_batches_are_read_before_training_starts(tmp_path, how, batches):
    heard, run = fit(tmp_path, enable_checkpointing=False, **how)
    run()
    # Besides the first row, from which the shapes are known.
    assert heard.before - {0} == set(range(1, batches * BATCH))


def test_it_leaves_no_trace(tmp_path):
    tried, run = fit(tmp_path, enable_checkpointing=False)
    without, run_without = fit(tmp_path, num_sanity_val_steps=0, enable_checkpointing=False)
    results = run(), run_without()
    assert tried.hooks == without.hooks
    np.testing.assert_array_equal(*(result.heads.trainable["w"] for result in results))
    np.testing.assert_array_equal(*(result.metrics["val_loss"] for result in results))


def test_a_resumed_run_tries_none(tmp_path):
    fit(tmp_path)[1]()
    heard, run = fit(tmp_path, ckpt_path="last", max_steps=4)
    run()
    assert heard.before - {0} == set()
