"""Backdrops: what a ray hits, what hides people, textures that can be computed anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from agent.simulation.background import choose_place
from agent.simulation.camera import Camera, hang_camera, look_at
from agent.simulation.materials import KINDS, Material, noise, surface
from agent.simulation.stage import Ambience, Backdrop, Block, Lamp, Shell, arriving, build_backdrop

WHITE = Material("plain", (0.9, 0.9, 0.9), contrast=0.0)
RED = Material("plain", (0.05, 0.05, 0.8), contrast=0.0)
ROOM = Shell((-5.0, -5.0, 0.0), (5.0, 5.0, 3.0), (WHITE,) * 6)


def camera() -> Camera:
    """In the middle of the room, 1.5 m up, looking along x at the wall 5 m away."""
    return look_at(np.array([0.0, 0, 1.5]), np.array([1.0, 0, 1.5]), focal_px=100, width=161, height=121)


def backdrop(*blocks: Block, shell: Shell = ROOM) -> Backdrop:
    return build_backdrop(shell, blocks, Ambience(0.8, ()), camera(), brightness=110)[0]


def test_the_floor_is_where_rays_go_down_far_enough() -> None:
    floor = backdrop().floor
    assert not floor[:90].any()  # the wall's foot: 1.5 m down at 5 m is 30 px below the centre (60)
    assert floor[92:].all()


def test_a_block_hides_with_its_own_depth_and_takes_no_shadow() -> None:
    found = backdrop(Block((2.0, -0.5, 0.0), (2.4, 0.5, 1.5), RED, RED))
    assert found.depth[70, 80] == pytest.approx(2.0, abs=1e-3)
    inside = np.isfinite(found.depth)
    columns = np.flatnonzero(inside.any(axis=0))
    assert (columns.min(), columns.max()) == pytest.approx((55, 105), abs=1)  # 0.5 m at 2 m: 25 px to both sides
    assert not found.floor[inside].any()
    assert found.image[70, 80, 2] > 2 * int(found.image[70, 80, 0])


def test_the_nearer_block_wins() -> None:
    near, far = (Block((x, -0.5, 0.0), (x + 0.2, 0.5, 3.0), RED, RED) for x in (1.5, 3.0))
    assert backdrop(far, near).depth[60, 80] == pytest.approx(1.5, abs=1e-3)
    assert backdrop(near, far).depth[60, 80] == pytest.approx(1.5, abs=1e-3)


def test_decoration_hides_nobody() -> None:
    poster = Block((4.9, -1.0, 1.0), (5.0, 1.0, 2.0), RED, RED, hides=False)
    found = backdrop(poster)
    assert not np.isfinite(found.depth).any()
    assert found.image[60, 80, 2] > found.image[60, 80, 0]


def test_automatic_exposure_reaches_the_brightness_asked_for() -> None:
    for level in (0.3, 1.0):
        image = build_backdrop(ROOM, (), Ambience(level, ()), camera(), brightness=110)[0].image
        assert image.mean() == pytest.approx(110, abs=6)


def test_lamps_fall_off_with_distance() -> None:
    points = tuple(np.array(values, np.float32) for values in ((0.0, 2.0, 8.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))
    light = arriving(Ambience(0.2, (Lamp((0.0, 0.0, 0.0), 1.0, 2.0),)), points)  # type: ignore[arg-type]  # three
    assert light == pytest.approx([1.2, 0.7, 0.2 + 1 / 17], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_material_gives_albedo_within_bounds_even_far_away(kind: str) -> None:
    rng = np.random.default_rng(1)
    u, v = rng.uniform(-30, 30, (2, 5000)).astype(np.float32)
    material = Material(kind, (0.4, 0.5, 0.6), (0.8, 0.2, 0.1), size_m=0.4)
    for pixel_m in (0.002, 0.5):
        albedo = surface(material, u, np.abs(v), np.full(5000, pixel_m, np.float32))
        assert albedo.shape == (5000, 3)
        assert np.isfinite(albedo).all()
        assert albedo.min() >= 0.01
        assert albedo.max() <= 1.0


def test_noise_repeats_nowhere_near_and_is_the_same_again() -> None:
    u, v = np.meshgrid(np.linspace(0, 3, 50), np.linspace(0, 3, 40))
    first = noise(u, v, 1.0, 5)
    assert first.shape == u.shape
    assert np.array_equal(first, noise(u, v, 1.0, 5))
    assert first.std() > 0.3


def test_nothing_is_put_where_people_walk() -> None:
    rng = np.random.default_rng(2)
    points = np.concatenate([rng.uniform(-2, 2, (400, 2)), rng.uniform(0, 1.8, (400, 1))], axis=1).astype(np.float32)
    for seed in range(4):
        eye = hang_camera(points, np.random.default_rng(seed), width=160, height=120)
        setting = choose_place(eye, points, np.random.default_rng(seed), name="parking", night=False)
        pixels, depth = eye.project(points)
        inside = np.all((pixels >= 0) & (pixels < (159, 119)), axis=1)
        at = np.rint(pixels[inside]).astype(int)
        hidden = setting.backdrop.depth[at[:, 1], at[:, 0]] < depth[inside]
        assert hidden.mean() < 0.35
