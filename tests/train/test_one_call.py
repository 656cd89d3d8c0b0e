"""The one-call form: model k of `start_slice` "a_b" learns from rows a to a + k - 1, by the loss the caller brings.

The reference is a loop for one model in NumPy, float64, that shares nothing with Hydrax or JAX: a linear model, the
loss by its formula, gradients by central differences, AdamW by hand.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hydrax as hx
from hydrax import get_trained_models, unbatch_model
from hydrax.loss import loss
from hydrax.nn import MLP
from hydrax.nn.nonlinear import NonLinearModel

NUM_ROWS, NUM_FEATURES, NUM_CLASSES, LR = 12, 4, 3, 0.01
RNG = np.random.default_rng(0)
X = RNG.normal(size=(NUM_ROWS, NUM_FEATURES)).astype(np.float32)
Y = RNG.integers(0, NUM_CLASSES, NUM_ROWS)

Weights = dict[str, np.ndarray]


class Linear(nnx.Module):
    """Logits x W + b."""

    def __init__(self, key: jax.Array) -> None:
        self.layer = nnx.Linear(NUM_FEATURES, NUM_CLASSES, rngs=nnx.Rngs(key))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(x)


def equinox_mlp(key: jax.Array) -> eqx.nn.MLP:
    return eqx.nn.MLP(NUM_FEATURES, NUM_CLASSES, width_size=5, depth=1, key=key)


def brier(model: Callable[[jax.Array], jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    return ((jax.nn.softmax(jax.vmap(model)(x)) - jax.nn.one_hot(y, NUM_CLASSES)) ** 2).sum(-1).mean()


def train(x: np.ndarray = X, y: np.ndarray = Y, **changed: Any) -> hx.Heads:
    arguments = {"num_models": 5, "model_type": Linear, "start_slice": "0_12", "steps": 30, "learning_rate": LR}
    return get_trained_models(x, y, **(arguments | changed))


@functools.cache
def trained(**changed: Any) -> hx.Heads:
    """The same on the rows as they are, once for all tests that need it."""
    return train(**changed)


def arrays(tree: Any) -> list[np.ndarray]:
    """Its leaves without the activation functions, which an Equinox module has among them."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


def kept(before: hx.Heads, after: hx.Heads) -> list[bool]:
    """For each head, whether every bit of it is the same in both."""
    equal = [(a == b).reshape(len(a), -1).all(axis=1) for a, b in zip(arrays(before), arrays(after), strict=True)]
    return np.logical_and.reduce(equal).tolist()


def weights_of(model: Linear) -> Weights:
    return {"kernel": np.asarray(model.layer.kernel[...]), "bias": np.asarray(model.layer.bias[...])}


# ---- the reference ----------------------------------------------------------------------------------------------


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def cross_entropy_by_hand(weights: Weights, x: np.ndarray, y: np.ndarray) -> float:
    return -np.log(softmax(x @ weights["kernel"] + weights["bias"])[np.arange(len(y)), y]).mean()


def brier_by_hand(weights: Weights, x: np.ndarray, y: np.ndarray) -> float:
    return ((softmax(x @ weights["kernel"] + weights["bias"]) - np.eye(NUM_CLASSES)[y]) ** 2).sum(axis=1).mean()


def slope(function: Callable[[Weights], float], weights: Weights, name: str, place: tuple[int, ...]) -> float:
    shift = np.zeros_like(weights[name])
    shift[place] = 1e-5
    above, below = ({**weights, name: weights[name] + sign * shift} for sign in (1, -1))
    return (function(above) - function(below)) / 2e-5


