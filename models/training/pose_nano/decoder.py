"""Maps -> people, inside the graph: what is exported is `PoseNanoDetector`. The contract is that of RTMO's ONNX exports.

1. Centres that are the highest of their 3 x 3 neighbourhood; the best `candidates` of them.
2. Box and pose that the network predicts at each centre.
3. Peaks of each key point's score map, and for each the place where the offsets of the cells around it, each in its own voice, put
   the key point: one cell's error is mostly its own (Hough votes, as PersonLab casts them, among neighbours). A person's key point
   is the peak that scores best after a penalty for its distance from the regressed pose: the pose says whose, the peak says where
   (as MoveNet decodes). Where both are near each other the regressed one has a say, where there is no such peak it stays.
   How well poses and peaks agree is part of a person's score.
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
    """candidates: N, people per picture before suppression and rows of the outputs; peaks: K, per kind of key point; voters: cells
    around a peak, to each side, whose offsets are averaged; reach: the distance of a peak, in units of the person's size (square
    root of the box area), at which it counts exp(-1/2); least_peak: peaks that score less after that are not taken; near: the
    distance from the regressed pose, in the same units, at which peaks agree with it by exp(-1/2); say: weight of the regressed
    place where it agrees; same_oks: of two people more alike than this the weaker is dropped; suppression_steps: length of chains
    of suppression that is followed."""

    candidates: int = 30
    peaks: int = 24
    voters: int = 2
    reach: float = 0.14
    least_peak: float = 0.05
    near: float = 0.1
    say: float = 0.3
    same_oks: float = 0.6
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
        middle = _middle_of(cell, maps.centres.shape[3], STRIDE)  # (B, N, 2)
        sides = _at_cells(maps.sides.flatten(2), cell)  # (B, N, 4)
        boxes = torch.cat([middle - sides[..., :2], middle + sides[..., 2:]], dim=-1)
        poses = _at_cells(maps.poses.flatten(1, 2).flatten(2), cell).reshape(*cell.shape, NUM_KEYPOINTS, 2)
        area = ((sides[..., 0] + sides[..., 2]) * (sides[..., 1] + sides[..., 3])).clamp(min=1.0)
        points, point_score, agreement = self._snap(middle[:, :, None] + poses, area, maps)
        person = best.sqrt() * (0.2 + 0.8 * point_score.mean(dim=-1)) * agreement.mean(dim=-1)
        person = person * self._survivors(points, area, person)
        person, order = person.topk(options.candidates, dim=1)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        triples = torch.cat([points, point_score[..., None]], dim=-1)
        triples = triples.gather(1, order[..., None, None].expand(-1, -1, NUM_KEYPOINTS, 3))
        return torch.cat([boxes, person[..., None]], dim=-1), triples

    def _snap(self, poses: Tensor, area: Tensor, maps: Maps) -> tuple[Tensor, Tensor, Tensor]:
        """Regressed poses (B, N, 17, 2) on their peaks; the points' scores (B, N, 17) and agreement with the poses, 0-1."""
        place, height = self._peaks(maps)  # (B, 17, K, 2), (B, 17, K)
        distance2 = (poses[:, :, :, None] - place[:, None]).square().sum(dim=-1)  # (B, N, 17, K)
        unit2 = 2 * area[:, :, None]
        value, best = (height[:, None] * torch.exp(-distance2 / (self.options.reach**2 * unit2[..., None]))).max(dim=-1)
        index = best.transpose(1, 2)  # (B, 17, N)
        peak = place.gather(2, index[..., None].expand(-1, -1, -1, 2)).transpose(1, 2)
        agreement = torch.exp(-(peak - poses).square().sum(dim=-1) / (self.options.near**2 * unit2))
        say = self.options.say * agreement[..., None]
        taken = value > self.options.least_peak
        points = torch.where(taken[..., None], (1 - say) * peak + say * poses, poses)
        here = torch.sigmoid(_at_points(maps.keypoints, poses))
        found = height.gather(2, index).transpose(1, 2)
        return points, torch.where(taken, found, here), torch.where(taken, agreement, 1.0)

    def _peaks(self, maps: Maps) -> tuple[Tensor, Tensor]:
        """Places (B, 17, K, 2) px and heights (B, 17, K) of the highest cells of each map."""
        rows, columns = maps.keypoints.shape[2:]
        score = torch.sigmoid(maps.keypoints)
        is_peak = nn.functional.max_pool2d(score, 3, 1, 1) == score
        height, cell = (score * is_peak).flatten(2).topk(self.options.peaks, dim=2)
        row, column = torch.div(cell, columns, rounding_mode="floor"), cell % columns
        score, offsets = score.flatten(2).sqrt(), maps.offsets.flatten(3)
        around = torch.arange(-self.options.voters, self.options.voters + 1, device=cell.device)
        rows_around = (row[..., None] + around).clamp(0, rows - 1)
        columns_around = (column[..., None] + around).clamp(0, columns - 1)
        voters = (rows_around[..., None] * columns + columns_around[..., None, :]).flatten(2)  # (B, 17, K V)
        voice = score.gather(2, voters)
        offset = offsets.gather(3, voters[:, :, None].expand(-1, -1, 2, -1)).transpose(2, 3)
        votes = (_middle_of(voters, columns, POINT_STRIDE) + offset) * voice[..., None]
        votes, voice = votes.unflatten(2, (cell.shape[2], -1)), voice.unflatten(2, (cell.shape[2], -1))
        return votes.sum(dim=3) / voice.sum(dim=3)[..., None], height

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


def _middle_of(cell: Tensor, columns: int, stride: int) -> Tensor:
    """x and y px, last, of the middle of cells given by their flat index."""
    place = torch.stack([cell % columns, torch.div(cell, columns, rounding_mode="floor")], dim=-1)
    return place.float() * stride + stride / 2


def _at_points(maps: Tensor, points: Tensor) -> Tensor:
    """Maps (B, 17, R, C) at the cells that points (B, N, 17, 2) lie in, or the nearest ones -> (B, N, 17)."""
    rows, columns = maps.shape[2:]
    column = (points[..., 0] / POINT_STRIDE).floor().clamp(0, columns - 1)
    row = (points[..., 1] / POINT_STRIDE).floor().clamp(0, rows - 1)
    cell = (row * columns + column).long().transpose(1, 2)
    return maps.flatten(2).gather(2, cell).transpose(1, 2)
