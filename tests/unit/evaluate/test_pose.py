"""COCO annotations in, AP out: reading, known answers, and what is said about bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from agent.errors import DataError
from agent.evaluate.pose import pose_report, read_coco
from agent.types import NUM_KEYPOINTS, People

BODY = np.stack([np.linspace(0.1, 0.9, NUM_KEYPOINTS), np.linspace(0.05, 0.95, NUM_KEYPOINTS) ** 2], axis=1)
"""17 different points of the unit square."""


def points(left: float, top: float, size: float = 100) -> np.ndarray:
    return (BODY * size + (left, top)).astype(np.float32)


def annotation(number: int, image_id: int, left: float, top: float, size: float = 100, **more: Any) -> dict[str, Any]:
    triples = np.concatenate([points(left, top, size), np.full((NUM_KEYPOINTS, 1), 2)], axis=1)
    return {
        "id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0, "keypoints": triples.ravel().tolist(),
        "num_keypoints": NUM_KEYPOINTS, "bbox": [left, top, size, size], "area": size * size / 2,
    } | more  # fmt: skip


def people(*found: tuple[float, float, float]) -> People:
    """One person per (left, top, score), all 100 px high."""
    if not found:
        return People.empty()
    keypoints = np.stack([points(left, top) for left, top, _ in found])
    boxes = np.array([(left, top, left + 100, top + 100) for left, top, _ in found], np.float32)
    scores = np.array([score for *_, score in found], np.float32)
    return People(boxes, keypoints, np.ones((len(found), NUM_KEYPOINTS), np.float32), scores)


Write = Callable[..., tuple[Path, Path]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(annotations: list[dict[str, Any]], images: int = 2, name: str = "truth") -> tuple[Path, Path]:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(images):
            cv2.imwrite(str(folder / f"{number}.png"), np.zeros((8, 8, 3), np.uint8))
        rows = [{"id": 70 + number, "file_name": f"{number}.png"} for number in range(images)]
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({"images": rows, "annotations": annotations, "categories": []}))
        return file, folder

    return _write


def test_all_found_where_they_are_is_one(write: Write) -> None:
    truth = read_coco([write([annotation(1, 70, 10, 10), annotation(2, 70, 300, 10), annotation(3, 71, 50, 60)])])
    report = pose_report(truth, {1: people((10, 10, 0.9), (300, 10, 0.4)), 2: people((50, 60, 0.8))})
    for name in ("AP", "AP50", "AP75", "AR"):
        assert report[name] == pytest.approx(1)
    assert (report["images"], report["people"], report["found"]) == (2, 3, 3)
    assert all(row["missed"] == 0 for row in report["missed"])
    json.dumps(report)


def test_half_of_the_people_is_half_the_recall(write: Write) -> None:
    truth = read_coco([write([annotation(1, 70, 10, 10), annotation(2, 71, 50, 60)])])
    report = pose_report(truth, {1: people((10, 10, 0.9)), 2: people((400, 400, 0.8))})
    assert report["AR"] == pytest.approx(0.5)
    assert report["AP50"] == pytest.approx(51 / 101)  # COCO samples precision at 101 recalls, 51 of them up to one half
    assert report["missed"][0] == {"image_id": 2, "file": "1.png", "people": 1, "missed": 1}


def test_a_sure_false_person_costs_precision_an_unsure_one_does_not(write: Write) -> None:
    truth = read_coco([write([annotation(1, 70, 10, 10)], images=1)])
    assert pose_report(truth, {1: people((10, 10, 0.5), (400, 400, 0.9))})["AP"] == pytest.approx(0.5)
    assert pose_report(truth, {1: people((10, 10, 0.5), (400, 400, 0.1))})["AP"] == pytest.approx(1)


@pytest.mark.parametrize("joints", [1, NUM_KEYPOINTS])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_key_point_that_is_no_place_hits_nothing(write: Write, joints: int, value: float) -> None:
    truth = read_coco([write([annotation(1, 70, 10, 10)], images=1)])
    found = people((10, 10, 0.9))
    keypoints = found.keypoints.copy()
    keypoints[0, :joints] = value
    report = pose_report(truth, {1: People(found.boxes, keypoints, found.keypoint_scores, found.scores)})
    hits = 1 - joints / NUM_KEYPOINTS  # the object key-point similarity that is left
    assert report["AP"] == pytest.approx(sum(oks <= hits for oks in np.arange(0.5, 0.96, 0.05)) / 10)


def test_a_person_whose_score_is_no_number_is_nobody(write: Write) -> None:
    truth = read_coco([write([annotation(1, 70, 10, 10)], images=1)])
    assert pose_report(truth, {1: people((10, 10, np.nan))})["AP"] == 0


def test_nobody_found_is_zero(write: Write) -> None:
    truth = read_coco([write([annotation(1, 70, 10, 10)])])
    report = pose_report(truth, {1: People.empty(), 2: People.empty()})
    assert (report["AP"], report["AR"], report["found"]) == (0, 0, 0)


def test_sizes_without_people_have_no_figure(write: Write) -> None:
    report = pose_report(read_coco([write([annotation(1, 70, 10, 10)])]), {1: people((10, 10, 0.9))})
    assert report["AP_medium"] == pytest.approx(1)
    assert report["AP_large"] is None


def test_people_without_key_points_and_other_categories_are_not_wanted(write: Write) -> None:
    unseen = {"keypoints": [0] * NUM_KEYPOINTS * 3, "num_keypoints": 0}
    truth = read_coco([
        write([
            annotation(1, 70, 10, 10), annotation(2, 70, 300, 10, **unseen), annotation(3, 71, 9, 9, category_id=18),
        ])
    ])  # fmt: skip
    assert truth.people == 1
    assert pose_report(truth, {1: people((10, 10, 0.9))})["AP"] == pytest.approx(1)


def test_sets_that_use_the_same_ids_stay_apart(write: Write) -> None:
    sets = [write([annotation(1, 70, 10, 10)], name="a"), write([annotation(1, 70, 300, 10)], name="b")]
    truth = read_coco(sets)
    assert [path.parent.name for path in truth.paths.values()] == ["a", "a", "b", "b"]
    report = pose_report(truth, {1: people((10, 10, 0.9)), 3: people((300, 10, 0.9))})
    assert report["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        (["a/img1", "b/img1"], ["a/img1/0.png", "b/img1/0.png"]),
        (["run/a", "run/b/../b"], ["a/0.png", "b/0.png"]),
        (["a", "a/b"], ["0.png", "b/0.png"]),
        (["a"], ["0.png"]),
        (["a", "a"], ["0.png", "0.png"]),
    ],
)
def test_images_of_several_folders_are_named_with_what_tells_these_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: list[str], named: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = []
    for number, folder in enumerate(folders):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "0.png").touch()
        file = Path(f"{number}.json")
        content = {"images": [{"id": 70, "file_name": "0.png"}], "annotations": [annotation(1, 70, 10, 10)]}
        file.write_text(json.dumps(content))
        sets.append((file, Path(folder)))
    truth = read_coco(sets)
    assert list(truth.names.values()) == named
    missed = pose_report(truth, {})["missed"]
    assert [row["file"] for row in missed] == sorted(named)
    assert [truth.names[row["image_id"]] for row in missed] == sorted(named)


def test_images_left_out_take_their_people_along(write: Write) -> None:
    truth = read_coco([write([annotation(1, 70, 10, 10), annotation(2, 71, 50, 60)])])
    rest = truth.without({2})
    assert (rest.people, list(rest.paths)) == (1, [1])


def test_absent_images_are_named(write: Write) -> None:
    file, folder = write([annotation(1, 70, 10, 10)])
    (folder / "1.png").unlink()
    with pytest.raises(DataError, match=r"1 images are not there: .*1\.png"):
        read_coco([(file, folder)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not COCO"),
        ('{"images": []}', "annotations"),
        ('{"images": [], "annotations": []}', "no person"),
        ('{"images": [{"id": 1, "file_name": "x"}], "annotations": [{"image_id": 2, "bbox": [0, 0, 1, 1]}]}', "KeyError: 2"),
        ('{"images": [], "annotations": [{"keypoints": [1, 2], "bbox": [0, 0, 1, 1]}]}', "2 key-point values, not 51"),
        ("[" * 100_000, "not JSON"),
        ('{"images": [], "annotations": [{"bbox": [0, 0, 1, 1], "area": NaN}]}', "a value that is not finite"),
        ('{"images": [{"id": 1, "file_name": "x"}], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1], "iscrowd": Infinity}]}',
         "not COCO"),
        ('{"images": [], "annotations": [{"bbox": [0, 0, 1, %s]}]}' % ("9" * 400), "not COCO"),
        ('{"images": [], "annotations": [null]}', "not COCO"),
        ('{"images": [], "annotations": ["x"]}', "not COCO"),
        ('{"images": [{"id": 1, "file_name": "x"}], "annotations": [{"id": 4, "image_id": 1, "bbox": [0, 0, NaN, 1]}]}',
         "annotation 4: a value that is not finite"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_annotation_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "truth.json"
    file.write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        read_coco([(file, tmp_path)])
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: No such file"):
        read_coco([(tmp_path / "none.json", tmp_path)])
