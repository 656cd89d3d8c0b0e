"""Convolutions of one head in forms that a CPU computes fast, and that stay fast when every head has its own kernel.

`jax.vmap` over kernels makes one grouped convolution, which XLA's CPU backend computes group by group with its slowest
code: 32 heads of a small CNN took more than 15 s a step that way, and 0.14 s in these forms.

All convolutions are first converted to one canonical form: rows `[N, *S, C]` with channels last, kernel
`[*K, C / groups, F]`, result `[N, *O, F]`. JAX's gradients of a convolution are convolutions in other layouts: in
canonical form the gradient of the kernel has the channels as N, the batch as C and the places of the output as K.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

_UNROLL = 8  # More heads than this run in a loop; unrolled, the program would grow with their number.


@dataclasses.dataclass(frozen=True)
class _Window:
    """How a kernel moves over the rows; the fields are those of `lax.conv_general_dilated`."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    feature_groups: int
    batch_groups: int
    precision: Any
    dtype: Any

    def output(self, size: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Computes the output size O for rows of size S and a kernel of size K."""
        padded = [
            low + max((n - 1) * dilation + 1, 0) + high
            for n, (low, high), dilation in zip(size, self.padding, self.lhs_dilation, strict=True)
        ]
        reach = [(k - 1) * dilation + 1 for k, dilation in zip(kernel, self.rhs_dilation, strict=True)]
        return tuple(max((n - r) // s + 1, 0) for n, r, s in zip(padded, reach, self.strides, strict=True))


def _convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any,
    rhs_dilation: Any,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    precision: Any,
    preferred_element_type: Any,
    **others: Any,
) -> Any:
    """The rule for `conv_general_dilated`."""
    dtype = jnp.dtype(preferred_element_type or lhs.dtype)
    empty = not (lhs.size and rhs.size)
    if any(value is not None for value in others.values()) or not jnp.issubdtype(dtype, jnp.floating) or empty:
        return NotImplemented
    if not 3 <= lhs.ndim <= 5:
        return NotImplemented
    window = _Window(
        tuple(window_strides),
        tuple(map(tuple, padding)),
        tuple(lhs_dilation),
        tuple(rhs_dilation),
        feature_group_count,
        batch_group_count,
        precision,
        dtype,
    )
    spec = dimension_numbers
    x = jnp.transpose(lhs, (spec.lhs_spec[0], *spec.lhs_spec[2:], spec.lhs_spec[1]))
    kernel = jnp.transpose(rhs, (*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0]))
    if 0 in window.output(x.shape[1:-1], kernel.shape[:-2]):
        return NotImplemented
    y = _canonical(x, kernel, window)
    places = (spec.out_spec[0], *spec.out_spec[2:], spec.out_spec[1])
    return jnp.transpose(y, [places.index(axis) for axis in range(y.ndim)])


def _canonical(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """Computes a convolution in the form that is fastest for its shape.

    That is XLA's own convolution, except in three cases, where patches and one matrix product are faster: with groups,
    which XLA computes one by one (8 times slower if depthwise); with few input channels (2.5 times slower for 3); and
    in double precision, for which Eigen has no convolution.
    """
    taps, places = math.prod(kernel.shape[:-2]), math.prod(window.output(x.shape[1:-1], kernel.shape[:-2]))
    grouped = window.feature_groups * window.batch_groups > 1
    thin = kernel.shape[-2] < 8 and taps <= 64
    wide = jnp.promote_types(jnp.promote_types(x.dtype, kernel.dtype), window.dtype) == jnp.float64
    if not (grouped or thin or wide):
        return _native(x, kernel, window)
    by_taps = window.batch_groups == 1 and (window.feature_groups > 1 or taps <= places)
    return _by_taps(x, kernel, window) if by_taps else _by_places(x, kernel, window)


def _native(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """Computes a convolution with XLA's own, one head after the other.

    In this layout XLA's CPU backend calls Eigen's convolution, which packs patches straight into a matrix product. It
    reaches 100 to 130 GFLOP/s on two cores; the gradient of a kernel is 60 to 90 times faster than in JAX's layout.
    """
    plain: Callable[..., jax.Array] = lambda x, kernel: lax.conv_general_dilated(  # noqa: E731
        x,
        kernel,
        window.strides,
        window.padding,
        window.lhs_dilation,
        window.rhs_dilation,
        lax.conv_dimension_numbers(x.shape, kernel.shape, _layout(x.ndim - 2)),
        precision=window.precision,
    )
    run = custom_vmap(plain)

    @run.def_vmap
    def over_heads(axis_size: int, batched: Any, x: jax.Array, kernel: jax.Array) -> Any:
        if not all(batched):
            # Rows or kernel are shared by all heads: vmap makes one wide convolution without groups.
            return jax.vmap(plain, [0 if b else None for b in batched])(x, kernel), True
        if axis_size > _UNROLL:
            return lax.map(lambda pair: run(*pair), (x, kernel)), True
        return jnp.stack([run(x[i], kernel[i]) for i in range(axis_size)]), True

    # Without the barriers XLA folds transposes and flips into the convolution, in a layout that Eigen does not have.
    # Half precision is computed in float32 and rounded once, as XLA itself does on a CPU.
    x, kernel = (lax.optimization_barrier(a.astype(jnp.float32)) for a in (x, kernel))
    found: jax.Array = run(x, kernel)
    return found.astype(window.dtype)


def _layout(dims: int) -> tuple[str, str, str]:
    space = "DHW"[-dims:]
    return f"N{space}C", f"{space}IO", f"N{space}C"


def _padded(x: jax.Array, window: _Window) -> jax.Array:
    config = [
        (low, high, dilation - 1) for (low, high), dilation in zip(window.padding, window.lhs_dilation, strict=True)
    ]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])


def _slices(x: jax.Array, starts: Any, counts: Any, strides: Any, steps: Any) -> list[jax.Array]:
    """For each index in `ndindex(starts)`: `counts` places of x, `strides` apart, beginning at index * steps."""
    found = []
    for index in _indices(starts):
        low = [i * step for i, step in zip(index, steps, strict=True)]
        high = [at + (n - 1) * stride + 1 for at, n, stride in zip(low, counts, strides, strict=True)]
        found.append(lax.slice(x, (0, *low, 0), (x.shape[0], *high, x.shape[-1]), (1, *strides, 1)))
    return found


def _indices(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, shape)))


def _by_taps(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """Multiplies patches with the kernel: one matrix product (im2col)."""
    shape, groups, features = kernel.shape[:-2], window.feature_groups, kernel.shape[-1]
    assert window.batch_groups == 1
    out = window.output(x.shape[1:-1], shape)
    kernel = kernel.reshape(-1, *kernel.shape[-2:])
    taps, channels = kernel.shape[:2]
    options = {"precision": window.precision, "preferred_element_type": window.dtype}
    if channels == 1 and groups > 1:
        slices = _slices(_padded(x, window), shape, out, window.strides, window.rhs_dilation)
        # Depthwise: only the taps are summed, so there is no matrix product, and XLA fuses the sum into one loop.
        wide = [jnp.repeat(part, features // groups, axis=-1) for part in slices]
        taps_first = kernel.reshape(taps, *(1,) * (x.ndim - 1), features)
        total = sum(part * tap for part, tap in zip(wide, taps_first, strict=True))
        return lax.convert_element_type(total, window.dtype)
    patches = _patches(_padded(x, window), shape, out, window)
    if groups == 1:
        return jnp.matmul(patches, kernel.reshape(-1, features), **options)
    patches = patches.reshape(-1, taps, groups, channels)
    y = jnp.einsum("ntgc,tcgf->ngf", patches, kernel.reshape(taps, channels, groups, -1), **options)
    return y.reshape(x.shape[0], *out, features)


def _patches(x: jax.Array, shape: tuple[int, ...], out: tuple[int, ...], window: _Window) -> jax.Array:
    """Gathers the patches `[N, *O, taps * C]`: for each place of the result, what the kernel covers of `x`.

    Built from slices, since `conv_general_dilated_patches` is itself a grouped convolution; one axis after the
    other: XLA concatenates runs of C numbers, so with three channels all nine taps at once take 4 times as long. The
    barrier keeps XLA from merging the steps again.
    """
    for axis in reversed(range(len(shape))):
        step, stride = window.rhs_dilation[axis], window.strides[axis]
        parts = [
            lax.slice_in_dim(x, i * step, i * step + (out[axis] - 1) * stride + 1, stride, axis + 1)
            for i in range(shape[axis])
        ]
        x = lax.optimization_barrier(jnp.concatenate(parts, -1))
    return x


def _by_places(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """Multiplies one slice of x for each place of the result with the whole kernel.

    For gradients of kernels, whose canonical kernel is large and whose result is small.
    """
    groups, out = window.batch_groups, window.output(x.shape[1:-1], kernel.shape[:-2])
    slices = _slices(_padded(x, window), out, kernel.shape[:-2], window.rhs_dilation, window.strides)
    features = kernel.shape[-1]
    y = jnp.einsum(
        "pgnkc,kcgf->npgf",
        jnp.stack([part.reshape(groups, x.shape[0] // groups, -1, x.shape[-1]) for part in slices]),
        kernel.reshape(-1, x.shape[-1], groups, features // groups),
        precision=window.precision,
        preferred_element_type=window.dtype,
    )
    return y.reshape(x.shape[0] // groups, *out, features)


RULES: Mapping[str, Callable[..., Any]] = {"conv_general_dilated": _convolution}
