"""What `Trainer.predict` and `Heads.predict` return: by name, by the user's step, as ensembles, with state."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from heads_under_test import QUIET

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

HEADS, ROWS, WIDTH, CLASSES = 3, 10, 4, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, WIDTH)).astype(np.float32)
Y = RNG.integers(0, CLASSES, ROWS).astype(np.int32)


class Classifier(hx.HydraModule):
    """A linear map, whose inputs are in the column or at the place that `inputs` names."""

    inputs = "x"

    def __init__(self, scale=1.0, classes=CLASSES):
        self.save_hyperparameters()

    def configure_model(self, key):
        return nnx.Linear(WIDTH, self.hparams.classes, rngs=nnx.Rngs(key))

    def configure_optimizers(self):
        return optax.sgd(0.1)

    def training_step(self, model, batch, ctx):
        x = batch if self.inputs is None else batch[self.inputs]
        return (model(x) ** 2).sum(axis=-1)


class Rows(NamedTuple):
    features: np.ndarray
    label: np.ndarray


class Probabilities(Classifier):
    def predict_step(self, model, batch, ctx):
        return {
            "p": nnx.softmax(self.hparams.scale * model(batch["x"])),
            "row": ctx.rows,
            "head": ctx.head + 0 * ctx.rows,
        }


def fitted(module, rows=None, **how):
    rows = {"x": X, "y": Y} if rows is None else rows
    data = ArrayDataModule(rows, predict=rows, slices=hx.Slices.full(HEADS, ROWS), batch_size=4)
    trainer = hx.Trainer(max_steps=1, **QUIET, **how)
    return trainer, trainer.fit(module, data)


def by_hand(heads, x=X):
    """Logits [H, rows, classes], in NumPy."""
    kernel, bias = np.asarray(heads.trainable["kernel"]), np.asarray(heads.trainable["bias"])
    return x @ kernel + bias[:, None]


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


# ---- the default predict_step

FORMS = {
    "a single column": ({"pixels": X}, "pixels"),
    "x": ({"y": Y, "x": X}, "x"),
    "inputs": ({"inputs": X, "label": Y}, "inputs"),
    "image": ({"label": Y, "image": X}, "image"),
    "a pair": ((X, Y), 0),
    "a named tuple": (Rows(X, Y), 0),
    "an array": (X, None),
}


@pytest.mark.parametrize(("rows", "inputs"), FORMS.values(), ids=FORMS)
def test_the_default_predict_step_calls_the_model_on_the_inputs_of(rows, inputs):
    module = type("Named", (Classifier,), {"inputs": inputs})()
    trainer, result = fitted(module, rows)
    np.testing.assert_allclose(trainer.predict(), by_hand(result.heads), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "columns"), [({"u": X, "y": Y}, "u, y"), ({"x": X, "image": X}, "image, x")], ids=["none", "two"]
)
def test_columns_that_do_not_say_which_are_the_inputs_are_named(rows, columns):
    module = type("Named", (Classifier,), {"inputs": next(iter(rows))})()
    trainer, result = fitted(module, rows)
    expected = rf"The inputs of the model are unknown: Named.predict_step. Got columns {columns}, .*define predict_step"
    with pytest.raises(hx.ModuleError, match=expected):
        trainer.predict()
    with pytest.raises(hx.ModuleError, match=expected):
        result.heads.predict(rows)


# ---- heads and Trainer agree


@pytest.fixture(scope="module")
def own():
    return fitted(Probabilities(scale=hx.PerHead([0.5, 1.0, 2.0])))


def test_heads_and_trainer_predict_the_same_with_a_predict_step_of_ones_own(own):
    trainer, result = own
    found, expected = result.heads.predict({"x": X, "y": Y}, batch_size=4), trainer.predict()
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
    scaled = np.array([0.5, 1.0, 2.0])[:, None, None] * by_hand(result.heads)
    np.testing.assert_allclose(found["p"], softmax(scaled), rtol=1e-5)


def test_picked_and_loaded_heads_predict_with_their_own_values(own, tmp_path):
    _, result = own
    rows = {"x": X, "y": Y}
    expected = result.heads.predict(rows)["p"]
    np.testing.assert_allclose(result.heads[[2, 0]].predict(rows)["p"], expected[[2, 0]], rtol=1e-6)
    result.heads.save(tmp_path / "heads")
    module = Probabilities(scale=hx.PerHead([0.5, 1.0, 2.0]))
    np.testing.assert_allclose(hx.Heads.load(tmp_path / "heads", module).predict(rows)["p"], expected, rtol=1e-6)


def test_an_array_is_passed_to_the_model_itself(own):
    heads = own[1].heads
    np.testing.assert_allclose(heads.predict(X, batch_size=3), by_hand(heads), rtol=1e-5, atol=1e-6)


def test_a_predict_step_that_fails_on_the_columns_given_is_named(own):
    with pytest.raises(hx.ModuleError, match="Probabilities.predict_step got pixels .* for one head. Got KeyError"):
        own[1].heads.predict({"pixels": X})


# ---- ensembles


def test_the_mean_over_heads_is_that_of_the_logits():
    trainer, result = fitted(Classifier())
    expected = by_hand(result.heads).mean(axis=0)
    for found in (trainer.predict(reduce="mean"), result.heads.predict(X, reduce="mean")):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_mean_probability_is_the_mean_of_softmax_over_heads():
    trainer, result = fitted(Classifier())
    expected = softmax(by_hand(result.heads)).mean(axis=0)
    for found in (trainer.predict(reduce="mean_probability"), result.heads.predict(X, reduce="mean_probability")):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_mean_probability_of_one_logit_is_the_mean_of_sigmoids():
    trainer, result = fitted(Classifier(classes=1))
    expected = (1 / (1 + np.exp(-by_hand(result.heads)))).mean(axis=0)
    np.testing.assert_allclose(trainer.predict(reduce="mean_probability"), expected, rtol=1e-5)


def test_the_mean_probability_of_probabilities_is_refused(own):
    module = type("Only", (Probabilities,), {"predict_step": lambda self, m, b, c: nnx.softmax(m(b["x"]))})()
    trainer, result = fitted(module)
    for call in (trainer.predict, lambda **how: result.heads.predict({"x": X}, **how)):
        with pytest.raises(hx.ArgumentError, match='already are probabilities.*pass reduce="mean"'):
            call(reduce="mean_probability")
    np.testing.assert_allclose(trainer.predict(reduce="mean"), softmax(by_hand(result.heads)).mean(axis=0), rtol=1e-5)


def test_the_mean_probability_of_classes_is_refused(own):
    with pytest.raises(hx.ArgumentError, match="no logits: .*Got int32, expected a float dtype"):
        own[0].predict(reduce="mean_probability")


# ---- models of several arguments


class Two(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, x, weight, offset=None):
        found = self.linear(x)[:, 0] * weight
        return found if offset is None else found + offset


class Weighted(Classifier):
    def configure_model(self, key):
        return Two(nnx.Rngs(key))

    def training_step(self, model, batch, ctx):
        return model(batch["x"], 1.0) ** 2


def test_heads_predict_with_models_of_several_arguments():
    _, result = fitted(Weighted())
    linear = result.heads.trainable["linear"]
    base = (X @ np.asarray(linear["kernel"]) + np.asarray(linear["bias"])[:, None])[..., 0]
    weight, offset = np.float32(np.arange(ROWS)), np.float32(np.arange(ROWS) * 10)
    np.testing.assert_allclose(result.heads.predict(X, weight, batch_size=4), base * weight, rtol=1e-5, atol=1e-5)
    found = result.heads.predict(X, weight, offset=offset, batch_size=4)
    np.testing.assert_allclose(found, base * weight + offset, rtol=1e-5, atol=1e-5)
    with pytest.raises(hx.DataError, match="predict dataset"):
        result.heads.predict(X, weight[:-1])


# ---- models that change their own state when they are called


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.LSTMCell(WIDTH, 2, rngs=rngs), rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.rnn(x))[:, -1]


class Sequences(Classifier):
    def configure_model(self, key):
        return Recurrent(nnx.Rngs(key))


def test_a_recurrent_model_with_dropout_predicts_as_it_does_when_it_is_called():
    sequences = RNG.normal(size=(ROWS, 5, WIDTH)).astype(np.float32)
    trainer, result = fitted(Sequences(), {"x": sequences})
    expected = np.stack([np.asarray(model(jnp.asarray(sequences))) for model in result.heads])
    np.testing.assert_allclose(trainer.predict(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.heads.predict({"x": sequences}), expected, rtol=1e-5, atol=1e-6)


def test_a_table_is_predicted_by_predict_step():
    pandas = pytest.importorskip("pandas")
    module = type("Sum", (Classifier,), {"predict_step": lambda self, m, b, c: b["a"] + b["b"]})()
    _, result = fitted(module)
    found = result.heads.predict(pandas.DataFrame({"a": [1.0, 2.0], "b": [10.0, 20.0]}))
    np.testing.assert_array_equal(found, [[11, 22]] * HEADS)
