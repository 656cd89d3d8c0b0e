"""MLP: the recipe of a multi-layer perceptron."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from hydrax.arguments import is_int, require
from hydrax.nn.flatten import flatten


@dataclasses.dataclass(frozen=True)
class MLP:
    """The recipe of a multi-layer perceptron: linear layers, with an activation after each but the last.

    Calling the recipe with a PRNG key builds the model of one head. So it can be the `model_type` of
    `get_trained_models`, and `configure_model` can return `MLP([784, 128, 10])(key)`.

    >>> model = MLP([784, 128, 10])(jax.random.key(0))
    >>> model(jax.numpy.zeros((32, 28, 28))).shape
    (32, 10)

    Args:
      sizes: the numbers of a row, the units of each hidden layer, and the outputs.
      activation: applied to the units of the hidden layers.

    Raises:
      ArgumentError: there are fewer than two sizes, or one of them is not an int of 1 or more.
    """

    sizes: Sequence[int]
    activation: Callable[[jax.Array], jax.Array] = nnx.relu

    def __post_init__(self) -> None:
        sizes: Any = self.sizes
        known = isinstance(sizes, Sequence) and len(sizes) > 1 and all(is_int(size, 1) for size in sizes)
        fix = "pass for example [784, 128, 10]"
        require(known, "MLP(sizes=)", sizes, "a list of two or more ints of 1 or more", fix)
        require(callable(self.activation), "MLP(activation=)", self.activation, "a function", "omit it for nnx.relu")
        object.__setattr__(self, "sizes", tuple(map(int, sizes)))  # models of equal recipes have equal structures

    def __call__(self, key: jax.Array) -> Perceptron:
        """Builds the model; the same key gives the same initial parameters."""
        return Perceptron(self, nnx.Rngs(key))


class Perceptron(nnx.Module):
    """A multi-layer perceptron, as `MLP` describes it."""

    def __init__(self, recipe: MLP, rngs: nnx.Rngs) -> None:
        self.recipe = recipe
        self.layers = nnx.List(nnx.Linear(*ends, rngs=rngs) for ends in itertools.pairwise(recipe.sizes))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes the outputs of rows.

        Args:
          x: one row, or any number of leading axes of rows. The trailing axes of a row hold `sizes[0]` numbers
            together, such as `[..., 28, 28]` for 784. Integers are converted to floats, without scaling.

        Returns:
          Float `[..., sizes[-1]]`.

        Raises:
          ArgumentError: a row has another size.
        """
        *hidden, last = self.layers
        x = flatten(x, self.recipe.sizes[0], "MLP")
        for layer in hidden:
            x = self.recipe.activation(layer(x))
        outputs: jax.Array = last(x)
        return outputs
