"""People cut out of pictures with labels and put before others. No PyTorch needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pose_nano.augment import MIRROR
from pose_nano.cutouts import Cutout, cut, hidden, outline, paste
from pose_nano.prepare_pasted import main
from pose_nano.store import HEIGHT, WIDTH, Annotations, Sample, Shard, ShardWriter

from agent.types import ImageArray
from tests.unit.training.test_pose_nano_data import person

WALL, CLOTHES = (60, 110, 60), (30, 30, 200)
LIMBS = ((5, 7), (7, 9), (6, 8), (8, 10), (5, 6), (5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16))
HEIGHTS = (0.5, 0.5)


def drawn(people: Annotations, seed: int = 0) -> ImageArray:
    """Red figures before a green wall, a little noisy."""
    image = np.full((HEIGHT, WIDTH, 3), WALL, np.uint8)
    for points in people.keypoints.round().astype(int):
        height = int(points[:, 1].max() - points[:, 1].min())
        cv2.fillConvexPoly(image, cv2.convexHull(points[[5, 6, 12, 11]].astype(np.int32)), CLOTHES)
        for one, other in LIMBS:
            cv2.line(image, points[one].tolist(), points[other].tolist(), CLOTHES, max(2, height // 9))
        cv2.circle(image, points[:5].mean(axis=0).round().astype(int).tolist(), max(2, height // 14), CLOTHES, -1)
    noise = np.random.default_rng(seed).normal(0, 4, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def red(image: ImageArray) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = image[..., 2].astype(int) > image[..., 1].astype(int) + 40
    return found


def cut_out() -> Cutout:
    people = person(200, 200, 10)
    found = cut(Sample(drawn(people), people), 0)
    assert found is not None
    return found


def test_a_cutout_is_the_person_and_not_the_wall() -> None:
    found = cut_out()
    inside, figure = found.alpha >= 128, red(found.image)
    assert (inside & figure).sum() > 0.93 * figure.sum()
    assert (inside & ~figure).sum() < 0.05 * figure.sum()
    assert found.image[tuple(found.person.keypoints[0, 5].astype(int)[::-1])].tolist()[2] > 150


@pytest.mark.parametrize(
    "people",
    [
        replace(person(200, 200, 10), labelled=np.array([False])),
        person(200, 200, 2),
        replace(person(200, 200, 10), seen=np.where(np.arange(17)[None] < 9, 1, -1).astype(np.float32)),
        Annotations.joined([person(200, 200, 10), person(215, 200, 10)]),
    ],
    ids=["doubtful", "small", "hardly seen", "in company"],
)
def test_who_is_not_clear_is_not_cut_out(people: Annotations) -> None:
    assert cut(Sample(drawn(people), people), 0) is None


def test_no_outline_where_there_is_no_wall_or_no_limb() -> None:
    people = person(200, 200, 10)
    image, points, seen = drawn(people), people.keypoints[0], np.ones(17, bool)
    assert outline(image, points, seen, 190.0) is not None
    assert outline(image[190:210, 190:210], points - np.array([190, 190], np.float32), seen, 190.0) is None
    assert outline(image, points, ~seen, 190.0) is None


def test_who_looks_away_keeps_the_head() -> None:
    people = person(200, 200, 10)
    away = replace(people, seen=np.where(np.arange(17)[None] < 5, -1, 1).astype(np.float32))
    found = cut(Sample(drawn(people), away), 0)
    assert found is not None
    head = found.person.keypoints[0, :5].mean(axis=0).round().astype(int)
    assert found.alpha[head[1], head[0]] > 200


@pytest.mark.parametrize("seed", range(8))
def test_labels_go_where_the_person_goes(seed: int) -> None:
    background = Sample(np.full((HEIGHT, WIDTH, 3), WALL, np.uint8), Annotations.empty())
    after = paste(background, cut_out(), np.random.default_rng(seed), HEIGHTS)
    (points,), (weights,) = after.people.keypoints, after.people.weights
    assert weights.any()
    for joint in (5, 6, 11, 12, 13, 14):
        if weights[joint]:
            x, y = points[joint].astype(int)
            assert red(after.image)[y, x], joint
    assert not background.image[..., 2].max() > WALL[2]


def test_a_mirrored_person_has_left_and_right_exchanged() -> None:
    """Left is where it was, or on the other side with the joints' names exchanged: the figure's left is right of its right."""
    background = Sample(np.full((HEIGHT, WIDTH, 3), WALL, np.uint8), Annotations.empty())
    assert MIRROR[5] == 6
    for seed in range(8):
        (points,) = paste(background, cut_out(), np.random.default_rng(seed), HEIGHTS).people.keypoints
        assert points[5, 0] > points[6, 0]


def test_joints_behind_somebody_are_hidden_and_who_is_mostly_behind_is_unknown() -> None:
    people = Annotations.joined([person(150, 200, 8), person(400, 200, 8)])
    cover = np.zeros((HEIGHT, WIDTH), np.uint8)
    cover[:220, 100:220] = 255  # the first down to the hips
    cover[260:, 300:500] = 255  # feet of the second
    after = hidden(people, cover)
    np.testing.assert_array_equal(after.labelled, [False, True])
    np.testing.assert_array_equal(after.seen[1, [5, 15]], [1, 0])
    assert after.weights[1, 15] == pytest.approx(0.5)
    assert hidden(Annotations.empty(), cover).labelled.shape == (0,)


def test_a_person_that_leaves_the_picture_is_believed_inside_alone() -> None:
    background = Sample(np.full((HEIGHT, WIDTH, 3), WALL, np.uint8), Annotations.empty())
    outside = 0
    for seed in range(20):
        people = paste(background, cut_out(), np.random.default_rng(seed), (1.2, 1.2)).people
        beyond = ((people.keypoints < 0) | (people.keypoints >= (WIDTH, HEIGHT))).any(axis=-1)
        assert not people.weights[beyond].any()
        assert (people.boxes >= 0).all()
        assert (people.boxes <= (WIDTH, HEIGHT, WIDTH, HEIGHT)).all()
        outside += int(beyond.sum())
    assert outside


def test_a_shard_of_pasted_people_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, people = ShardWriter(tmp_path / "real", 4), person(300, 200, 10)
    for seed in range(4):
        writer.add(drawn(people, seed), people)
    writer.close()
    options = f"--people {tmp_path / 'real'} --backgrounds {tmp_path / 'real'} --pictures 5 --out {tmp_path / 'pasted'}"
    monkeypatch.setattr("sys.argv", ["prepare_pasted", *options.split(), "--part", "2"])
    main()
    assert sorted(folder.name for folder in tmp_path.glob("pasted*")) == ["pasted-0", "pasted-2", "pasted-4"]
    assert [len(Shard(tmp_path / f"pasted-{first}")) for first in (0, 2, 4)] == [2, 2, 1]
    assert any(len(Shard(tmp_path / "pasted-0")[number].people) > 1 for number in range(2))
