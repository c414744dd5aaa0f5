"""The bundles that come with the agent: sealed, of the promised contract, right on their known answers, quick."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest

from agent.action.stgcn import StgcnClassifier, create
from agent.config.schema import ServiceConfig, WindowConfig
from agent.runtime.bundle import Bundle, load_bundle

SERVICES = ("fight", "fall")
CHANNELS = {"fight": 4, "fall": 3}
WINDOW = WindowConfig(length=100, stride=50, rate_hz=30, people=4, channels=4)
MS_PER_WINDOW = 80.0
"""Far above what is measured (see the cards): a bound against a model of the wrong size, not a benchmark."""
MAX_BYTES = 4_000_000


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(repo_dir: Path, service: str) -> Path:
    return repo_dir / "models" / f"{service}-stgcn"


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    return load_bundle(folder)


@pytest.fixture
def classifier(folder: Path, service: str) -> StgcnClassifier:
    """Made as the agent makes it; checks the known answers on the way."""
    return create(service, ServiceConfig(model=folder, device="cpu", threads=1, window=WINDOW))


def windows(count: int, seed: int = 0) -> np.ndarray:
    """People whose joints wander about, some unseen."""
    rng = np.random.default_rng(seed)
    tensor = np.cumsum(rng.normal(0, 0.01, (count, 4, 100, 17, 4)), axis=2).astype(np.float32)
    tensor[..., :2] += rng.uniform(-0.5, 0.5, (count, 4, 1, 17, 2)).astype(np.float32)
    tensor[..., 2] = rng.uniform(0.2, 1, tensor.shape[:-1])
    tensor[..., 3] = rng.uniform(0, 0.2, tensor.shape[:-1])
    tensor[rng.random(tensor.shape[:-1]) < 0.1] = 0
    return tensor


def test_is_sealed_and_small(bundle: Bundle, folder: Path) -> None:
    assert bundle.manifest is not None
    assert bundle.manifest.golden is not None
    assert sum(file.stat().st_size for file in folder.iterdir()) < MAX_BYTES
    assert (folder / "CARD.md").is_file()


def test_keeps_the_contract(bundle: Bundle, service: str) -> None:
    manifest = bundle.manifest
    assert manifest is not None
    assert [info.name for info in manifest.inputs] == ["input_tensor"]
    assert manifest.inputs[0].shape[1:] == (4, 100, 17, CHANNELS[service])
    assert [info.name for info in manifest.outputs] == ["cls_score"]
    assert service in manifest.labels


def test_probabilities_are_finite_and_sum_to_one_for_any_batch(classifier: StgcnClassifier, service: str) -> None:
    for count in (1, 3):
        probs = classifier.classify(windows(count))
        assert probs.shape == (count, 2)
        np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
    assert service in classifier.labels


def test_a_window_scores_the_same_alone_and_in_a_batch(classifier: StgcnClassifier) -> None:
    batch = windows(4)
    together = classifier.classify(batch)
    alone = np.concatenate([classifier.classify(batch[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_order_of_people_does_not_matter(classifier: StgcnClassifier) -> None:
    batch = windows(2)
    other = batch.copy()
    other[..., :3] = batch[:, ::-1, ..., :3]  # the change of the picture is of nobody in the window
    np.testing.assert_allclose(classifier.classify(batch), classifier.classify(other), atol=1e-5)


def test_padding_with_nobody_changes_nothing_but_the_empty_places(classifier: StgcnClassifier) -> None:
    one = windows(1)
    one[:, 1:] = 0
    moved = one.copy()
    moved[..., :3] = np.roll(one[..., :3], 2, axis=1)
    np.testing.assert_allclose(classifier.classify(one), classifier.classify(moved), atol=1e-5)


def test_where_nothing_changes_skeletons_are_judged_alone(classifier: StgcnClassifier, service: str) -> None:
    """As without pictures. More or less change makes a difference to fights only."""
    batch = windows(2)
    still, restless = batch.copy(), batch.copy()
    still[..., 3] = 0
    restless[..., 3] *= 3
    same = [
        np.allclose(classifier.classify(batch), classifier.classify(other), atol=1e-5) for other in (still, restless)
    ]
    assert same == [service == "fall"] * 2


def test_an_empty_window_is_no_action(classifier: StgcnClassifier, service: str) -> None:
    probs = classifier.classify(np.zeros((1, 4, 100, 17, 4), np.float32))
    assert np.isfinite(probs).all()
    assert probs[0, classifier.labels.index(service)] < 0.6


def test_is_quick_on_one_core(classifier: StgcnClassifier) -> None:
    window = windows(1)
    classifier.classify(window)
    times = []
    for _ in range(15):
        started = time.perf_counter()
        classifier.classify(window)
        times.append(time.perf_counter() - started)
    assert min(times) * 1e3 < MS_PER_WINDOW


def test_the_table_of_folds_is_of_the_recipe_that_ships(repo_dir: Path, service: str, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    if "recipe" not in manifest["figures"]:
        pytest.skip(f"{service}-stgcn {manifest['version']} was exported before bundles named their recipe")
    with (repo_dir / "docs/reports/folds" / f"{service}.csv").open(newline="") as table:
        assert {row["recipe"] for row in csv.DictReader(table)} == {manifest["figures"]["recipe"]}
