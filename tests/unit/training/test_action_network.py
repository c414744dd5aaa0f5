"""Augmentation, statistics, forest and graph of the action models."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`")

from ablate import NEARNESS, Change, silence  # noqa: E402  # after the check for PyTorch
from augment import augment  # noqa: E402
from choices import judged, mixtures  # noqa: E402
from clips import Samples  # noqa: E402
from fit import margins  # noqa: E402
from forest import MAX_DEPTH, Forest, grow  # noqa: E402
from motion import MotionStatistics  # noqa: E402
from network import Mixture, SlimSTGCN  # noqa: E402
from pools import seeds_of, simulated_pool  # noqa: E402
from recipes import RECIPES  # noqa: E402
from train import Files  # noqa: E402


def windows(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 4, 100, 17, 3): three people who drift and shake, the fourth row empty, the first 30 steps empty."""
    rng = np.random.default_rng(seed)
    build = rng.normal(0, 0.1, (1, 1, 1, 17, 2)) * (1, 2)
    place = rng.uniform(-0.6, 0.6, (count, 4, 1, 1, 2))
    drift = np.cumsum(rng.normal(0, 0.004, (count, 4, 100, 1, 2)), axis=2)
    xy = place + drift + build + rng.normal(0, 0.01, (count, 4, 100, 17, 2))
    out = np.concatenate((xy, rng.uniform(0.3, 0.9, (count, 4, 100, 17, 1))), -1).astype(np.float32)
    out[:, 3] = 0
    out[:, :, :30] = 0
    return torch.from_numpy(out)


def small_forest(features: int, seed: int = 0) -> Forest:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(150, features))
    label = (table[:, 0] + 0.5 * table[:, 1] > 0).astype(int)
    return grow(table, label, np.ones(150), trees=12, leaf=2, share=0.5, seed=seed)


def test_augmentation_makes_nobody_out_of_nothing() -> None:
    before = windows(8)
    after = augment(before, torch.Generator().manual_seed(0))
    assert after.shape == before.shape
    assert torch.isfinite(after).all()
    assert ((after[..., 2] > 0).any(-1).any(-1).sum(1) <= 3).all()
    assert (after[after[..., 2] == 0] == 0).all()
    empty = augment(torch.zeros(3, 4, 100, 17, 3), torch.Generator().manual_seed(0))
    assert not empty.any()


def test_augmentation_never_loses_the_first_person() -> None:
    alone = windows(40)
    alone[:, 1:] = 0
    after = augment(alone, torch.Generator().manual_seed(1))
    assert ((after[..., 2] > 0).flatten(1).sum(1) > 0).all()


def test_statistics_know_neither_the_order_of_people_nor_where_they_are() -> None:
    statistics, window = MotionStatistics(), windows(3)
    plain = statistics(window)
    assert torch.allclose(plain, statistics(window[:, [2, 3, 0, 1]]), atol=1e-4)
    moved = window.clone()
    moved[..., :2] += 0.2 * (window[..., 2:] > 0)
    assert torch.allclose(plain, statistics(moved), atol=2e-3)


def test_statistics_of_nobody_are_finite() -> None:
    assert torch.isfinite(MotionStatistics()(torch.zeros(2, 4, 100, 17, 3))).all()


def test_faster_people_have_higher_statistics_of_speed() -> None:
    slow = windows(2)
    slow[..., :2] = slow[:, :, 60:61, :, :2] * (slow[..., 2:] > 0)
    statistics = MotionStatistics()
    assert statistics(windows(2))[:, 0].min() > statistics(slow)[:, 0].max()


def test_a_silenced_stream_changes_nothing_any_more() -> None:
    torch.manual_seed(0)
    window = torch.rand(2, 4, 100, 17, 3)
    elsewhere = window.clone()
    elsewhere[:, 1:, ..., :2] += 0.4
    for off, differs in (((), True), (NEARNESS, False)):
        network = SlimSTGCN(wide=False).eval()
        silence(off, network)
        with torch.inference_mode():
            one, other = copy.deepcopy(network)(window), copy.deepcopy(network)(elsewhere)
        assert bool((one - other).abs().max() > 1e-4) == differs
    narrowed = Change(people=2, steps=50).windows(window.numpy().astype(np.float16))
    assert not narrowed[:, 2:].any()
    assert not narrowed[:, :, :50].any()
    assert narrowed[:, :2, 50:].all()


def test_a_forest_learns_what_there_is_to_learn() -> None:
    rng = np.random.default_rng(9)
    fresh = rng.normal(size=(400, 6))
    label = fresh[:, 0] + 0.5 * fresh[:, 1] > 0
    p = small_forest(6)(torch.from_numpy(fresh.astype(np.float32))).numpy()
    assert ((p > 0.5) == label).mean() > 0.85


def test_the_graph_of_a_forest_walks_as_a_tree_does() -> None:
    forest = small_forest(6)
    rows = np.random.default_rng(5).normal(size=(20, 6)).astype(np.float32)
    feature, threshold, child, value = (
        getattr(forest, name).numpy() for name in ("feature", "threshold", "child", "value")
    )
    expected = []
    for row in rows:
        leaves = []
        for tree in range(len(value)):
            node = 0
            for _ in range(MAX_DEPTH):
                following = int(child[tree, node, int(row[feature[tree, node]] > threshold[tree, node])])
                node = following or node
            leaves.append(value[tree, node])
        expected.append(np.mean(leaves))
    assert np.allclose(forest(torch.from_numpy(rows)).numpy(), expected, atol=1e-6)


