"""The PoseNet plug-in from the entry point to people in real pictures, and the scripts that use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from agent.config.schema import PoseConfig
from agent.errors import ConfigError, DataError, ModelError
from agent.ports import PoseEstimator
from agent.types import ImageArray, People

posenet = pytest.importorskip("recognizer_posenet_litert", reason="needs the plug-in examples/plugins/posenet_litert")

SMALL = "posenet_mobilenet_v1_075_353_481_quant.tflite"


def load(**settings: object) -> PoseEstimator:
    """The estimator as the agent gets it: by the name of its entry point."""
    (point,) = entry_points(group="recognizer_agent.pose_estimators", name="posenet")
    estimator: PoseEstimator = point.load()(PoseConfig.model_validate({"estimator": "posenet", **settings}))
    return estimator


def frames(path: Path, every: int) -> Iterator[ImageArray]:
    video = cv2.VideoCapture(str(path))
    index = 0
    while True:
        good, image = video.read()
        if not good:
            break
        if index % every == 0:
            yield image
        index += 1
    video.release()
    assert index > 0


@pytest.fixture(scope="module")
def model(shared_dir: Path) -> Path:
    path = shared_dir / "models" / "posenet" / SMALL
    if not path.is_file():
        pytest.skip("needs the PoseNet models in ../shared")
    return path


@pytest.fixture(scope="module")
def estimator(model: Path) -> Iterator[PoseEstimator]:
    estimator = load(model=model, score_threshold=0.2)
    yield estimator
    estimator.close()


def assert_sound(people: People, image: ImageArray) -> None:
    """Shapes are checked by People itself; here: ranges, order, boxes and key points in the picture and together."""
    height, width, _ = image.shape
    x0, y0, x1, y1 = people.boxes.T
    assert ((x0 >= 0) & (y0 >= 0) & (x1 <= width - 1) & (y1 <= height - 1)).all()
    assert ((x1 > x0) & (y1 > y0)).all()
    assert ((people.keypoint_scores >= 0) & (people.keypoint_scores <= 1)).all()
    assert (np.diff(people.scores) <= 0).all()
    low, high = people.boxes[:, None, :2] - 1e-3, people.boxes[:, None, 2:] + 1e-3
    inside = ((people.keypoints >= low) & (people.keypoints <= high)).all(axis=2)
    assert inside[people.keypoint_scores >= 0.3].all()


def test_the_entry_point_gives_a_pose_estimator(estimator: PoseEstimator) -> None:
    assert isinstance(estimator, PoseEstimator)
    assert estimator.name == "posenet-mobilenet-v1-075-353-481-quant"
    assert estimator.max_batch == 1


@pytest.mark.shared
@pytest.mark.parametrize(("video", "every", "expected"), [("exercise.avi", 30, 3), ("demo_skeleton.mp4", 8, 2)])
def test_people_are_found_in_real_video(
    estimator: PoseEstimator, shared_dir: Path, video: str, every: int, expected: int
) -> None:
    counts = []
    for image in frames(shared_dir / "data" / "video" / video, every):
        (people,) = estimator.estimate([image])
        assert_sound(people, image)
        counts.append(len(people))
    assert np.median(counts) == expected


@pytest.mark.shared
def test_pictures_of_different_sizes_give_the_same_people_in_their_own_pixels(
    estimator: PoseEstimator, shared_dir: Path
) -> None:
    image = next(frames(shared_dir / "data" / "video" / "exercise.avi", 1))
    twice = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    one, two = estimator.estimate([image])[0], estimator.estimate([twice])[0]
    assert len(one) == len(two) == 3
    for person in range(3):
        nearest = np.abs(two.boxes / 2 - one.boxes[person]).max(axis=1).min()
        assert nearest < 12


@pytest.mark.shared
@pytest.mark.parametrize("value", [0, 128, 255])
def test_nobody_is_found_in_a_blank_picture(estimator: PoseEstimator, value: int) -> None:
    (people,) = estimator.estimate([np.full((480, 640, 3), value, np.uint8)])
    assert len(people) == 0
    assert people.keypoints.shape == (0, 17, 2)


@pytest.mark.shared
@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 3), (17, 17)])
def test_tiny_and_thin_pictures_are_served(estimator: PoseEstimator, size: tuple[int, int]) -> None:
    (people,) = estimator.estimate([np.zeros((*size, 3), np.uint8)])
    assert len(people) == 0


@pytest.mark.shared
@pytest.mark.parametrize(
    "image",
    [np.zeros((10, 10), np.uint8), np.zeros((10, 10, 4), np.uint8), np.zeros((10, 10, 3), np.float32),
     np.zeros((0, 10, 3), np.uint8)],
    ids=["grey", "four channels", "float", "empty"],
)  # fmt: skip
def test_a_bad_picture_is_a_data_error(estimator: PoseEstimator, image: np.ndarray) -> None:
    with pytest.raises(DataError, match="expected a non-empty"):
        estimator.estimate([image])


@pytest.mark.shared
def test_no_picture_gives_no_answer(estimator: PoseEstimator) -> None:
    assert estimator.estimate([]) == []


@pytest.mark.shared
def test_max_people_and_the_score_threshold_are_kept(model: Path, shared_dir: Path) -> None:
    image = next(frames(shared_dir / "data" / "video" / "exercise.avi", 1))
    one = load(model=model, max_people=1)
    assert len(one.estimate([image])[0]) == 1
    strict = load(model=model, score_threshold=0.99)
    assert len(strict.estimate([image])[0]) == 0


@pytest.mark.shared
def test_a_closed_estimator_says_so(model: Path) -> None:
    estimator = load(model=model, threads=1)
    estimator.close()
    estimator.close()
    with pytest.raises(ModelError, match="is closed"):
        estimator.estimate([np.zeros((10, 10, 3), np.uint8)])


def test_a_missing_model_is_named_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model file .*nothing\.tflite \(hint: a PoseNet"):
        load(model=tmp_path / "nothing.tflite")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x1c\0\0\0TFL3" + b"\xff" * 4000])
def test_a_corrupt_model_is_a_model_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.tflite"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="hint"):
        load(model=path)


@pytest.mark.shared
@pytest.mark.parametrize("part", [0.5, 0.999])
def test_a_cut_off_model_is_a_model_error(tmp_path: Path, model: Path, part: float) -> None:
    content = model.read_bytes()
    path = tmp_path / "cut.tflite"
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ModelError, match="hint"):
        load(model=path)


@pytest.mark.shared
def test_another_kind_of_model_is_refused_with_what_it_has(model: Path) -> None:
    with pytest.raises(ModelError, match=r"is no PoseNet .*float32"):
        load(model=model.parent / "movenet_singlepose_lightning_int8_4.tflite")


def test_every_wrong_setting_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(device="cuda:0", options={"nms_radius": 3, "refinement_steps": -1})
    by_path = {problem.path: problem for problem in caught.value.problems}
    assert set(by_path) == {
        "pose.model", "pose.device", "pose.options.nms_radius", "pose.options.refinement_steps",
    }  # fmt: skip
    assert "nms_radius_px" in by_path["pose.options.nms_radius"].hint
    assert by_path["pose.options.refinement_steps"].hint == "the default is 5"
    assert by_path["pose.device"].hint == "write auto or cpu"


def extract(*arguments: str | Path) -> str:
    """Run the extraction script; what it says at the end."""
    script = Path(__file__).resolve().parents[2] / "models" / "training" / "extract_poses.py"
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stderr


@pytest.mark.shared
def test_the_mirrored_extraction_lands_on_the_same_people(tmp_path: Path, model: Path, shared_dir: Path) -> None:
    clips = tmp_path / "clips"
    (clips / "deep").mkdir(parents=True)
    images = list(islice(frames(shared_dir / "data" / "video" / "exercise.avi", 1), 4))
    height, width, _ = images[0].shape
    writer = cv2.VideoWriter(str(clips / "deep" / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (width, height))
    for image in images:
        writer.write(image)
    writer.release()
    arrays = []
    for out, extra in ((tmp_path / "plain", ()), (tmp_path / "mirrored", ("--flip",))):
        extract("--model", model, "--data", clips, "--out", out, "--score-threshold", "0.5", *extra)
        with np.load(out / "deep" / "clip.npz") as file:
            arrays.append({name: file[name] for name in file.files})
    plain, mirrored = arrays
    assert plain["counts"].tolist() == mirrored["counts"].tolist() == [3, 3, 3, 3]
    assert (plain["fps"], plain["width"], plain["height"]) == (25.0, width, height)
    order = [array["keypoints"][:3, :, 0].mean(axis=1).argsort() for array in arrays]
    distance = np.abs(plain["keypoints"][:3][order[0]] - mirrored["keypoints"][:3][order[1]])
    assert np.median(distance) < 3


def test_the_readme_shows_what_the_shipped_configuration_says(repo_dir: Path) -> None:
    readme = (repo_dir / "examples" / "plugins" / "posenet_litert" / "README.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(readme.split("```yaml\n")[1].split("```")[0])
    shipped = yaml.safe_load((repo_dir / "configs" / "posenet.yaml").read_text(encoding="utf-8"))
    assert shipped["pose"].pop("model") == "${POSENET_MODEL}"
    assert shown["pose"] | shipped["pose"] == shown["pose"]
    assert shown["tracking"] == shipped["tracking"]


@pytest.mark.shared
def test_the_extraction_goes_on_where_it_was_stopped(tmp_path: Path, model: Path) -> None:
    (tmp_path / "done.mp4").touch()
    (tmp_path / "done.npz").touch()
    assert "0 extracted, 1 were there, 0 failed" in extract("--model", model, "--data", tmp_path, "--out", tmp_path)


@pytest.mark.shared
@pytest.mark.slow
def test_the_average_precision_on_the_coco_sample_holds(tmp_path: Path, model: Path, shared_dir: Path) -> None:
    pytest.importorskip("pycocotools")
    data = shared_dir / "data" / "pose"
    config = Path(__file__).resolve().parents[2] / "configs" / "posenet.yaml"
    report = tmp_path / "report.json"
    sets = [
        (data / "coco-mini/annotations/person_keypoints_train2017.json", data / "coco-mini/train2017"),
        (data / "mmpose-coco/test_coco.json", data / "mmpose-coco"),
    ]
    command = [sys.executable, "-m", "agent", "evaluate", "pose", "--config", str(config), "--report", str(report)]
    for truth, images in sets:
        command += ["--annotations", str(truth), "--images", str(images)]
    environment = os.environ | {"POSENET_MODEL": str(model)}
    subprocess.run(command, check=True, capture_output=True, timeout=110, env=environment)
    figures = json.loads(report.read_text())
    assert figures["people"] == 98
    assert figures["AP"] > 0.22
    assert figures["AP50"] > 0.43
