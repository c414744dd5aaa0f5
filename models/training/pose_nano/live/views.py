"""`pose_nano.augment.view` for a whole batch on its device: turned, scaled, cropped, mirrored pictures and their people. No mosaic."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from pose_nano import augment as single
from pose_nano.augment import Recipe
from pose_nano.live.distort import distort, uniform
from pose_nano.live.pool import Crowd, Pool
from pose_nano.store import PAD


def view(pool: Pool, places: Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Crowd]:
    """Random views of the pictures at `places` (B,): images (B, 3, H, W) float32 BGR 0-255 of whole numbers, and who is in them."""
    people = pool.people.rows(places)
    affine, straight, mirrored = _affine(pool.sizes[places], people, recipe, generator)
    image = warp(pool.images, places, pool.sizes[places], affine, recipe.canvas)
    crowd = clip(transform(people, affine, straight=straight, mirrored=mirrored), recipe.canvas).packed()
    return distort(image, recipe.distorted, generator), crowd


def _affine(sizes: Tensor, people: Crowd, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 2, 3) from the picture to the canvas, and which are straight and which mirrored: (B,) bool."""
    count, device = len(sizes), sizes.device
    some = partial(uniform, generator, count)
    normal = torch.randn(count, 2, generator=generator, device=device)
    final, canvas = (torch.tensor(side, device=device, dtype=torch.float32) for side in (recipe.final, recipe.canvas))
    canvas = canvas.flip(0)  # x and y from here on
    scale = (final / sizes).amin(dim=1) * torch.exp(some(low=math.log(recipe.zoom[0]), high=math.log(recipe.zoom[1])))
    anyhow = some() < recipe.lying
    angle = torch.where(anyhow, some(low=-110.0, high=110.0), normal[:, 0] * recipe.turn_degrees / 2)
    stretch, mirrored, turn = torch.exp(normal[:, 1] * 0.06), some() < 0.5, torch.deg2rad(angle)
    across = scale * stretch * torch.where(mirrored, -1.0, 1.0)
    along = scale / stretch
    cos, sin = torch.cos(turn), torch.sin(turn)
    matrix = torch.stack([torch.stack([cos * across, -sin * along], 1), torch.stack([sin * across, cos * along], 1)], 1)
    extent = sizes.flip(1)
    half = extent[..., None] / 2
    aim = canvas * some(2, low=0.2, high=0.8)
    middle = (matrix @ (half - _focus(extent, people, recipe, generator)[..., None]))[..., 0] + aim
    # A picture smaller than the canvas stays inside it; one that is larger covers it, mostly.
    span = (matrix.abs() @ extent[..., None])[..., 0]
    slack = (canvas - span).abs() / 2 + 0.1 * span * some(1)
    moved = torch.minimum(torch.maximum(middle, canvas / 2 - slack), canvas / 2 + slack)
    shift = moved[..., None] - matrix @ half
    return torch.cat([matrix, shift], dim=2), angle.abs() < single.STRAIGHT_DEGREES, mirrored


