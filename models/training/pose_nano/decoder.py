"""Maps -> people, inside the graph: what is exported is `PoseNanoDetector`. The contract is that of RTMO's ONNX exports.

1. Centres that are the highest of their 3 x 3 neighbourhood; the best `candidates` of them.
2. Box and pose that the network predicts at each centre.
3. Peaks of each key point's score map, moved by the offset field to the place where the network, seen from near, puts the
   key point. A person's key point is the peak that scores best after a penalty for its distance from the regressed pose: the
   pose says whose, the peak says where (as MoveNet decodes). Where there is no such peak the regressed one stays.
4. Greedy non-maximum suppression by pose similarity (OKS): people who overlap have overlapping boxes but different poses.
   It is written as a fixed number of matrix steps, so any provider runs it, batches are free, and PyTorch agrees exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agent.types import NUM_KEYPOINTS
from pose_nano.geometry import OKS_SIGMAS, POINT_STRIDE, STRIDE
from pose_nano.network import Maps, PoseNano


@dataclass(frozen=True, slots=True)
class DecoderOptions:
    """candidates: N, people per picture before suppression and rows of the outputs; peaks: K, per kind of key point; reach: the
    distance of a peak, in units of the person's size (square root of the box area), at which it counts exp(-1/2); least_peak:
    peaks that score less after that are not taken; same_oks: of two people more alike than this the weaker is dropped;
    suppression_steps: length of chains of suppression that is followed."""

    candidates: int = 30
    peaks: int = 24
    reach: float = 0.22
    least_peak: float = 0.05
    same_oks: float = 0.4
    suppression_steps: int = 4


class PoseNanoDetector(nn.Module):
    """(B, 3, H, W) float32 BGR 0-255 -> dets (B, N, 5) xyxy px and score, keypoints (B, N, 17, 3) px and score.

    Rows are in order of falling score; rows of nobody have score 0.
    """

    falloff: Tensor

    def __init__(self, network: PoseNano, options: DecoderOptions | None = None) -> None:
        super().__init__()
        self.network = network
        self.options = options or DecoderOptions()
        sigmas = torch.from_numpy(OKS_SIGMAS)
        self.register_buffer("falloff", (2 * sigmas).square(), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps: Maps = self.network(image)
        options = self.options
        score = torch.sigmoid(maps.centres)
        peak = nn.functional.max_pool2d(score, 3, 1, 1) == score
        best, cell = (score * peak).flatten(1).topk(options.candidates, dim=1)  # (B, N)
        columns = maps.centres.shape[3]
        x = (cell % columns).float() * STRIDE + STRIDE / 2
        y = torch.div(cell, columns, rounding_mode="floor").float() * STRIDE + STRIDE / 2
        middle = torch.stack([x, y], dim=-1)  # (B, N, 2)
        sides = _at_cells(maps.sides.flatten(2), cell)  # (B, N, 4)
        boxes = torch.cat([middle - sides[..., :2], middle + sides[..., 2:]], dim=-1)
        poses = _at_cells(maps.poses.flatten(1, 2).flatten(2), cell).reshape(*cell.shape, NUM_KEYPOINTS, 2)
        points = middle[:, :, None] + poses
        area = ((sides[..., 0] + sides[..., 2]) * (sides[..., 1] + sides[..., 3])).clamp(min=1.0)
        points, point_score = self._snap(points, area, maps)
        person = best * (0.4 + 0.6 * point_score.mean(dim=-1))
        person = person * self._survivors(points, area, person)
        person, order = person.topk(options.candidates, dim=1)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        triples = torch.cat([points, point_score[..., None]], dim=-1)
        triples = triples.gather(1, order[..., None, None].expand(-1, -1, NUM_KEYPOINTS, 3))
        return torch.cat([boxes, person[..., None]], dim=-1), triples

    def _snap(self, points: Tensor, area: Tensor, maps: Maps) -> tuple[Tensor, Tensor]:
        """Points (B, N, 17, 2) on their peaks, and their scores (B, N, 17)."""
        rows, columns = maps.keypoints.shape[2:]
        score = torch.sigmoid(maps.keypoints)  # (B, 17, 2 R, 2 C)
        peak = nn.functional.max_pool2d(score, 3, 1, 1) == score
        height, cell = (score * peak).flatten(2).topk(self.options.peaks, dim=2)  # (B, 17, K)
        offset = maps.offsets.flatten(3).gather(3, cell[:, :, None].expand(-1, -1, 2, -1))  # (B, 17, 2, K)
        place = torch.stack([cell % columns, torch.div(cell, columns, rounding_mode="floor")], dim=2).float()
        place = (place * POINT_STRIDE + POINT_STRIDE / 2 + offset).transpose(2, 3)  # (B, 17, K, 2)
        distance2 = (points[:, :, :, None] - place[:, None]).square().sum(dim=-1)  # (B, N, 17, K)
        scale = 2 * self.options.reach**2 * area[:, :, None, None]
        value, best = (height[:, None] * torch.exp(-distance2 / scale)).max(dim=-1)  # (B, N, 17)
        taken = value > self.options.least_peak
        index = best.transpose(1, 2)  # (B, 17, N)
        snapped = place.gather(2, index[..., None].expand(-1, -1, -1, 2)).transpose(1, 2)
        stay = score.flatten(2).gather(2, _cell_of(points, rows, columns).transpose(1, 2)).transpose(1, 2)
        found = height.gather(2, index).transpose(1, 2)
        return torch.where(taken[..., None], snapped, points), torch.where(taken, found, stay)

    def _survivors(self, points: Tensor, area: Tensor, score: Tensor) -> Tensor:
        """(B, N) 1.0 for those whom no better survivor resembles."""
        distance2 = (points[:, :, None] - points[:, None]).square().sum(dim=-1)  # (B, N, N, 17)
        larger = torch.maximum(area[:, :, None], area[:, None])[..., None]
        alike = torch.exp(-distance2 / (2 * larger * self.falloff)).mean(dim=-1)
        stronger = score[:, None] > score[:, :, None]  # column beats row
        beats = (stronger & (alike > self.options.same_oks)).float()
        alive = torch.ones_like(score)
        for _ in range(self.options.suppression_steps):
            alive = 1.0 - (beats * alive[:, None]).amax(dim=-1)
        return alive


def _at_cells(maps: Tensor, cell: Tensor) -> Tensor:
    """(B, K, cells) at (B, N) -> (B, N, K)."""
    return maps.gather(2, cell[:, None].expand(-1, maps.shape[1], -1)).transpose(1, 2)


def _cell_of(points: Tensor, rows: int, columns: int) -> Tensor:
    """Flat index (B, N, 17) of the key-point cells that points (B, N, 17, 2) lie in, inside the grid."""
    column = (points[..., 0] / POINT_STRIDE).floor().clamp(0, columns - 1)
    row = (points[..., 1] / POINT_STRIDE).floor().clamp(0, rows - 1)
    return (row * columns + column).long()
