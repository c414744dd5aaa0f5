"""Augmentation of window batches (B, M, T, V, 3) on the fly; zeros stay zeros."""

from __future__ import annotations

import torch
from torch import Tensor

SWAP = torch.tensor([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15])


def augment(window: Tensor, generator: torch.Generator) -> Tensor:
    """Flip, rotate, scale, shift; speed and time crop; joint noise and drop-out; people dropped and shuffled."""
    B, M, T, V, _ = window.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    window = _retime(window, uniform(0.8, 1.25, B), uniform(0, 0.15, B) * T)
    seen = window[..., 2:] > 0
    xy, score = window[..., :2].clone(), window[..., 2:].clone()

    flip = uniform(0, 1, B) < 0.5
    xy[flip] = xy[flip][..., SWAP, :] * torch.tensor([-1.0, 1.0])
    score[flip], seen[flip] = score[flip][..., SWAP, :], seen[flip][..., SWAP, :]

    turn = uniform(-0.2, 0.2, B)
    scale = uniform(0.8, 1.2, B)[:, None] * uniform(0.9, 1.1, B, 2)
    c, s = turn.cos(), turn.sin()
    matrix = torch.stack((c * scale[:, 0], -s * scale[:, 1], s * scale[:, 0], c * scale[:, 1]), -1).reshape(B, 2, 2)
    xy = torch.einsum("bmtvc,bdc->bmtvd", xy, matrix) + uniform(-0.15, 0.15, B, 1, 1, 1, 2)

    count = seen.sum(3, keepdim=True).clamp(min=1)
    centre = (xy * seen).sum(3, keepdim=True) / count
    spread = (((xy - centre) * seen).square().sum((3, 4), keepdim=True) / count).sqrt()
    noise = torch.randn(xy.shape, generator=generator)
    slow = torch.nn.functional.avg_pool1d(noise.permute(0, 1, 3, 4, 2).reshape(-1, 1, T), 5, 1, 2)
    slow = slow.reshape(B, M, V, 2, T).permute(0, 1, 4, 2, 3)
    xy = xy + spread * uniform(0, 0.12, B, 1, 1, 1, 1) * (slow + 0.5 * noise)

    keep = uniform(0, 1, B, M, T, V, 1) >= uniform(0, 0.15, B, 1, 1, 1, 1)
    keep &= uniform(0, 1, B, M, 1, V, 1) >= 0.04
    keep &= uniform(0, 1, B, M, T, 1, 1) >= uniform(0, 0.1, B, 1, 1, 1, 1)
    # People come best first: the first is never dropped, the second seldom, for it may be the other fighter.
    chance = torch.tensor([0.0, 0.08] + [0.4] * M)[:M, None, None, None]
    keep &= uniform(0, 1, B, M, 1, 1, 1) >= chance
    start = uniform(0, 1, B)
    keep &= _time_crop(window, start, uniform(0.55, 1.0, B))
    score = (score * uniform(0.85, 1.15, B, 1, 1, 1, 1)).clamp(0.02, 1)
    out = torch.cat((xy, score), -1) * (seen & keep)
    order = torch.rand(B, M, generator=generator).argsort(1)
    return torch.gather(out, 1, order[:, :, None, None, None].expand_as(out))


def _retime(window: Tensor, speed: Tensor, shift: Tensor) -> Tensor:
    """Play at `speed` and end `shift` steps later; what lies outside is empty. Nearest step."""
    T = window.shape[2]
    steps = torch.arange(T)
    source = (T - 1 - (T - 1 - steps)[None] * speed[:, None] + shift[:, None]).round().long()
    inside = (source >= 0) & (source < T)
    source = source.clamp(0, T - 1)
    moved = torch.gather(window, 2, source[:, None, :, None, None].expand_as(window))
    return moved * inside[:, None, :, None, None]


def _time_crop(window: Tensor, start: Tensor, share: Tensor) -> Tensor:
    """(B, 1, T, 1, 1): keep `share` of the time somebody is there, from a random place on."""
    T = window.shape[2]
    present = (window[..., 2] > 0).any(-1).any(1)  # (B, T)
    steps = torch.arange(T)[None]
    first = torch.where(present, steps, T).amin(1)
    last = torch.where(present, steps, -1).amax(1)
    length = (last - first + 1).clamp(min=1)
    kept = (length * share).clamp(min=20).ceil()
    begin = first + (start * (length - kept).clamp(min=0)).floor()
    inside = (steps >= begin[:, None]) & (steps < (begin + kept)[:, None])
    return inside[:, None, :, None, None]
