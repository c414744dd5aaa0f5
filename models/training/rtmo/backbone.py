"""CSPDarknet (YOLOX, Ge et al. 2021): a picture to feature maps at strides 8, 16 and 32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.training.rtmo.layers import ConvNorm, CspLayer

STAGES = ((128, 3, True), (256, 9, True), (512, 9, True), (1024, 3, False))
"""Channels and blocks at full width and depth, and whether the bottlenecks have a shortcut."""


class Focus(nn.Module):
    """Every 2x2 pixels become channels of one, then a 3x3 convolution."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = ConvNorm(12, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        out: Tensor = self.conv(torch.cat(patches, dim=1))
        return out


class SpatialPyramid(nn.Module):
    """The map beside its maxima over 5, 9 and 13 pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = ConvNorm(channels, channels // 2)
        self.pools = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in (5, 9, 13))
        self.leave = ConvNorm(channels * 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        out: Tensor = self.leave(torch.cat([x, *(pool(x) for pool in self.pools)], dim=1))
        return out


class CspDarknet(nn.Module):
    """(B, 3, H, W), sides multiples of 32 -> three maps of `channels`."""

    def __init__(self, *, depth: float, width: float) -> None:
        super().__init__()
        inputs = int(64 * width)
        self.stem = Focus(inputs)
        self.stages = nn.ModuleList()
        for number, (full, repeats, shortcut) in enumerate(STAGES):
            outputs, blocks = int(full * width), max(round(repeats * depth), 1)
            pyramid = [SpatialPyramid(outputs)] if number == len(STAGES) - 1 else []
            layers = [ConvNorm(inputs, outputs, 3, stride=2), *pyramid, CspLayer(outputs, blocks, shortcut=shortcut)]
            self.stages.append(nn.Sequential(*layers))
            inputs = outputs
        self.channels = tuple(int(full * width) for full, _, _ in STAGES[1:])

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1:]
