"""`pose_nano.targets.draw` for the crowds of a whole batch, on their device: the same numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from agent.types import NUM_KEYPOINTS
from pose_nano import targets as single
from pose_nano.geometry import OKS_SIGMAS, POINT_STRIDE, STRIDE
from pose_nano.live.pool import Crowd
from pose_nano.losses import Batch


def draw(crowd: Crowd, height: int, width: int) -> Batch:
    """What the maps of pictures of `height` x `width` px should be."""
    cells, fine = (_Grid.of(height, width, stride, crowd.boxes.device) for stride in (STRIDE, POINT_STRIDE))
    regions = (crowd.there & ~crowd.labelled)[..., None, None]
    unknown, unknown_fine = ((grid.inside(crowd.boxes) & regions).any(dim=1) for grid in (cells, fine))
    known = crowd.there & crowd.labelled
    crowd = replace(crowd, weights=crowd.weights * known[..., None], seen=crowd.seen * known[..., None])
    size = (crowd.boxes[..., 2:] - crowd.boxes[..., :2]).prod(dim=-1).clamp(min=64.0).sqrt()
    centres, owner_weight, owner = _centres(crowd, known, cells, size, unknown)

    distance2 = fine.distance2(crowd.keypoints)
    sigma = (single.POINT_SIGMA * size).clamp(single.POINT_LEAST_PX, single.POINT_MOST_PX)[..., None, None, None]
    keypoints = _keypoints(distance2, sigma, crowd.seen[..., None, None], unknown_fine[:, None])

    radius = (single.OFFSET_RADIUS * size).clamp(single.OFFSET_LEAST_PX, single.OFFSET_MOST_PX)[..., None, None, None]
    close = (crowd.weights[..., None, None] > 0) & (distance2 < radius.square())
    relative, nearest = torch.where(close, distance2 / radius.square(), torch.inf).min(dim=1)  # (B, 17, 2 R, 2 C)
    scale = 1 / (2 * torch.from_numpy(OKS_SIGMAS).to(size.device) * size[..., None])  # (B, P, 17)
    owners = owner[:, None].expand(-1, NUM_KEYPOINTS, -1, -1)
    return Batch(
        centres=centres,
        keypoints=keypoints,
        owner_weight=owner_weight,
        boxes=crowd.boxes.gather(1, owner.flatten(1)[..., None].expand(-1, -1, 4)).unflatten(1, owner.shape[1:]),
        poses=_of(crowd.keypoints, owners) - cells.middles(),
        pose_scale=_of(scale[..., None], owners)[:, :, 0],
        pose_weight=_of(crowd.weights[..., None], owners)[:, :, 0] * owner_weight[:, None],
        offsets=_of(crowd.keypoints, nearest) - fine.middles(),
        offset_scale=_of(scale[..., None], nearest)[:, :, 0],
        offset_weight=_of(crowd.weights[..., None], nearest)[:, :, 0] * torch.isfinite(relative),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """Middles of cells, px: x (C,) and y (R,)."""

    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, height: int, width: int, stride: int, device: torch.device) -> _Grid:
        x, y = ((torch.arange(side // stride, device=device) + 0.5) * stride for side in (width, height))
        return cls(x, y)

    def middles(self) -> Tensor:
        """(2, R, C)."""
        return torch.stack(torch.meshgrid(self.x, self.y, indexing="xy"))

    def distance2(self, points: Tensor) -> Tensor:
        """(..., 2) -> (..., R, C) px^2."""
        x, y = points[..., None].unbind(dim=-2)
        return (self.y - y).square()[..., None] + (self.x - x).square()[..., None, :]

    def inside(self, boxes: Tensor) -> Tensor:
        """(B, P, 4) -> (B, P, R, C): cells whose middle is in the box."""
        left, top, right, bottom = boxes[..., None].unbind(dim=2)
        rows, columns = (self.y > top) & (self.y < bottom), (self.x > left) & (self.x < right)
        return rows[..., None] & columns[..., None, :]


def _of(values: Tensor, person: Tensor) -> Tensor:
    """What (B, P, 17, D) holds for the people (B, 17, R, C) -> (B, 17, D, R, C)."""
    by_point = values.permute(0, 2, 3, 1)  # (B, 17, D, P)
    index = person.flatten(2)[:, :, None].expand(-1, -1, by_point.shape[2], -1)
    return by_point.gather(3, index).unflatten(3, person.shape[2:])


def _centres_of(crowd: Crowd) -> Tensor:
    """(B, P, 2) px, as `single.person_centres`."""
    torso = torch.zeros_like(crowd.weights)
    torso[..., list(single.TORSO)] = crowd.weights[..., list(single.TORSO)]
    weights = torch.where((torso > 0).sum(dim=-1, keepdim=True) >= 2, torso, crowd.weights)
    total = weights.sum(dim=-1, keepdim=True)
    mean = (crowd.keypoints * weights[..., None]).sum(dim=2) / total.clamp(min=1e-6)
    return torch.where(total > 0, mean, (crowd.boxes[..., :2] + crowd.boxes[..., 2:]) / 2)


def _centres(crowd: Crowd, known: Tensor, cells: _Grid, size: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score map, weight of each cell as a person's, and whose it is: (B, R, C) each."""
    last = torch.stack([cells.x[-1], cells.y[-1]])
    middle = torch.minimum(_centres_of(crowd).clamp(min=STRIDE / 2), last)
    distance2 = cells.distance2(middle)
    sigma = (single.CENTRE_SIGMA * size).clamp(min=single.CENTRE_LEAST_PX)[..., None, None]
    score = torch.exp(-distance2 / (2 * sigma.square())).flatten(2)
    score.scatter_(2, distance2.flatten(2).argmin(dim=-1, keepdim=True), 1.0)  # each person has one full positive
    best, owner = (score.unflatten(2, unknown.shape[1:]) * known[..., None, None]).max(dim=1)
    weight = torch.where(best >= single.OWNED, best, 0.0)
    return torch.where(unknown & (best < single.OWNED), -1.0, best), weight, owner


def _keypoints(distance2: Tensor, sigma: Tensor, seen: Tensor, unknown: Tensor) -> Tensor:
    """(B, 17, 2 R, 2 C) from distances (B, P, 17, 2 R, 2 C)."""
    score = torch.exp(-distance2 / (2 * sigma.square())).flatten(3)
    nearest = distance2.flatten(3).argmin(dim=-1, keepdim=True)
    at = score.gather(3, nearest)
    score.scatter_(3, nearest, torch.where(at > single.PEAK, 1.0, at))
    best = (score.unflatten(3, distance2.shape[3:]) * seen.clamp(min=0)).amax(dim=1)
    doubtful = ((seen < 0) & (distance2 < (3 * sigma).square())).any(dim=1) | unknown
    return torch.where(doubtful & (best < single.PEAK), -1.0, best)
