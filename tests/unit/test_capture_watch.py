"""Frozen and blind detection on synthetic cameras."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
import pytest

from agent.capture.watch import PictureWatch, View, detail, sample_points
from agent.types import ImageArray

NS_PER_S = 1_000_000_000
RANDOM = np.random.default_rng(7)


def scene(height: int = 120, width: int = 160) -> ImageArray:
    """Rectangles of all brightnesses."""
    image = np.full((height, width, 3), 90, np.uint8)
    for _ in range(40):
        x, y = int(RANDOM.integers(width)), int(RANDOM.integers(height))
        level = int(RANDOM.integers(20, 230))
        cv2.rectangle(image, (x, y), (x + 25, y + 20), (level, level, level), -1)
    return image


def noisy(image: ImageArray, sigma: float) -> ImageArray:
    return np.clip(image + RANDOM.normal(0, sigma, image.shape), 0, 255).astype(np.uint8)


def watched(
    images: Iterable[ImageArray], period_s: float = 0.5, frozen_s: float = 10, blind_s: float = 5
) -> list[View]:
    watch = PictureWatch(frozen_s, blind_s)
    views = []
    for index, image in enumerate(images):
        now_ns = round(index * period_s * NS_PER_S)
        views.append(watch.update(sample_points(image), now_ns) if watch.due(now_ns) else watch.view)
    return views


def test_identical_pictures_are_frozen_after_the_time_and_not_before() -> None:
    still = scene()
    views = watched([still] * 30)
    assert views[:20] == [View.CLEAR] * 20
    assert views[20:] == [View.FROZEN] * 10


@pytest.mark.parametrize("sigma", [1.0, 2.0, 5.0])
def test_a_static_scene_with_sensor_noise_is_not_frozen(sigma: float) -> None:
    still = scene()
    assert set(watched(noisy(still, sigma) for _ in range(60))) == {View.CLEAR}


def test_an_encoder_that_repeats_a_static_scene_between_key_frames_is_not_frozen() -> None:
    still = scene()
    images = [image for _ in range(8) for image in [noisy(still, 1.5)] * 16]  # a key frame each 8 s
    assert set(watched(images)) == {View.CLEAR}


def test_slow_drift_is_life() -> None:
    still = scene().astype(np.float64)
    images = [np.clip(still + 0.2 * step, 0, 255).astype(np.uint8) for step in range(120)]
    assert set(watched(images)) == {View.CLEAR}


def test_re_encoding_of_one_picture_stays_frozen() -> None:
    still = scene()
    images = [np.clip(still.astype(int) + (step % 2), 0, 255).astype(np.uint8) for step in range(40)]
    assert watched(images)[-1] is View.FROZEN


def test_frozen_clears_with_the_first_new_picture() -> None:
    still = scene()
    assert watched([*[still] * 30, scene(), still])[-2:] == [View.CLEAR, View.CLEAR]


def test_few_slow_pictures_are_not_enough_for_frozen() -> None:
    still = scene()
    views = watched([still] * 8, period_s=6)
    assert views[4] is View.CLEAR
    assert views[5] is View.FROZEN


def covered(level: float, sigma: float, clock: bool) -> ImageArray:
    """A lens under a hand: no structure, light leaking in from one side, noise, perhaps a clock in the picture."""
    image = np.full((120, 160, 3), level) + np.linspace(0, 30, 160)[None, :, None]
    if clock:
        image[4:12, 4:70] = 255
    return noisy(image.clip(0, 255).astype(np.uint8), sigma)


@pytest.mark.parametrize("level", [0.0, 40.0, 128.0, 225.0])
@pytest.mark.parametrize("clock", [False, True])
def test_a_covered_lens_is_blind_after_the_time(level: float, clock: bool) -> None:
    views = watched(covered(level, 3, clock) for _ in range(20))
    assert views[:10] == [View.CLEAR] * 10
    assert views[10:] == [View.BLIND] * 10


def test_blind_says_more_than_frozen_and_clears_with_the_view() -> None:
    black = np.zeros((120, 160, 3), np.uint8)
    views = watched([*[black] * 30, scene()])
    assert views[-2:] == [View.BLIND, View.CLEAR]


def test_a_scene_in_low_contrast_is_not_blind() -> None:
    fog = (scene().astype(np.float64) * 0.25 + 120).astype(np.uint8)
    assert detail(sample_points(fog)) > 8
    assert View.BLIND not in watched(noisy(fog, 1) for _ in range(30))


def test_zero_switches_a_check_off() -> None:
    assert set(watched([np.zeros((48, 64, 3), np.uint8)] * 60, frozen_s=0, blind_s=0)) == {View.CLEAR}
    assert watched([scene()] * 60, frozen_s=0)[-1] is View.CLEAR


def test_sampling_is_at_most_twice_a_second() -> None:
    watch = PictureWatch(10, 5)
    due = 0
    for index in range(100):  # 25 fps for 4 s
        now_ns = index * 40_000_000
        if watch.due(now_ns):
            due += 1
            watch.update(sample_points(scene(48, 64)), now_ns)
    assert due == 8


@pytest.mark.parametrize("shape", [(1, 1, 3), (48, 64, 3), (31, 33, 3), (2160, 3840, 3)])
def test_any_picture_size_can_be_sampled(shape: tuple[int, int, int]) -> None:
    assert sample_points(np.zeros(shape, np.uint8)).shape == (64, 64)
