"""A slim ST-GCN++ (Duan et al. 2022, "PYSKL: Towards Good Practices for Skeleton Action Recognition").

Kept from the paper: the spatial-configuration graph in three subsets whose weights are learnt freely from there, the
residual inside the spatial layer, the multi-branch temporal layer (dilations 1-4, max-pool, 1x1), the mean over people.
Changed, because two services must run on one CPU core and there are some hundred clips: 16-24-32 channels in three blocks
in place of 64-128-256 in ten, and input streams computed in the graph, so that the contract stays `(B, M, T, V, 3)`:

- time is halved first by a mean over the seen joints of two steps (pose jitter is larger than what it loses), and once
  more by the first convolution; the five points of the face become one;
- joints relative to their person and in body sizes, bones, velocities, the score: where the camera stands drops out;
- per joint the vector to the nearest other person, nearness and closing speed: what makes a fight one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from forest import Forest
from motion import MotionStatistics
from torch import Tensor, nn

FACE = 5  # COCO's first five points
NUM_NODES = 13
EDGES = (
    (11, 9), (9, 7), (12, 10), (10, 8), (7, 1), (8, 2), (5, 3), (3, 1), (6, 4), (4, 2), (1, 0), (2, 0),
)  # fmt: skip
"""(child, parent) towards the face: 0 face, 1-2 shoulders, 3-4 elbows, 5-6 wrists, 7-8 hips, 9-10 knees, 11-12 ankles."""
PARENT = tuple(dict(EDGES).get(joint, 0) for joint in range(NUM_NODES))
STREAMS = 13
_DILATIONS = (1, 2, 3, 4)
_FAR = 4.0  # body sizes at which another person no longer counts
_FASTER = 5.0  # brings speeds per step to the order of 1


def spatial_graph() -> Tensor:
    """(3, V, V): itself, inward (child to parent), outward; columns sum to 1 (Yan et al. 2018)."""
    inward = torch.zeros(NUM_NODES, NUM_NODES)
    for child, parent in EDGES:
        inward[child, parent] = 1
    subsets = torch.stack((torch.eye(NUM_NODES), inward, inward.T))
    return subsets / subsets.sum(dim=1, keepdim=True).clamp(min=1)


def masked_mean(values: Tensor, mask: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Mean over `dim` where mask (broadcast, 0 or 1) says so; 0 where it says nothing; keeps the dimension."""
    return (values * mask).sum(dim, keepdim=True) / mask.sum(dim, keepdim=True).clamp(min=1e-6)


def _earlier(values: Tensor) -> Tensor:
    """One step back along dimension 2, the first step twice."""
    return torch.cat((values[:, :, :1], values[:, :, :-1]), 2)


