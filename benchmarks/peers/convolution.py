"""The CNN as a user would write it by hand for a CPU: patches from shifted slices, and matrix products.

A vmapped convolution whose kernels differ between heads is a grouped convolution, which XLA computes slowly. Here a 3 x
3 convolution is nine shifted copies of the image side by side, times the kernel as a matrix. The gradient of its input
is the same operation with the kernel flipped, instead of nine scattered sums. Pooling is a maximum of pairs instead of
`reduce_window`, whose gradient is slow too.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax


def _patches(x: jax.Array) -> jax.Array:
    """Turns [B, S, S, I] into [B, S, S, 9 I], with zeros beyond the border."""
    side = x.shape[1]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([x[:, i : i + side, j : j + side] for i in range(3) for j in range(3)], -1)


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _patches(x) @ kernel.reshape(-1, kernel.shape[-1])


def _forward(x: jax.Array, kernel: jax.Array) -> Any:
    return convolve(x, kernel), (x, kernel)


def _backward(kept: Any, gradient: jax.Array) -> Any:
    x, kernel = kept
    wide, out = 9 * x.shape[-1], kernel.shape[-1]
    of_kernel = _patches(x).reshape(-1, wide).T @ gradient.reshape(-1, out)
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    return _patches(gradient) @ flipped.reshape(-1, x.shape[-1]), of_kernel.reshape(kernel.shape)


convolve.defvjp(_forward, _backward)


def pool(x: jax.Array) -> jax.Array:
    """Returns the maximum of each 2 x 2 square."""
    x = jnp.maximum(x[:, 0::2], x[:, 1::2])
    return jnp.maximum(x[:, :, 0::2], x[:, :, 1::2])


def row_loss(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the loss of each row, given the parameters of `models.Cnn`."""
    x = batch["x"]
    for at in sorted(params["convs"]):
        conv = params["convs"][at]
        x = pool(jax.nn.relu(convolve(x, conv["kernel"]) + conv["bias"][None, None, None]))
    logits = x.mean((1, 2)) @ params["last"]["kernel"] + params["last"]["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
