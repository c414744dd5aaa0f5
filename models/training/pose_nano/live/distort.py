"""`pose_nano.augment.distort` for a whole batch on its device. Compression is that of JPEG without its coding: what it loses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *((99,) * 8,) * 4,
)  # fmt: skip
"""Quantisation tables of ITU-T T.81, annex K."""
_TO_YCC = ((0.114, 0.587, 0.299), (0.5, -0.3313, -0.1687), (-0.0813, -0.4187, 0.5))  # of BGR
_MOST_TAPS = 5


def distort(image: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(B, 3, H, W) float32 0-255 -> the same, each picture with probability `share`: colour, blur, lost detail, noise, compression,
    covered patches, each with its own chance. Whole numbers."""
    spoilt = _Spoilt(image, generator, uniform(generator, len(image)) < share)
    spoilt.colours()
    blurred = spoilt.some(0.2)
    spoilt.change(blurred, _gaussian)
    spoilt.change(spoilt.some(0.1) & ~blurred, _motion)
    spoilt.change(spoilt.some(0.1), _coarse)
    spoilt.change(spoilt.some(0.15), _noise)
    spoilt.change(spoilt.some(0.12), _compressed)
    spoilt.change(spoilt.some(0.12), _covered)
    return spoilt.image


def uniform(generator: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Numbers from `low` to `high` on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


class _Spoilt:
    """Pictures, and which of them may be changed."""

    def __init__(self, image: Tensor, generator: torch.Generator, chosen: Tensor) -> None:
        self.image, self._generator, self._chosen = image, generator, chosen

    def some(self, chance: float) -> Tensor:
        return self._chosen & (uniform(self._generator, len(self._chosen)) < chance)

    def change(self, which: Tensor, how: Callable[[Tensor, torch.Generator], Tensor]) -> None:
        index = which.nonzero()[:, 0]
        if len(index):
            changed = how(self.image[index], self._generator)
            self.image[index] = changed.clamp(0, 255).floor()

    def colours(self) -> None:
        self.change(self.some(0.12), _grey)
        self.change(self.some(0.12 * 0.88), _exchanged)
        self.change(self._chosen, _toned)


def _grey(image: Tensor, _: torch.Generator) -> Tensor:
    weights = torch.tensor(_TO_YCC[0], device=image.device)[:, None, None]
    return (image * weights).sum(dim=1, keepdim=True).expand(-1, 3, -1, -1).round()


def _exchanged(image: Tensor, generator: torch.Generator) -> Tensor:
    order = uniform(generator, len(image), 3).argsort(dim=1)
    return image.gather(1, order[..., None, None].expand(-1, -1, *image.shape[2:]))


def _toned(image: Tensor, generator: torch.Generator) -> Tensor:
    """Gain, contrast and gamma per channel."""
    normal = torch.randn(len(image), 6, 1, 1, generator=generator, device=image.device)
    gamma, gain, lift = (
        torch.exp(normal[:, :1] * 0.3),
        torch.exp(normal[:, 1:2] * 0.2 + normal[:, 2:5] * 0.1),
        normal[:, 5:],
    )
    return (((image / 255) ** gamma - 0.5) * gain + 0.5 + lift * 0.08) * 255


def _gaussian(image: Tensor, generator: torch.Generator) -> Tensor:
    sigma = uniform(generator, len(image), 1, low=0.4, high=1.6)
    taps = torch.arange(-_MOST_TAPS, _MOST_TAPS + 1, device=image.device)
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum(dim=1, keepdim=True))[:, :, None, None, None]
    for axis in (2, 3):
        sides = (_MOST_TAPS, _MOST_TAPS)
        padded = functional.pad(image, (0, 0, *sides) if axis == 2 else (*sides, 0, 0), mode="reflect")
        image = sum(  # type: ignore[assignment]
            kernel[:, tap] * padded.narrow(axis, tap, image.shape[axis]) for tap in range(2 * _MOST_TAPS + 1)
        )
    return image


