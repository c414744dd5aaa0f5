"""Pictures on disk, views of them, and what the teacher's poses become. No PyTorch needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pose_nano.augment import MIRROR, Recipe, clip, transform, view
from pose_nano.geometry import POINT_STRIDE, STRIDE
from pose_nano.store import HEIGHT, PAD, WIDTH, Annotations, Sample, Shard, ShardWriter
from pose_nano.targets import draw, person_centres
from pose_nano.teacher import SEEN, Poses, annotate, confirmed, merge

SKELETON = np.array(
    [(0, -9), (1, -10), (-1, -10), (2, -9), (-2, -9), (3, -6), (-3, -6), (4, -3), (-4, -3), (4, 0), (-4, 0), (2, 0),
     (-2, 0), (2, 5), (-2, 5), (2, 9), (-2, 9)], np.float32)  # fmt: skip


def person(x: float = 100, y: float = 120, scale: float = 6, *, labelled: bool = True) -> Annotations:
    """Somebody upright around (x, y) px, 20 `scale` px high."""
    points = SKELETON * scale + np.array([x, y], np.float32)
    box = np.concatenate([points.min(axis=0), points.max(axis=0)])[None]
    ones = np.ones((1, 17), np.float32)
    return Annotations(box, points[None], ones, ones, np.array([labelled]))


def poses(*people: Annotations, score: float = 0.8) -> Poses:
    points = Annotations.joined(people).keypoints
    flat = np.full(points.shape[:2], score, np.float32)
    return Poses(points, flat, np.ones_like(flat))


def test_a_shard_gives_back_pictures_and_people_scaled_to_its_size(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "shard", 5)
    image = np.full((2 * HEIGHT, 2 * WIDTH, 3), 7, np.uint8)
    writer.add(image, person())
    writer.add(image[:100, :50], Annotations.empty())
    writer.close()
    shard = Shard(tmp_path / "shard")
    assert len(shard) == 2
    assert shard[0].image.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(shard[0].people.keypoints, person().keypoints / 2)
    assert shard[1].image.shape == (HEIGHT, HEIGHT // 2, 3)
    assert len(shard[1].people) == 0


def test_a_shard_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    ShardWriter(tmp_path / "shard", 1).add(np.zeros((10, 10, 3), np.uint8), Annotations.empty())
    assert not (tmp_path / "shard").exists()


def test_the_same_number_makes_the_same_view() -> None:
    sample = Sample(np.random.default_rng(1).integers(0, 255, (240, 320, 3)).astype(np.uint8), person())
    one, other = (view(lambda: sample, Recipe(), np.random.default_rng([3, 9])) for _ in range(2))
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.people.keypoints, other.people.keypoints)


@pytest.mark.parametrize("number", range(12))
def test_views_keep_labels_on_the_canvas(number: int) -> None:
    sample = Sample(np.full((240, 320, 3), 60, np.uint8), person())
    found = view(lambda: sample, Recipe(canvas=(96, 128)), np.random.default_rng(number))
    assert found.image.shape == (96, 128, 3)
    people = found.people
    assert ((people.boxes[:, :2] >= 0) & (people.boxes[:, 2:] <= (128, 96))).all()
    believed = people.keypoints[people.weights > 0]
    assert ((believed >= 0) & (believed < (128, 96))).all()


def test_a_mirrored_view_exchanges_left_and_right() -> None:
    flip = np.array([[-1, 0, 200], [0, 1, 0]], np.float32)
    moved = transform(person(), flip, straight=True, mirrored=True)
    expected = person().keypoints[:, MIRROR] * (-1, 1) + (200, 0)
    np.testing.assert_allclose(moved.keypoints, expected)
    np.testing.assert_allclose(moved.boxes, [[200 - 124, 60, 200 - 76, 174]])


def test_a_turned_person_keeps_a_tight_box() -> None:
    angle = np.radians(45)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]], np.float32)
    moved = transform(person(), turn, straight=False, mirrored=False)
    points = moved.keypoints[0]
    np.testing.assert_allclose(moved.boxes[0], [*points.min(axis=0), *points.max(axis=0)], rtol=1e-5)


def test_who_is_mostly_outside_becomes_an_unknown_region() -> None:
    assert clip(person(x=100), (288, 384)).labelled.tolist() == [True]
    assert clip(person(x=-19), (288, 384)).labelled.tolist() == [False]
    assert len(clip(person(x=-300), (288, 384))) == 0


def test_targets_point_from_every_owned_cell_to_the_persons_key_points() -> None:
    one = person()
    targets = draw(one, 192, 256)
    rows, columns = np.nonzero(targets.owner_weight)
    assert len(rows) > 3
    for row, column in zip(rows, columns, strict=True):
        cell = (np.array([column, row]) + 0.5) * STRIDE
        np.testing.assert_allclose(targets.poses[:, :, row, column] + cell, one.keypoints[0], atol=1e-4)
    row, column = np.unravel_index(targets.centres.argmax(), targets.centres.shape)
    assert np.abs((np.array([column, row]) + 0.5) * STRIDE - person_centres(one)[0]).max() <= STRIDE / 2


def test_offsets_lead_to_the_nearest_of_two_people() -> None:
    two = Annotations.joined([person(x=60), person(x=180)])
    targets = draw(two, 192, 256)
    for row in range(2):
        x, y = two.keypoints[row, 9]
        column, line = int(x // POINT_STRIDE), int(y // POINT_STRIDE)
        assert targets.offset_weight[9, line, column] > 0
        cell = (np.array([column, line]) + 0.5) * POINT_STRIDE
        np.testing.assert_allclose(targets.offsets[9, :, line, column] + cell, (x, y), atol=1e-4)


def test_nothing_is_said_inside_unknown_regions() -> None:
    targets = draw(person(labelled=False), 192, 256)
    line, column = 120 // STRIDE, 100 // STRIDE
    assert targets.centres[line, column] == -1
    assert (targets.keypoints[:, 120 // POINT_STRIDE, 100 // POINT_STRIDE] == -1).all()
    assert targets.centres[0, -1] == 0
    assert not targets.owner_weight.any()


def test_unknown_key_points_are_not_called_absent() -> None:
    one = person()
    doubtful = replace(one, seen=np.where(np.arange(17) == 9, -1, one.seen).astype(np.float32))
    x, y = one.keypoints[0, 9]
    assert draw(doubtful, 192, 256).keypoints[9, int(y // POINT_STRIDE), int(x // POINT_STRIDE)] == -1


def test_an_empty_picture_is_all_background() -> None:
    targets = draw(Annotations.empty(), 64, 96)
    assert not targets.centres.any()
    assert not targets.keypoints.any()


def test_passes_of_the_teacher_are_averaged_and_disagreement_costs_trust() -> None:
    shifted = person()
    points = shifted.keypoints.copy()
    points[0, 9] += (24, 0)
    merged = merge([poses(person()), poses(replace(shifted, keypoints=points))])
    assert len(merged) == 1
    np.testing.assert_allclose(merged.keypoints[0, 9], person().keypoints[0, 9] + (12, 0), atol=1e-3)
    assert merged.trust[0, 9] < 0.5 < merged.trust[0, 10]


def test_whom_one_pass_of_two_saw_counts_half() -> None:
    merged = merge([poses(person()), Poses(*(part[:0] for part in _fields(poses(person()))))])
    np.testing.assert_allclose(merged.scores, 0.4, atol=1e-6)


def test_a_pose_that_flickers_is_no_label() -> None:
    nobody = Poses(*(part[:0] for part in _fields(poses(person()))))
    steady = [poses(person())] * 5
    for frames, labelled in ((steady, True), ([nobody, nobody, *steady[:1], nobody, nobody], False)):
        found, support = confirmed(frames, 2)
        assert annotate(found, support, 320, 240).labelled.tolist() == [labelled]


def test_low_scores_are_regions_and_not_labels() -> None:
    found, support = confirmed([poses(person(), score=SEEN - 0.05)] * 5, 2)
    people = annotate(found, support, 320, 240)
    assert people.labelled.tolist() == [False]
    assert (people.seen == -1).all()


def _fields(one: Poses) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return one.keypoints, one.scores, one.trust


def test_padding_is_that_of_the_agents_letterbox() -> None:
    assert PAD == 114
