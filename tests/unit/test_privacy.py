"""Faces: where the heads are taken to be, and that nothing of them is left."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from agent.events.privacy import GRID, FaceBlur, head_regions, obscure
from agent.types import FloatArray, ImageArray, People

# A standing person of 170 px in a 320 x 240 picture, by hand: key point -> (x, y). The face spans about 24 px.
STANDING = np.array(
    [(160, 42), (163, 39), (157, 39), (167, 41), (153, 41), (178, 64), (142, 64), (184, 90), (136, 90), (186, 114),
     (134, 114), (172, 116), (148, 116), (172, 156), (148, 156), (172, 196), (148, 196)], np.float32,
)  # fmt: skip
BOX = (132.0, 28.0, 188.0, 204.0)
FACE_RADIUS = 12.0  # half the width of the face above, ears included


def person(
    points: FloatArray = STANDING, score: float = 0.9, box: tuple[float, ...] = BOX, *, face: float | None = None,
    body: float | None = None,
) -> People:  # fmt: skip
    scores = np.full((1, 17), score, np.float32)
    if face is not None:
        scores[:, :5] = face
    if body is not None:
        scores[:, 5:] = body
    return People(np.array([box], np.float32), points[None].copy(), scores, np.array([score], np.float32))


def noise(height: int = 240, width: int = 320) -> ImageArray:
    """A checkerboard of noise: as much detail as a picture can hold."""
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def disc(centre: tuple[float, float], radius: float, shape: tuple[int, int] = (240, 320)) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def detail(image: ImageArray, mask: np.ndarray) -> float:
    """Mean absolute Laplacian of the grey picture within `mask`: the energy of fine structure."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
    return float(np.abs(cv2.Laplacian(grey, cv2.CV_32F))[mask].mean())


@pytest.mark.parametrize(
    "people",
    [
        pytest.param(person(), id="all points"),
        pytest.param(person(score=0.25), id="doubtful person"),
        pytest.param(person(face=0.0), id="no face points: from shoulders and hips"),
        pytest.param(person(score=0.0, face=0.0), id="no points: from the box"),
        pytest.param(person(body=0.0), id="face points only"),
        pytest.param(person(np.full((17, 2), np.nan, np.float32)), id="NaN points: from the box"),
    ],
)
def test_detail_of_the_face_is_destroyed_wherever_the_head_is_known_from(people: People) -> None:
    image = noise()
    face = disc((160, 42), FACE_RADIUS)
    before = detail(image, face)
    FaceBlur().apply(image, people, 0)
    assert detail(image, face) < before * 0.05


def test_profile_with_one_eye_and_ear_is_covered() -> None:
    people = person()
    scores = people.keypoint_scores.copy()
    scores[:, [2, 4]] = 0.0  # the far side is hidden
    image = noise()
    before = detail(image, disc((160, 42), FACE_RADIUS))
    FaceBlur().apply(image, People(people.boxes, people.keypoints, scores, people.scores), 0)
    assert detail(image, disc((160, 42), FACE_RADIUS)) < before * 0.05


def test_close_up_in_profile_is_covered_from_forehead_to_chin() -> None:
    """Only nose, an eye and an ear, all at one height; the box ends at the chest. Nose to ear: 60 px for 12 cm."""
    people = person(box=(60, 20, 260, 240))
    points, scores = people.keypoints.copy(), np.zeros((1, 17), np.float32)
    points[0, [0, 1, 3]] = [(120, 110), (132, 105), (180, 108)]
    scores[0, [0, 1, 3]] = 0.9
    ((_, cy, _, ry),) = head_regions(People(people.boxes, points, scores, people.scores))[0]
    assert cy - ry < 110 - 60  # a head is 23 cm high, 115 px
    assert cy + ry > 110 + 60


def test_what_is_left_is_a_grid_of_few_colours() -> None:
    """The obscured area is a function of GRID x GRID colours, so no more than these can be recovered from it."""
    image = noise()
    original = image.copy()
    obscure(image, np.array([[160, 120, 80, 80]], np.float32))
    area, source = image[40:200, 80:240], original[40:200, 80:240]
    colours = cv2.resize(source, (GRID, GRID), interpolation=cv2.INTER_AREA)
    rebuilt = cv2.resize(colours, (160, 160), interpolation=cv2.INTER_LINEAR)
    inside = disc((80, 80), 78, (160, 160))
    assert np.array_equal(area[inside], rebuilt[inside])


def test_two_faces_with_the_same_mean_colours_become_the_same() -> None:
    """Detail below the grid does not change the result at all: the map cannot be inverted."""
    first = noise(64, 64)
    second = first.copy()
    blocks = second.reshape(GRID, 16, GRID, 16, 3)
    blocks[:] = blocks[:, ::-1, :, ::-1]  # mirror the inside of every cell: another picture, the same means
    for image in (first, second):
        obscure(image, np.array([[32, 32, 32, 32]], np.float32))
    inside = disc((32, 32), 30, (64, 64))
    assert np.array_equal(first[inside], second[inside])


def test_the_rest_of_the_picture_is_untouched() -> None:
    image = noise()
    original = image.copy()
    FaceBlur().apply(image, person(), 0)
    outside = ~disc((160, 42), 40)
    assert np.array_equal(image[outside], original[outside])


def test_head_size_follows_the_body() -> None:
    ((_, _, rx, ry),) = head_regions(person())[0]
    assert FACE_RADIUS * 1.2 < rx == ry < 2.5 * FACE_RADIUS


def test_lying_person_without_points_is_covered_from_end_to_end() -> None:
    box = (40.0, 180.0, 240.0, 230.0)
    ((cx, _, rx, _),) = head_regions(person(score=0.0, box=box))[0]
    assert cx - rx <= 40
    assert cx + rx >= 240


