"""`pose_nano.targets.draw` for the crowds of a whole batch, on their device: the same numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from agent.types import NUM_KEYPOINTS
from pose_nano import targets as single
from pose_nano.geometry import OKS_SIGMAS, POINT_STRIDE, STRIDE
from pose_nano.live.pool import Crowd
from pose_nano.losses import Batch


def draw(crowd: Crowd, height: int, width: int) -> Batch:
    """What the maps of pictures of `height` x `width` px should be."""
    device = crowd.boxes.device
    regions = (crowd.there & ~crowd.labelled)[..., None, None]
    unknown = (_inside(crowd.boxes, height, width, STRIDE) & regions).any(dim=1)  # (B, R, C)
    unknown_fine = (_inside(crowd.boxes, height, width, POINT_STRIDE) & regions).any(dim=1)
    known = crowd.there & crowd.labelled  # (B, P)
    weights, seen = crowd.weights * known[..., None], crowd.seen * known[..., None]
    size = (crowd.boxes[..., 2:] - crowd.boxes[..., :2]).prod(dim=-1).clamp(min=64.0).sqrt()
    centres, owner_weight, owner = _centres(crowd, weights, known, size, unknown, (height, width))

    x = (torch.arange(width // POINT_STRIDE, device=device) + 0.5) * POINT_STRIDE
    y = (torch.arange(height // POINT_STRIDE, device=device) + 0.5) * POINT_STRIDE
    points = crowd.keypoints[..., None]
    distance2 = (y - points[:, :, :, 1]).square()[..., None] + (x - points[:, :, :, 0]).square()[..., None, :]
    sigma = (single.POINT_SIGMA * size).clamp(single.POINT_LEAST_PX, single.POINT_MOST_PX)
    keypoints = _keypoints(distance2, sigma[..., None, None, None], seen[..., None, None], unknown_fine[:, None])

    radius = (single.OFFSET_RADIUS * size).clamp(single.OFFSET_LEAST_PX, single.OFFSET_MOST_PX)[..., None, None, None]
    close = (weights[..., None, None] > 0) & (distance2 < radius.square())
    relative, nearest = torch.where(close, distance2 / radius.square(), torch.inf).min(dim=1)  # (B, 17, 2 R, 2 C)
    scale = 1 / (2 * torch.from_numpy(OKS_SIGMAS).to(device) * size[..., None])  # (B, P, 17)
    place = _of(crowd.keypoints, nearest)  # (B, 17, 2, 2 R, 2 C)
    cells = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))])

    owners = owner[:, None].expand(-1, NUM_KEYPOINTS, -1, -1)
    cells_x = (torch.arange(width // STRIDE, device=device) + 0.5) * STRIDE
    cells_y = (torch.arange(height // STRIDE, device=device) + 0.5) * STRIDE
    coarse = torch.stack([cells_x.expand(len(cells_y), -1), cells_y[:, None].expand(-1, len(cells_x))])
    return Batch(
        centres=centres,
        keypoints=keypoints,
        owner_weight=owner_weight,
        boxes=crowd.boxes.gather(1, owner.flatten(1)[..., None].expand(-1, -1, 4)).unflatten(1, owner.shape[1:]),
        poses=_of(crowd.keypoints, owners) - coarse,
        pose_scale=_of(scale[..., None], owners)[:, :, 0],
        pose_weight=_of(weights[..., None], owners)[:, :, 0] * owner_weight[:, None],
        offsets=place - cells,
        offset_scale=_of(scale[..., None], nearest)[:, :, 0],
        offset_weight=_of(weights[..., None], nearest)[:, :, 0] * torch.isfinite(relative),
    )


def _of(values: Tensor, person: Tensor) -> Tensor:
    """What (B, P, 17, D) holds for the people (B, 17, R, C) -> (B, 17, D, R, C)."""
    by_point = values.permute(0, 2, 3, 1)  # (B, 17, D, P)
    index = person.flatten(2)[:, :, None].expand(-1, -1, by_point.shape[2], -1)
    return by_point.gather(3, index).unflatten(3, person.shape[2:])


def _inside(boxes: Tensor, height: int, width: int, stride: int) -> Tensor:
    """(B, P, R, C): cells whose middle is in the box."""
    x = (torch.arange(width // stride, device=boxes.device) + 0.5) * stride
    y = (torch.arange(height // stride, device=boxes.device) + 0.5) * stride
    left, top, right, bottom = boxes[..., None].unbind(dim=2)
    return ((y > top) & (y < bottom))[..., None] & ((x > left) & (x < right))[..., None, :]


def _middles(crowd: Crowd, weights: Tensor) -> Tensor:
    """(B, P, 2) px, as `single.person_centres`."""
    torso = torch.zeros_like(weights)
    torso[..., list(single.TORSO)] = weights[..., list(single.TORSO)]
    weights = torch.where((torso > 0).sum(dim=-1, keepdim=True) >= 2, torso, weights)
    total = weights.sum(dim=-1, keepdim=True)
    mean = (crowd.keypoints * weights[..., None]).sum(dim=2) / total.clamp(min=1e-6)
    return torch.where(total > 0, mean, (crowd.boxes[..., :2] + crowd.boxes[..., 2:]) / 2)


def _centres(
    crowd: Crowd, weights: Tensor, known: Tensor, size: Tensor, unknown: Tensor, canvas: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Score map, weight of each cell as a person's, and whose it is: (B, R, C) each."""
    device, (rows, columns) = size.device, unknown.shape[1:]
    x, y = ((torch.arange(count, device=device) + 0.5) * STRIDE for count in (columns, rows))
    edge = torch.tensor([canvas[1], canvas[0]], device=device) - STRIDE / 2
    middle = torch.minimum(_middles(crowd, weights).clamp(min=STRIDE / 2), edge)[..., None]
    distance2 = (y - middle[:, :, 1]).square()[..., None] + (x - middle[:, :, 0]).square()[..., None, :]
    sigma = (single.CENTRE_SIGMA * size).clamp(min=single.CENTRE_LEAST_PX)[..., None, None]
    score = torch.exp(-distance2 / (2 * sigma.square())).flatten(2)
    score.scatter_(2, distance2.flatten(2).argmin(dim=-1, keepdim=True), 1.0)
    best, owner = (score.unflatten(2, (rows, columns)) * known[..., None, None]).max(dim=1)
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
