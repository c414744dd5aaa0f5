"""RTMO's adapter as the agent uses it: from a sealed bundle, by its entry point, on frames of several cameras."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import psutil
import pytest
from fakes.graphs import rtmo_graph

from agent.config.schema import BatchConfig, PoseConfig
from agent.errors import ConfigError, ModelError, TrustError
from agent.plugins import create_pose_estimator
from agent.ports import PoseEstimator
from agent.pose.preprocess import Letterbox
from agent.pose.rtmo import RtmoEstimator, RtmoOptions, create
from agent.runtime.backend import Backend, SessionSettings
from agent.runtime.bundle import load_bundle, seal_bundle, write_golden
from agent.runtime.devices import CPU, Accelerators, Device, Kind, Plan
from agent.runtime.engines import EngineState
from agent.runtime.session import InferenceSession, create_session

CANVAS = (128, 160)
CAMERAS = {"gate": (240, 320), "yard": (480, 640), "portrait": (300, 200)}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A sealed bundle whose golden picture holds one person."""
    folder = tmp_path / "rtmo-t"
    folder.mkdir()
    model = rtmo_graph(folder / "model.onnx", size=CANVAS)
    picture = np.zeros((*CANVAS, 3), np.uint8)
    picture[30:90, 40:70] = 255
    batch, _ = Letterbox(CANVAS).fill([picture])
    session = create_session(model, device="cpu")
    write_golden(
        folder / "golden.npz",
        {"input": batch},
        dict(zip(session.output_names, session.run({"input": batch}), strict=True)),
    )
    seal_bundle(folder, {
        "name": "rtmo-t", "version": "1.0.0", "task": "pose", "licence": "Apache-2.0", "training_data": "none: computed",
        "inputs": [{"name": "input", "shape": ["B", 3, *CANVAS], "preprocessing": {"kind": "letterbox"}}],
        "outputs": [{"name": "dets", "shape": ["B", "N", 5], "meaning": "detections"},
                    {"name": "keypoints", "shape": ["B", "N", 17, 3], "meaning": "keypoints"}],
    })  # fmt: skip
    return folder


@pytest.fixture
def estimator(bundle: Path) -> PoseEstimator:
    return create_pose_estimator(PoseConfig(model=bundle, threads=1, batch=BatchConfig(max_size=4)))