def test_lying_person_without_face_points_has_the_head_beyond_the_shoulders() -> None:
    lying = np.stack([STANDING[:, 1], 240 - STANDING[:, 0]], axis=1)  # rotated: head to the left
    ((cx, cy, _, _),) = head_regions(person(lying, face=0.0, box=(28, 52, 204, 108)))[0]
    assert cx < 64  # left of the shoulders
    assert cy == pytest.approx(80, abs=2)


def test_misplaced_face_points_are_all_covered() -> None:
    points = STANDING.copy()
    points[3] = (260, 41)  # an ear 100 px away
    ((cx, _, rx, _),) = head_regions(person(points))[0]
    assert cx - rx < 150
    assert cx + rx > 260


@pytest.mark.parametrize("region", [(-50, -50, 10, 10), (500, 500, 10, 10), (0, 0, 30, 30), (319, 239, 400, 400)])
def test_regions_beyond_the_edge_do_no_harm(region: tuple[int, ...]) -> None:
    obscure(noise(), np.array([region], np.float32))


def test_a_face_stays_covered_when_the_estimator_drops_it_for_a_moment() -> None:
    blur = FaceBlur(hold_s=1.0)
    blur.apply(noise(), person(), 0)
    image = noise()
    before = detail(image, disc((160, 42), FACE_RADIUS))
    blur.apply(image, People.empty(), 900_000_000)
    assert detail(image, disc((160, 42), FACE_RADIUS)) < before * 0.05
    image = noise()
    blur.apply(image, People.empty(), 1_100_000_000)
    assert np.array_equal(image, noise())


def test_a_moving_head_leaves_no_trail() -> None:
    blur = FaceBlur()
    for step in range(5):
        points = STANDING + np.float32(step * 15)
        image = noise()
        blur.apply(image, person(points), step * 100_000_000)
    clean = noise()
    old = disc((160, 42), 6)
    assert np.array_equal(image[old], clean[old])


RADIUS = float(head_regions(person())[0][0, 2])


@pytest.mark.parametrize("fps", [2, 10, 25])
@pytest.mark.parametrize("radii_per_s", [8, 28], ids=["walks", "runs"])
def test_who_goes_on_is_followed_and_leaves_no_trail(fps: int, radii_per_s: float) -> None:
    blur, step_px, steps = FaceBlur(), radii_per_s * RADIUS / fps, max(3, fps // 2)
    clean = noise(width=320 + round(step_px * steps))
    for step in range(steps + 1):
        image = clean.copy()
        blur.apply(image, person(STANDING + np.float32([step * step_px, 0])), round(step / fps * 1e9))
    behind = image[:, : round(160 + (steps - 1.2 * RADIUS / step_px) * step_px)]
    first = 160 + round(1.2 * RADIUS)  # where it began nobody knew yet whether it was going
    assert np.array_equal(behind[:, first:], clean[:, first : behind.shape[1]])


@pytest.mark.parametrize("radii_apart", [0.7, 1.5, 2.9])
@pytest.mark.parametrize("fps", [2, 10, 25])
@pytest.mark.parametrize("turn", [1, 3, 100])
def test_in_a_clinch_both_faces_stay_covered_while_one_is_reported(radii_apart: float, fps: int, turn: int) -> None:
    """turn: frames of which an estimator that takes two people for one reports the same one."""
    blur, plain, places = FaceBlur(), noise(), [160.0, 160 + radii_apart * RADIUS]
    faces = [disc((x, 42), FACE_RADIUS * 0.8) for x in places]
    before = [detail(plain, face) for face in faces]
    seen_s: dict[int, float] = {}
    for n in range(fps + 2):
        shown, t_s = (n + turn - 1) // turn % 2, n / fps
        seen_s[shown] = t_s
        image = plain.copy()
        blur.apply(image, person(STANDING + np.float32([places[shown] - 160, 0])), round(t_s * 1e9))
        for who in (who for who, last_s in seen_s.items() if t_s - last_s < 0.99):
            assert detail(image, faces[who]) < before[who] * 0.05


def test_the_same_picture_once_more_settles_nothing() -> None:
    """The live page shows a frame in several modes."""
    blur, other = FaceBlur(), person(STANDING + np.float32([50, 0]))
    blur.apply(noise(), person(), 0)
    for t_ns in (100_000_000, 100_000_000, 200_000_000):
        image = noise()
        blur.apply(image, other, t_ns)
    face = disc((160, 42), FACE_RADIUS)
    assert detail(image, face) < detail(noise(), face) * 0.05


@pytest.mark.parametrize("odd", [np.inf, -np.inf, 1e12, np.nan])
def test_numbers_that_mean_nothing_cost_neither_this_picture_nor_the_next(odd: float) -> None:
    points, box = STANDING.copy(), (BOX[0], BOX[1], odd, odd)
    points[3] = odd
    blur, face = FaceBlur(), disc((160, 42), FACE_RADIUS)
    for t_ns, people in enumerate([person(points), person(box=box), person(points, box=box), person()]):
        image = noise()
        blur.apply(image, people, t_ns * 100_000_000)
        assert detail(image, face) < detail(noise(), face) * 0.05


def test_a_neighbour_that_is_dropped_is_not_taken_for_one_that_moved() -> None:
    blur = FaceBlur()
    other = person(STANDING + np.float32([50, 0]))
    both = People(*(np.concatenate([getattr(p, f) for p in (person(), other)]) for f in People.__slots__))
    blur.apply(noise(), both, 0)
    image = noise()
    face = disc((160, 42), FACE_RADIUS)
    before = detail(image, face)
    blur.apply(image, other, 100_000_000)
    assert detail(image, face) < before * 0.05
