"""RTMO's head: per grid cell a score, a box, visibilities and a pose vector; and what makes key points of a pose vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.training.rtmo.layers import ConvNorm, SineEncoding

NUM_KEYPOINTS = 17
GROUPS = 8
STRIDES = (16, 32)
BOX_PADDING = 1.25
"""Key points are looked for in a box this much larger than the person's."""
BINS = (192, 256)
"""Places in x and in y among which a key point is classified."""


class LevelHead(nn.Module):
    """The head of one map (B, C, h, w): first half of the channels for the score, second half for the rest."""

    def __init__(self, channels: int, pose_channels: int, vector: int) -> None:
        super().__init__()
        self.score_convs = nn.Sequential(*(ConvNorm(channels, channels, 3) for _ in range(2)))
        convs = [ConvNorm(channels, pose_channels, 3)]
        convs += [ConvNorm(pose_channels, pose_channels, 3, groups=GROUPS) for _ in range(3)]
        self.pose_convs = nn.Sequential(*convs)
        self.score = nn.Conv2d(channels, 1, 1)
        self.box = nn.Conv2d(pose_channels, 4, 1)
        self.offsets = nn.Conv2d(pose_channels, 2 * NUM_KEYPOINTS, 1)  # proxy for sample assignment, only in training
        self.visibility = nn.Conv2d(pose_channels, NUM_KEYPOINTS, 1)
        self.vector = nn.Conv2d(pose_channels, vector, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Logits of the score, box, visibilities, pose vector; each (B, h * w, n)."""
        for_score, for_pose = x.chunk(2, dim=1)
        pose = self.pose_convs(for_pose)
        parts = (self.score(self.score_convs(for_score)), self.box(pose), self.visibility(pose), self.vector(pose))
        return tuple(part.flatten(2).transpose(1, 2) for part in parts)


class BoxDecoder(nn.Module):
    """Cells and what was predicted for them -> boxes in px. FP32 in half-precision graphs: 640 px have steps of 0.5 there."""

    grid: Tensor
    strides: Tensor

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        centres = [_centres(size[0] // stride, size[1] // stride, stride) for stride in STRIDES]
        strides = [torch.full((len(part), 1), float(stride)) for part, stride in zip(centres, STRIDES, strict=True)]
        self.register_buffer("grid", torch.cat(centres), persistent=False)
        self.register_buffer("strides", torch.cat(strides), persistent=False)

    def forward(self, raw: Tensor) -> Tensor:
        """(B, A, 4) offset of the centre in strides, logarithm of the size in strides -> (B, A, 4) xyxy."""
        centre = raw[..., :2] * self.strides + self.grid
        half = raw[..., 2:].exp() * self.strides / 2
        return torch.cat((centre - half, centre + half), dim=-1)


class ScaleNorm(nn.Module):
    """Vectors to one length, learned (Nguyen and Salazar 2019). FP32 in half-precision graphs: it squares."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = channels**-0.5
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        length = torch.sqrt((x * x).sum(dim=-1, keepdim=True)) * self.scale
        return x / length.clamp(min=1e-5) * self.gain


class GatedAttention(nn.Module):
    """Gated attention unit over the key points of one person (Hua et al. 2022)."""

    def __init__(self, channels: int, *, shared: int = 128, expansion: int = 2) -> None:
        super().__init__()
        self.wide, self.shared = expansion * channels, shared
        self.norm = ScaleNorm(channels)
        self.enter = nn.Linear(channels, 2 * self.wide + shared, bias=False)
        self.act = nn.SiLU()
        self.gamma = nn.Parameter(torch.rand(2, shared))
        self.beta = nn.Parameter(torch.rand(2, shared))
        self.place = nn.Parameter(torch.randn(NUM_KEYPOINTS, shared))
        self.leave = nn.Linear(self.wide, channels, bias=False)
        self.keep = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, 17, C) -> the same."""
        gate, value, base = self.act(self.enter(self.norm(x))).split((self.wide, self.wide, self.shared), dim=-1)
        query = base * self.gamma[0] + self.beta[0] + self.place
        key = base * self.gamma[1] + self.beta[1] + self.place
        weights = torch.relu(query @ key.transpose(-1, -2) / math.sqrt(self.shared)) ** 2
        out: Tensor = self.leave(gate * (weights @ value)) + x * self.keep
        return out


class BinDecoder(nn.Module):
    """The places of the bins, and the mean place under a distribution over them. FP32, as `BoxDecoder`."""

    x_bins: Tensor
    y_bins: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("x_bins", torch.linspace(-0.5, 0.5, BINS[0]), persistent=False)
        self.register_buffer("y_bins", torch.linspace(-0.5, 0.5, BINS[1]), persistent=False)

    def places(self, boxes: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """boxes (B, N, 4) xyxy, cells (B, N, 2) px -> bins in x (B, N, 192) and y (B, N, 256), px from the cell."""
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2 - cells
        size = (boxes[..., 2:] - boxes[..., :2]) * BOX_PADDING
        return self.x_bins * size[..., :1] + centre[..., :1], self.y_bins * size[..., 1:] + centre[..., 1:]

    def forward(self, chances: tuple[Tensor, Tensor], places: tuple[Tensor, Tensor], cells: Tensor) -> Tensor:
        """Distributions (B, N, 17, bins) -> key points (B, N, 17, 2) px."""
        means = [(p * place.unsqueeze(-2)).sum(dim=-1) for p, place in zip(chances, places, strict=True)]
        return torch.stack(means, dim=-1) + cells.unsqueeze(-2)


class CoordinateClassifier(nn.Module):
    """Dynamic coordinate classifier: bins laid over each person's own box, encoded by their places, matched with key points."""

    def __init__(self, vector: int, channels: int = 128, encoding: int = 128) -> None:
        super().__init__()
        self.channels = channels
        self.points = nn.Linear(vector, channels * NUM_KEYPOINTS)
        self.points_norm: nn.Module = nn.BatchNorm1d(channels * NUM_KEYPOINTS)
        self.attention = GatedAttention(channels)
        self.encoding = SineEncoding(encoding, 300.0)
        self.encode_x = nn.Linear(encoding, channels)
        self.encode_y = nn.Linear(encoding, channels)
        self.spread = nn.Linear(vector, NUM_KEYPOINTS)  # of the targets, only in training
        self.spread_scale = nn.Parameter(torch.tensor(0.1))
        self.decode = BinDecoder()

    def forward(self, vectors: Tensor, boxes: Tensor, cells: Tensor) -> Tensor:
        """vectors (B, N, C), boxes (B, N, 4), cells (B, N, 2) -> key points (B, N, 17, 2) px."""
        flat = self.points(vectors)
        if not isinstance(self.points_norm, nn.Identity):
            flat = self.points_norm(flat.flatten(0, 1)).unflatten(0, flat.shape[:2])
        features = self.attention(flat.unflatten(2, (NUM_KEYPOINTS, self.channels)))
        places = self.decode.places(boxes, cells)
        codes = (self.encode_x(self.encoding(places[0])), self.encode_y(self.encoding(places[1])))
        x, y = ((features @ code.transpose(-1, -2)).softmax(dim=-1) for code in codes)
        out: Tensor = self.decode((x, y), places, cells)
        return out

    def fold(self) -> None:
        """For deployment; the result can no longer be trained."""
        norm = self.points_norm
        if not isinstance(norm, nn.BatchNorm1d) or norm.running_var is None or norm.running_mean is None:
            return
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        bias = norm.bias + (self.points.bias - norm.running_mean) * scale
        self.points.weight = nn.Parameter((self.points.weight * scale[:, None]).detach())
        self.points.bias = nn.Parameter(bias.detach())
        self.points_norm = nn.Identity()


def _centres(rows: int, columns: int, stride: int) -> Tensor:
    """(rows * columns, 2): x, y of the middle of each cell, px."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (torch.stack((x.flatten(), y.flatten()), dim=-1).float() + 0.5) * stride
