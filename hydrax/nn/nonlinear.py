"""The 28x28 -> 2 linear-and-relu classifier."""

import jax
from flax import nnx

from hydrax.errors import ArgumentError


class NonLinearModel(nnx.Module):
    """Tells two kinds of 28x28 images apart: linear 784 -> 128, relu, linear 128 -> 64, relu, linear 64 -> 2.

    It maps one image, or any number of leading axes of them, to logits.

    Args:
      key: JAX key of the start values; the same key gives the same model.
    """

    def __init__(self, key: jax.Array) -> None:
        rngs = nnx.Rngs(key)
        self.first = nnx.Linear(28 * 28, 128, rngs=rngs)
        self.second = nnx.Linear(128, 64, rngs=rngs)
        self.last = nnx.Linear(64, 2, rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        """Logits of images.

        Args:
          image: [..., 28, 28], or flat [..., 784]; integers are computed with as floats, unscaled.

        Returns:
          Logits, float[..., 2].

        Raises:
          ArgumentError: an image has not 784 pixels.
        """
        flat = image.reshape(*image.shape[:-2], 784) if image.shape[-2:] == (28, 28) else image
        if flat.shape[-1:] != (784,):
            raise ArgumentError(
                f"Image of the wrong shape: NonLinearModel. Got {image.dtype}{list(image.shape)}, "
                "expected [..., 28, 28] or [..., 784]. Fix: reshape the images."
            )
        return self.last(nnx.relu(self.second(nnx.relu(self.first(flat)))))
