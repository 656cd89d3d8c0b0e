"""What the tests of lowering share."""

import jax
import jax.numpy as jnp
import numpy as np

from hydrax.step.lowering.lowering import Lowering

FAST = Lowering.auto("cpu")


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_close(found, expected, rtol=2e-5, smallest=1e-6):
    """Equal within `rtol` of the largest number of each array, or of `smallest` where that is larger."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        scale = np.abs(np.asarray(other, np.float64)).max(initial=smallest)
        np.testing.assert_allclose(np.asarray(one, np.float64), other, rtol=0, atol=rtol * scale)
