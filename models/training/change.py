"""Figures of how the picture changes where people are, computed inside the graph: what the second forest judges by.

A fight is restless wherever one looks: at the joints of both, at all of them, again and again. The figures need no joint to be
what the estimator says it is, only to lie on somebody, and no track.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANNEL = 3
_SCALES = (1, 5)
"""Steps that are averaged into one."""
_TOP = 4  # joints
_SHARES = (0.1, 0.5, 0.9)


class ChangeStatistics(nn.Module):
    """(B, M, T, 17, 4) of the window contract -> (B, count) float32, T a multiple of every scale; logarithms."""

    def forward(self, window: Tensor) -> Tensor:
        change = window[..., CHANNEL] * 255  # (B, M, T, 17), the most restless first
        person = torch.stack((change.mean(3), change.amax(3), change.topk(_TOP, 3).values.mean(3)), -1)
        moment = torch.cat((person[:, 0], person[:, :2].mean(1)), -1)  # (B, T, 6)
        people = (person[..., 0] > 0).to(window.dtype).sum(1)  # (B, T)
        seen = (people > 0).to(window.dtype)
        out = [_mean(people, seen, 1)[:, None], people.amax(1)[:, None]]
        for steps in _SCALES:
            count = window.shape[2] // steps
            parts = moment.reshape(-1, count, steps, moment.shape[2])
            there = seen.reshape(-1, count, steps, 1)
            out += _over_time(_mean(parts, there, 2), there.amax(2))
        return torch.log1p(torch.cat(out, -1))


def _mean(values: Tensor, mask: Tensor, dim: int) -> Tensor:
    return (values * mask).sum(dim) / mask.sum(dim).clamp(min=1e-6)


def _over_time(parts: Tensor, seen: Tensor) -> list[Tensor]:
    """(B, T, K) and (B, T, 1) -> mean, deviation, mean step, low, middle, high and highest values, (B, K) each."""
    mean = _mean(parts, seen, 1)
    deviation = _mean((parts - mean[:, None]).square(), seen, 1).add(1e-12).sqrt()
    step = _mean((parts[:, 1:] - parts[:, :-1]).abs(), seen[:, 1:] * seen[:, :-1], 1)
    ordered = torch.where(seen > 0, parts, -1.0).sort(1).values  # what was not seen comes first
    first = parts.shape[1] - seen.sum(1)  # (B, 1)
    last = parts.shape[1] - 1
    places = [(first + share * (last - first).clamp(min=0)).round().clamp(max=last).long() for share in _SHARES]
    middle = [
        ordered.gather(1, place[:, None].expand(-1, -1, parts.shape[2])).squeeze(1).clamp(min=0) for place in places
    ]
    return [mean, deviation, step, *middle, ordered[:, -1].clamp(min=0)]
