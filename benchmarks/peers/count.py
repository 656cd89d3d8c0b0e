"""Counts FLOPs and bytes of one step of one head from shapes: what the job needs, whatever a program does.

FLOPs are those of the matrix products and convolutions, two per multiply-add: the forward pass, the gradient of every
weight, and the gradient of every input except that of the first layer, which nobody needs. Bytes are the least that
must move if nothing stays in a cache between steps: parameters and both moments of Adam are read and written once (24
bytes per parameter), each row of the batch is read once, each output of a layer is written and read again in the
forward pass, and so is its gradient in the backward pass (16 bytes per number). float32 throughout.
"""

from typing import NamedTuple

_PARAMETER_BYTES, _ACTIVATION_BYTES, _FLOAT_BYTES = 24, 16, 4


class Counted(NamedTuple):
    """FLOPs and bytes of one step of one head."""

    flops: float
    size_bytes: float


def _total(layers: list[float], parameters: int, activations: int, row_bytes: int) -> Counted:
    """Counts a list of layers by the FLOPs of their forward passes, first layer first."""
    flops = 3 * sum(layers) - layers[0]
    return Counted(flops, _PARAMETER_BYTES * parameters + _ACTIVATION_BYTES * activations + row_bytes)


def perceptron(widths: tuple[int, ...], batch_size: int) -> Counted:
    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    return _total(
        [2.0 * batch_size * i * o for i, o in pairs],
        sum((i + 1) * o for i, o in pairs),
        batch_size * sum(widths[1:]),
        batch_size * widths[0] * _FLOAT_BYTES,
    )


def cnn(channels: tuple[int, ...], classes: int, side: int, batch_size: int) -> Counted:
    """Counts the output of each convolution, and that of its pooling, which is a quarter of it."""
    layers, parameters, activations, places = [], (channels[-1] + 1) * classes, batch_size * classes, side * side
    for i, o in zip(channels[:-1], channels[1:], strict=True):
        layers.append(2.0 * batch_size * places * 9 * i * o)
        parameters += (9 * i + 1) * o
        activations += batch_size * places * o * 5 // 4
        places //= 4
    layers.append(2.0 * batch_size * channels[-1] * classes)
    return _total(layers, parameters, activations, batch_size * side * side * channels[0] * _FLOAT_BYTES)


def transformer(vocabulary: int, tokens: int, width: int, heads: int, layers: int, batch_size: int) -> Counted:
    """Counts attention in full, because the masked half is computed too. The embedding is a look-up."""
    places = batch_size * tokens
    block = 2.0 * places * 12 * width * width + 4.0 * places * tokens * width
    last = 2.0 * places * width * vocabulary
    parameters = layers * (12 * width * width + 13 * width) + (2 * vocabulary + tokens) * width + vocabulary
    # Two norms, q, k and v, attention and its weights, out, the four wide, down.
    of_block = places * (2 * width + 3 * width + width + heads * tokens + width + 4 * width + width)
    # All inputs need a gradient, because the embedding below them is trained.
    counted = _total([0.0, *[block] * layers, last], parameters, layers * of_block + places * vocabulary, 0)
    return counted._replace(size_bytes=counted.size_bytes + batch_size * (tokens + 1))
