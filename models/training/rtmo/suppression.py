"""Non-maximum suppression inside the graph: the same answer from PyTorch (for comparison) and from ONNX operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IOU_LIMIT = 0.65
SCORE_LIMIT = 0.1
MAX_PEOPLE = 50


class Suppression(torch.autograd.Function):
    """boxes (B, A, 4) xyxy, scores (B, A) -> (B, N) indices of the boxes kept, best first, and (B, N) their scores.

    N: the most that any picture of the batch keeps, 50 at most, 0 when none does. Rows of pictures that keep fewer are
    filled up with boxes of score 0.
    """

    @staticmethod
    def forward(_: Any, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        kept = torch.zeros_like(scores)
        for image in range(len(boxes)):
            chosen = _greedy(boxes[image], scores[image])
            kept[image, chosen] = scores[image, chosen]
        most = int((kept > 0).sum(dim=1).max())
        best = kept.topk(most, dim=1)
        return best.indices, best.values

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any) -> tuple[Any, Any]:
        """As operators: NonMaxSuppression lists (picture, class, box); its scores are spread over zeros and sorted."""
        chosen = g.op(
            "NonMaxSuppression", boxes, g.op("Unsqueeze", scores, _ints(g, [1])), _ints(g, [MAX_PEOPLE]),
            _floats(g, [IOU_LIMIT]), _floats(g, [SCORE_LIMIT]),
        )  # fmt: skip
        place = g.op("Gather", chosen, _ints(g, [0, 2]), axis_i=1)
        zeros = g.op("Mul", scores, _floats(g, 0.0))
        kept = g.op("ScatterND", zeros, place, g.op("GatherND", scores, place))
        counts = g.op(
            "ReduceSum", g.op("Cast", g.op("Greater", kept, _floats(g, 0.0)), to_i=7), _ints(g, [1]), keepdims_i=0
        )
        most = g.op("ReduceMax", counts, keepdims_i=1)
        values, indices = g.op("TopK", kept, most, axis_i=1, outputs=2)
        return indices, values


def _greedy(boxes: Tensor, scores: Tensor) -> list[int]:
    """Best first; a box goes when its overlap with a better one that stays exceeds the limit."""
    chosen: list[int] = []
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    for index in scores.argsort(descending=True, stable=True).tolist():
        if scores[index] <= SCORE_LIMIT or len(chosen) == MAX_PEOPLE:
            break
        low = torch.maximum(boxes[chosen, :2], boxes[index, :2])
        high = torch.minimum(boxes[chosen, 2:], boxes[index, 2:])
        common = (high - low).clamp(min=0).prod(dim=1)
        if not chosen or bool((common <= IOU_LIMIT * (area[chosen] + area[index] - common)).all()):
            chosen.append(index)
    return chosen


def _ints(g: Any, value: list[int]) -> Any:
    return g.op("Constant", value_t=torch.tensor(value, dtype=torch.int64))


def _floats(g: Any, value: list[float] | float) -> Any:
    return g.op("Constant", value_t=torch.tensor(value, dtype=torch.float32))
