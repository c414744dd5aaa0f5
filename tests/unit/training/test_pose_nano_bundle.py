"""The bundle that ships: within its limits, sealed, and at home in the agent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from agent.config.load import load_config
from agent.pose.rtmo import RtmoEstimator, create
from agent.runtime.bundle import load_bundle, read_golden
from agent.runtime.devices import Accelerators
from agent.runtime.people import Tolerance, compare_people
from agent.simulation.scene import build_scene
from agent.simulation.scripts import build_script

BUNDLES = ("pose-nano", "pose-nano-int8")
CANVAS = (480, 640)


@pytest.fixture(scope="module", params=BUNDLES)
def estimator(repo_dir: Path, request: pytest.FixtureRequest) -> RtmoEstimator:
    """Opened as the shipped configuration says; the golden answers are compared on the way."""
    config = load_config([repo_dir / "configs" / "pose-nano.yaml"], env={})
    changed = {"model": repo_dir / "models" / request.param, "cpu_model": None, "device": "cpu", "threads": 1}
    return create(config.pose.model_copy(update=changed))


@pytest.mark.parametrize(
    ("gpus", "served"), [((), "pose-nano-int8"), (("Pretend GPU (9.9)",), "pose-nano")], ids=["cpu", "gpu"]
)
def test_the_quantised_one_is_for_cpus_only(repo_dir: Path, gpus: tuple[str, ...], served: str) -> None:
    config = load_config([repo_dir / "configs" / "pose-nano.yaml"], env={})
    machine = Accelerators("1.32.0", ("CUDAExecutionProvider", "CPUExecutionProvider"), gpus)
    estimator = create(config.pose, machine=machine)
    assert estimator.name.split()[0] == served
    estimator.close()


@pytest.mark.parametrize("name", BUNDLES)
def test_it_keeps_to_its_limits(repo_dir: Path, name: str) -> None:
    bundle = load_bundle(repo_dir / "models" / name)
    assert bundle.model.stat().st_size <= 8_000_000
    assert bundle.manifest is not None
    assert bundle.manifest.figures["parameters"] <= 2_000_000


def test_a_number_in_8_bits_is_rounded_once(repo_dir: Path) -> None:
    """A ReLU between two roundings costs a pass over the map twice and half of the 8 bits, which then hold what it cuts off."""
    graph = onnx.load(repo_dir / "models" / "pose-nano-int8" / "model.onnx").graph
    exact = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    again = [node.name for node in graph.node if node.op_type in {"Relu", "QuantizeLinear"} and exact & set(node.input)]
    assert len(exact) > 60  # it is in 8 bits
    assert again == []


@pytest.mark.parametrize("name", BUNDLES)
def test_known_answers_do_not_hang_on_the_last_bit(repo_dir: Path, name: str) -> None:
    """CPUs round differently. 0.9.1 in 8 bits knew a key point with a second peak as high as the first, and without AVX-512 it was refused."""
    bundle = load_bundle(repo_dir / "models" / name)
    assert bundle.manifest is not None
    assert bundle.manifest.golden is not None
    allowed = bundle.manifest.golden
    session = onnxruntime.InferenceSession(bundle.model)
    inputs, known = read_golden(bundle, bundle.manifest)
    rng = np.random.default_rng(1)
    shaken = np.clip(inputs["input"] + rng.integers(-1, 2, inputs["input"].shape), 0, 255).astype(np.float32)
    dets, keypoints = session.run(["dets", "keypoints"], {"input": shaken})
    # A grey level moves what is in FP32 by more than rounding does.
    tolerance = Tolerance(allowed.min_score, max(allowed.score, 0.05), max(allowed.position_px, 4.0))
    assert compare_people((known["dets"], known["keypoints"]), (dets, keypoints), tolerance) == ""


@pytest.mark.parametrize("name", BUNDLES)
def test_the_batch_is_open_and_changes_no_answer(repo_dir: Path, name: str) -> None:
    session = onnxruntime.InferenceSession(repo_dir / "models" / name / "model.onnx")
    height, width = CANVAS
    scene = build_scene(build_script("crowd", seed=4, people=5), seed=4, width=width, height=height)
    image = scene.shot(5.0).image.transpose(2, 0, 1)[None].astype(np.float32)
    (one, _), (three, keypoints) = (session.run(None, {"input": np.repeat(image, count, 0)}) for count in (1, 3))
    assert three.shape == (3, 30, 5)
    assert keypoints.shape == (3, 30, 17, 3)
    for row in three:
        np.testing.assert_allclose(row, one[0], atol=1e-2)


@pytest.mark.parametrize("shade", [0, 114, 255])
def test_a_plain_picture_shows_nobody(estimator: RtmoEstimator, shade: int) -> None:
    (people,) = estimator.estimate([np.full((480, 640, 3), shade, np.uint8)])
    assert len(people) == 0


def test_somebody_in_the_open_is_found_once(estimator: RtmoEstimator) -> None:
    scene = build_scene(build_script("exercise", seed=8, people=1), seed=8, occluders=False, night=False)
    shot = scene.shot(3.0)
    (people,) = estimator.estimate([shot.image])
    sure = people.boxes[people.scores >= 0.25]
    assert len(sure) == 1
    low, high = np.maximum(sure[0, :2], shot.truth.boxes[0, :2]), np.minimum(sure[0, 2:], shot.truth.boxes[0, 2:])
    inner = np.prod(np.maximum(high - low, 0))
    areas = [np.prod(box[2:] - box[:2]) for box in (sure[0], shot.truth.boxes[0])]
    assert inner / (sum(areas) - inner) > 0.5


@pytest.fixture(scope="module")
def for_cpus(repo_dir: Path) -> RtmoEstimator:
    config = load_config([repo_dir / "configs" / "pose-nano.yaml"], env={})
    return create(
        config.pose.model_copy(update={"device": "cpu", "threads": 1}), machine=Accelerators("1.32.0", (), ())
    )


@pytest.mark.parametrize("scale", [0.8, 0.73, 0.67])
def test_smaller_pictures_show_the_same_people(for_cpus: RtmoEstimator, scale: float) -> None:
    found = 0
    for seed in (3, 8, 15, 16, 17):
        scene = build_scene(build_script("exercise", seed=seed, people=2), seed=seed, occluders=False, night=False)
        image = scene.shot(3.0).image
        for_cpus.scale_pictures(1.0)
        (large,) = for_cpus.estimate([image])
        for_cpus.scale_pictures(scale)
        assert for_cpus.canvas < CANVAS
        (small,) = for_cpus.estimate([image])
        sure = large.scores >= 0.4
        off = np.linalg.norm(large.keypoints[sure, None] - small.keypoints[None], axis=-1)
        nearest = np.median(off, axis=-1).min(axis=1, initial=np.inf)
        sizes = np.sqrt(np.prod(large.boxes[sure, 2:] - large.boxes[sure, :2], axis=1))
        np.testing.assert_array_less(nearest, 0.1 * sizes)
        found += int(sure.sum())
    for_cpus.scale_pictures(1.0)
    assert found >= 4
