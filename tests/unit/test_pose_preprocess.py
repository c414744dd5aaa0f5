"""Letterbox: the same bits as the plain way of doing it, and points that come back where they were."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DataError
from agent.pose.preprocess import Letterbox, fit, scaled


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def plain(image: np.ndarray, canvas: tuple[int, int], anchor: str = "top_left", pad: int = 114) -> np.ndarray:
    """The straightforward letterbox: new canvas, resize, paste, transpose, convert."""
    ratio = min(canvas[0] / image.shape[0], canvas[1] / image.shape[1])
    rows, columns = max(1, int(image.shape[0] * ratio)), max(1, int(image.shape[1] * ratio))
    top, left = ((canvas[0] - rows) // 2, (canvas[1] - columns) // 2) if anchor == "center" else (0, 0)
    padded = np.full((*canvas, 3), pad, np.uint8)
    padded[top : top + rows, left : left + columns] = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return padded.transpose(2, 0, 1).astype(np.float32)


SIZES = [(1080, 1920), (480, 640), (640, 640), (1920, 1080), (563, 1000), (31, 17), (1, 300), (300, 1)]


@pytest.mark.parametrize("anchor", ["top_left", "center"])
@pytest.mark.parametrize("size", SIZES)
def test_every_bit_is_that_of_the_plain_letterbox(size: tuple[int, int], anchor: str) -> None:
    image = picture(*size)
    batch, _ = Letterbox((640, 640), anchor=anchor).fill([image])
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch[0], plain(image, (640, 640), anchor))


def test_slots_that_see_other_sizes_keep_no_trace_of_the_last_picture() -> None:
    letterbox = Letterbox((96, 128), 2, anchor="center")
    for seed, sizes in enumerate(
        [((50, 90), (90, 50)), ((90, 50), (10, 90)), ((96, 128), (3, 3)), ((10, 90), (50, 90))]
    ):
        images = [picture(*size, seed=seed) for size in sizes]
        batch, _ = letterbox.fill(images)
        for slot, image in enumerate(images):
            np.testing.assert_array_equal(batch[slot], plain(image, (96, 128), "center"))


@pytest.mark.parametrize("anchor", ["top_left", "center"])
def test_a_letterbox_of_another_size_keeps_no_trace_of_the_last(anchor: str) -> None:
    letterbox = Letterbox((96, 128), 2, anchor=anchor)
    for seed, canvas in enumerate([(96, 128), (64, 128), (64, 96), (96, 96), (96, 128)]):
        images = [picture(50, 90, seed), picture(90, 50, seed)]
        letterbox.resize(canvas)
        batch, _ = letterbox.fill(images)
        assert letterbox.canvas == canvas
        for slot, image in enumerate(images):
            np.testing.assert_array_equal(batch[slot], plain(image, canvas, anchor))


STEP = 32


@given(scale=st.floats(0.01, 1.0), rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_a_scaled_canvas_is_near_its_share_and_never_larger(scale: float, rows: int, columns: int) -> None:
    canvas = (STEP * rows, STEP * columns)
    for side, whole in zip(scaled(canvas, scale, STEP), canvas, strict=True):
        assert STEP <= side <= whole
        assert side % STEP == 0
        assert abs(side - whole * scale) <= max(STEP / 2, STEP - whole * scale)


def test_a_smaller_batch_is_a_view_of_the_first_slots() -> None:
    letterbox = Letterbox((64, 64), 4)
    batch, geometries = letterbox.fill([picture(20, 20)])
    assert batch.shape == (1, 3, 64, 64)
    assert len(geometries) == 1
    assert np.shares_memory(batch, letterbox.whole)


def test_rgb_and_float16_on_request() -> None:
    image = picture(40, 60)
    batch, _ = Letterbox((64, 64), channels="rgb", dtype=np.float16).fill([image])
    assert batch.dtype == np.float16
    np.testing.assert_array_equal(batch[0], plain(np.ascontiguousarray(image[..., ::-1]), (64, 64)).astype(np.float16))


def test_read_only_and_strided_pictures_are_fine() -> None:
    image = picture(80, 90)
    image.setflags(write=False)
    crop = image[5:65, 7:80]
    mirrored = image[:, ::-1]
    batch, _ = Letterbox((64, 64), 3).fill([image, crop, mirrored])
    np.testing.assert_array_equal(batch[1], plain(np.ascontiguousarray(crop), (64, 64)))
    np.testing.assert_array_equal(batch[2], plain(np.ascontiguousarray(mirrored), (64, 64)))


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((0, 10, 3), np.uint8),
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        None,
    ],
)
def test_a_bad_picture_is_a_data_error_that_says_which(bad: np.ndarray) -> None:
    with pytest.raises(DataError, match="image 1: "):
        Letterbox((64, 64), 2).fill([picture(8, 8), bad])


@settings(max_examples=200, deadline=None)
@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    anchor=st.sampled_from(["top_left", "center"]),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
)
def test_points_come_back_to_where_they_were(width: int, height: int, anchor: str, x: float, y: float) -> None:
    place = fit(width, height, 640, 480, anchor)
    assert place.left + place.resized_width <= 640
    assert place.top + place.resized_height <= 480
    source = np.array([[x * width, y * height]])
    canvas = source * place.scale + [place.left, place.top]
    back = place.to_source(canvas)
    assert back.dtype == np.float32
    # float32 holds a canvas coordinate to 6e-5 px; on the way back that grows by 1 / scale
    np.testing.assert_allclose(back, source, atol=1e-4 * max(1.0, 1 / min(place.scale)), rtol=1e-5)


def test_corners_of_the_copy_are_the_corners_of_the_source() -> None:
    place = fit(1000, 563, 640, 640)  # 563 * 0.64 is not whole: the scale in y is not the one in x
    corners = np.array([[0, 0], [place.resized_width, place.resized_height]], np.float32)
    np.testing.assert_allclose(place.to_source(corners), [[0, 0], [1000, 563]], rtol=1e-6)
