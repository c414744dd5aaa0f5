"""RTMO's contract: where outputs and sizes come from, which rows are people, batches, and wrong graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fakes.graphs import rtmo_graph, stgcn_graph
from fakes.pretend_gpu import PretendGpu

from agent.config.schema import BatchConfig, PoseConfig
from agent.errors import ConfigError, DataError, DeviceMemoryError, ModelError
from agent.ports import PoseEstimator, ScalableEstimator
from agent.pose.rtmo import RtmoEstimator, create
from agent.runtime.bundle import seal_bundle
from agent.runtime.devices import Accelerators
from agent.runtime.engines import EngineProgress, EngineState
from agent.runtime.session import InferenceSession

Box = tuple[int, int, int, int]


def scene(size: tuple[int, int] = (128, 192), box: Box | None = (40, 20, 100, 60), value: int = 255) -> np.ndarray:
    """A dark picture (H, W) with one bright rectangle x1, y1, x2, y2."""
    image = np.zeros((*size, 3), np.uint8)
    if box:
        image[box[1] : box[3], box[0] : box[2]] = value
    return image


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., RtmoEstimator]:
    """Builds a graph (keys that `rtmo_graph` knows) and opens it (the rest goes to PoseConfig)."""
    graph_keys = set(rtmo_graph.__kwdefaults__)

    def build(**keys: Any) -> RtmoEstimator:
        graph = {key: keys.pop(key) for key in list(keys) if key in graph_keys}
        model = rtmo_graph(tmp_path / "rtmo-x.onnx", **graph)
        return create(PoseConfig(**{"model": model, "device": "cpu", "threads": 1, **keys}))

    return build


def rows(count: int, score: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """`count` constant people of 10 x 20 px side by side."""
    x = np.arange(count, dtype=np.float32)[:, None]
    dets = np.hstack([x, x * 0 + 2, x + 10, x * 0 + 22, x * 0 + score]).astype(np.float32)
    return dets, np.full((count, 17, 3), 5.0, np.float32)


def test_key_points_that_are_guesses_are_not_seen(make: Callable[..., RtmoEstimator]) -> None:
    dets, keypoints = rows(1)
    keypoints[0, :, 2] = np.linspace(0.1, 0.9, 17)
    scores = {
        threshold: make(extra_dets=dets, extra_keypoints=keypoints, options={"keypoint_threshold": threshold})
        .estimate([scene((64, 96), None)])[0]
        .keypoint_scores[0]
        for threshold in (0.0, 0.3)
    }
    np.testing.assert_allclose(scores[0.0], keypoints[0, :, 2], atol=1e-6)
    np.testing.assert_allclose(scores[0.3], np.where(keypoints[0, :, 2] < 0.3, 0, keypoints[0, :, 2]), atol=1e-6)


def test_it_is_a_pose_estimator_named_after_its_file(make: Callable[..., RtmoEstimator]) -> None:
    estimator = make()
    assert isinstance(estimator, PoseEstimator)
    assert (estimator.name, estimator.device, estimator.max_batch, estimator.upgrade) == ("rtmo-x", "cpu", 8, None)


def test_a_person_comes_back_in_source_pixels(make: Callable[..., RtmoEstimator]) -> None:
    (people,) = make().estimate([scene()])  # 128 x 192 onto 64 x 96: half
    np.testing.assert_allclose(people.boxes, [[40, 20, 100, 60]])
    np.testing.assert_allclose(people.keypoints[0, [0, 16]], [[40, 20], [100, 60]])
    np.testing.assert_allclose(people.scores, [1.0])
    np.testing.assert_allclose(people.keypoint_scores, np.ones((1, 17)))
    assert people.boxes.dtype == people.keypoints.dtype == people.scores.dtype == np.float32


@pytest.mark.parametrize("anchor", ["top_left", "center"])
def test_both_anchors_map_back(make: Callable[..., RtmoEstimator], anchor: str) -> None:
    (people,) = make(options={"anchor": anchor}).estimate([scene((256, 128), (20, 100, 60, 200))])
    np.testing.assert_allclose(people.boxes, [[20, 100, 60, 200]], atol=4)


def test_an_empty_scene_has_zero_people(make: Callable[..., RtmoEstimator]) -> None:
    (people,) = make().estimate([scene(box=None)])
    assert len(people) == 0
    assert people.keypoints.shape == (0, 17, 2)


@pytest.mark.parametrize("batch", [None, 1, 2, 3])
def test_batches_of_any_size_give_what_single_pictures_give(
    make: Callable[..., RtmoEstimator], batch: int | None
) -> None:
    estimator = make(batch=batch)
    boxes: list[Box | None] = [(10, 10, 30, 40), None, (50, 60, 90, 100), (0, 0, 20, 20), None]
    sizes = [(128, 192), (256, 384), (128, 192), (64, 96), (100, 50)]
    found = estimator.estimate([scene(size, box) for size, box in zip(sizes, boxes, strict=True)])
    assert [len(people) for people in found] == [0 if box is None else 1 for box in boxes]
    for people, box in zip(found, boxes, strict=True):
        if box:
            np.testing.assert_allclose(people.boxes, [box], atol=0.01)


def test_more_pictures_than_a_batch_takes_are_split(make: Callable[..., RtmoEstimator]) -> None:
    assert len(make().estimate([scene()] * 11)) == 11


def test_rows_that_are_no_people_are_left_out(make: Callable[..., RtmoEstimator]) -> None:
    dets, keypoints = rows(7)
    dets[1, 4] = 0.2  # below the threshold
    dets[2] = -1  # padding of TensorRT's NMS
    dets[3] = 0
    dets[4, 0] = np.nan
    keypoints[5, 3, 1] = np.inf
    dets[6, :4] = (500, 500, 600, 600)  # outside the picture
    (people,) = make(extra_dets=dets, extra_keypoints=keypoints).estimate([scene((64, 96), None)])
    np.testing.assert_allclose(people.boxes, [[0, 2, 10, 22]])


def test_a_threshold_of_zero_still_drops_padding(make: Callable[..., RtmoEstimator]) -> None:
    dets, keypoints = rows(2)
    dets[1, 4] = 0
    (people,) = make(extra_dets=dets, extra_keypoints=keypoints, score_threshold=0.0).estimate([scene((64, 96), None)])
    assert len(people) == 1


def test_boxes_end_at_the_picture_and_scores_at_one(make: Callable[..., RtmoEstimator]) -> None:
    dets, keypoints = rows(1)
    dets[0] = (-20, -5, 200, 30, 1.0001)
    (people,) = make(extra_dets=dets, extra_keypoints=keypoints).estimate([scene((64, 96), None)])
    np.testing.assert_allclose(people.boxes, [[0, 0, 96, 30]])
    assert people.scores[0] == people.keypoint_scores.max() == 1.0


def test_the_best_people_come_first_and_only_so_many(make: Callable[..., RtmoEstimator]) -> None:
    dets, keypoints = rows(40)
    dets[:, 4] = np.linspace(0.4, 0.8, 40)
    (people,) = make(extra_dets=dets, extra_keypoints=keypoints, max_people=5).estimate([scene((64, 96), None)])
    np.testing.assert_allclose(people.scores, np.linspace(0.4, 0.8, 40)[:-6:-1], rtol=1e-6)


def test_two_hundred_people(make: Callable[..., RtmoEstimator]) -> None:
    dets, keypoints = rows(200)
    dets[:, [0, 2]] %= 60
    dets[:, 2] = dets[:, 0] + 5
    (people,) = make(extra_dets=dets, extra_keypoints=keypoints, max_people=500).estimate([scene((64, 96), None)])
    assert len(people) == 200


def test_outputs_are_found_by_shape_under_other_names(make: Callable[..., RtmoEstimator]) -> None:
    (people,) = make(names=("boxes_and_scores", "points")).estimate([scene()])
    np.testing.assert_allclose(people.boxes, [[40, 20, 100, 60]])


def test_float16_graphs_work(make: Callable[..., RtmoEstimator]) -> None:
    (people,) = make(half=True).estimate([scene()])
    np.testing.assert_allclose(people.boxes, [[40, 20, 100, 60]])


def test_rgb_models_see_red_first(make: Callable[..., RtmoEstimator]) -> None:
    red = np.zeros((64, 96, 3), np.uint8)
    red[10:20, 10:20, 2] = 255
    assert [len(make(options={"channels": order}).estimate([red])[0]) for order in ("bgr", "rgb")] == [0, 1]


def test_a_graph_that_leaves_its_size_open_needs_one(make: Callable[..., RtmoEstimator]) -> None:
    with pytest.raises(ConfigError, match=r"pose\.options\.input_size: the graph leaves its input size open"):
        make(dynamic_size=True)
    (people,) = make(dynamic_size=True, options={"input_size": [64, 96]}).estimate([scene()])
    np.testing.assert_allclose(people.boxes, [[40, 20, 100, 60]])


@pytest.fixture
def make_open(tmp_path: Path) -> Callable[..., RtmoEstimator]:
    """Seals a graph that takes any size into a bundle for 480 x 640 px and opens it (keys go to `pose.options`)."""

    def build(step: int | None = 32, **options: Any) -> RtmoEstimator:
        folder = tmp_path / f"open-{step}"
        folder.mkdir(exist_ok=True)
        rtmo_graph(folder / "model.onnx", dynamic_size=True)
        seal_bundle(folder, {
            "name": "open", "version": "1", "task": "pose", "licence": "Apache-2.0", "training_data": "none",
            "inputs": [{"name": "input", "shape": ["B", 3, 480, 640], "preprocessing": {"kind": "letterbox", "side_step": step}}],
            "outputs": [{"name": "dets", "shape": ["B", "N", 5], "meaning": "detections"},
                        {"name": "keypoints", "shape": ["B", "N", 17, 3], "meaning": "keypoints"}],
        })  # fmt: skip
        return create(PoseConfig(model=folder, device="cpu", threads=1, options=options))

    return build


def seen(estimator: RtmoEstimator, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that the network is given from now on."""
    shapes: list[tuple[int, ...]] = []
    run = estimator._session.run

    def record(feeds: Any) -> Any:
        shapes.append(feeds["input"].shape)
        return run(feeds)

    monkeypatch.setattr(estimator._session, "run", record)
    return shapes


