"""The forest over the change of the picture, and its place in the graph of skeletons."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`")

import train  # noqa: E402
from change import ChangeStatistics  # noqa: E402  # after the check for PyTorch
from clips import Samples  # noqa: E402
from forest import grow  # noqa: E402
from metrics import logistic, sigmoid  # noqa: E402
from with_change import NOBODY, ChangeBranch, Skeletons, absence, exported, merge, read_folds  # noqa: E402


def windows(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 4, 100, 17, 4): two restless people, the first 30 steps empty."""
    rng = np.random.default_rng(seed)
    out = np.zeros((count, 4, 100, 17, 4), np.float32)
    out[:, 0, 30:, :, 3] = rng.uniform(0.1, 0.3, (count, 70, 17))
    out[:, 1, 30:, :, 3] = rng.uniform(0.0, 0.1, (count, 70, 17))
    out[:, :2, 30:, :, :3] = rng.uniform(0.1, 0.9, (count, 2, 70, 17, 3))
    return torch.from_numpy(out)


def test_the_figures_are_those_of_each_window_alone() -> None:
    batch, statistics = windows(3), ChangeStatistics()
    together = statistics(batch)
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, torch.cat([statistics(batch[i : i + 1]) for i in range(3)]))


def test_the_figures_say_how_much_changes_and_for_how_many() -> None:
    window = torch.zeros(2, 4, 100, 17, 4)
    window[0, 0, 50:, :, 3] = 0.2
    window[1, :2, 50:, :, 3] = 0.2
    one, two = torch.expm1(ChangeStatistics()(window))
    assert one[:2].tolist() == pytest.approx([1, 1])  # people: mean and most
    assert two[:2].tolist() == pytest.approx([2, 2])
    # mean of the most restless over the steps in which anything changes, at both time scales; of the two together half or as much
    for scale in (2, 2 + 6 * 7):
        assert one[scale].item() == pytest.approx(51, rel=1e-3)
        assert one[scale + 3].item() == pytest.approx(25.5, rel=1e-3)
        assert two[scale + 3].item() == pytest.approx(51, rel=1e-3)


def test_figures_do_not_depend_on_empty_steps_before() -> None:
    short, late = torch.zeros(1, 4, 100, 17, 4), windows(1)
    short[:, :, :70] = late[:, :, 30:]
    torch.testing.assert_close(ChangeStatistics()(short), ChangeStatistics()(late))


def test_no_change_gives_finite_figures() -> None:
    assert ChangeStatistics()(torch.zeros(1, 4, 100, 17, 4)).abs().max() < 1e-4


def seen(*variants: str) -> Samples:
    """A window of one clip for each."""
    count = len(variants)
    return Samples(
        tensor=np.zeros((count, 4, 100, 17, 4), np.float16), label=np.ones(count, np.int8), clip=np.zeros(count, np.int32),
        variant=np.array(variants), t_end_s=np.zeros(count, np.float32), regular=np.ones(count, bool), files=("a",),
    )  # fmt: skip


def test_figures_are_for_posenet_where_it_is_there_and_else_for_pose_nano() -> None:
    everything = np.ones(1, bool)
    assert train.tested_rows(seen("nano", "481x641/2", "481x641"), everything).tolist() == [2]
    assert train.tested_rows(seen("nano-flip", "nano", "nano/2"), everything).tolist() == [1]
    with pytest.raises(SystemExit, match="no windows of the poses 481x641 or nano, only of 353x481, nano-flip"):
        train.tested_rows(seen("nano-flip", "353x481"), everything)


