"""MLP: the recipe builds the perceptron that its sizes describe, and refuses sizes that describe none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hydrax as hx
from hydrax.nn import MLP, NonLinearModel


def leaves(model: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model)))]


def test_an_mlp_has_a_kernel_and_a_bias_for_each_pair_of_sizes():
    shapes = sorted(leaf.shape for leaf in leaves(MLP([784, 128, 64, 2])(jax.random.key(0))))
    assert shapes == [(2,), (64,), (64, 2), (128,), (128, 64), (784, 128)]
    assert sum(map(np.prod, shapes)) == 108_866


def test_the_nonlinear_model_has_1568_parameters():
    assert [leaf.shape for leaf in leaves(NonLinearModel(jax.random.key(0)))] == [(784, 2)]


def test_one_key_gives_one_model_and_another_key_another():
    first, same, other = (leaves(MLP((3, 4, 2))(jax.random.key(seed))) for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(first, same, strict=True))
    assert not (first[0] == other[0]).all() or not (first[1] == other[1]).all()


def test_the_activation_stands_between_the_layers_and_not_at_the_end():
    model = MLP([3, 4, 2], activation=jnp.tanh)(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    first, last = ((np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])) for layer in model.layers)
    expected = np.tanh(x @ first[0] + first[1]) @ last[0] + last[1]
    np.testing.assert_allclose(model(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)
    assert expected.min() < 0


@pytest.mark.parametrize("shape", [(784,), (28, 28), (5, 784), (5, 28, 28), (2, 5, 28, 28), (5, 784, 1)])
@pytest.mark.parametrize("model", [NonLinearModel(jax.random.key(0)), MLP([784, 2])(jax.random.key(0))])
def test_rows_may_have_any_shape_of_the_right_size(model, shape):
    x = np.random.default_rng(0).integers(0, 9, shape)
    flat = model(jnp.asarray(x.reshape(-1, 784)))
    np.testing.assert_array_equal(model(jnp.asarray(x)).reshape(-1, 2), flat)


@pytest.mark.parametrize("shape", [(), (783,), (28, 27), (5, 28, 29), (0,)])
def test_rows_of_another_size_are_refused(shape):
    with pytest.raises(hx.ArgumentError, match=r"wrong shape: MLP\. Got float32\[.*\], expected 784 numbers"):
        MLP([784, 2])(jax.random.key(0))(jnp.zeros(shape))


@pytest.mark.parametrize("sizes", [[], [3], 3, "32", None, [3, 0], [3, -1], [3, 2.0], [3, True], [3, None]])
def test_sizes_that_describe_no_perceptron_are_refused(sizes):
    with pytest.raises(hx.ArgumentError, match=r"MLP\(sizes=\)\. Got .*, expected a list of two or more ints"):
        MLP(sizes)


def test_an_activation_that_is_no_function_is_refused():
    with pytest.raises(hx.ArgumentError, match=r"MLP\(activation=\)\. Got 'relu', expected a function"):
        MLP([3, 2], activation="relu")
