"""NonLinearModel: the smallest classifier of 28x28 images."""

import jax
from flax import nnx

from hydrax.nn.flatten import flatten


class NonLinearModel(nnx.Module):
    """Tells two kinds of 28x28 images apart: a linear map 784 -> 2 without bias, then relu (1,568 parameters).

    Args:
      key: PRNG key of the initial parameters; the same key gives the same model.
    """

    def __init__(self, key: jax.Array) -> None:
        self.linear = nnx.Linear(28 * 28, 2, use_bias=False, rngs=nnx.Rngs(key))

    def __call__(self, image: jax.Array) -> jax.Array:
        """Computes the logits of images.

        Args:
          image: `[..., 28, 28]`, or flat, `[..., 784]`. Integers are converted to floats, without scaling.

        Returns:
          Logits, float `[..., 2]`, none below 0.

        Raises:
          ArgumentError: an image does not have 784 pixels.
        """
        return nnx.relu(self.linear(flatten(image, 28 * 28, "NonLinearModel")))