class Streams(nn.Module):
    """(B, M, T, 17, 3) of the window contract -> (B, M, 13 features, T / 2, 13 nodes) and (B, M, T / 2) presence."""

    parents: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("parents", torch.tensor(PARENT), persistent=False)

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor]:
        xy, score, seen = self._nodes(window)
        centre = masked_mean(xy, seen, 3)
        spread = masked_mean((xy - centre).square().sum(-1, keepdim=True), seen, 3)
        posed = seen.amax(3, keepdim=True)
        size = 3.5 * masked_mean(spread, posed, 2).clamp(min=1e-5).sqrt()  # one size per person and window
        body = (xy - centre) / size * seen
        bone = (body - body[:, :, :, self.parents]) * seen * seen[:, :, :, self.parents]
        velocity = (xy - _earlier(xy)) / size * (seen * _earlier(seen))
        drift = ((centre - _earlier(centre)) / size * (posed * _earlier(posed))).expand_as(body) * seen
        others = self._nearest(centre, size, posed, body)
        features = torch.cat((body, bone, velocity * _FASTER, score, drift * _FASTER, others * seen), -1)
        return features.permute(0, 1, 4, 2, 3), posed[..., 0, 0]

    def _nodes(self, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two steps become one, five face points one node: xy (B, M, T / 2, 13, 2), score and seen (..., 1)."""
        B, M, T, V, _ = window.shape
        pairs = window.reshape(B, M, T // 2, 2, V, 3)
        nodes = []
        for part, dims in ((pairs[..., :FACE, :], (3, 4)), (pairs[..., FACE:, :], (3,))):
            score = part[..., 2:]
            mask = (score > 0.01).to(window.dtype)
            node = torch.cat(
                (masked_mean(part[..., :2], mask, dims), masked_mean(score, mask, dims), mask.amax(dims, keepdim=True)),
                -1,
            )
            nodes.append(node.squeeze(3))
        joined = torch.cat(nodes, 3)
        return joined[..., :2], joined[..., 2:3], joined[..., 3:]

    def _nearest(self, centre: Tensor, size: Tensor, posed: Tensor, body: Tensor) -> Tensor:
        """(B, M, T, V, 4): from each joint to the nearest other person (fading with distance), nearness, closing speed."""
        M = centre.shape[1]
        scale = (size[:, :, None] + size[:, None]) / 2
        gap = (centre[:, None] - centre[:, :, None]) / scale  # (B, i, j, T, 1, 2): from i to j
        distance = gap.square().sum(-1, keepdim=True).add(1e-8).sqrt()
        pair = posed[:, None] * posed[:, :, None] * (1 - torch.eye(M, device=body.device)[:, :, None, None, None])
        weight = torch.softmax(-4 * distance - 400 * (1 - pair), dim=2) * pair
        vector = (gap * weight).sum(2).clamp(-_FAR, _FAR)
        nearness = (torch.exp(-distance) * pair).amax(2)
        closing = nearness - _earlier(nearness)
        extra = torch.cat((nearness, closing * _FASTER), -1).expand(*body.shape[:-1], 2)
        return torch.cat(((vector - body) * weight.sum(2) * nearness, extra), -1)


class Statistics(nn.Module):
    """How fast, how near: 8 figures per person, averaged over time and joints, as mean and maximum over people.

    A short cut past the convolutions. A linear model on such figures alone is hard to beat with a hundred clips; the
    network starts from there. (B, M, 13, T, V), (B, M, T) -> (B, 16), logarithms.
    """

    count = 16

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        velocity, drift = features[:, :, 4:6], features[:, :, 7:9]
        speed, local, whole = _length(velocity), _length(velocity - drift), _length(drift)
        near, closing = features[:, :, 11], features[:, :, 12].abs()
        signals = (speed, local, local[..., 3:7], local[..., 9:13], whole, near, closing, near * local)
        frames = torch.stack([signal.mean(3) for signal in signals], -1)  # (B, M, T, 8)
        people = masked_mean(frames, present[..., None], 2).squeeze(2)
        there = present.amax(2)[..., None]
        both = torch.cat((masked_mean(people, there, 1).squeeze(1), (people * there).amax(1)), 1)
        return torch.log(both + 0.02)


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(2).add(1e-6).sqrt()


class SpatialLayer(nn.Module):
    """Graph convolution with a free, per-subset adjacency and a residual (PYSKL's `unit_gcn`, adaptive='init')."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.graph = nn.Parameter(spatial_graph())
        self.project = nn.Conv2d(inputs * 3, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.down = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.cat([torch.matmul(x, self.graph[subset]) for subset in range(3)], 1)
        return torch.relu(self.norm(self.project(mixed)) + self.down(x))


class TemporalLayer(nn.Module):
    """Multi-branch temporal convolution (PYSKL's `mstcn`): dilations 1-4, max-pool, 1x1.

    The 1x1 convolutions in front of the branches are one here, split afterwards: the same sums in fewer calls.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        width = channels // 6
        self.widths = [channels - 5 * width] + [width] * 5
        self.reduce = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.branches = nn.ModuleList(
            nn.Conv2d(out, out, (3, 1), (stride, 1), (dilation, 0), (dilation, 1))
            for out, dilation in zip(self.widths, _DILATIONS, strict=False)
        )
        self.pool = nn.MaxPool2d((3, 1), (stride, 1), (1, 0))
        self.stride = stride
        self.mix = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1, bias=False))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.reduce(x), self.widths, 1)
        out = [branch(part) for branch, part in zip(self.branches, parts, strict=False)]
        out += [self.pool(parts[4]), parts[5][:, :, :: self.stride]]
        return self.norm(self.mix(torch.cat(out, 1)))


class Block(nn.Module):
    """Spatial layer, temporal layer, residual around both."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.spatial = SpatialLayer(inputs, outputs)
        self.temporal = TemporalLayer(outputs, stride)
        self.skip = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, (stride, 1), bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.temporal(self.spatial(x)) + self.skip(x))


class SlimSTGCN(nn.Module):
    """`input_tensor` (B, M, T, 17, 3) float32 -> `cls_score` (B, K) logits; T even."""

    def __init__(self, classes: int = 2, width: int = 16, drop: float = 0.3, *, wide: bool = False) -> None:
        """wide: the head also sees `Statistics`."""
        super().__init__()
        a, b, c = width, width * 3 // 2, width * 2
        self.streams = Streams()
        self.norm = nn.BatchNorm1d(STREAMS * NUM_NODES)
        self.stem = nn.Conv2d(STREAMS, a, (3, 1), (2, 1), (1, 0))
        self.blocks = nn.ModuleList((Block(a, a), Block(a, b, 2), Block(b, c)))
        self.drop = nn.Dropout(drop)
        self.statistics = Statistics() if wide else None
        self.level = nn.BatchNorm1d(Statistics.count) if wide else None
        self.head = nn.Linear(2 * c + (Statistics.count if wide else 0), classes)

    def forward(self, input_tensor: Tensor) -> Tensor:
        B, M = input_tensor.shape[:2]
        with torch.no_grad():
            x, present = self.streams(input_tensor)
            statistics = self.statistics(x, present) if self.statistics is not None else None
        C, T, V = x.shape[2:]
        x = x.permute(0, 1, 4, 2, 3).reshape(B * M, V * C, T)
        if self.training:  # padding must not enter the batch statistics (and costs time); it is masked below anyway
            somebody = present.amax(2).flatten() > 0
            encoded = self._encode(x[somebody], C)
            people = encoded.new_zeros(B * M, *encoded.shape[1:])
            people[somebody] = encoded
        else:
            people = self._encode(x, C)
        for _ in range(2):  # the strides of the convolutions
            present = nn.functional.max_pool1d(present, 3, 2, 1)
        mask = present[:, :, None]
        people = people.reshape(B, M, people.shape[1], people.shape[2])
        people = masked_mean(people, mask, 3).squeeze(3)
        there = mask.amax(3)
        mean = masked_mean(people, there, 1).squeeze(1)
        best = (people * there).amax(1)  # features are behind a ReLU, so 0 stands for nobody
        found = self.drop(torch.cat((mean, best), 1))
        if statistics is not None and self.level is not None:
            found = torch.cat((found, self.level(statistics)), 1)
        return self.head(found)

    def _encode(self, x: Tensor, channels: int) -> Tensor:
        """(N, V * C, T) -> (N, C', T / 4): each person on their own."""
        N, _, T = x.shape
        x = self.norm(x).reshape(N, NUM_NODES, channels, T).permute(0, 2, 3, 1)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x.mean(3)


class Mixture(nn.Module):
    """What ships: the mean of the networks' logits, mixed with the forest's, plus a shift; the contract of `SlimSTGCN`."""

    def __init__(
        self, members: Sequence[SlimSTGCN], forest: Forest | None = None, forest_weight: float = 0.0, shift: float = 0.0
    ) -> None:
        """forest_weight: 0 the networks alone, 1 the forest alone. shift: added to the margin of the action."""
        super().__init__()
        self.members = nn.ModuleList(members)
        self.forest = forest
        self.statistics = MotionStatistics() if forest is not None else None
        self.forest_weight = forest_weight if forest is not None else 0.0
        self.shift = shift

    def margin(self, input_tensor: Tensor) -> Tensor:
        """(B,): logit of the action minus logit of the rest, before the shift."""
        logits = torch.stack([member(input_tensor) for member in self.members]).mean(0)
        margin = logits[:, 1] - logits[:, 0]
        if self.forest is None or self.statistics is None:
            return margin
        return (1 - self.forest_weight) * margin + self.forest_weight * self.forest.margin(
            self.statistics(input_tensor)
        )

    def forward(self, input_tensor: Tensor) -> Tensor:
        half = (self.margin(input_tensor) + self.shift) / 2
        return torch.stack((-half, half), 1)
