"""Maps -> people, inside the graph: what is exported is `PoseNanoDetector`. The contract is that of RTMO's ONNX exports.

1. Centres that are the highest of their 3 x 3 neighbourhood; the best `candidates` of them.
2. Box and pose that the network predicts at each centre.
3. Each key point follows the offset field to the place where the network, seen from near, puts the key point: the regressed
   pose says which person's, the offsets say where (as PersonLab refines its key points).
4. Greedy non-maximum suppression by pose similarity (OKS): people who overlap have overlapping boxes but different poses.
   It is written as a fixed number of matrix steps, so any provider runs it, batches are free, and PyTorch agrees exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agent.types import NUM_KEYPOINTS
from pose_nano.geometry import OKS_SIGMAS, STRIDE
from pose_nano.network import Maps, PoseNano


@dataclass(frozen=True, slots=True)
class DecoderOptions:
    """candidates: N, people per picture before suppression and rows of the outputs; refinements: steps along the offsets;
    reach: a step longer than this, in units of the person's size, is not taken; same_oks: of two people more alike than this the
    weaker is dropped; suppression_steps: length of chains of suppression that is followed."""

    candidates: int = 30
    refinements: int = 2
    reach: float = 0.15
    same_oks: float = 0.55
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
        points, point_score = self._refine(points, area, maps)
        person = best * (0.4 + 0.6 * point_score.mean(dim=-1))
        person = person * self._survivors(points, area, person)
        person, order = person.topk(options.candidates, dim=1)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        triples = torch.cat([points, point_score[..., None]], dim=-1)
        triples = triples.gather(1, order[..., None, None].expand(-1, -1, NUM_KEYPOINTS, 3))
        return torch.cat([boxes, person[..., None]], dim=-1), triples

    def _refine(self, points: Tensor, area: Tensor, maps: Maps) -> tuple[Tensor, Tensor]:
        """Points (B, N, 17, 2) moved along the offsets, and the score map's value where they end (B, N, 17)."""
        rows, columns = maps.centres.shape[2:]
        reach2 = (area * self.options.reach**2)[:, :, None]
        offsets = maps.offsets.flatten(3).permute(0, 1, 3, 2)  # (B, 17, R C, 2)
        for _ in range(self.options.refinements):
            cell, origin = _cell_of(points, rows, columns)
            step = offsets.gather(2, cell.transpose(1, 2)[..., None].expand(-1, -1, -1, 2)).transpose(1, 2)
            goal = origin + step
            near = ((goal - points).square().sum(dim=-1) < reach2)[..., None]
            points = torch.where(near, goal, points)
        cell, _ = _cell_of(points, rows, columns)
        score = torch.sigmoid(maps.keypoints.flatten(2).gather(2, cell.transpose(1, 2)).transpose(1, 2))
        return points, score

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


def _cell_of(points: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Flat index (B, N, 17) of the cells that points lie in, inside the grid, and the cells' centres (B, N, 17, 2)."""
    column = (points[..., 0] / STRIDE).floor().clamp(0, columns - 1)
    row = (points[..., 1] / STRIDE).floor().clamp(0, rows - 1)
    centre = torch.stack([column, row], dim=-1) * STRIDE + STRIDE / 2
    return (row * columns + column).long(), centre
