"""Drawing: what is where, and that nothing breaks it."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from agent.overlay import ActionBar, Mode, draw, track_colour
from agent.types import FrameStamp, ImageArray, People, Tracks

LINE = np.array([(100 + 3 * i, 40 + 8 * i) for i in range(17)], np.float32)


def tracks(points: np.ndarray = LINE, score: float = 0.9, box: tuple[float, ...] = (90, 30, 160, 180)) -> Tracks:
    people = People(
        np.array([box], np.float32), points[None].astype(np.float32), np.full((1, 17), score, np.float32),
        np.array([0.9], np.float32),
    )  # fmt: skip
    stamp = FrameStamp("cam", 0, 0, datetime(2026, 11, 23, tzinfo=UTC), 320, 240)
    return Tracks(stamp, people, np.array([5]), np.array([1]))


def grey(height: int = 240, width: int = 320) -> ImageArray:
    return np.full((height, width, 3), 90, np.uint8)


def changed(image: ImageArray, background: int = 90) -> np.ndarray:
    return (image != background).any(axis=2)


def near(image: ImageArray, x: float, y: float, background: int = 90) -> bool:
    """Whether something is drawn within 2 px of (x, y)."""
    return bool(changed(image, background)[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3].any())


def test_the_input_is_left_alone() -> None:
    image = grey()
    image.setflags(write=False)
    draw(image, tracks(), actions=[ActionBar("fight", 0.9)])
    assert not changed(image).any()


def test_joints_boxes_and_label_are_drawn_at_their_places() -> None:
    out = draw(grey(), tracks())
    assert all(near(out, x, y) for x, y in LINE)
    assert near(out, 160, 100)  # right edge of the box
    assert near(out, 95, 26)  # the label above the corner
    assert not changed(out)[:, 200:].any()


def test_coordinates_scale_with_the_picture() -> None:
    out = draw(grey(480, 640), tracks())
    assert all(near(out, 2 * x, 2 * y) for x, y in LINE)


def test_raw_shows_the_picture_as_it_is() -> None:
    assert not changed(draw(grey(), tracks(), mode=Mode.RAW, actions=[ActionBar("x", 1.0)], caption="x")).any()


def test_skeleton_mode_shows_nothing_of_the_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    first, second = draw(noise, tracks(), mode=Mode.SKELETON), draw(grey(), tracks(), mode=Mode.SKELETON)
    assert np.array_equal(first, second)
    assert all(near(first, x, y, background=0) for x, y in LINE)


def test_minimal_draws_no_box_and_no_actions() -> None:
    out = draw(grey(), tracks(), mode=Mode.MINIMAL, actions=[ActionBar("fight", 0.9)])
    assert near(out, *LINE[0])
    assert not near(out, 160, 100)
    assert not changed(out)[:20, :60].any()


def test_debug_also_shows_doubtful_joints_and_whom_the_tracker_left_out() -> None:
    other = np.stack([LINE, np.add(LINE, (150, 0))]).astype(np.float32)
    boxes = np.array([(90, 30, 160, 180), (240, 30, 310, 180)], np.float32)
    found = People(boxes, other, np.full((2, 17), 0.9, np.float32), np.array([0.9, 0.2], np.float32))
    out = draw(grey(), tracks(score=0.2), mode=Mode.DEBUG, actions=[ActionBar("fight", 0.9)], found=found)
    assert all(near(out, x + 3, y) for x, y in LINE)  # the ring around a joint
    assert near(out, 310, 100)  # the box of who is not followed
    plain = draw(grey(), tracks(score=0.2), actions=[ActionBar("fight", 0.9)], found=found)
    assert not near(plain, 310, 100)
    assert not near(plain, *LINE[9])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 1e12])
def test_debug_stands_any_number(bad: float) -> None:
    draw(grey(), tracks(score=bad), mode=Mode.DEBUG)
    points = LINE.copy()
    points[3] = bad
    broken = tracks(points, box=(bad, 0, 10, 10))
    draw(grey(), broken, mode=Mode.DEBUG, found=broken.people)


def test_doubtful_joints_are_left_out() -> None:
    out = draw(grey(), tracks(score=0.2), mode=Mode.MINIMAL)
    assert not changed(out).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e12, -1e12])
def test_impossible_coordinates_do_no_harm(bad: float) -> None:
    points = LINE.copy()
    points[3] = bad
    out = draw(grey(), tracks(points, box=(bad, 0, 10, 10)))
    assert near(out, *LINE[9])


def test_bars_fill_with_the_probability_and_turn_red_at_the_threshold() -> None:
    calm = draw(grey(), tracks(), actions=[ActionBar("fight", 0.5, threshold=0.8)])
    alert = draw(grey(), tracks(), actions=[ActionBar("fight", 0.8, threshold=0.8)])
    row = calm.shape[0] // 80 + 5
    blue, green, red = calm[row, 8].tolist()
    assert green > max(blue, red)
    blue, green, red = alert[row, 8].tolist()
    assert red > max(blue, green)
    filled = [(out[row, 4:100] != [22, 22, 22]).any(axis=1).sum() for out in (calm, alert)]
    assert filled[0] < filled[1]


@pytest.mark.parametrize("probability", [-1.0, 2.0, float("nan"), float("inf")])
def test_bars_stand_any_number(probability: float) -> None:
    draw(grey(), tracks(), actions=[ActionBar("fight", probability)])


@pytest.mark.parametrize("size", [(2, 2), (16, 16), (64, 48), (1080, 1920)])
def test_any_size_can_be_drawn_on(size: tuple[int, int]) -> None:
    out = draw(grey(*size), tracks(), actions=[ActionBar("fight", 0.9)] * 9, caption="cam  2026-11-23 12:00:00 UTC")
    assert out.shape == (*size, 3)


def test_nobody_in_view_gives_the_plain_picture() -> None:
    stamp = tracks().stamp
    empty = Tracks(stamp, People.empty(), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert not changed(draw(grey(), empty)).any()


def test_colours_stay_with_the_id_and_differ_between_neighbours() -> None:
    colours = [track_colour(i) for i in range(1, 9)]
    assert colours == [track_colour(i) for i in range(1, 9)]
    assert len(set(colours)) == 8
    assert all(max(c) > 128 for c in colours)