def _motion(image: Tensor, generator: torch.Generator) -> Tensor:
    count, (height, width) = len(image), image.shape[2:]
    length = uniform(generator, count, low=2.0, high=9.0)
    angle = uniform(generator, count, high=torch.pi)
    way = torch.stack([torch.cos(angle) * 2 / width, torch.sin(angle) * 2 / height], dim=1) * length[:, None]
    still = functional.affine_grid(
        torch.eye(2, 3, device=image.device).expand(count, -1, -1), list(image.shape), align_corners=False
    )
    moved = [
        functional.grid_sample(image, still + (part * way)[:, None, None], padding_mode="border", align_corners=False)
        for part in torch.linspace(-0.5, 0.5, 9).tolist()
    ]
    return torch.stack(moved).mean(dim=0)


def _coarse(image: Tensor, generator: torch.Generator) -> Tensor:
    factor = float(uniform(generator, 1, low=0.35, high=0.8))
    small = functional.interpolate(image, scale_factor=factor, mode="area")
    return functional.interpolate(small, size=image.shape[2:], mode="bilinear")


def _noise(image: Tensor, generator: torch.Generator) -> Tensor:
    deviation = uniform(generator, len(image), 1, 1, 1, low=2.0, high=14.0)
    coloured = torch.randn(image.shape, generator=generator, device=image.device)
    same = uniform(generator, len(image), 1, 1, 1) < 0.5
    return image + deviation * torch.where(same, coloured[:, :1], coloured)


def _compressed(image: Tensor, generator: torch.Generator) -> Tensor:
    """What JPEG at a quality of 12 to 70 leaves, chrominance at half the resolution. Sides are multiples of 16."""
    device = image.device
    quality = uniform(generator, len(image), 1, 1, 1, 1, 1, low=12.0, high=70.0)
    percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    steps = torch.arange(8, device=device)
    basis = torch.cos((2 * steps + 1) * steps[:, None] * torch.pi / 16) / 2
    basis[0] /= 2**0.5

    def lossy(plane: Tensor, kind: tuple[tuple[int, ...], ...]) -> Tensor:
        table = ((torch.tensor(kind, device=device) * percent + 50) / 100).floor().clamp(1, 255)
        blocks = plane.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (B, C, rows, columns, 8, 8)
        spectrum = basis @ blocks @ basis.T
        blocks = basis.T @ ((spectrum / table).round() * table) @ basis
        return blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    to_ycc = torch.tensor(_TO_YCC, device=device)
    planes = torch.einsum("ij,bjyx->biyx", to_ycc, image - 128)
    chrominance = lossy(functional.avg_pool2d(planes[:, 1:], 2), _CHROMINANCE)
    chrominance = functional.interpolate(chrominance, scale_factor=2.0, mode="bilinear")
    planes = torch.cat([lossy(planes[:, :1], _LUMINANCE), chrominance], dim=1)
    return torch.einsum("ij,bjyx->biyx", torch.linalg.inv(to_ycc), planes) + 128


def _covered(image: Tensor, generator: torch.Generator) -> Tensor:
    """One to three patches of one colour."""
    count, (height, width) = len(image), image.shape[2:]
    y, x = (torch.arange(side, device=image.device) for side in (height, width))
    patches = (uniform(generator, count) * 3).long() + 1
    for number in range(3):
        high, wide = uniform(generator, 2, count, low=0.04, high=0.2)
        top, left = uniform(generator, 2, count) * torch.stack([1 - high, 1 - wide])
        rows = (y >= (top * height)[:, None]) & (y < ((top + high) * height)[:, None])
        columns = (x >= (left * width)[:, None]) & (x < ((left + wide) * width)[:, None])
        inside = (rows[:, None, :, None] & columns[:, None, None, :]) & (number < patches)[:, None, None, None]
        image = torch.where(inside, (uniform(generator, count, 3, 1, 1) * 256).floor(), image)
    return image