def base_graph() -> onnx.ModelProto:
    """Logits from the mean of x and of the score."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("ReduceMean", ["input_tensor"], ["means"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Gather", ["means", "columns"], ["cls_score"], axis=1),
    ]
    graph = helper.make_graph(
        nodes, "base",
        [helper.make_tensor_value_info("input_tensor", kind, ["batch", 4, 100, 17, 3])],
        [helper.make_tensor_value_info("cls_score", kind, ["batch", 2])],
        [helper.make_tensor("columns", onnx.TensorProto.INT64, [2], [0, 2])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_the_joined_graph_adds_what_the_forest_says_where_anything_changes(tmp_path: Path) -> None:
    batch = windows(24).numpy()
    batch[:12, :2] /= 3
    batch[1:4, :, 60:] = 0
    figures = ChangeStatistics()(torch.from_numpy(batch)).double().numpy()
    forest = grow(figures, np.repeat([0, 1], 12), np.ones(24), trees=8, leaf=2, share=0.5, seed=0)
    branch = ChangeBranch(forest, np.array((0.8, 0.3, 0.25, 0.5)), np.array((0.9, 0.2, -0.1))).eval()
    parts = exported(branch, tmp_path / "branch.onnx")
    base = base_graph()
    base.ir_version = parts.ir_version
    session = onnxruntime.InferenceSession(merge(base, 2.0, parts).SerializeToString())
    batch[-1, ..., 3] = 0
    logits = session.run(None, {"input_tensor": batch})[0]
    margin = forest.margin(torch.from_numpy(figures).float()).numpy()
    skeletons = batch.mean((1, 2, 3))[:, [0, 2]] / 2.0
    away = absence(torch.from_numpy(batch)).numpy()[:, None]
    sign = np.stack((-1, 1))
    expected = (0.8 - 0.3 * away) * skeletons + sign * (0.5 * margin + 0.25)[:, None] / 2
    expected[-1] = (0.9 - 0.2 * away[-1]) * skeletons[-1] + sign * -0.1 / 2  # without any change skeletons judge alone
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_absence_is_the_time_without_the_person_seen_longest() -> None:
    batch = windows(3)
    batch[1, 0, 50:] = 0  # the other one stays
    batch[2, :, 50:] = 0
    np.testing.assert_allclose(absence(batch), [0.3, 0.3, 0.8], atol=1e-6)
    assert absence(torch.zeros(1, 4, 100, 17, 4)).tolist() == [1]


def test_skeletons_fade_in_the_line_as_they_do_in_the_graph() -> None:
    seen = Skeletons(np.array((2.0, -1.0)), np.array((0.0, 0.5)))
    line = np.array((0.8, 0.3, 0.25, 0.5))
    np.testing.assert_allclose(seen.design(np.array((1.0, 3.0))) @ line, [1.6 + 0.25 + 0.5, -0.8 + 0.15 + 0.25 + 1.5])
    np.testing.assert_allclose(seen.take(np.array((1,))).design() @ line[:3], [-0.8 + 0.15 + 0.25])


def test_folds_of_other_clips_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "folds.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [("file", "fold", "probability"), ("a.mp4", 0, 0.5), ("b.mp4", 1, 0.0)],
        )
    clips = SimpleNamespace(fold=np.array([1, 0]))
    found = read_folds(file, SimpleNamespace(files=("b.mp4", "a.mp4")), clips)
    np.testing.assert_allclose(found, [NOBODY, 0])
    with pytest.raises(SystemExit, match="not the clips and folds"):
        read_folds(file, SimpleNamespace(files=("a.mp4", "b.mp4")), clips)


def test_the_line_that_fits_is_found_and_drawn_to_the_start() -> None:
    rng = np.random.default_rng(0)
    design = np.column_stack((rng.normal(size=4000), rng.normal(size=4000), np.ones(4000)))
    true = np.array((1.5, 0.7, -0.4))
    label = (rng.random(4000) < sigmoid(design @ true)).astype(int)
    start = np.array((1.0, 0.5, 0.0))
    np.testing.assert_allclose(logistic(design, label, np.ones(4000), start, 4.0), true, atol=0.15)
    np.testing.assert_allclose(logistic(design[:2], label[:2], np.ones(2), start, 1e6), start, atol=1e-3)
