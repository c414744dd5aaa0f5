"""Hybrid encoder (RT-DETR, Zhao et al. 2023): attention over the coarsest map, then down and up a feature pyramid."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.training.rtmo.layers import ConvNorm, CspRepLayer, SineEncoding

HEADS = 8


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each with a residual and a layer norm behind it (DETR)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.qk = nn.Linear(channels, 2 * channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.feed = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """x (B, L, C), position (L, C): added to queries and keys only."""
        query, key = (self._heads(part) for part in self.qk(x + position).chunk(2, dim=-1))
        value = self._heads(self.value(x))
        weights = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1)
        joined = (weights @ value).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(joined))
        out: Tensor = self.norm2(x + self.feed(x))
        return out

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        """(B, L, C) -> (B, heads, L, C / heads)."""
        return x.unflatten(2, (HEADS, x.shape[2] // HEADS)).transpose(1, 2)


class HybridEncoder(nn.Module):
    """Maps at strides 8, 16, 32 -> maps of `channels` at strides 16, 32.

    size: (H, W) px of the picture: the positions of the coarsest map are a constant of the graph.
    """

    positions: Tensor

    def __init__(
        self, inputs: tuple[int, ...], channels: int, *, depth: float, width: float, size: tuple[int, int]
    ) -> None:
        super().__init__()
        blocks, hidden = round(3 * depth), int(channels * width)
        self.project = nn.ModuleList(ConvNorm(count, channels, linear=True) for count in inputs)
        self.encoder = EncoderLayer(channels, 4 * channels)
        self.register_buffer("positions", _grid_positions(size[0] // 32, size[1] // 32, channels), persistent=False)
        self.lateral = nn.ModuleList(ConvNorm(channels, channels) for _ in inputs[1:])
        self.down = nn.ModuleList(CspRepLayer(2 * channels, channels, hidden, blocks) for _ in inputs[1:])
        self.stride = nn.ModuleList(ConvNorm(channels, channels, 3, stride=2) for _ in inputs[1:])
        self.up = nn.ModuleList(CspRepLayer(2 * channels, channels, hidden, blocks) for _ in inputs[1:])
        self.leave = nn.ModuleList(ConvNorm(channels, channels, linear=True) for _ in inputs[1:])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        low, middle, high = (project(x) for project, x in zip(self.project, maps, strict=True))
        encoded = self.encoder(high.flatten(2).transpose(1, 2), self.positions)
        high = encoded.transpose(1, 2).unflatten(2, (high.shape[2], high.shape[3]))
        high = self.lateral[0](high)
        middle = self.lateral[1](self.down[0](torch.cat((_doubled(high), middle), dim=1)))
        low = self.down[1](torch.cat((_doubled(middle), low), dim=1))
        middle = self.up[0](torch.cat((self.stride[0](low), middle), dim=1))
        high = self.up[1](torch.cat((self.stride[1](middle), high), dim=1))
        return [self.leave[0](middle), self.leave[1](high)]


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _grid_positions(rows: int, columns: int, channels: int) -> Tensor:
    """(rows * columns, channels): half of the channels for the row, half for the column."""
    encode = SineEncoding(channels // 2, 10_000.0)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat((encode(y.flatten().float()), encode(x.flatten().float())), dim=-1)
