"""Trainer(overfit_batches=): every head meets its own first batches over and over, and nothing else."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

ROWS, BATCH, STEPS = 40, 4, 7
SLICES = hx.Slices.random_subset([24, 13, 3], ROWS, seed=5)  # the last is less than a batch


class Tells(hx.HydraModule):
    """Says which rows it met."""

    def configure_model(self, key):
        return {"w": jnp.zeros(())}

    def configure_optimizers(self):
        return optax.sgd(0.1)

    def training_step(self, model, batch, ctx):
        self.log("met", batch["x"])
        return batch["x"] * 0 + model["w"]

    def validation_step(self, model, batch, ctx):
        self.log("val_met", batch["x"])
        return batch["x"] * 0 + model["w"]


class Met(hx.Callback):
    def __init__(self):
        self.rows, self.val = [], []

    def on_train_steps_end(self, event):
        self.rows += list(event.metrics["met"])

    def on_validation_end(self, event):
        self.val.append(event.metrics["val_met"])


class Indexed(ArrayDataModule):
    """Its index batches are those of `DataModule`, made on the host as a user's own."""

    def index_dataset(self, seed):
        return super().index_dataset(seed)


def data_of(kind=ArrayDataModule):
    x = np.random.default_rng(0).normal(size=ROWS).astype(np.float32)
    return kind({"x": x}, val={"x": np.arange(20, dtype=np.float32)}, slices=SLICES, batch_size=BATCH)


def fit(root, kind=ArrayDataModule, ckpt_path=None, **how):
    met = Met()
    hx.Trainer(
        **{"max_steps": STEPS, "check_val_every_n_epoch": None, "val_check_interval": STEPS} | how,
        callbacks=[met], logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=root,
    ).fit(Tells(), data_of(kind), ckpt_path=ckpt_path)  # fmt: skip
    return np.array(met.rows), met


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    """float[steps, H], what the heads meet without it."""
    return fit(tmp_path_factory.mktemp("free"), enable_checkpointing=False)[0]


@pytest.mark.parametrize("kind", [ArrayDataModule, Indexed])
@pytest.mark.parametrize("batches", [1, 2, 3])
def test_each_heads_first_batches_come_over_and_over(tmp_path, free, kind, batches):
    rows, _ = fit(tmp_path, kind, overfit_batches=batches, enable_checkpointing=False)
    np.testing.assert_array_equal(rows, free[np.arange(STEPS) % batches])


def test_they_do_not_depend_on_the_length_of_a_dispatch(tmp_path, free):
    rows, _ = fit(tmp_path, overfit_batches=3, steps_per_call=2, enable_checkpointing=False)
    np.testing.assert_array_equal(rows, free[np.arange(STEPS) % 3])


def test_a_fraction_counts_the_batches_of_the_longest_slice(tmp_path, free):
    rows, _ = fit(tmp_path, overfit_batches=0.5, enable_checkpointing=False)  # of 24 / 4
    np.testing.assert_array_equal(rows, free[np.arange(STEPS) % 3])


def test_an_epoch_is_that_many_batches_and_so_is_a_validation(tmp_path):
    _, met = fit(
        tmp_path, overfit_batches=2, max_steps=None, max_epochs=3, check_val_every_n_epoch=1, val_check_interval=1.0,
        enable_checkpointing=False,
    )  # fmt: skip
    assert len(met.rows) == 6
    np.testing.assert_array_equal(met.val, np.full((3, 3), np.mean(np.arange(2 * BATCH))))


def test_shared_sampling_freezes_the_batches_that_all_heads_meet(tmp_path):
    wanted, _ = fit(tmp_path, sampling="shared", enable_checkpointing=False)
    rows, _ = fit(tmp_path, sampling="shared", overfit_batches=2, enable_checkpointing=False)
    np.testing.assert_array_equal(rows[:2], wanted[:2])
    # From the second step on, as a head shows its latest value where a batch holds none of its rows.
    np.testing.assert_array_equal(rows[3:], rows[1:-2])


def test_a_resumed_run_goes_on_with_the_same_batches(tmp_path, free):
    fit(tmp_path, overfit_batches=3, max_steps=4)
    rows, _ = fit(tmp_path, overfit_batches=3, ckpt_path="last")
    np.testing.assert_array_equal(rows, free[np.arange(4, STEPS) % 3])


def test_a_checkpoint_of_a_run_without_it_is_refused(tmp_path):
    fit(tmp_path, max_steps=4)
    with pytest.raises(hx.CheckpointError, match="overfit_batches. Got None there, expected 3"):
        fit(tmp_path, overfit_batches=3, ckpt_path="last")