def walker(size: tuple[int, int], step: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A frame in which somebody is `step` steps on the way from left to right, and where."""
    height, width = size
    x, y = 4 * step % (width - 24), height // 4
    image = np.full((height, width, 3), 60, np.uint8)
    image[y : y + height // 2, x : x + 24] = 255
    return image, (x, y, x + 24, y + height // 2)


def test_people_are_found_where_they_are_on_every_camera_of_a_batch(estimator: PoseEstimator) -> None:
    for step in range(40):
        frames = [walker(size, step) for size in CAMERAS.values()]
        found = estimator.estimate([image for image, _ in frames])
        for people, (image, box) in zip(found, frames, strict=True):
            canvas_px = max(image.shape[0] / CANVAS[0], image.shape[1] / CANVAS[1])
            np.testing.assert_allclose(people.boxes, [box], atol=canvas_px)  # to one pixel of the canvas
            np.testing.assert_allclose(people.keypoints[0, 0], box[:2], atol=canvas_px)


def test_frames_of_a_video_file_go_through(estimator: PoseEstimator, tmp_path: Path) -> None:
    file = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 25, (320, 240))
    for step in range(20):
        writer.write(walker((240, 320), step)[0])
    writer.release()
    capture = cv2.VideoCapture(str(file))
    seen = 0
    while True:
        good, image = capture.read()
        if not good:
            break
        (people,) = estimator.estimate([image])
        np.testing.assert_allclose(people.boxes, [walker((240, 320), seen)[1]], atol=4)
        seen += 1
    capture.release()
    assert seen == 20


def test_results_do_not_change_when_the_next_batch_comes(estimator: PoseEstimator) -> None:
    image, _ = walker((240, 320), 3)
    (first,) = estimator.estimate([image])
    before = first.keypoints.copy()
    estimator.estimate([walker((480, 640), 30)[0]] * 4)
    np.testing.assert_array_equal(first.keypoints, before)
    assert not first.boxes.flags.writeable


def test_memory_stays_flat_while_batches_and_sizes_vary(estimator: PoseEstimator) -> None:
    process = psutil.Process()
    random = np.random.default_rng(0)
    frames = [walker(size, 5)[0] for size in CAMERAS.values()]

    def work(rounds: int) -> None:
        for _ in range(rounds):
            estimator.estimate([frames[index] for index in random.integers(0, 3, random.integers(1, 5))])

    work(150)
    before = process.memory_info().rss
    work(600)
    assert process.memory_info().rss - before < 3e6


def test_nothing_is_left_running_after_close(bundle: Path) -> None:
    create_pose_estimator(PoseConfig(model=bundle, device="cpu", threads=3)).close()  # libraries start theirs once
    python_threads = threading.active_count()
    process = psutil.Process()
    threads = process.num_threads()
    for _ in range(5):
        create_pose_estimator(PoseConfig(model=bundle, device="cpu", threads=3)).close()
    assert threading.active_count() == python_threads
    assert process.num_threads() <= threads


def test_a_bundle_that_was_touched_or_answers_wrongly_never_serves(bundle: Path) -> None:
    ghost = np.array([[10, 10, 30, 60, 0.9]], np.float32)
    rtmo_graph(bundle / "model.onnx", size=CANVAS, extra_dets=ghost,
               extra_keypoints=np.full((1, 17, 3), 20, np.float32))  # fmt: skip
    with pytest.raises(TrustError, match="sha256"):
        create_pose_estimator(PoseConfig(model=bundle))
    fields = {key: value for key, value in _manifest(bundle).items() if key != "files"}
    seal_bundle(bundle, fields)
    with pytest.raises(ModelError, match=r"a person of score 0\.90 at \[10, 10, 30, 60\] should not be there"):
        create_pose_estimator(PoseConfig(model=bundle))


@pytest.mark.parametrize(
    ("device", "gpus", "served"),
    [("auto", (), "small"), ("auto", ("Pretend GPU (9.9)",), "rtmo-t 1.0.0"), ("cpu", ("Pretend GPU (9.9)",), "small")],
)
def test_the_model_for_cpus_stands_in_where_only_the_cpu_can_serve(
    bundle: Path, tmp_path: Path, device: str, gpus: tuple[str, ...], served: str
) -> None:
    small = rtmo_graph(tmp_path / "small.onnx", size=CANVAS)
    machine = Accelerators("1.32.0", ("CUDAExecutionProvider", "CPUExecutionProvider"), gpus)
    estimator = create(PoseConfig(model=bundle, cpu_model=small, device=device), machine=machine)
    assert estimator.name == served
    assert len(estimator.estimate([walker((240, 320), 3)[0]])[0]) == 1
    estimator.close()


def test_a_model_for_cpus_of_another_task_is_named_by_its_key(bundle: Path, repo_dir: Path) -> None:
    config = PoseConfig(model=bundle, cpu_model=repo_dir / "models" / "fall-stgcn", device="cpu")
    with pytest.raises(ConfigError, match=r"pose\.cpu_model: fall-stgcn .* is a model for 'action'"):
        create(config)


def test_where_tensorrt_turns_out_not_to_work_the_agent_goes_on_and_says_so(bundle: Path, tmp_path: Path) -> None:
    """The real builder process, on a machine believed to have TensorRT."""
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has TensorRT")
    settings = SessionSettings(threads=1)
    plan = Plan((CPU,), build=Device(Kind.TENSORRT))
    believed = Accelerators("1.32.0", ("CPUExecutionProvider",), ("Pretend GPU (9.9)",), "1", "10.0.0")
    loaded = load_bundle(bundle)
    session = InferenceSession(Backend(loaded.model, CPU, settings), loaded.model, plan, settings, believed)
    config = PoseConfig(model=bundle, engine_cache=tmp_path / "engines")
    estimator = RtmoEstimator(session, loaded, config, RtmoOptions())
    estimator.begin_upgrade()
    image, _ = walker((240, 320), 3)
    deadline_s = time.monotonic() + 60
    while estimator.upgrade and estimator.upgrade.state is not EngineState.FAILED:
        assert len(estimator.estimate([image])[0]) == 1
        assert time.monotonic() < deadline_s
    assert estimator.upgrade is not None
    assert "no TensorrtExecutionProvider" in estimator.upgrade.detail
    assert (estimator.device, len(estimator.estimate([image])[0])) == ("cpu", 1)
    estimator.close()


def _manifest(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "manifest.json").read_text()))
