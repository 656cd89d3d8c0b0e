"""The models of the cases, as an ordinary user of Flax writes them: one head, and no thought of heads at all."""

import jax
import jax.numpy as jnp
from flax import nnx


class Perceptron(nnx.Module):
    """Layers of the given widths with relu between them; with two widths it is linear."""

    def __init__(self, widths: tuple[int, ...], rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in zip(widths[:-1], widths[1:], strict=True)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class Cnn(nnx.Module):
    """3 x 3 convolutions, each with relu and 2 x 2 max pooling; the mean over space; a linear layer."""

    def __init__(self, channels: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> None:
        pairs = zip(channels[:-1], channels[1:], strict=True)
        self.convs = nnx.List([nnx.Conv(i, o, (3, 3), rngs=rngs) for i, o in pairs])
        self.last = nnx.Linear(channels[-1], classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in self.convs:
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), strides=(2, 2))
        return self.last(x.mean((1, 2)))


class Block(nnx.Module):
    """Attention, then two layers with gelu, each after a layer norm and with a residual connection."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.qkv, self.out = nnx.Linear(width, 3 * width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = jnp.split(self.qkv(self.norm1(x)), 3, axis=-1)
        apart = lambda a: a.reshape(*a.shape[:-1], self.heads, -1)  # noqa: E731
        mixed = jax.nn.dot_product_attention(apart(q), apart(k), apart(v), is_causal=True)
        x = x + self.out(mixed.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """Maps bytes to logits of the next byte."""

    def __init__(self, vocabulary: int, tokens: int, width: int, heads: int, layers: int, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (tokens, width)))
        self.blocks = nnx.List([Block(width, heads, rngs) for _ in range(layers)])
        self.last = nnx.Linear(width, vocabulary, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embed(x) + self.positions[...][None]
        for block in self.blocks:
            x = block(x)
        return self.last(x)
