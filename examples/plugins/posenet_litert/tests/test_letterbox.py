"""The way into the network's input and back."""

from __future__ import annotations

import numpy as np
import pytest

from recognizer_posenet_litert.letterbox import PADDING, Letterbox

HEIGHT, WIDTH = 353, 481


@pytest.mark.parametrize("size", [(240, 320), (1080, 1920), (900, 400), (353, 481), (60, 80)])
def test_a_mark_in_the_picture_is_found_again_at_its_place(size: tuple[int, int]) -> None:
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    side = max(height, width) // 20
    top, left = height // 3, width // 4
    image[top : top + side, left : left + side] = 255
    letterbox = Letterbox(HEIGHT, WIDTH)
    fit = letterbox(image)
    content = letterbox.buffer[0, : fit.height, : fit.width, 0].astype(np.float64)
    y, x = np.mgrid[0 : fit.height, 0 : fit.width]
    centre = np.array([(x * content).sum(), (y * content).sum()], np.float32) / content.sum()
    np.testing.assert_allclose(
        fit.to_source(centre), [left + (side - 1) / 2, top + (side - 1) / 2], atol=0.02 * side + 0.3
    )


def test_the_aspect_ratio_is_kept_and_the_rest_is_grey() -> None:
    letterbox = Letterbox(HEIGHT, WIDTH)
    fit = letterbox(np.zeros((1080, 1920, 3), np.uint8))
    assert (fit.width, fit.height) == (481, 271)
    assert (letterbox.buffer[0, :271] == 0).all()
    assert (letterbox.buffer[0, 271:] == PADDING).all()


def test_nothing_of_a_picture_stays_behind_for_the_next() -> None:
    letterbox = Letterbox(HEIGHT, WIDTH)
    letterbox(np.full((480, 640, 3), 255, np.uint8))
    fit = letterbox(np.zeros((300, 100, 3), np.uint8))
    assert (letterbox.buffer[0, :, fit.width :] == PADDING).all()


def test_the_channels_are_turned_to_rgb() -> None:
    letterbox = Letterbox(HEIGHT, WIDTH)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:] = (10, 20, 30)
    letterbox(image)
    assert letterbox.buffer[0, 5, 5].tolist() == [30, 20, 10]


def test_the_buffer_is_kept_from_picture_to_picture() -> None:
    letterbox = Letterbox(HEIGHT, WIDTH)
    before = letterbox.buffer
    letterbox(np.zeros((480, 640, 3), np.uint8))
    letterbox(np.zeros((200, 200, 3), np.uint8))
    assert letterbox.buffer is before


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_slivers_fit(size: tuple[int, int]) -> None:
    letterbox = Letterbox(HEIGHT, WIDTH)
    fit = letterbox(np.zeros((*size, 3), np.uint8))
    assert 1 <= fit.width <= WIDTH
    assert 1 <= fit.height <= HEIGHT


def test_points_in_the_padding_are_moved_on_to_the_picture() -> None:
    fit = Letterbox(HEIGHT, WIDTH)(np.zeros((1080, 1920, 3), np.uint8))
    points = fit.to_source(np.array([[480.0, 352.0], [-9.0, -9.0]], np.float32))
    np.testing.assert_allclose(points, [[1918.5, 1079], [0, 0]], atol=2)
