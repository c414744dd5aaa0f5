"""Truth as COCO, MOT and a table, read back by the tools that use it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes.mannequins import Mannequins
from pycocotools.coco import COCO

from agent.evaluate.mot import read_truth, sequence_fps
from agent.simulation.export import CocoKeypoints, export_run, main, mot_rows
from agent.simulation.scene import SimulatedScene, build_scene
from agent.simulation.scripts import SCENARIOS
from agent.simulation.values import Truth
from agent.types import KEYPOINTS, NUM_KEYPOINTS

SCRIPT = Mannequins(places=((0.0, 0.0, -1.5), (0.9, 0.4, 0.5)), pace=5.0)


@pytest.fixture(scope="module")
def scene() -> SimulatedScene:
    return build_scene(SCRIPT, seed=3, width=320, height=240, place="room", night=False)


@pytest.fixture(scope="module")
def run(scene: SimulatedScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    export_run(scene, SCRIPT.intervals(0, 0.4), out, name="two", frames=4, fps=10, images=True, video=True)
    return out


def test_coco_reads_the_annotations(run: Path, scene: SimulatedScene) -> None:
    coco = COCO(str(run / "person_keypoints.json"))
    assert len(coco.imgs) == 4
    assert coco.cats[1]["keypoints"] == list(KEYPOINTS)
    for image_id, image in coco.imgs.items():
        truth = scene.shot((image_id - 1) / 10).truth
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        assert [each["track_id"] for each in annotations] == truth.actor_ids.tolist()
        for row, each in enumerate(annotations):
            triplets = np.array(each["keypoints"]).reshape(NUM_KEYPOINTS, 3)
            assert triplets[:, 2].tolist() == truth.visibility[row].tolist()
            seen = truth.visibility[row] > 0
            assert triplets[seen, :2] == pytest.approx(truth.keypoints[row][seen], abs=0.01)
            assert np.all(triplets[~seen, :2] == 0)
            left, top, wide, high = each["bbox"]
            assert (left, top, left + wide, top + high) == pytest.approx(truth.boxes[row].tolist(), abs=0.02)
            assert each["num_keypoints"] == int(seen.sum())
            assert each["action"] == "walk"
        assert (run / "img1" / image["file_name"]).is_file()


def test_the_mot_reader_reads_the_truth(run: Path, scene: SimulatedScene) -> None:
    boxes = read_truth(run / "gt" / "gt.txt")
    assert sequence_fps(run / "gt" / "gt.txt") == 10
    truth = scene.shot(0.2).truth
    third = boxes.take(boxes.frames == 3)
    assert third.ids.tolist() == truth.actor_ids.tolist()
    assert third.boxes == pytest.approx(truth.boxes, abs=0.02)


def test_the_table_holds_the_intervals(run: Path) -> None:
    with (run / "intervals.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"action": "stand", "start_s": "0.000", "end_s": "0.400", "actor_ids": "1 2"}]


def test_images_and_video_show_the_scene(run: Path, scene: SimulatedScene) -> None:
    picture = scene.shot(0.1).image.astype(np.int64)
    stored = cv2.imread(str(run / "img1" / "000002.jpg"))
    assert np.abs(stored - picture).mean() < 8
    capture = cv2.VideoCapture(str(run / "video.mp4"))
    frames = [capture.read()[1] for _ in range(4)]
    assert capture.read()[0] is False
    assert np.abs(frames[1] - picture).mean() < 14
    capture.release()


def test_who_is_all_but_hidden_is_ignored_in_both_formats() -> None:
    truth = Truth(
        t_s=0.0,
        actor_ids=np.array([4, 5]),
        boxes=np.array([(10, 10, 30, 60), (12, 10, 30, 60)], np.float32),
        full_boxes=np.array([(10, 10, 30, 60), (12, 10, 30, 60)], np.float32),
        keypoints=np.full((2, NUM_KEYPOINTS, 2), 20, np.float32),
        visibility=np.array([[2] * NUM_KEYPOINTS, [1] * NUM_KEYPOINTS]),
        visible_share=np.array([1.0, 0.01], np.float32),
        actions=("fight", "fight"),
    )
    assert list(mot_rows(truth, 7)) == ["7,4,10.00,10.00,20.00,50.00,1,-1,-1,-1\n"]
    coco = CocoKeypoints(64, 64)
    coco.add(truth, "a.jpg")
    assert [each["iscrowd"] for each in coco.annotations] == [0, 1]


def test_the_command_writes_a_run_and_two_runs_are_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        common = ["--scenario", SCENARIOS[0], "--seed", "2", "--people", "2", "--seconds", "0.3", "--fps", "10"]
        assert main([*common, "--width", "160", "--height", "120", "--out", str(tmp_path / name)]) == 0
    assert "3 pictures" in capsys.readouterr().out
    for file in ("person_keypoints.json", "gt/gt.txt", "intervals.csv", "seqinfo.ini"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    content = json.loads((tmp_path / "a" / "person_keypoints.json").read_text())
    assert [image["width"] for image in content["images"]] == [160] * 3


@pytest.mark.parametrize("what", ["--images", "--video"])
def test_what_cannot_be_written_is_told_in_one_line(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "img1").mkdir()
    for name in ("img1/000002.jpg", "video.mp4"):
        (tmp_path / name).symlink_to("/dev/full")
    size = ["--seconds", "0.3", "--fps", "10", "--width", "160", "--height", "120"]
    assert main([*size, what, "--out", str(tmp_path)]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"error: {tmp_path}")
    assert error.endswith(": No space left on device\n")
    assert not (tmp_path / "person_keypoints.json").exists(), "annotations of pictures that are not there"


@pytest.mark.parametrize(
    "bad",
    [
        ["--seconds", "0"], ["--seconds", "inf"], ["--seed", "-1"], ["--people", "0"], ["--scenario", "opera"],
        ["--fps", "-1"],
    ],
)  # fmt: skip
def test_bad_usage_is_refused(bad: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*bad, "--out", str(tmp_path / "x")])
    assert caught.value.code == 2
    assert not (tmp_path / "x").exists()
