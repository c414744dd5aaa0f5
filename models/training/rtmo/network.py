"""RTMO as a whole, in the sizes of the paper, and weights that find something without having learned anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.training.rtmo.backbone import CspDarknet
from models.training.rtmo.head import STRIDES, BoxDecoder, CoordinateClassifier, LevelHead
from models.training.rtmo.layers import fold_all
from models.training.rtmo.neck import HybridEncoder
from models.training.rtmo.suppression import SCORE_LIMIT, Suppression

NECK_CHANNELS = 256
POSE_VECTOR = 256
POSE_CHANNELS_PER_GROUP = 36
COARSE_PERIOD_PX = 30.0


@dataclass(frozen=True, slots=True)
class Size:
    """depth, width: factors of the full network; input_size: (H, W) px."""

    depth: float
    width: float
    input_size: tuple[int, int]


RTMO_S = Size(depth=0.33, width=0.5, input_size=(640, 640))


class Rtmo(nn.Module):
    """(B, 3, H, W) float32, 0-255 -> `dets` (B, N, 5) xyxy and score, `keypoints` (B, N, 17, 3) x, y, score; px.

    N is the largest number of people in a picture of the batch, at most 50; missing rows have score 0.
    """

    def __init__(self, size: Size = RTMO_S) -> None:
        super().__init__()
        self.size = size
        self.backbone = CspDarknet(depth=size.depth, width=size.width)
        self.neck = HybridEncoder(
            self.backbone.channels, NECK_CHANNELS, depth=size.depth, width=size.width, size=size.input_size
        )
        half, pose = int(NECK_CHANNELS * size.width), 8 * int(POSE_CHANNELS_PER_GROUP * size.width)
        self.levels = nn.ModuleList(LevelHead(NECK_CHANNELS // 2, pose, POSE_VECTOR) for _ in STRIDES)
        if half != NECK_CHANNELS // 2:
            raise ValueError(f"the halves of {NECK_CHANNELS} channels do not fit a head of width {size.width}")
        self.boxes = BoxDecoder(size.input_size)
        self.classifier = CoordinateClassifier(POSE_VECTOR)

    def dense(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Before suppression: scores (B, A), boxes (B, A, 4), visibilities (B, A, 17), pose vectors (B, A, C)."""
        levels = [level(part) for level, part in zip(self.levels, self.neck(self.backbone(x)), strict=True)]
        score, box, visibility, vector = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        return score.squeeze(2).sigmoid(), self.boxes(box), visibility.sigmoid(), vector

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, boxes, visibility, vectors = self.dense(x)
        index, kept = Suppression.apply(boxes, scores)
        boxes, visibility, vectors = (_rows(part, index) for part in (boxes, visibility, vectors))
        cells = self.boxes.grid[index]
        keypoints = self.classifier(vectors, boxes, cells)
        return torch.cat((boxes, kept.unsqueeze(-1)), dim=-1), torch.cat((keypoints, visibility.unsqueeze(-1)), dim=-1)

    def fold(self) -> None:
        """Batch norms and parallel branches into single layers: the form that is exported."""
        fold_all(self)
        self.classifier.fold()


def parameter_count(model: nn.Module) -> int:
    """Trainable numbers of `model`."""
    return sum(parameter.numel() for parameter in model.parameters())


def enliven(model: Rtmo, *, people: int = 30, seed: int = 0) -> None:
    """Random weights with which noise has about `people` people in it and an empty canvas none; for tests of the graph.

    Batch norms get the statistics of noise; the scores' bias is moved to where noise passes the limit and grey does not.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, 3, *model.size.input_size, generator=generator) * 255
    model.train()
    for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)]:
        norm.momentum = None  # a plain average of what it sees
    with torch.no_grad():
        vectors = model.dense(noise)[3]
        model.classifier.points_norm(model.classifier.points(vectors.flatten(0, 1)))
    model.eval()
    for level in model.levels:
        nn.init.constant_(level.box.bias[2:], 1.5)  # boxes of about five strides
    _soften(model.classifier)
    _aim_scores(model, noise[:1], people)


def _soften(classifier: CoordinateClassifier) -> None:
    """Untrained bins are told apart by chance and by their finest waves: keep what does not turn over with every rounding."""
    with torch.no_grad():
        for part in (classifier.attention.gamma, classifier.attention.beta, classifier.attention.place):
            part.mul_(0.3)
        coarse = (classifier.encoding.periods > COARSE_PERIOD_PX).repeat(2).float()
        for encode in (classifier.encode_x, classifier.encode_y):
            encode.weight.mul_(0.3 * coarse)


def _aim_scores(model: Rtmo, noise: Tensor, people: int) -> None:
    grey = torch.full_like(noise, 114.0)
    limit = torch.logit(torch.tensor(SCORE_LIMIT))
    with torch.no_grad():
        for sign in (1.0, -1.0):
            for level in model.levels:
                level.score.weight *= sign
                level.score.bias.zero_()
            lively, dull = (torch.logit(model.dense(picture)[0]).flatten() for picture in (noise, grey))
            threshold = lively.topk(3 * people // 2).values[-1]  # suppression takes some of them away
            if threshold > dull.max():
                break
        else:
            raise ValueError("no bias tells noise from an empty canvas; try another seed")
        for level in model.levels:
            level.score.weight *= 4.0
            level.score.bias.fill_(float(limit - 4.0 * threshold))


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """values (B, A, C), index (B, N) -> (B, N, C)."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
