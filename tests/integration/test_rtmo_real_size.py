"""RTMO-s at its real size through the agent's adapter: 640x640, suppression inside, dynamic batch, FP16.

The graph is built from PyTorch with random weights, by this interpreter or by the one that TRAIN_PYTHON names; without torch
the tests are skipped. It takes minutes and is kept in pytest's cache until the recipe changes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, shape_inference

from agent.config.schema import BatchConfig, PoseConfig
from agent.pose.rtmo import RtmoEstimator, create
from agent.runtime.onnx_file import read_graph_facts
from agent.runtime.people import Tolerance, compare_people
from agent.types import ImageArray, People

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PAPER_PARAMETERS = 9.9e6
OFFICIAL_BYTES = 39_636_400
"""Of RTMO-s as published (ONNX, FP32)."""
RTMO_IOU = 0.65
"""Above which the weaker of two boxes is dropped (rtmo-s of MMPose: nms_thr)."""


@dataclass(frozen=True)
class Exported:
    """What the recipe made, and what it said about it."""

    full: Path
    half: Path
    report: dict[str, int]


@pytest.fixture(scope="module")
def exported(pytestconfig: pytest.Config, repo_dir: Path) -> Exported:
    sources = sorted((repo_dir / "models" / "training" / "rtmo").glob("*.py"))
    recipe = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    folder = pytestconfig.cache.mkdir(f"rtmo-{recipe}")
    full, half, report = folder / "rtmo-s.onnx", folder / "rtmo-s-fp16.onnx", folder / "report.json"
    if not report.exists():
        python = os.environ.get("TRAIN_PYTHON") or sys.executable
        if python == sys.executable and importlib.util.find_spec("torch") is None:
            pytest.skip("needs torch: install the extra `train`, or set TRAIN_PYTHON to a Python that has it")
        command = [python, "-W", "ignore", "-m", "models.training.rtmo.export", "--out", str(full), "--half", str(half)]
        done = subprocess.run(command, cwd=repo_dir, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        report.write_text(done.stdout[done.stdout.index("{") :])
    return Exported(full, half, json.loads(report.read_text()))


@pytest.fixture(scope="module")
def open_model() -> Callable[[Path], RtmoEstimator]:
    def build(path: Path) -> RtmoEstimator:
        return create(
            PoseConfig(model=path, device="cpu", threads=2, score_threshold=0.1, batch=BatchConfig(max_size=4))
        )

    return build


@pytest.fixture(scope="module")
def estimator(exported: Exported, open_model: Callable[[Path], RtmoEstimator]) -> RtmoEstimator:
    return open_model(exported.full)


def noise(seed: int) -> ImageArray:
    """A picture with people in it, as random weights see it: 640 x 640, so that nothing is resized."""
    return np.random.default_rng(seed).integers(0, 256, (640, 640, 3), np.uint8)


def grey() -> ImageArray:
    return np.full((480, 640, 3), 114, np.uint8)


def assert_same(one: People, other: People) -> None:
    """Person by person; batches are computed in another order, hence not to the last digit."""

    def answer(people: People) -> tuple[np.ndarray, np.ndarray]:
        dets = np.concatenate([people.boxes, people.scores[:, None]], axis=1)
        return dets[None], np.concatenate([people.keypoints, people.keypoint_scores[..., None]], axis=2)[None]

    assert not compare_people(answer(one), answer(other), Tolerance(0.12, 1e-3, 3.0))


def test_it_is_as_large_as_the_real_one(exported: Exported) -> None:
    assert exported.report["parameters"] == pytest.approx(PAPER_PARAMETERS, rel=0.01)
    assert exported.report["bytes"] == pytest.approx(OFFICIAL_BYTES, rel=0.01)
    assert exported.report["half_bytes"] == pytest.approx(OFFICIAL_BYTES / 2, rel=0.05)
    assert read_graph_facts(exported.full).opsets[""] == 17


def test_batches_of_one_to_four_give_what_single_pictures_give(estimator: RtmoEstimator) -> None:
    pictures = [noise(1), grey(), noise(2), noise(3)]
    single = [estimator.estimate([picture])[0] for picture in pictures]
    assert [len(people) > 5 for people in single] == [True, False, True, True]
    assert all(len(people) <= 50 for people in single)
    for count in (2, 3, 4):
        for alone, together in zip(single, estimator.estimate(pictures[:count]), strict=False):
            assert_same(alone, together)


def test_suppression_inside_the_graph_leaves_nobody_twice(exported: Exported) -> None:
    session = onnxruntime.InferenceSession(str(exported.full), providers=["CPUExecutionProvider"])
    overlaps = []
    for seed in (1, 2, 3):
        feeds = {"input": noise(seed).transpose(2, 0, 1)[None].astype(np.float32)}
        (dets,) = session.run(["dets"], feeds)
        boxes, scores = dets[0, :, :4].astype(np.float64), dets[0, :, 4]
        assert len(boxes) > 5
        assert scores.min() >= 0
        assert scores.max() <= 1
        low, high = (
            np.maximum(boxes[:, None, :2], boxes[None, :, :2]),
            np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]),
        )
        inner = np.maximum(high - low, 0).prod(axis=-1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
        overlap = inner / (area[:, None] + area[None] - inner)
        overlaps.append(overlap[np.triu_indices(len(boxes), 1)].max())
    assert max(overlaps) <= RTMO_IOU + 1e-3
    assert max(overlaps) > RTMO_IOU / 2, "nothing overlaps here, so nothing was tested"


def test_empty_pictures_have_nobody_in_them(estimator: RtmoEstimator) -> None:
    for count in (1, 2):
        assert [len(people) for people in estimator.estimate([grey()] * count)] == [0] * count


def test_half_precision_finds_the_same_people(exported: Exported, estimator: RtmoEstimator) -> None:
    half = onnxruntime.InferenceSession(str(exported.half), providers=["CPUExecutionProvider"])
    full = onnxruntime.InferenceSession(str(exported.full), providers=["CPUExecutionProvider"])
    feeds = {"input": noise(4).transpose(2, 0, 1)[None].astype(np.float32)}
    names = ["dets", "keypoints"]
    want, have = full.run(names, feeds), half.run(names, feeds)
    assert want[0].shape[1] > 5
    assert not compare_people((want[0], want[1]), (have[0], have[1]), Tolerance(0.2, 0.05, 8.0))


def test_half_precision_serves_through_the_adapter(
    exported: Exported, open_model: Callable[[Path], RtmoEstimator]
) -> None:
    found, empty = open_model(exported.half).estimate([noise(1), grey()])
    assert len(found) > 5
    assert len(empty) == 0


def test_positions_norms_and_coordinates_stay_in_single_precision(exported: Exported) -> None:
    graph = shape_inference.infer_shapes(onnx.load(exported.half)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]}
    kept = [
        node
        for node in graph.node
        if node.op_type in ("LayerNormalization", "Cos", "Sin", "Exp", "NonMaxSuppression")
        or (
            node.op_type != "Cast" and re.search(r"/(encoding|boxes|decode)(_\d+)?/", node.name)
        )  # a cast leads out of it
    ]
    assert {"LayerNormalization", "Cos", "Sin"} <= {node.op_type for node in kept}
    wrong = [node.name for node in kept for name in node.output if types.get(name) == TensorProto.FLOAT16]
    assert not wrong
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert {types.get(name) for node in convolutions for name in node.output} == {TensorProto.FLOAT16}


def test_the_adapter_costs_little_beside_the_bare_session(exported: Exported, estimator: RtmoEstimator) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(exported.full), options, providers=["CPUExecutionProvider"])
    picture = noise(5)
    feeds = {"input": picture.transpose(2, 0, 1)[None].astype(np.float32)}
    bare, adapter = [], []
    for _ in range(8):  # in turns: what else the machine does hits both
        started = time.process_time()
        session.run(None, feeds)
        between = time.process_time()
        estimator.estimate([picture])
        bare.append(between - started)
        adapter.append(time.process_time() - between)
    ratio = sorted(adapter)[4] / sorted(bare)[4]
    print(f"bare {sorted(bare)[4] * 1e3:.0f} ms of CPU, adapter {ratio:.3f} of it")
    assert ratio < 1.15
