"""Building blocks: convolutions with batch norm that can be folded, cross-stage partial blocks, sine encodings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, SiLU (unless `linear`); `fold` makes one convolution of it."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        self.act = nn.Identity() if linear else nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that does the same."""
        norm = self.norm
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None or norm.running_mean is None:
            raise TypeError("there is no batch norm to fold")
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return self.conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale

    def fold(self) -> None:
        """For deployment; the result can no longer be trained."""
        weight, bias = self.folded()
        self.conv.weight = nn.Parameter(weight.detach())
        self.conv.bias = nn.Parameter(bias.detach())
        self.norm = nn.Identity()


class RepBlock(nn.Module):
    """3x3 and 1x1 convolution side by side (RepVGG, Ding et al. 2021); `fold` adds them up to one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide: ConvNorm | nn.Conv2d = ConvNorm(channels, channels, 3, linear=True)
        self.narrow: ConvNorm | None = ConvNorm(channels, channels, 1, linear=True)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.wide(x)
        if self.narrow is not None:
            out = out + self.narrow(x)
        activated: Tensor = self.act(out)
        return activated

    def fold(self) -> None:
        """For deployment; the result can no longer be trained."""
        if not isinstance(self.wide, ConvNorm) or self.narrow is None:
            return
        (weight, bias), (centre, more) = self.wide.folded(), self.narrow.folded()
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        conv.weight = nn.Parameter((weight + F.pad(centre, [1, 1, 1, 1])).detach())
        conv.bias = nn.Parameter((bias + more).detach())
        self.wide, self.narrow = conv, None


class Bottleneck(nn.Module):
    """1x1, then 3x3, around which the input may go (Darknet)."""

    def __init__(self, channels: int, *, shortcut: bool) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels)
        self.second = ConvNorm(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out + x if self.shortcut else out


class CspLayer(nn.Module):
    """Half of the channels through `blocks` bottlenecks, the other half past them, joined by concatenation."""

    def __init__(self, channels: int, blocks: int, *, shortcut: bool) -> None:
        super().__init__()
        half = channels // 2
        self.main = ConvNorm(channels, half)
        self.short = ConvNorm(channels, half)
        self.blocks = nn.Sequential(*(Bottleneck(half, shortcut=shortcut) for _ in range(blocks)))
        self.final = ConvNorm(2 * half, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.final(torch.cat((self.blocks(self.main(x)), self.short(x)), dim=1))
        return out


class CspRepLayer(nn.Module):
    """As `CspLayer` with re-parametrisable blocks, joined by a sum (RT-DETR, Zhao et al. 2023)."""

    def __init__(self, inputs: int, outputs: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.main = ConvNorm(inputs, hidden)
        self.short = ConvNorm(inputs, hidden)
        self.blocks = nn.Sequential(*(RepBlock(hidden) for _ in range(blocks)))
        self.final = ConvNorm(hidden, outputs) if hidden != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.final(self.blocks(self.main(x)) + self.short(x))
        return out


class SineEncoding(nn.Module):
    """Positions (...,) -> (..., channels): cosines, then sines, of position / temperature^(i / n).

    Stays FP32 in half-precision graphs: the phase of a position of 640 px has an error of half a pixel in FP16.
    """

    periods: Tensor

    def __init__(self, channels: int, temperature: float) -> None:
        super().__init__()
        half = channels // 2
        self.register_buffer(
            "periods", temperature ** (torch.arange(half, dtype=torch.float32) / half), persistent=False
        )

    def forward(self, position: Tensor) -> Tensor:
        phase = position.unsqueeze(-1) / self.periods
        return torch.cat((phase.cos(), phase.sin()), dim=-1)


def fold_all(model: nn.Module) -> None:
    """Fold every block of `model` that can be."""
    for module in model.modules():
        if isinstance(module, RepBlock):
            module.fold()
    for module in model.modules():
        if isinstance(module, ConvNorm) and isinstance(module.norm, nn.BatchNorm2d):
            module.fold()
