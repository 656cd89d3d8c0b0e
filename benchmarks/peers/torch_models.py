"""The models of models.py in PyTorch, under the same names, so that they start from the same values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Perceptron(nn.Module):
    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(i, o) for i, o in zip(widths[:-1], widths[1:], strict=True)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class Cnn(nn.Module):
    """Takes [B, S, S, 3] as stored in the dataset; viewed as [B, 3, S, S] this is channels_last already."""

    def __init__(self, channels: tuple[int, ...], classes: int) -> None:
        super().__init__()
        pairs = zip(channels[:-1], channels[1:], strict=True)
        self.convs = nn.ModuleList([nn.Conv2d(i, o, 3, padding=1) for i, o in pairs])
        self.last = nn.Linear(channels[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 3, 1, 2)
        for conv in self.convs:
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return self.last(x.mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        apart = lambda a: a.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = map(apart, self.qkv(self.norm1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Transformer(nn.Module):
    def __init__(self, vocabulary: int, tokens: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(tokens, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.last = nn.Linear(width, vocabulary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def as_torch(start: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Converts Flax parameters of all heads, `[H, ...]`, to PyTorch's names and layout."""
    found: dict[str, np.ndarray] = {}
    for name, value in start.items():
        path = f"{prefix}.{name}".lstrip(".")
        if isinstance(value, Mapping):
            found |= as_torch(value, path)
        elif name == "kernel":
            order = (0, 2, 1) if value.ndim == 3 else (0, 4, 3, 1, 2)
            found[f"{prefix}.weight"] = np.ascontiguousarray(value.transpose(order))
        else:
            found[f"{prefix}.weight" if name in ("scale", "embedding") else path] = value
    return found
