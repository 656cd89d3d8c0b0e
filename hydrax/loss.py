"""The loss of the one-call form: softmax cross-entropy, as the mean over a batch and for each row."""

from collections.abc import Callable

import jax
import optax


def loss(model: Callable[[jax.Array], jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes the mean softmax cross-entropy of one head over one batch with integer labels.

    With logits z = model(x[i]):  loss = mean over i of  log(sum_k exp z_k) - z_{y[i]}.

    Args:
      model: maps ONE row to logits float[classes]: an `nnx.Module`, an Equinox module, any callable.
      x: rows, [B, ...].
      y: labels, int[B], 0 <= y < classes. JAX does not check them; Hydrax does so on the host, before training.

    Returns:
      The loss in nats, float[].
    """
    return losses(model, x, y).mean()


def losses(model: Callable[[jax.Array], jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes the softmax cross-entropy of each row of a batch, float[B]; `loss` is their mean."""
    each: jax.Array = optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y)
    return each
