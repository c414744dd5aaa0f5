"""The decoder on maps drawn from known people: what goes in must come out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recognizer_posenet_litert.decoder import STRIDE, TREE, Affine, Decoder, DecoderOptions

HEAT, SHORT, MID = Affine(0.08, 128), Affine(0.25, 128), Affine(1.4, 117)
ROWS, COLUMNS = 31, 41
DISC_PX = 32.0
# A standing person, 100 px wide and 200 px tall, about its top left corner.
STANDING = np.array(
    [(50, 10), (55, 5), (45, 5), (62, 9), (38, 9), (75, 40), (25, 40), (90, 75), (10, 75), (100, 108), (0, 108),
     (68, 110), (32, 110), (70, 155), (30, 155), (72, 200), (28, 200)],
    np.float32,
)  # fmt: skip


def at(x: float, y: float, size: float = 1.0) -> np.ndarray:
    """(17, 2) the standing person with its corner at (x, y)."""
    return STANDING * np.float32(size) + np.array([x, y], np.float32)


def stored(real: np.ndarray, affine: Affine) -> np.ndarray:
    return np.clip(np.round(real / affine.scale) + affine.zero_point, 0, 255).astype(np.uint8)


def draw(
    people: list[np.ndarray],
    *,
    levels: list[float] | None = None,
    pull: float = 1.0,
    mid_error_px: float = 0.0,
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps as the network would make of `people` (17, 2) xy px: each cell belongs to the nearest key point of a kind.

    levels: logit at a person's key points; pull: part of the way that a short-range offset points along;
    mid_error_px: added to x of every displacement.
    """
    y, x = np.mgrid[0:rows, 0:columns] * float(STRIDE)
    heat = np.full((rows, columns, 17), -8.0)
    short = np.zeros((rows, columns, 34))
    mid = np.zeros((rows, columns, 64))
    nearest = np.full((rows, columns, 17), DISC_PX)
    for person, level in zip(people, levels or [5.0] * len(people), strict=True):
        for kind, (kx, ky) in enumerate(person):
            distance = np.hypot(x - kx, y - ky)
            disc = distance <= nearest[..., kind]
            nearest[disc, kind] = distance[disc]
            heat[disc, kind] = level - 3 * (distance[disc] / DISC_PX) ** 2
            short[disc, kind], short[disc, 17 + kind] = pull * (ky - y)[disc], pull * (kx - x)[disc]
            for edge, (parent, child) in enumerate(TREE):
                for source, target, first in ((parent, child, 0), (child, parent, 32)):
                    if source == kind:
                        mid[disc, first + edge] = (person[target, 1] - y)[disc]
                        mid[disc, first + edge + 16] = (person[target, 0] - x)[disc] + mid_error_px
    return stored(heat, HEAT), stored(short, SHORT), stored(mid, MID)


def decoder(**options: float) -> Decoder:
    return Decoder(replace(DecoderOptions(), **options), heatmaps=HEAT, short=SHORT, mid=MID)


def test_one_person_comes_back_within_the_quantisation_of_the_offsets() -> None:
    person = at(203.0, 117.0)
    found = decoder().decode(*draw([person]))
    assert len(found.scores) == 1
    np.testing.assert_allclose(found.keypoints[0], person, atol=0.2)
    assert (found.keypoint_scores > 0.9).all()
    assert found.scores[0] == pytest.approx(found.keypoint_scores.mean())


@pytest.mark.parametrize("root", range(17))
def test_a_person_is_found_from_any_one_key_point(root: int) -> None:
    person = at(203.0, 117.0)
    heat, short, mid = draw([person], levels=[0.0])
    others = np.arange(17) != root
    heat[..., others] = np.minimum(heat[..., others], stored(np.float64(-0.9), HEAT))  # below the seeds' threshold
    found = decoder(keypoint_threshold=0.1).decode(heat, short, mid)
    assert len(found.scores) == 1
    np.testing.assert_allclose(found.keypoints[0], person, atol=0.2)


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_each_refinement_step_takes_out_the_part_that_the_offsets_point_along(steps: int) -> None:
    person = at(203.0, 117.0)
    found = decoder(refinement_steps=steps).decode(*draw([person], pull=0.5, mid_error_px=14.0))
    error = np.abs(found.keypoints[0] - person)[:, 0]
    # Key points are seeds themselves or one displacement from one; the seed's own error halves as well.
    assert error.max() <= (14.0 + 8.0) * 0.5**steps + 1.0
    if steps == 0:
        assert error.max() > 8.0


