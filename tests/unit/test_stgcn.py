"""The skeleton classifier: probabilities with the bundle's labels, and every mismatch with its service named."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.graphs import rtmo_graph, stgcn_graph
from fakes.pretend_gpu import PretendGpu

from agent.action.stgcn import StgcnClassifier, create, softmax
from agent.config.schema import ServiceConfig, WindowConfig
from agent.errors import ConfigError, DataError, ModelError
from agent.ports import ActionClassifier
from agent.runtime.bundle import seal_bundle

LABELS = ["normal", "fight"]


def service(model: Path, **keys: Any) -> ServiceConfig:
    return ServiceConfig(**{"model": model, "device": "cpu", "options": {"labels": LABELS}, **keys})


def bundle(folder: Path, *, output: dict[str, Any] | None = None, rate_hz: float = 0.0, **graph: Any) -> Path:
    skeletons = {"kind": "skeleton", "rate_hz": rate_hz}
    folder.mkdir()
    stgcn_graph(folder / "model.onnx", **graph)
    seal_bundle(folder, {
        "name": "fight", "version": "0.1.0", "task": "action", "licence": "Apache-2.0", "training_data": "none",
        "labels": LABELS,
        "inputs": [{"name": "input_tensor", "shape": ["B", 4, 100, 17, 3], "preprocessing": skeletons}],
        "outputs": [{"name": "cls_score", "shape": ["B", 2], "meaning": "logits"} | (output or {})],
    })  # fmt: skip
    return folder


def windows(*means: float) -> np.ndarray:
    """One window per value, all of its numbers equal to it."""
    return np.stack([np.full((4, 100, 17, 3), mean, np.float32) for mean in means])


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


@pytest.fixture
def classifier(tmp_path: Path) -> StgcnClassifier:
    return create("fight", service(bundle(tmp_path / "fight"), options={}))


def test_it_is_a_classifier_with_the_bundles_labels(classifier: StgcnClassifier) -> None:
    assert isinstance(classifier, ActionClassifier)
    assert classifier.name == "fight 0.1.0"
    assert classifier.labels == ("normal", "fight")
    assert classifier.input_shape == (4, 100, 17, 3)
    assert (classifier.device, classifier.upgrade) == ("cpu", None)


def test_logits_become_probabilities(classifier: StgcnClassifier) -> None:
    probs = classifier.classify(windows(0.0, 2.0, -1.0))
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(probs[:, 1], [sigmoid(0.0), sigmoid(2.0), sigmoid(-1.0)], rtol=1e-4)


def test_temperature_of_the_manifest_softens_them(tmp_path: Path) -> None:
    model = bundle(tmp_path / "fight", output={"temperature": 4.0})
    probs = create("fight", service(model, options={})).classify(windows(2.0))
    np.testing.assert_allclose(probs[0, 1], sigmoid(0.5), rtol=1e-4)


def test_probabilities_stay_probabilities(tmp_path: Path) -> None:
    model = bundle(tmp_path / "fight", softmax=True, output={"meaning": "probabilities"})
    probs = create("fight", service(model, options={})).classify(windows(2.0))
    np.testing.assert_allclose(probs[0, 1], sigmoid(2.0), rtol=1e-4)


def test_logits_declared_as_probabilities_are_noticed(tmp_path: Path) -> None:
    model = bundle(tmp_path / "fight", output={"meaning": "probabilities"})
    with pytest.raises(ModelError, match="should hold probabilities"):
        create("fight", service(model, options={}))


def test_huge_logits_do_not_overflow() -> None:
    np.testing.assert_allclose(softmax(np.array([[1e5, 0.0], [-1e5, 0.0]])), [[1, 0], [0, 1]])


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_batches_of_any_size(tmp_path: Path, batch: int | None) -> None:
    classifier = create("fight", service(stgcn_graph(tmp_path / "s.onnx", batch=batch)))
    means = np.linspace(-2, 2, 37)
    probs = classifier.classify(windows(*means))
    np.testing.assert_allclose(probs[:, 1], sigmoid(means), rtol=1e-3)  # a mean of 6800 float32 numbers
    assert classifier.classify(windows(1.0)[:0]).shape == (0, 2)


def test_float16_graphs_work(tmp_path: Path) -> None:
    classifier = create("fight", service(stgcn_graph(tmp_path / "s.onnx", half=True)))
    np.testing.assert_allclose(classifier.classify(windows(1.0))[0, 1], sigmoid(1.0), rtol=1e-3)


def test_a_graph_with_open_sizes_takes_the_services(tmp_path: Path) -> None:
    model = stgcn_graph(tmp_path / "s.onnx", window=(None, None, 17, 2))
    window = WindowConfig(length=64, people=2, channels=2)
    classifier = create("fight", service(model, window=window))
    assert classifier.input_shape == (2, 64, 17, 2)
    assert classifier.classify(np.zeros((1, 2, 64, 17, 2), np.float32)).shape == (1, 2)


@pytest.mark.parametrize(
    ("window", "key", "want", "have"),
    [
        ({"people": 2}, "people", 2, 4),
        ({"length": 64}, "length", 64, 100),
        ({"channels": 2}, "channels", 2, 3),
    ],
)
def test_a_window_that_is_not_the_models_names_both(
    tmp_path: Path, window: dict[str, Any], key: str, want: int, have: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        create("fight", service(stgcn_graph(tmp_path / "s.onnx"), window=window))
    assert f"services.fight.window.{key}: the window has {key} = {want}, the model takes {have}" in str(caught.value)


@pytest.mark.parametrize("rate_hz", [0, 15, 120])
def test_a_window_of_another_rate_than_the_model_was_trained_at_names_both(tmp_path: Path, rate_hz: float) -> None:
    model = bundle(tmp_path / "fight", rate_hz=30)
    problem = f"services.fight.window.rate_hz: the window has rate_hz = {rate_hz}, fight 0.1.0 was trained at 30"
    with pytest.raises(ConfigError, match=rf"{re.escape(problem)} \(hint: set rate_hz: 30,"):
        create("fight", service(model, options={}, window={"rate_hz": rate_hz}))
    create("fight", service(model, options={}, window={"rate_hz": 30}))


@pytest.mark.parametrize("rate_hz", [0, 15])
def test_a_model_that_does_not_say_at_which_rate_it_was_trained_takes_any(tmp_path: Path, rate_hz: float) -> None:
    create("fight", service(bundle(tmp_path / "fight"), options={}, window={"rate_hz": rate_hz}))
    create("fight", service(stgcn_graph(tmp_path / "s.onnx"), window={"rate_hz": rate_hz}))


def test_of_more_channels_than_it_knows_a_model_takes_the_first(tmp_path: Path) -> None:
    config = service(stgcn_graph(tmp_path / "s.onnx"), window={"channels": 4})
    classifier = create("fight", config)
    assert classifier.input_shape == (4, 100, 17, 4)
    batch = windows(1.0)
    change = np.full((*batch.shape[:-1], 1), 7.0, np.float32)
    alone = create("fight", service(stgcn_graph(tmp_path / "s.onnx"))).classify(batch)
    np.testing.assert_array_equal(classifier.classify(np.concatenate((batch, change), -1)), alone)


def test_a_model_of_four_channels_needs_them(tmp_path: Path) -> None:
    model = stgcn_graph(tmp_path / "s.onnx", window=(4, 100, 17, 4))
    with pytest.raises(ConfigError, match=r"the window has channels = 3, the model takes 4.*hint: set channels: 4"):
        create("fight", service(model))


def test_all_mismatches_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        create("fight", service(stgcn_graph(tmp_path / "s.onnx"), window={"people": 2, "length": 64, "channels": 2}))
    assert len(caught.value.problems) == 3


def test_a_bare_file_needs_labels_and_the_positive_one_must_be_among_them(tmp_path: Path) -> None:
    model = stgcn_graph(tmp_path / "s.onnx")
    with pytest.raises(ConfigError, match=r"services\.fight\.options\.labels: .*does not name its classes"):
        create("fight", service(model, options={}))
    with pytest.raises(
        ConfigError, match=r"services\.fall\.positive: s has no class 'fall'; its classes: normal, fight"
    ):
        create("fall", service(model))
    assert create("brawl", service(model, positive="fight")).labels == ("normal", "fight")


def test_another_number_of_classes_than_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"expected output \(1, 2\) for the labels normal, fight; found cls_score \(1, 3\)"
    ):
        create("fight", service(stgcn_graph(tmp_path / "s.onnx", classes=3)))


def test_graphs_for_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected one input \(B, M, T, V, C\).*found input \(\?, 3, 64, 96\)"):
        create("fight", service(rtmo_graph(tmp_path / "r.onnx")))
    with pytest.raises(ModelError, match="expected V = 17"):
        create("fight", service(stgcn_graph(tmp_path / "v.onnx", window=(4, 100, 25, 3))))


def test_a_pose_bundle_is_refused(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "fight")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"task": "pose"}))
    with pytest.raises(ConfigError, match="is a model for 'pose', not for 'action'"):
        create("fight", service(folder, options={}))


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((1, 4, 99, 17, 3), np.float32),
        np.zeros((4, 100, 17, 3), np.float32),
        np.zeros((1, 4, 100, 17, 3), np.float64),
        np.full((1, 4, 100, 17, 3), np.nan, np.float32),
        np.full((1, 4, 100, 17, 3), np.inf, np.float32),
    ],
)
def test_a_bad_window_is_a_data_error(classifier: StgcnClassifier, bad: np.ndarray) -> None:
    with pytest.raises(DataError):
        classifier.classify(bad)
    classifier.classify(windows(0.0))


def test_wrong_options_and_absent_devices_name_the_service(tmp_path: Path) -> None:
    model = stgcn_graph(tmp_path / "s.onnx")
    with pytest.raises(ConfigError, match=r"services\.fight\.options\.lables: Extra inputs"):
        create("fight", service(model, options={"lables": LABELS}))
    with pytest.raises(ConfigError, match=r"services\.fight\.device: .*CUDAExecutionProvider"):
        create("fight", service(model, device="cuda"))


@pytest.mark.parametrize("no_room_for", ["weights", "run"])
def test_a_gpu_that_is_full_at_the_start_leaves_the_model_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_room_for: str
) -> None:
    PretendGpu(monkeypatch, no_room_for)
    classifier = create("fight", service(stgcn_graph(tmp_path / "s.onnx"), device="auto"))
    assert classifier.device == "cpu"
    assert "s.onnx on cuda:0: CUDA failure 2: out of memory" in classifier.fallback
    assert classifier.classify(windows(1.0)).shape == (1, 2)


def test_fight_and_fall_run_side_by_side(tmp_path: Path) -> None:
    fight = create("fight", service(stgcn_graph(tmp_path / "fight.onnx")))
    fall = create(
        "fall", service(stgcn_graph(tmp_path / "fall.onnx", gain=-1.0), options={"labels": ["normal", "fall"]})
    )
    found: dict[str, list[np.ndarray]] = {"fight": [], "fall": []}

    def work(name: str, classifier: StgcnClassifier) -> None:
        found[name] = [classifier.classify(windows(2.0)) for _ in range(20)]

    threads = [threading.Thread(target=work, args=pair) for pair in (("fight", fight), ("fall", fall))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose([probs[0, 1] for probs in found["fight"]], sigmoid(2.0), rtol=1e-4)
    np.testing.assert_allclose([probs[0, 1] for probs in found["fall"]], sigmoid(-2.0), rtol=1e-4)
    fight.close()
    fall.close()
