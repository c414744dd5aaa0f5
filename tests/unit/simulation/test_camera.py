"""Projection against hand calculation, its inverse and its derivative."""

from __future__ import annotations

import numpy as np
import pytest
from fakes.mannequins import Mannequins

from agent.simulation.camera import NEAR_M, Camera, hang_camera, look_at


def level_camera(**more: float) -> Camera:
    """At the origin, 1 m up, looking along x; 100 px focal length, picture 201 x 101 (centre 100, 50)."""
    return look_at(np.array([0.0, 0, 1]), np.array([5.0, 0, 1]), focal_px=100, width=201, height=101, **more)


@pytest.mark.parametrize(
    ("point", "pixel", "depth"),
    [
        ((4, 0, 1), (100, 50), 4),  # on the axis
        ((4, -1, 1), (125, 50), 4),  # y points to the left of somebody who looks along x: -1 m is 25 px to the right
        ((2, 0, 0), (100, 100), 2),  # 1 m below at 2 m: 50 px down
        ((5, 2, 3), (60, 10), 5),
    ],
)
def test_projection_by_hand(point: tuple[float, ...], pixel: tuple[float, ...], depth: float) -> None:
    pixels, depths = level_camera().project(np.array(point, np.float32))
    assert pixels == pytest.approx(pixel, abs=1e-4)
    assert depths == pytest.approx(depth)


def test_barrel_distortion_by_hand() -> None:
    pixels, _ = level_camera(k1=-0.1).project(np.array([2.0, -1, 1], np.float32))  # half a focal length to the right
    assert pixels == pytest.approx((100 + 50 * (1 - 0.1 * 0.25), 50), abs=1e-3)


def test_roll_turns_the_picture() -> None:
    pixels, _ = level_camera(roll=np.pi / 2).project(np.array([4.0, -1, 1], np.float32))
    assert pixels == pytest.approx((100, 25), abs=1e-3)  # the camera turned clockwise: right is up


def test_what_is_behind_the_lens_has_no_depth_and_is_far_outside() -> None:
    pixels, depth = level_camera().project(np.array([-3.0, 1, 0], np.float32))
    assert depth < NEAR_M
    assert np.abs(pixels - (100, 50)).max() > 300


@pytest.mark.parametrize("k1", [0.0, -0.15, 0.1])
def test_rays_meet_the_points_that_project_to_their_pixels(k1: float) -> None:
    camera = level_camera(k1=k1, roll=0.1)
    rays = camera.rays()
    for row, column in ((0, 0), (50, 100), (100, 3), (20, 199)):
        pixels, depth = camera.project(camera.position + 3 * rays[row, column])
        assert pixels == pytest.approx((column, row), abs=0.02)
        assert depth == pytest.approx(3, abs=1e-4)


def test_jacobian_is_the_derivative_of_the_projection() -> None:
    camera = level_camera(k1=-0.12)
    local = np.array([[0.4, -0.3, 2.0], [0.0, 0.0, 5.0], [-1.0, 0.5, 3.0]], np.float32)
    jacobian = camera.jacobian(local)
    for axis in range(3):
        step = np.zeros(3, np.float32)
        step[axis] = 1e-2
        numeric = (camera.project_local(local + step)[0] - camera.project_local(local - step)[0]) / 2e-2
        assert jacobian[:, :, axis] == pytest.approx(numeric, abs=0.05)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected shapes \(3,\) and \(3, 3\), got \(2,\)"):
        Camera(np.zeros(2, np.float32), np.eye(3, dtype=np.float32), 100, 10, 10)
    with pytest.raises(ValueError, match="straight above or below"):
        look_at(np.zeros(3), np.array([0.0, 0, -1]), focal_px=100, width=10, height=10)


@pytest.mark.parametrize("seed", range(12))
def test_a_hung_camera_is_up_on_the_wall_and_sees_most_people_large(seed: int) -> None:
    script = Mannequins(places=tuple((x, y, 0.3 * x) for x in (-3.0, 0, 3) for y in (-2.0, 0, 2)))
    points = np.concatenate([actor.joints for actor in script.actors(0)])
    camera = hang_camera(points, np.random.default_rng(seed), width=640, height=480)
    assert 2.2 <= camera.position[2] <= 5.0
    pixels, depth = camera.project(points)
    seen = (depth > NEAR_M) & np.all((pixels >= 0) & (pixels < (640, 480)), axis=1)
    assert seen.mean() > 0.5
    heads, feet = pixels.reshape(-1, 17, 2)[4, 0], pixels.reshape(-1, 17, 2)[4, 15]
    assert 70 < np.linalg.norm(heads - feet) < 400
