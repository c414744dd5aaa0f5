"""The network of `pose-nano`: plain convolutions, a feature pyramid to stride 8, dense maps of people and of key points.

Maps of people on a grid of stride 8, of key points on one of stride 4, in the tradition of CenterNet (Zhou et al. 2019,
arXiv:1904.07850) and PersonLab (Papandreou et al. 2018, arXiv:1803.08225): where people's centres and their key points are, from
each cell the person's box and 17 key points (in units of the person's size), and from each cell near a key point the way to it.
`decoder.py` makes people of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agent.types import NUM_KEYPOINTS
from pose_nano.geometry import POINT_STRIDE, STRIDE

GREY, CONTRAST = 114.0, 64.0
"""What the input is centred on, the padding's value, and divided by."""
PRIOR_LOGIT = -4.0
"""Of the score maps before training: few cells are positive (Lin et al. 2017, arXiv:1708.02002, section 4.1)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of the network. channels: at strides 2, 4, 8, 16, 32; blocks: residual blocks at 4, 8, 16, 32; pyramid: channels of
    the pyramid and the heads; refined: residual blocks at its end; points: channels at stride 4, where key points are placed."""

    channels: tuple[int, int, int, int, int] = (16, 24, 48, 96, 160)
    blocks: tuple[int, int, int, int] = (1, 2, 3, 2)
    pyramid: int = 56
    refined: int = 2
    points: int = 32


@dataclass(frozen=True, slots=True, eq=False)
class Maps:
    """What the network says of B pictures, on a grid of R x C cells of people and one of 2 R x 2 C cells of key points.

    centres: (B, 1, R, C) and keypoints: (B, 17, 2 R, 2 C), logits; sides: (B, 4, R, C), px from the cell's centre to the left,
    top, right, bottom edge of its person's box; poses: (B, 17, 2, R, C), x and y px from the cell's centre to its person's key
    points; offsets: (B, 17, 2, 2 R, 2 C), px from the cell's centre to the nearest key point of each kind.
    """

    centres: Tensor
    keypoints: Tensor
    sides: Tensor
    poses: Tensor
    offsets: Tensor


class Convolution(nn.Sequential):
    """Convolution, batch normalisation and, unless it is left out, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, activation: bool = True) -> None:
        parts: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        super().__init__(*parts, *([nn.ReLU(inplace=True)] if activation else []))


class Residual(nn.Module):
    """Two 3 x 3 convolutions and a skip (He et al. 2016). Dense ones: on a CPU they run nearer to peak than depth-wise ones.

    A new one passes on what it gets (Goyal et al. 2017, arXiv:1706.02677, section 5.1), so a trained network may grow: its input
    comes from a ReLU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Convolution(channels, channels)
        self.second = Convolution(channels, channels, activation=False)
        nn.init.zeros_(self.second[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


class PoseNano(nn.Module):
    """(B, 3, H, W) float32 BGR 0-255 -> `Maps`; H and W are multiples of 32."""

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        shape = shape or Shape()
        self.gain = 1 / CONTRAST
        self.stem = Convolution(3, shape.channels[0], stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(Convolution(inputs, outputs, stride=2), *(Residual(outputs) for _ in range(count)))
            for inputs, outputs, count in zip(shape.channels, shape.channels[1:], shape.blocks, strict=False)
        )
        width = shape.pyramid
        self.lateral = nn.ModuleList(Convolution(channels, width, 1) for channels in shape.channels[2:])
        self.merge = nn.ModuleList(Convolution(width, width) for _ in range(2))
        self.refine = Residual(width)
        self.refine_more = nn.Sequential(*(Residual(width) for _ in range(shape.refined - 1)))
        self.coarse_points = nn.Sequential(
            Convolution(width, width), Convolution(width, shape.points, 1, activation=False)
        )
        self.fine_points = Convolution(shape.channels[1], shape.points, 1, activation=False)
        self.point_head = nn.Sequential(
            Convolution(shape.points, shape.points), nn.Conv2d(shape.points, 3 * NUM_KEYPOINTS, 1)
        )
        self.person_head = nn.Sequential(Convolution(width, width), nn.Conv2d(width, 5 + 2 * NUM_KEYPOINTS, 1))
        self._start()

    def _start(self) -> None:
        for head, scores in ((self.point_head, NUM_KEYPOINTS), (self.person_head, 1)):
            last = head[-1]
            nn.init.normal_(last.weight, std=0.01)
            nn.init.zeros_(last.bias)
            nn.init.constant_(last.bias[:scores], PRIOR_LOGIT)
        with torch.no_grad():
            self.person_head[-1].bias[1:5] = 1.5  # boxes start at 2 x 36 px

    @torch.no_grad()
    def absorb_gain(self) -> None:
        """Move the input's gain into the first weights: the same answers, one pass over the picture less."""
        self.stem[0].weight.mul_(self.gain)
        self.gain = 1.0

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, pyramid, H / 8, W / 8) and, for key points, (B, points, H / 4, W / 4)."""
        x = self.stem((image - GREY) * self.gain if self.gain != 1 else image - GREY)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        coarse = self.lateral[2](levels[3])
        middle = self.merge[1](self.lateral[1](levels[2]) + _double(coarse))
        fine: Tensor = self.refine_more(self.refine(self.merge[0](self.lateral[0](levels[1]) + _double(middle))))
        points = torch.relu(_double(self.coarse_points(fine)) + self.fine_points(levels[0]))
        return fine, points

    def forward(self, image: Tensor) -> Maps:
        fine, points = self.features(image)
        points, person = _exact(self.point_head, points), _exact(self.person_head, fine)
        keypoints, offsets = points.split((NUM_KEYPOINTS, 2 * NUM_KEYPOINTS), dim=1)
        centres, sides, poses = person.split((1, 4, 2 * NUM_KEYPOINTS), dim=1)
        sides = torch.exp(sides.clamp(max=5.0)) * STRIDE
        # Poses are learnt in units of the size that the network itself sees, so near and far people share their shapes.
        size = torch.sqrt((sides[:, :1] + sides[:, 2:3]) * (sides[:, 1:2] + sides[:, 3:4])).detach()
        return Maps(centres, keypoints, sides, _vectors(poses * size), _vectors(offsets * POINT_STRIDE))


def _exact(head: nn.Sequential, x: Tensor) -> Tensor:
    """A head whose last layer is float32 under autocast, too: bfloat16 keeps three digits, and a place needs four."""
    for layer in head[:-1]:
        x = layer(x)
    with torch.autocast(x.device.type, enabled=False):
        return head[-1](x.float())  # type: ignore[no-any-return]  # a module's call


def _vectors(flat: Tensor) -> Tensor:
    """(B, 34, R, C), x and y of each key point -> (B, 17, 2, R, C)."""
    return flat.reshape(flat.shape[0], NUM_KEYPOINTS, 2, *flat.shape[2:])


def _double(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")


def parameter_count(module: nn.Module) -> int:
    """Trained numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
