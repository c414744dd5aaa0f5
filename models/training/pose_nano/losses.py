"""What training minimises: focal loss of the score maps, left told from right, distances in units of OKS, overlap of boxes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from agent.types import NUM_KEYPOINTS
from pose_nano.geometry import STRIDE
from pose_nano.network import Maps

WEIGHTS = {"centres": 1.0, "keypoints": 1.0, "left_right": 1.5, "sides": 1.0, "poses": 0.6, "offsets": 0.7}
_LEFT, _RIGHT = slice(1, NUM_KEYPOINTS, 2), slice(2, NUM_KEYPOINTS, 2)
_NEAR = 0.3
"""Cells whose target is at least this say whether a key point is the left or the right one."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """`Targets` of B pictures, stacked: each field with a leading B."""

    centres: Tensor
    keypoints: Tensor
    owner_weight: Tensor
    boxes: Tensor
    poses: Tensor
    pose_scale: Tensor
    pose_weight: Tensor
    offsets: Tensor
    offset_scale: Tensor
    offset_weight: Tensor


def losses(maps: Maps, batch: Batch) -> dict[str, Tensor]:
    """Scalars by name; their sum weighted by `WEIGHTS` is what is minimised."""
    owned = batch.owner_weight.sum().clamp(min=1.0)
    return {
        "centres": focal(maps.centres[:, 0], batch.centres),
        "keypoints": focal(maps.keypoints, batch.keypoints),
        "left_right": left_right_loss(maps.keypoints, batch.keypoints),
        "sides": (overlap_loss(maps.sides, batch.boxes) * batch.owner_weight).sum() / owned,
        "poses": _distance(maps.poses, batch.poses, batch.pose_scale, batch.pose_weight),
        "offsets": _distance(maps.offsets, batch.offsets, batch.offset_scale, batch.offset_weight),
    }


def total(parts: dict[str, Tensor]) -> Tensor:
    """What is minimised."""
    return torch.stack([WEIGHTS[name] * value for name, value in parts.items()]).sum()


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """CenterNet's penalty-reduced focal loss per positive (Zhou et al. 2019, equation 1); targets below 0 do not count."""
    known = target >= 0
    positive = (target > 0.999).float()
    probability = torch.sigmoid(logits)
    negative_weight = (1 - target.clamp(0, 1)) ** 4 * (1 - positive)
    cost = functional.softplus(logits)  # of calling it negative; of calling it positive: that less the logit
    loss_positive = (cost - logits) * (1 - probability) ** 2 * positive
    loss_negative = cost * probability**2 * negative_weight
    loss = (loss_positive + loss_negative) * known
    return loss.sum() / positive.sum().clamp(min=1.0)


def left_right_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy between the maps of a left and a right key point where one of them is: (B, 17, R, C) both.

    The focal loss is content with half a peak in each map, and then both ankles of a person are put on the same foot.
    """
    left, right = target[:, _LEFT], target[:, _RIGHT]
    near = (torch.maximum(left, right) >= _NEAR) & (left >= 0) & (right >= 0)
    of = _Few(near)
    difference = of(logits[:, _LEFT]) - of(logits[:, _RIGHT])
    left, right = of(left, 1.0), of(right, 1.0)
    share = left / (left + right)
    weight = torch.maximum(left, right) * (2 * share - 1).abs()
    loss = functional.binary_cross_entropy_with_logits(difference, share, reduction="none")
    return (loss * weight).sum() / weight.sum().clamp(min=1.0)


class _Few:
    """What values are in these few cells: alone on a CPU, where all that follows is cheap then; on a GPU among a filling, since nothing
    waits for how many they are, and a CUDA graph may hold it."""

    def __init__(self, cells: Tensor) -> None:
        self._cells = cells
        self._index = cells.nonzero(as_tuple=True) if cells.device.type == "cpu" else None

    def __call__(self, values: Tensor, filling: float = 0.0) -> Tensor:
        return self.filled(values, filling) if self._index is None else values[self._index]

    def filled(self, values: Tensor, filling: float) -> Tensor:
        return torch.where(self._cells, values, filling)


def overlap_loss(sides: Tensor, boxes: Tensor) -> Tensor:
    """(B, R, C): 1 - GIoU (Rezatofighi et al. 2019) of predicted sides (B, 4, R, C) and boxes (B, R, C, 4) xyxy."""
    rows, columns = sides.shape[2:]
    y = ((torch.arange(rows, device=sides.device) + 0.5) * STRIDE)[:, None]
    x = ((torch.arange(columns, device=sides.device) + 0.5) * STRIDE)[None]
    left, top, right, bottom = x - sides[:, 0], y - sides[:, 1], x + sides[:, 2], y + sides[:, 3]
    inner_width = (torch.minimum(right, boxes[..., 2]) - torch.maximum(left, boxes[..., 0])).clamp(min=0)
    inner_height = (torch.minimum(bottom, boxes[..., 3]) - torch.maximum(top, boxes[..., 1])).clamp(min=0)
    outer_width = torch.maximum(right, boxes[..., 2]) - torch.minimum(left, boxes[..., 0])
    outer_height = torch.maximum(bottom, boxes[..., 3]) - torch.minimum(top, boxes[..., 1])
    inner, outer = inner_width * inner_height, (outer_width * outer_height).clamp(min=1.0)
    wanted = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    union = ((right - left) * (bottom - top) + wanted - inner).clamp(min=1.0)
    return 1 - inner / union + (outer - union) / outer


def _distance(found: Tensor, wanted: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """Huber's loss of the error in units of the OKS fall-off: found, wanted (B, 17, 2, R, C), the others (B, 17, R, C)."""
    of = _Few(weight > 0)
    scale = of(scale)
    across, down = ((of(found[:, :, axis]) - of(wanted[:, :, axis])) * scale for axis in (0, 1))
    return ((_huber(across) + _huber(down)) * of(weight)).sum() / weight.sum().clamp(min=1.0)


def _huber(error: Tensor) -> Tensor:
    return functional.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=0.5)