def test_pictures_are_scaled_on_request_where_the_model_allows_it(
    make: Callable[..., RtmoEstimator], make_open: Callable[..., RtmoEstimator], monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator = make_open()
    assert isinstance(estimator, ScalableEstimator)
    shapes = seen(estimator, monkeypatch)
    for scale in (0.8, 0.01, 1.0):
        estimator.scale_pictures(scale)
        (people,) = estimator.estimate([scene((480, 640), (40, 20, 100, 60))])
        np.testing.assert_allclose(people.boxes, [[40, 20, 100, 60]], atol=2)
    assert shapes == [(1, 3, 384, 512), (1, 3, 288, 384), (1, 3, 480, 640)]  # 0.6 is the least
    for fixed, canvas in ((make(), (64, 96)), (make_open(None), (480, 640))):
        fixed.scale_pictures(0.5)
        assert fixed.canvas == canvas
        assert len(fixed.estimate([scene()])[0]) == 1


@pytest.mark.parametrize(("target_ms", "canvas"), [(0.0, (480, 640)), (1e-6, (288, 384)), (60_000.0, (480, 640))])
def test_the_size_follows_from_the_speed_of_the_machine(
    make: Callable[..., RtmoEstimator],
    make_open: Callable[..., RtmoEstimator],
    target_ms: float,
    canvas: tuple[int, int],
) -> None:
    estimator = make_open(target_ms=target_ms)
    assert estimator.canvas == canvas
    estimator.scale_pictures(0.8)  # a further wish counts on top of it, down to 0.6
    assert estimator.canvas == ((384, 512) if canvas == (480, 640) else canvas)
    assert make(options={"target_ms": target_ms}).canvas == (64, 96)  # fixed in the graph
    assert make_open(None, target_ms=target_ms).canvas == (480, 640)  # fixed by what the bundle says


@pytest.mark.parametrize(
    ("state", "canvas"),
    [(EngineState.BUILDING, (480, 640)), (EngineState.SERVING, (480, 640)), (EngineState.FAILED, (384, 512))],
)
def test_the_size_stays_while_an_engine_of_tensorrt_serves_or_is_built(
    make_open: Callable[..., RtmoEstimator],
    monkeypatch: pytest.MonkeyPatch,
    state: EngineState,
    canvas: tuple[int, int],
) -> None:
    estimator = make_open()
    monkeypatch.setattr(InferenceSession, "upgrade", EngineProgress(state, 1.0))
    shapes = seen(estimator, monkeypatch)
    estimator.scale_pictures(0.8)
    estimator.estimate([scene((1080, 1920), None)])
    assert (estimator.canvas, shapes) == (canvas, [(1, 3, *canvas)])


def test_a_size_that_the_model_cannot_see_is_a_configuration_error(make_open: Callable[..., RtmoEstimator]) -> None:
    with pytest.raises(
        ConfigError, match=r"pose\.options\.input_size: the model takes multiples of 32, found \(400, 600\)"
    ):
        make_open(input_size=[400, 600])
    assert make_open(input_size=[416, 608]).canvas == (416, 608)


def test_the_card_promises_nothing_for_pictures_of_another_size(repo_dir: Path) -> None:
    def card(**options: Any) -> dict[str, float]:
        return create(
            PoseConfig(model=repo_dir / "models/pose-nano-int8", device="cpu", threads=1, options=options)
        ).card

    assert card()
    assert card() == card(target_ms=60_000.0)
    assert card(input_size=[384, 512]) == card(target_ms=1e-6) == {}


def test_a_bundle_that_promises_sizes_its_graph_has_not_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    graph = onnx.load(rtmo_graph(folder / "model.onnx", size=(64, 96)))
    for dimension, name in zip(graph.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        dimension.dim_param = name
    onnx.save(graph, folder / "model.onnx")
    seal_bundle(folder, {
        "name": "liar", "version": "1", "task": "pose", "licence": "Apache-2.0", "training_data": "none",
        "inputs": [{"name": "input", "shape": ["B", 3, 64, 96], "preprocessing": {"kind": "letterbox", "side_step": 32}}],
        "outputs": [{"name": "dets", "shape": ["B", "N", 5], "meaning": "detections"},
                    {"name": "keypoints", "shape": ["B", "N", 17, 3], "meaning": "keypoints"}],
    })  # fmt: skip
    with pytest.raises(ModelError, match=r"running model\.onnx"):
        create(PoseConfig(model=folder, device="cpu"))


def test_a_size_that_is_not_the_graphs_is_refused(make: Callable[..., RtmoEstimator]) -> None:
    with pytest.raises(ConfigError, match=r"\(640, 640\) is not what the graph takes: input \(\?, 3, 64, 96\) float32"):
        make(options={"input_size": 640})


def test_a_bundle_says_name_size_and_letterbox(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    rtmo_graph(folder / "model.onnx", dynamic_size=True)
    letterbox = {"kind": "letterbox", "anchor": "center", "pad_value": 255}
    shape = ["B", 17, 3]
    seal_bundle(folder, {
        "name": "rtmo-t", "version": "1.0", "task": "pose", "licence": "Apache-2.0", "training_data": "none",
        "inputs": [{"name": "input", "shape": ["B", 3, 64, 96], "preprocessing": letterbox}],
        "outputs": [{"name": "dets", "shape": ["B", "N", 5], "meaning": "detections"},
                    {"name": "keypoints", "shape": shape, "meaning": "keypoints"}],
    })  # fmt: skip
    estimator = create(PoseConfig(model=folder, device="cpu"))
    assert estimator.name == "rtmo-t 1.0"
    (people,) = estimator.estimate([scene((64, 48), None)])  # bright padding left and right of a centred dark picture
    np.testing.assert_allclose(people.boxes, [[0, 0, 48, 64]])


@pytest.mark.parametrize(
    "bad", [np.zeros((0, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float64), None]
)
def test_a_bad_picture_is_a_data_error_that_says_which(make: Callable[..., RtmoEstimator], bad: Any) -> None:
    estimator = make()
    with pytest.raises(DataError, match="image 1: "):
        estimator.estimate([scene(), bad])
    assert len(estimator.estimate([scene()])[0]) == 1


def test_wrong_outputs_are_refused_at_the_start_with_what_was_expected(make: Callable[..., RtmoEstimator]) -> None:
    with pytest.raises(ModelError, match=r"rtmo-x: expected outputs \(1, N, 5\) and .*found dets \(1, 1, 4\)"):
        make(columns=4)


def test_a_graph_for_something_else_is_refused(tmp_path: Path) -> None:
    model = stgcn_graph(tmp_path / "s.onnx")
    with pytest.raises(
        ModelError, match=r"s: expected one input \(B, 3, H, W\).*found input_tensor \(\?, 4, 100, 17, 3\)"
    ):
        create(PoseConfig(model=model, device="cpu"))


def test_no_model_and_wrong_options_are_configuration_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pose\.model: the estimator 'rtmo' needs a model"):
        create(PoseConfig())
    with pytest.raises(ConfigError, match=r"pose\.options\.anker: Extra inputs"):
        create(PoseConfig(model=tmp_path, options={"anker": "center"}))
    no_gpu = Accelerators("1.32.0", ("CPUExecutionProvider",), ())
    with pytest.raises(ConfigError, match=r"pose\.device: .*CUDAExecutionProvider"):
        create(PoseConfig(model=rtmo_graph(tmp_path / "m.onnx"), device="cuda"), machine=no_gpu)


def test_out_of_memory_makes_the_batches_smaller_and_loses_no_picture(make: Callable[..., RtmoEstimator]) -> None:
    """The real session, but for a run that refuses batches above two, as a full GPU does."""
    estimator = make()
    run, seen = estimator._session.run, []

    def tight(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        batch = len(feeds["input"])
        seen.append(batch)
        if batch > 2:
            raise DeviceMemoryError("out of memory")
        return run(feeds)

    estimator._session.run = tight  # type: ignore[method-assign]
    found = estimator.estimate([scene(box=(number, 0, 40 + number, 20)) for number in range(0, 14, 2)])
    assert [people.boxes[0, 0] for people in found] == [0, 2, 4, 6, 8, 10, 12]
    assert seen == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert (estimator.batch_limit, estimator.max_batch) == (1, 8)
    assert estimator.shortage == "out of device memory: batches of 1 in place of 8"
    assert make(batch=1).shortage == "", "smaller than configured, but all that the graph takes"


@pytest.mark.parametrize("no_room_for", ["weights", "run"])
def test_a_gpu_that_is_full_at_the_start_leaves_the_model_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_room_for: str
) -> None:
    PretendGpu(monkeypatch, no_room_for)
    estimator = create(PoseConfig(model=rtmo_graph(tmp_path / "rtmo-x.onnx"), threads=1))
    assert estimator.device == "cpu"
    assert "rtmo-x.onnx on cuda:0: CUDA failure 2: out of memory" in estimator.fallback
    assert len(estimator.estimate([scene()])[0]) == 1


def test_the_batch_size_of_the_configuration_is_kept(make: Callable[..., RtmoEstimator]) -> None:
    assert make().max_batch == BatchConfig().max_size


def test_closing_twice_is_fine(make: Callable[..., RtmoEstimator]) -> None:
    estimator = make()
    estimator.close()
    estimator.close()
