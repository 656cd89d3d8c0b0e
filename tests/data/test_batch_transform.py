"""`DataModule.batch_transform`: what each head makes of its batches inside the program."""

import functools
import pickle

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from heads_under_test import QUIET

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

X = np.arange(12, dtype=np.uint8).reshape(6, 2)
Y = np.arange(6, dtype=np.float32)
LISTS = [[0, 1, 2], [3, 4, 5]]
MEANS = np.stack([X[own].mean(0) for own in LISTS])


def centred(batch, mean, scale):
    return {**batch, "x": (batch["x"] - mean[None]) / scale}


def halved(batch):
    return {**batch, "x": batch["x"] / 2}


class Centred(ArrayDataModule):
    transform = functools.partial(centred, scale=2.0, mean=hx.PerHead(MEANS))

    def __init__(self, **how):
        rows = {"x": X, "y": Y}
        slices = hx.Slices.from_indices(LISTS, 6)
        super().__init__(train=rows, val=rows, test=rows, predict=rows, slices=slices, batch_size=4, **how)

    def batch_transform(self):
        return type(self).transform


class Halved(Centred):
    transform = halved


class Sums(hx.HydraModule):
    def __init__(self, weight=1.0):
        self.save_hyperparameters()
        self._transform = None  # an attribute of the user's own

    def configure_model(self, key):
        return {"w": jnp.zeros(())}

    def configure_optimizers(self):
        return optax.sgd(1.0)

    def training_step(self, model, batch, ctx):
        return model["w"] * batch["x"].sum(axis=1) * self.hparams.weight

    def validation_step(self, model, batch, ctx):
        return batch["x"].sum(axis=1)

    test_step = validation_step

    def predict_step(self, model, batch, ctx):
        return batch["x"]


EXPECTED = (X[None] - MEANS[:, None]) / 2


def fit(data, module=None, **how):
    trainer = hx.Trainer(max_steps=1, **QUIET, **how)
    return trainer, trainer.fit(Sums() if module is None else module, data)


@pytest.fixture(scope="module")
def fitted():
    return fit(Centred())


def test_every_step_sees_the_batch_as_its_head_transforms_it(fitted):
    trainer, result = fitted
    own = [EXPECTED[head][rows].sum(axis=1).mean() for head, rows in enumerate(LISTS)]
    np.testing.assert_allclose(result.heads.trainable["w"], -np.array(own), atol=1e-6)
    np.testing.assert_allclose(result.metrics["val_loss"], EXPECTED.sum(axis=2).mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(trainer.test(verbose=False)["test_loss"], EXPECTED.sum(axis=2).mean(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(trainer.predict(), EXPECTED)
    np.testing.assert_array_equal(trainer.predict_held_out().per_head()[0, 3:], EXPECTED[0, 3:])


def test_rows_as_a_head_sees_them():
    seen = Centred().transformed({"x": X, "y": Y}, head=1)
    np.testing.assert_array_equal(seen["x"], EXPECTED[1])
    np.testing.assert_array_equal(ArrayDataModule(train=X, slices=hx.Slices.full(1, 6)).transformed(X, 0), X)


def test_heads_keep_what_transforms_their_batches(fitted):
    columns = {"x": X, "y": Y}
    for heads, places in ((fitted[1].heads, [0, 1]), (fitted[1].heads[[1]], [1])):
        np.testing.assert_array_equal(heads.predict(columns), EXPECTED[places])
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(heads)).predict(columns), EXPECTED[places])


@pytest.mark.parametrize("module", [Sums(hx.PerHead([1.0, 2.0])), Sums(hx.PerHead([2.0]))])
def test_heads_picked_out_of_a_fit_find_their_own_values(fitted, module):
    # The module may be that of all heads, or that of the picked heads alone.
    found = hx.Trainer(**QUIET).predict(module, Centred(), fitted[1].heads[[1]])
    np.testing.assert_array_equal(found, EXPECTED[[1]])


def test_a_function_without_values_of_heads_serves_too(tmp_path):
    trainer, result = fit(Halved())
    np.testing.assert_array_equal(trainer.predict(), np.stack([X / 2] * 2))
    loaded = hx.Heads.load(result.heads.save(tmp_path), Sums())
    with pytest.raises(hx.ArgumentError, match="Rows are not transformed as in training"):
        loaded.predict({"x": X, "y": Y})


def test_rows_are_transformed_before_they_are_rounded():
    class Large(Centred):
        transform = functools.partial(centred, scale=1.0, mean=hx.PerHead(np.full((2, 2), 1000.0)))

        def predict_dataset(self):
            return {"x": np.float32([[1001, 1003]]), "y": Y[:1]}

    trainer, _ = fit(Large(), precision="bf16-mixed")
    np.testing.assert_array_equal(np.float32(trainer.predict()[0]), [[1, 3]])


@pytest.mark.parametrize(
    ("transform", "error", "message"),
    [
        (3, hx.DataError, "A transformation of batches has the wrong type: Wrong.batch_transform. Got int"),
        (lambda batch: batch["z"], hx.DataError, "A transformation of batches failed .*KeyError"),
        (
            functools.partial(centred, mean=hx.PerHead([1.0]), scale=1.0),
            hx.ArgumentError,
            "transform.mean. Got 1",
        ),
    ],
)
def test_a_transformation_that_cannot_be_is_refused_before_anything_compiles(transform, error, message):
    class Wrong(Centred):
        def batch_transform(self):
            return transform

    with pytest.raises(error, match=message):
        fit(Wrong())
