"""How much the picture changes where people are."""

from __future__ import annotations

import numpy as np
import pytest

from agent.action.change import FARTHEST_NS, NEAREST_NS, RESTLESS, PictureChange
from agent.types import FloatArray, ImageArray

WIDTH, HEIGHT = 640, 480
MS = 1_000_000


def picture(left: int = 100, level: int = 200, size: tuple[int, int] = (WIDTH, HEIGHT)) -> ImageArray:
    """Grey with a square of 80 px whose left edge is at `left`, in the middle of the height."""
    image = np.full((size[1], size[0], 3), 50, np.uint8)
    image[200:280, left : left + 80] = level
    return image


def people(*places: tuple[float, float]) -> FloatArray:
    """(N, 17, 2): each with all joints in one place."""
    return np.broadcast_to(np.array(places, np.float32).reshape(-1, 1, 2), (len(places), 17, 2)).copy()


def test_the_first_frame_says_nothing() -> None:
    assert not PictureChange().push(0, picture(), people((140, 240))).any()


def test_only_who_stands_where_it_changes() -> None:
    change = PictureChange()
    change.push(0, picture(level=200), people())
    found = change.push(100 * MS, picture(level=80), people((400, 240), (140, 240)))
    assert found.shape == (RESTLESS, 17)
    np.testing.assert_allclose(found[0], 120 / 255, atol=0.01)  # of the second one, who is the more restless
    assert not found[1:].any()


def test_the_most_restless_come_first_and_the_others_are_left_out() -> None:
    change = PictureChange()
    before, after = picture(), picture()
    places = [(20 + 100 * n, 60) for n in range(6)]
    for n, (x, y) in enumerate(places):
        after[y - 20 : y + 20, max(0, x - 20) : x + 20] = 50 + 10 * (n + 1)
    change.push(0, before, people())
    found = change.push(80 * MS, after, people(*places))
    np.testing.assert_allclose(found[:, 0] * 255, [60, 50, 40, 30], atol=2)


@pytest.mark.parametrize("fps", [8, 10, 12, 15, 20, 25, 30, 50, 60])
def test_frames_are_compared_over_about_the_same_time_at_each_rate(fps: int) -> None:
    """The square grows brighter by 100 a second; so the difference says how long ago the other frame was."""
    change = PictureChange()
    found = np.zeros(0)
    for n in range(fps + 1):
        found = change.push(round(n * 1e9 / fps), picture(level=100 + round(100 * n / fps)), people((140, 240)))
    assert NEAREST_NS / 1e9 - 0.01 <= found[0, 0] * 255 / 100 <= FARTHEST_NS / 1e9 + 0.01


def test_a_camera_that_is_too_slow_says_nothing() -> None:
    change = PictureChange()
    for n in range(4):
        assert not change.push(n * 200 * MS, picture(level=100 + 20 * n), people((140, 240))).any()


def test_frames_of_another_size_are_not_compared() -> None:
    change = PictureChange()
    change.push(0, picture(), people())
    assert not change.push(100 * MS, picture(level=9, size=(1280, 720)), people((140, 240))).any()
    assert change.push(200 * MS, picture(level=90, size=(1280, 720)), people((140, 240))).any()


def test_joints_outside_and_joints_that_are_no_numbers_count_at_the_edge() -> None:
    change = PictureChange()
    change.push(0, np.zeros((HEIGHT, WIDTH, 3), np.uint8), people())
    keypoints = people((-500, 240), (5000, 5000))
    keypoints[0, 3] = np.nan
    found = change.push(100 * MS, np.full((HEIGHT, WIDTH, 3), 255, np.uint8), keypoints)
    np.testing.assert_allclose(found[:2], 1.0)


def test_nothing_is_known_after_a_reset() -> None:
    change = PictureChange()
    change.push(0, picture(), people())
    change.reset()
    assert not change.push(100 * MS, picture(level=9), people((140, 240))).any()


@pytest.mark.parametrize("size", [(7, 5), (161, 121), (640, 1), (1920, 1080)])
def test_any_size_will_do(size: tuple[int, int]) -> None:
    change = PictureChange()
    image = np.zeros((size[1], size[0], 3), np.uint8)
    for n in range(3):
        change.push(n * 100 * MS, image + np.uint8(n * 50), people((1, 1)))


def test_grey_pictures_are_as_good() -> None:
    change = PictureChange()
    change.push(0, picture()[..., 0], people())
    assert change.push(100 * MS, picture(level=9)[..., 0], people((140, 240))).any()