def _focus(extent: Tensor, people: Crowd, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """(B, 2) px of the picture: mostly near somebody, more often near who shows little."""
    count = len(extent)
    known = people.labelled & people.there
    chance = (1 + recipe.hidden * (people.seen < 1).float().mean(dim=2)) * known
    nobody = ~known.any(dim=1)
    chosen = torch.multinomial(chance + nobody[:, None], 1, generator=generator)[:, 0]
    box = people.boxes[torch.arange(count, device=extent.device), chosen]
    near = box[:, :2] + (box[:, 2:] - box[:, :2]) * uniform(generator, count, 2, low=0.2, high=0.8)
    anywhere = nobody | (uniform(generator, count) >= single.NEAR_SOMEBODY)
    return torch.where(anywhere[:, None], extent * uniform(generator, count, 2), near)


def warp(images: Tensor, places: Tensor, sizes: Tensor, affine: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Pictures (N, H0, W0, 3) uint8 at `places` through `affine`, bilinear, `PAD` outside: (B, 3, H, W) float32."""
    height, width = canvas
    device, (rows, columns) = images.device, images.shape[1:3]
    inverse = torch.linalg.inv(affine[:, :, :2])
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    target = torch.stack([x, y]).flatten(1).float()  # (2, H W)
    source = inverse @ (target[None] - affine[:, :, 2:])  # (B, 2, H W)
    low = source.floor()
    part = source - low
    low = low.long()
    flat, base = images.reshape(-1, 3), (places * rows * columns)[:, None]
    image = torch.zeros(len(places), height * width, 3, device=device)
    for step_y in (0, 1):
        for step_x in (0, 1):
            u, v = low[:, 0] + step_x, low[:, 1] + step_y
            inside = (u >= 0) & (v >= 0) & (u < sizes[:, 1:2]) & (v < sizes[:, :1])
            value = flat[base + v.clamp(0, rows - 1) * columns + u.clamp(0, columns - 1)].float()
            value = torch.where(inside[..., None], value, float(PAD))
            share = (part[:, 0] if step_x else 1 - part[:, 0]) * (part[:, 1] if step_y else 1 - part[:, 1])
            image.addcmul_(value, share[..., None])
    return image.round_().unflatten(1, (height, width)).permute(0, 3, 1, 2)


def transform(people: Crowd, affine: Tensor, *, straight: Tensor, mirrored: Tensor) -> Crowd:
    """People after (B, 2, 3) affine maps. Boxes of turned people are drawn anew around their key points."""
    matrix, shift = affine[:, None, :, :2], affine[:, None, None, :, 2]
    keypoints = people.keypoints @ matrix.transpose(2, 3) + shift
    left, top, right, bottom = people.boxes.unbind(dim=2)
    corners = torch.stack([left, top, right, top, right, bottom, left, bottom], dim=2).unflatten(2, (4, 2))
    corners = corners @ matrix.transpose(2, 3) + shift
    boxes = torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=2)
    near = _around(keypoints, people, torch.linalg.det(affine[:, :, :2]).abs().sqrt())
    anew = people.labelled & (people.weights > 0).any(dim=2) & ~straight[:, None]
    boxes = torch.where(anew[..., None], near, boxes)
    other = torch.tensor(single.MIRROR, device=boxes.device)
    swapped = lambda values: torch.where(  # noqa: E731
        mirrored.reshape(-1, *(1,) * (values.ndim - 1)), values[:, :, other], values
    )
    return replace(
        people, boxes=boxes, keypoints=swapped(keypoints), weights=swapped(people.weights), seen=swapped(people.seen)
    )


def _around(keypoints: Tensor, people: Crowd, scale: Tensor) -> Tensor:
    """Boxes around believed key points with the mean margin that the people's boxes had before."""
    believed = (people.weights > 0)[..., None]

    def extent(points: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (torch.where(believed, points, fill) for fill in (torch.inf, -torch.inf))
        return low.amin(dim=2), high.amax(dim=2)

    low, high = extent(people.keypoints)
    margin = torch.cat([low - people.boxes[..., :2], people.boxes[..., 2:] - high], dim=2).clamp(min=0)
    room = margin.mean(dim=2, keepdim=True).nan_to_num(posinf=0.0) * scale[:, None, None]
    low, high = extent(keypoints)
    return torch.cat([low - room, high + room], dim=2)


def clip(people: Crowd, canvas: tuple[int, int]) -> Crowd:
    """People on a canvas of (H, W) px: what is outside is not believed; who hardly shows becomes an unknown region."""
    edge = torch.tensor([canvas[1], canvas[0]], device=people.boxes.device, dtype=torch.float32)
    whole = (people.boxes[..., 2:] - people.boxes[..., :2]).prod(dim=2)
    boxes = torch.minimum(people.boxes.clamp(min=0), edge.repeat(2))
    sides = boxes[..., 2:] - boxes[..., :2]
    inside = ((people.keypoints >= 0) & (people.keypoints < edge)).all(dim=3)
    weights = people.weights * inside
    enough = ((weights > 0).sum(dim=2) >= single.LEAST_KEYPOINTS) & (sides.amax(dim=2) >= single.LEAST_SIDE_PX)
    enough &= sides.prod(dim=2) > single.LEAST_SHARE * whole
    return replace(
        people, boxes=boxes, weights=weights, seen=people.seen * inside, labelled=people.labelled & enough,
        there=people.there & (sides.amin(dim=2) > 1),
    )  # fmt: skip