def adamw_by_hand(weights: Weights, function: Callable[[Weights], float], steps: int) -> Weights:
    """AdamW (Loshchilov and Hutter, 2019) with optax's defaults: betas 0.9 and 0.999, eps 1e-8, decay 1e-4."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    for t in range(1, steps + 1):
        gradients = {
            name: np.array([slope(function, weights, name, at) for at in np.ndindex(value.shape)]).reshape(value.shape)
            for name, value in weights.items()
        }
        for name, gradient in gradients.items():
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            step = first[name] / (1 - 0.9**t) / (np.sqrt(second[name] / (1 - 0.999**t)) + 1e-8)
            weights[name] = weights[name] - LR * (step + 1e-4 * weights[name])
    return weights


# ---- which rows a model learns from, and how --------------------------------------------------------------------


@pytest.fixture(scope="module", params=[0, 3])
def start(request) -> int:
    return request.param


@pytest.fixture(scope="module", params=[(loss, cross_entropy_by_hand), (brier, brier_by_hand)], ids=["loss", "brier"])
def fit(request, start) -> tuple[hx.Heads, hx.Heads, Callable[[Weights, np.ndarray, np.ndarray], float]]:
    """Models as they are trained, the same as they begun, and the loss by hand."""
    ours, by_hand = request.param
    # AdamW's step and its decay both scale with the learning rate: 0 leaves the start as it is.
    begun = trained(start_slice=f"{start}_12", learning_rate=0.0, steps=1)
    return trained(start_slice=f"{start}_12", loss=ours), begun, by_hand


@pytest.mark.parametrize("k", [1, 2, 5])
def test_model_k_is_what_a_loop_on_rows_a_to_a_plus_k_minus_1_gives(fit, start, k):
    ended, begun, by_hand = fit
    x, y = X[start : start + k].astype(np.float64), Y[start : start + k]
    expected = adamw_by_hand(weights_of(begun[k - 1]), lambda weights: by_hand(weights, x, y), steps=30)
    found = weights_of(ended[k - 1])
    # atol: optax computes 1 - 0.999**t in float32, which makes a step up to 2.4e-5 too short; 30 of them move by 0.3.
    np.testing.assert_allclose(found["kernel"], expected["kernel"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["bias"], expected["bias"], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def plain(start) -> hx.Heads:
    return trained(start_slice=f"{start}_12")


@pytest.mark.parametrize("row", range(5))
def test_a_row_changes_no_bit_of_the_models_without_it_and_every_model_with_it(plain, start, row):
    x = X.copy()
    x[start + row] += 1
    # Models 1 .. row see rows up to a + row - 1; model row + 1 is the first to see row a + row.
    assert kept(plain, train(x, start_slice=f"{start}_12")) == [True] * row + [False] * (5 - row)


@pytest.mark.parametrize("row", [0, 2, 8, 11])
def test_rows_outside_the_slice_change_nothing(row):
    x, y = X.copy(), Y.copy()
    x[row], y[row] = 100, (y[row] + 1) % NUM_CLASSES
    assert kept(trained(start_slice="3_8"), train(x, y, start_slice="3_8")) == [True] * 5


def test_labels_outside_the_slice_may_be_of_no_class():
    y = Y.copy()
    y[[0, 11]] = -1, 99
    assert kept(trained(start_slice="3_8"), train(X, y, start_slice="3_8")) == [True] * 5


def test_a_model_is_the_same_whatever_the_number_of_models():
    assert kept(train(num_models=9)[:5], trained()) == [True] * 5


def test_models_of_one_seed_are_equal_and_those_of_another_differ():
    assert kept(trained(seed=1), train(seed=1)) == [True] * 5
    assert kept(trained(seed=1), train(seed=2)) == [False] * 5


def test_models_of_more_rows_than_a_batch_learn_from_all_of_them():
    x = X.copy()
    x[11] += 1
    arguments = {"num_models": 12, "batch_size": 5, "steps": 12}
    # Model 12 meets its 12 rows in 3 steps, model 11 never meets row 11.
    assert kept(train(**arguments), train(x, **arguments)) == [True] * 11 + [False]


# ---- the forms in which it is used ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (784, 28, 28)).astype(np.uint8), rng.integers(0, 2, 784)


def test_784_models_are_trained_saved_and_read_back_as_the_origin_does_it(images, tmp_path):
    x_train, y_train = images
    filename = tmp_path / "models.eqx"
    models = get_trained_models(
        x_train,
        y_train,
        num_models=784,
        model_type=NonLinearModel,
        verbose=False,
        start_slice="0_784",
        loss=loss,
        steps=1,
    )
    eqx.tree_serialise_leaves(filename, models)
    back = eqx.tree_deserialise_leaves(filename, jax.tree.map(jnp.zeros_like, models))
    assert len(models) == 784
    assert {leaf.shape[0] for leaf in arrays(models)} == {784}
    assert kept(models, back) == [True] * 784


@pytest.mark.parametrize("i", [0, 3, -1])
@pytest.mark.parametrize("model_type", [Linear, equinox_mlp])
def test_unbatch_model_gives_every_array_of_model_i(model_type, i):
    models = trained(model_type=model_type)
    for one, all_of_them in zip(arrays(unbatch_model(models, i)), arrays(models), strict=True):
        np.testing.assert_array_equal(one, all_of_them[i])


def test_the_nonlinear_model_is_one_linear_map_without_bias_and_relu(images):
    x_train, y_train = images
    model = unbatch_model(get_trained_models(x_train / 255, y_train, 4, NonLinearModel, start_slice="0_8", steps=3), 2)
    (kernel,) = arrays(model)
    assert kernel.shape == (784, 2)
    expected = np.maximum(x_train[:6].reshape(6, 784) / 255 @ kernel, 0)
    np.testing.assert_allclose(model(jnp.asarray(x_train[:6] / 255)), expected, rtol=1e-4, atol=1e-5)


def test_an_unbatched_mlp_computes_with_all_of_its_layers(images):
    x_train, y_train = images
    how = {"model_type": MLP([784, 128, 64, 2]), "start_slice": "0_8", "steps": 3}
    first, second, last = unbatch_model(get_trained_models(x_train / 255, y_train, 4, **how), 2).layers
    hidden = x_train[:6].reshape(6, 784) / 255
    for layer in (first, second):
        hidden = np.maximum(hidden @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...]), 0)
    expected = hidden @ np.asarray(last.kernel[...]) + np.asarray(last.bias[...])
    model = unbatch_model(get_trained_models(x_train / 255, y_train, 4, **how), 2)
    np.testing.assert_allclose(model(jnp.asarray(x_train[:6] / 255)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", [Linear, equinox_mlp])
def test_a_model_type_of_any_library_learns_its_rows(model_type):
    models = train(model_type=model_type, steps=300)
    np.testing.assert_array_equal(jax.vmap(unbatch_model(models, 4))(X[:5]).argmax(axis=-1), Y[:5])


def test_verbose_shows_progress_to_the_end(capfd):
    train(verbose=True)
    assert "30/30" in capfd.readouterr().err


def test_without_verbose_nothing_is_shown_or_written(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(verbose=False)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


# ---- the loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7])
def test_loss_is_the_mean_of_log_sum_exp_minus_the_label_s_logit(rows):
    model = unbatch_model(trained(), 0)
    logits = X[:rows] @ np.asarray(model.layer.kernel[...], np.float64) + np.asarray(model.layer.bias[...])
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(rows), Y[:rows]])
    np.testing.assert_allclose(loss(model, X[:rows], Y[:rows]), expected, rtol=1e-6)


def test_loss_of_certain_and_wrong_logits_is_their_difference():
    # z = (1000, 0), label 1: log(e^1000 + 1) - 0 = 1000, which overflows if it is computed as written.
    assert loss(lambda x: x, jnp.array([[1000.0, 0.0]]), jnp.array([1])) == 1000.0


# ---- what is refused --------------------------------------------------------------------------------------------


def test_without_a_start_slice_the_models_learn_from_the_first_rows():
    assert kept(train(start_slice=None), trained(start_slice="0_12")) == [True] * 5


@pytest.mark.parametrize(
    "start_slice", ["", "5", "a_b", "0_", "_5", "5_0", "3_3", "-1_5", "0_5_9", "0-5", "0.0_5.0", 5, (0, 5)]
)
def test_a_start_slice_of_another_form_is_refused(start_slice):
    with pytest.raises(hx.ArgumentError, match=r'not of the form "a_b": start_slice. Got .* Fix: pass for example'):
        train(start_slice=start_slice)


@pytest.mark.parametrize("num_models", [0, -1, 10, 2.0, "3", True, None])
def test_a_number_of_models_that_the_slice_has_not_rows_for_is_refused(num_models):
    with pytest.raises(hx.ArgumentError, match=r'num_models. Got .*, expected 1 to 9, the rows of start_slice "3_12"'):
        train(start_slice="3_12", num_models=num_models)


def test_a_slice_that_ends_behind_the_last_row_is_refused():
    with pytest.raises(
        hx.ArgumentError, match=r'x_train. Got 12 rows, expected at least 13, the end of start_slice "0_13"'
    ):
        train(start_slice="0_13")


@pytest.mark.parametrize("label", [NUM_CLASSES, -1, 255])
def test_a_label_that_no_logit_has_is_refused_by_its_row(label):
    y = Y.copy()
    y[5] = label
    with pytest.raises(hx.DataError, match=rf"y_train, row 5. Got {label}, expected 0 to 2"):
        train(X, y, start_slice="3_12")


@pytest.mark.parametrize(
    ("y", "got"),
    [
        (Y.astype(np.float32), r"float32\[12\]"),
        (Y > 0, r"bool\[12\]"),
        (np.eye(NUM_CLASSES, dtype=int)[Y], r"int64\[12, 3\]"),
        (Y[:, None], r"int64\[12, 1\]"),
        (Y[:11], r"int64\[11\]"),
        (Y.astype(str), r"<U\d+\[12\]"),
    ],
    ids=["floats", "bools", "one-hot", "a column", "too few", "strings"],
)
def test_labels_of_another_shape_or_type_are_refused(y, got):
    with pytest.raises(hx.DataError, match=rf"y_train. Got {got}, expected integers \[12\]"):
        train(X, y)


@pytest.mark.parametrize("changed", [{"steps": 0}, {"batch_size": 0}, {"steps": 1.5}])
def test_a_count_that_is_none_is_refused(changed):
    with pytest.raises(hx.ArgumentError, match=r"Got (0|1\.5), expected an int of 1 or more"):
        train(**changed)


def test_rows_that_the_model_does_not_take_are_refused_in_its_own_words():
    with pytest.raises(hx.HydraxError, match=r"float32\[4\]"):
        train(model_type=NonLinearModel)


@pytest.mark.parametrize(
    "bad",
    [
        lambda model, x, y: loss(model, x, y) * len(y),  # a sum
        lambda model, x, y: loss(model, x - x.mean(axis=0), y),  # rows that depend on each other
    ],
    ids=["sum", "mixes rows"],
)
def test_a_loss_that_is_no_mean_over_rows_is_refused(bad):
    with pytest.raises(hx.ArgumentError, match=r"not a mean over rows: get_trained_models\(loss=\)\. Got .* for two"):
        train(loss=bad)


@pytest.mark.parametrize("i", [5, -6])
def test_a_model_that_is_not_there_is_refused(i):
    with pytest.raises(hx.ArgumentError, match=rf"heads\[{i}\]. Got {i}, expected -5 to 4"):
        unbatch_model(trained(), i)
