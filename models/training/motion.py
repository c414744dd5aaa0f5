"""Figures of how people move and how near they are, computed inside the graph: what the forest of `forest.py` judges by.

All lengths are in body sizes and all speeds in body sizes a second, so the distance of the camera drops out. The same
signals are taken at three time scales: a real movement shows at all of them, the jitter of a pose estimator only at the
shortest. Identity switches cost little: speeds are cut off, and everything is averaged over people and time in the end.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RATE_HZ = 30.0
SCALES = (2, 4, 10)
"""Steps that are averaged into one."""
ASPECT = 0.75
"""Height of a unit of y against one of x: most surveillance pictures are 4:3 or a little wider; the window does not tell."""
_BODY_SPREADS = 3.5  # as agent.action.selection: root mean square distance of the joints -> height
_SMALLEST = 0.03  # body size below which people are too small to measure by, -1..1 of the picture
_JOINTS_POSED = 4  # seen joints that make a person
_FASTEST = 5.0  # body sizes a second; more is a switch of identity
_FASTEST_BODY = 4.0
_ARMS, _WRISTS, _LEGS, _FACE = [7, 8, 9, 10], [9, 10], [13, 14, 15, 16], [0, 1, 2, 3, 4]
_SHOULDERS, _HIPS, _TARGETS = [5, 6], [11, 12], [0, 5, 6, 11, 12]


def _mean(values: Tensor, mask: Tensor, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    return (values * mask).sum(dim, keepdim) / mask.sum(dim, keepdim).clamp(min=1e-6)


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(-1).add(1e-12).sqrt()


class _Bodies:
    """Windows at one time scale: xy (B, M, T', 17, 2), seen (B, M, T', 17), centre (B, M, T', 2), posed (B, M, T')."""

    def __init__(self, window: Tensor, steps: int) -> None:
        B, M, T, V, _ = window.shape
        parts = window.reshape(B, M, T // steps, steps, V, 3)
        mask = (parts[..., 2] > 0.01).to(window.dtype)
        scale = torch.tensor([1.0, ASPECT], dtype=window.dtype)
        self.xy = _mean(parts[..., :2], mask[..., None], 3) * scale
        self.seen = (mask.sum(3) >= max(1, steps // 3)).to(window.dtype)
        self.score = _mean(parts[..., 2], mask, 3)
        self.centre = _mean(self.xy, self.seen[..., None], 3)
        self.posed = (self.seen.sum(3) >= _JOINTS_POSED).to(window.dtype)

    def spread(self) -> Tensor:
        """(B, M, T')."""
        away = (self.xy - self.centre[:, :, :, None]).square().sum(-1)
        return _mean(away, self.seen, 3).add(1e-12).sqrt()


class MotionStatistics(nn.Module):
    """(B, M, T, 17, 3) of the window contract -> (B, count) float32, T a multiple of every scale; logarithms."""

    def forward(self, window: Tensor) -> Tensor:
        fine = _Bodies(window, SCALES[0])
        size = (_BODY_SPREADS * _mean(fine.spread(), fine.posed, 2)).clamp(min=_SMALLEST)  # (B, M)
        person, scene = [], []
        for steps in SCALES:
            signals, mask = self._signals(_Bodies(window, steps), size, steps / RATE_HZ, poses=steps == SCALES[1])
            person.append(_over_time(signals, mask))
            scene.append(_over_people(signals, mask))
        frames = fine.posed.sum(2)
        there = (frames > 0).to(window.dtype)
        figures = torch.cat(person, -1)
        by_presence = _mean(figures, frames[..., None], 1)
        highest = torch.where(there[..., None] > 0, figures, -9.0).amax(1) * there.amax(1, keepdim=True)
        length = float(fine.posed.shape[2])
        general = (
            there.sum(1), frames.sum(1) / length, frames.amax(1) / length,
            (size * there).amax(1), torch.where(there > 0, size, 9.0).amin(1),
        )  # fmt: skip
        out = torch.cat((by_presence, highest, *scene, torch.stack(general, -1)), -1)
        return out.sign() * torch.log1p(5 * out.abs())

    def _signals(self, body: _Bodies, size: Tensor, seconds: float, *, poses: bool) -> tuple[Tensor, Tensor]:
        """(B, M, T' - 1, K) and which of them count (B, M, T' - 1)."""
        both = body.seen[:, :, 1:] * body.seen[:, :, :-1]
        mask = body.posed[:, :, 1:] * body.posed[:, :, :-1]
        velocity = (body.xy[:, :, 1:] - body.xy[:, :, :-1]) / size[:, :, None, None, None] / seconds
        whole = _mean(velocity, both[..., None], 3)  # of the joints seen in both: robust to joints that come and go
        speed = _length(velocity).clamp(max=_FASTEST) * both
        limbs = _length(velocity - whole[:, :, :, None]).clamp(max=_FASTEST) * both

        def over(values: Tensor, joints: list[int]) -> Tensor:
            return _mean(values[..., joints], both[..., joints], 3)

        everything, wrists = _mean(limbs, both, 3), over(speed, _WRISTS)
        signals = [
            _mean(speed, both, 3),
            everything,
            over(limbs, _ARMS),
            wrists,
            over(limbs, _LEGS),
            over(limbs, _FACE),
        ]
        signals += [_length(whole).clamp(max=_FASTEST_BODY), whole[..., 1].abs().clamp(max=_FASTEST_BODY)]
        signals += self._pairs(body, size, whole, everything, signals[2])
        if poses:
            signals += self._touch(body, size, wrists) + self._posture(body, size, seconds)
        return torch.stack(signals, -1), mask

    def _pairs(self, body: _Bodies, size: Tensor, whole: Tensor, limbs: Tensor, arms: Tensor) -> list[Tensor]:
        """Nearness of others; own movement, own arms, relative speed and the other's movement, each as far as near."""
        M = size.shape[1]
        scale = (size[:, :, None] + size[:, None]) / 2
        distance = _length(body.centre[:, :, None] - body.centre[:, None]) / scale[..., None]  # (B, M, M, T')
        pair = body.posed[:, :, None] * body.posed[:, None] * (1 - torch.eye(M)[:, :, None])
        near = torch.exp(-distance) * pair
        nearest, near = near.amax(2)[:, :, 1:], near[..., 1:]
        relative = _length(whole[:, :, None] - whole[:, None]).clamp(max=_FASTEST_BODY)
        return [
            nearest, nearest * limbs, nearest * arms, (near * relative).amax(2), (near * limbs[:, None]).amax(2),
        ]  # fmt: skip

    def _touch(self, body: _Bodies, size: Tensor, wrists: Tensor) -> list[Tensor]:
        """Nearness of a wrist to another one's head or trunk, and the same times the speed of the wrists."""
        M = size.shape[1]
        scale = (size[:, :, None] + size[:, None]) / 2
        hand, target = body.xy[:, :, :, _WRISTS], body.xy[:, :, :, _TARGETS]
        gap = _length(hand[:, :, None, :, :, None] - target[:, None, :, :, None]) / scale[..., None, None, None]
        valid = body.seen[:, :, :, _WRISTS][:, :, None, :, :, None] * body.seen[:, :, :, _TARGETS][:, None, :, :, None]
        valid = valid * (1 - torch.eye(M)[:, :, None, None, None])
        touch = (torch.exp(-2 * gap) * valid).amax((2, 4, 5))[:, :, 1:]
        return [touch, touch * wrists]

    def _posture(self, body: _Bodies, size: Tensor, seconds: float) -> list[Tensor]:
        """Lean of the trunk (0 upright, 1 head down) and its change, height of the hands, quality and build of the pose."""
        seen = body.seen
        shoulders = _mean(body.xy[:, :, :, _SHOULDERS], seen[:, :, :, _SHOULDERS, None], 3)
        hips = _mean(body.xy[:, :, :, _HIPS], seen[:, :, :, _HIPS, None], 3)
        whole = seen[:, :, :, _SHOULDERS].amax(3) * seen[:, :, :, _HIPS].amax(3)
        trunk = shoulders - hips
        lean = torch.acos((-trunk[..., 1] / _length(trunk).clamp(min=1e-4)).clamp(-0.999, 0.999)) / torch.pi * whole
        turned = (lean[:, :, 1:] - lean[:, :, :-1]).abs() * whole[:, :, 1:] * whole[:, :, :-1] / seconds
        above = (shoulders[:, :, :, None, 1] - body.xy[:, :, :, _WRISTS, 1]) / size[:, :, None, None]
        hands = torch.where(seen[:, :, :, _WRISTS] > 0, above, -1.0).amax(3).clamp(-0.6, 0.5)
        quality = _mean(body.score, seen, 3)
        build = body.spread() / size[:, :, None]
        return [lean[:, :, 1:], turned, *(part[:, :, 1:] for part in (hands, quality, seen.mean(3), build))]


def _over_time(signals: Tensor, mask: Tensor) -> Tensor:
    """(B, M, T, K) -> (B, M, 3 K): mean, standard deviation and highest value of each person."""
    counts = mask[..., None]
    mean = _mean(signals, counts, 2, keepdim=True)
    deviation = _mean((signals - mean).square(), counts, 2).add(1e-12).sqrt()
    return torch.cat((mean.squeeze(2), deviation, torch.where(counts > 0, signals, 0.0).amax(2)), -1)


def _over_people(signals: Tensor, mask: Tensor) -> Tensor:
    """(B, M, T, K) -> (B, 4 K): the mean and the highest over the people of each moment, as mean and deviation over time."""
    counts = mask[..., None]
    present = counts.amax(1)
    out = []
    for moment in (_mean(signals, counts, 1), torch.where(counts > 0, signals, -9.0).amax(1) * present):
        mean = _mean(moment, present, 1, keepdim=True)
        out += [mean.squeeze(1), _mean((moment - mean).square(), present, 1).add(1e-12).sqrt()]
    return torch.cat(out, -1)