def test_two_people_shoulder_to_shoulder_stay_two() -> None:
    left, right = at(150.0, 117.0), at(255.0, 121.0)
    found = decoder().decode(*draw([left, right], levels=[5.0, 4.0]))
    assert len(found.scores) == 2
    np.testing.assert_allclose(found.keypoints[0], left, atol=0.2)
    np.testing.assert_allclose(found.keypoints[1], right, atol=0.2)
    assert found.scores[0] > found.scores[1]


def test_the_double_of_a_big_person_is_removed_and_its_neighbour_is_kept() -> None:
    people = [at(100.0, 60.0, 2.3), at(136.0, 60.0, 2.3), at(700.0, 60.0, 2.3)]
    maps = draw(people, levels=[5.0, 4.9, 3.0], rows=61, columns=81)
    assert len(decoder(oks_threshold=1.0).decode(*maps).scores) == 3
    found = decoder(oks_threshold=0.5).decode(*maps)
    assert len(found.scores) == 2
    assert found.keypoints[1, :, 0].min() > 690


def test_a_key_point_shared_with_a_better_person_does_not_count_twice() -> None:
    person = at(203.0, 117.0)
    other = person.copy()
    other[5:] += (60.0, 0.0)  # the same head on another body
    found = decoder().decode(*draw([person, other], levels=[5.0, 4.0]))
    assert found.scores[0] > 0.9
    assert all(score < 0.8 for score in found.scores[1:])


def test_nobody_in_empty_maps() -> None:
    found = decoder().decode(*draw([]))
    assert found.keypoints.shape == (0, 17, 2)
    assert found.keypoint_scores.shape == (0, 17)
    assert found.scores.shape == (0,)


def test_one_peak_is_no_person() -> None:
    heat, short, mid = draw([])
    heat[10, 10, 0] = 255
    assert len(decoder(score_threshold=0.0).decode(heat, short, mid).scores) == 0


def test_people_below_the_score_threshold_are_dropped() -> None:
    maps = draw([at(150.0, 117.0), at(400.0, 121.0)], levels=[5.0, 1.0])
    assert len(decoder(score_threshold=0.1).decode(*maps).scores) == 2
    assert len(decoder(score_threshold=0.8).decode(*maps).scores) == 1


def test_max_people_keeps_the_best() -> None:
    people = [at(60.0 * column + 5, 100.0 * row + 5, 0.4) for row in range(4) for column in range(10)]
    levels = np.linspace(2.0, 6.0, len(people)).tolist()
    maps = draw(people, levels=levels)
    assert len(decoder().decode(*maps).scores) == len(people)
    few = decoder(max_people=7).decode(*maps)
    assert len(few.scores) == 7
    np.testing.assert_allclose(few.keypoints[0], people[-1], atol=0.3)


@pytest.mark.parametrize("fill", ["noise", "saturated"])
def test_maps_full_of_peaks_give_a_bounded_number_of_people_on_the_grid(fill: str) -> None:
    random = np.random.default_rng(7)
    heat, short, mid = (random.integers(0, 256, (ROWS, COLUMNS, n), np.uint8) for n in (17, 34, 64))
    if fill == "saturated":
        heat[:] = 255
    found = decoder(max_people=20).decode(heat, short, mid)
    assert len(found.scores) <= 20
    assert np.isfinite(found.keypoints).all()
    assert (found.keypoints >= 0).all()
    assert (found.keypoints <= [(COLUMNS - 1) * STRIDE, (ROWS - 1) * STRIDE]).all()
    assert ((found.keypoint_scores >= 0) & (found.keypoint_scores <= 1)).all()
    assert (np.diff(found.scores) <= 0).all()


def test_a_person_cut_off_by_the_edge_keeps_its_visible_part() -> None:
    person = at(300.0, 380.0)  # the legs are below the picture
    found = decoder().decode(*draw([person]))
    seen = person[:, 1] < 470
    assert len(found.scores) == 1
    np.testing.assert_allclose(found.keypoints[0, seen], person[seen], atol=0.2)


def test_the_smallest_grid_decodes() -> None:
    heat, short, mid = (np.full((2, 2, n), 255, np.uint8) for n in (17, 34, 64))
    assert len(decoder().decode(heat, short, mid).scores) <= 50