def test_weights_decide_where_rows_disagree() -> None:
    table, label = np.zeros((10, 1)), np.array([1] * 5 + [0] * 5)
    weight = np.where(label == 1, 3.0, 1.0)
    forest = grow(table, label, weight, trees=3, leaf=1, share=1.0, seed=0)
    assert forest(torch.zeros(1, 1)).item() == pytest.approx(0.75)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_the_exported_graph_says_what_the_network_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    count = MotionStatistics()(windows(1)).shape[1]
    model = Mixture([SlimSTGCN(width=8, wide=True)], small_forest(count), 0.5, 0.3).eval()
    file = tmp_path / "model.onnx"
    torch.onnx.export(
        model, (windows(2),), str(file), input_names=["input_tensor"], output_names=["cls_score"], opset_version=17,
        dynamic_axes={"input_tensor": {0: "batch"}, "cls_score": {0: "batch"}}, dynamo=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        window = windows(batch, seed=batch)
        with torch.inference_mode():
            expected = model(window).numpy()
        found = session.run(None, {"input_tensor": window.numpy()})[0]
        assert np.abs(found - expected).max() < 1e-4


def test_a_mixture_is_the_mean_of_its_parts() -> None:
    torch.manual_seed(1)
    window = windows(2)
    members = [SlimSTGCN(width=8).eval(), SlimSTGCN(width=8).eval()]
    count = MotionStatistics()(window).shape[1]
    forest = small_forest(count)
    with torch.inference_mode():
        own = torch.stack([member(window)[:, 1] - member(window)[:, 0] for member in members]).mean(0)
        margin = Mixture(members, forest, 0.25).eval().margin(window)
        assert torch.allclose(margin, 0.75 * own + 0.25 * forest.margin(MotionStatistics()(window)), atol=1e-5)


def simulated_file(path: Path, seed: int, label: list[int], service: str = "fight") -> Path:
    count = len(label)
    np.savez(
        path, tensor=np.full((count, 4, 100, 17, 3), seed, np.float16), label=np.array(label, np.int8),
        service=np.array([service] * count), seed=np.full(count, seed), scenario=np.array(["crowd", "hug"] * count)[:count],
    )  # fmt: skip
    return path


def test_simulated_windows_of_several_files_are_one_pool(tmp_path: Path) -> None:
    files = [simulated_file(tmp_path / "a.npz", 1, [0, 0, 1, -1]), simulated_file(tmp_path / "b.npz", 2, [0] * 8 + [1])]
    pool = simulated_pool(files, "fight")
    assert (pool.label == 1).sum() == 2
    assert len(pool.label) == 12
    assert pool.weight[pool.label == 1].sum() == pytest.approx(pool.weight[pool.label == 0].sum())
    few = simulated_pool(files, "fight", most=3)
    assert np.bincount(few.label).tolist() == [3, 2]
    assert np.array_equal(few.tensor, simulated_pool(files, "fight", most=3).tensor)
    assert len(simulated_pool(files, "fall").label) == 0
    assert seeds_of(files) == {1, 2}
    assert not pool.doubt.any(), "the simulation's truth is not smoothed"


@pytest.mark.parametrize("service", ["fight", "fall"])
def test_a_network_is_as_sure_of_made_windows_as_its_recipe_says(tmp_path: Path, service: str) -> None:
    recipe = RECIPES[service]
    files = Files(tmp_path, None, (simulated_file(tmp_path / "a.npz", 1, [0, 0, 1], service),))
    ((pool, share),) = files.made(recipe)
    assert share == recipe.simulated
    assert pool.doubt.tolist() == [recipe.doubt_of_made] * 3


def test_mixtures_of_the_folds_models_are_judged_out_of_fold(tmp_path: Path) -> None:
    recipe = replace(RECIPES["fight"], members=2, width=8, trees=12)
    torch.manual_seed(4)
    networks = {}
    for fold in range(2):
        torch.save(
            small_forest(MotionStatistics()(windows(1)).shape[1], fold).state_dict(), tmp_path / f"fold{fold}-forest.pt"
        )
        for number in range(2):
            networks[fold, number] = SlimSTGCN(width=8, wide=True).eval()
            torch.save(networks[fold, number].state_dict(), tmp_path / f"fold{fold}-{number}.pt")
    tensor = windows(8).numpy().astype(np.float16)
    clip = np.arange(8, dtype=np.int32) // 2  # two windows each of four clips; a fifth has none, a sixth is in no fold
    samples = Samples(
        tensor,
        np.zeros(8, np.int8),
        clip,
        np.array(["481x641"] * 8),
        np.zeros(8, np.float32),
        np.ones(8, bool),
        ("",) * 6,
    )
    clips = SimpleNamespace(fold=np.array([0, 1, 0, 1, 0, -1]), label=np.array([1, 0, 0, 1, 0, 1]))
    rows = list(judged(recipe, tmp_path, samples, clips, "481x641"))  # type: ignore[arg-type]  # of Clips, what is used
    assert [(row["networks"], row["forest"]) for row in rows] == list(mixtures(recipe))
    of_clip = {
        number: margins(Mixture([networks[number % 2, 0]]).eval(), tensor[2 * number : 2 * number + 2]).max()
        for number in range(4)
    }
    right = [(of_clip[number] > 0) == (clips.label[number] == 1) for number in range(4)] + [True]  # nobody: no fight
    assert float(str(rows[0]["accuracy"])) == pytest.approx(np.mean(right), abs=1e-4)
