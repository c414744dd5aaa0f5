"""From a graph of one size to one of any size, and an earlier graph's numbers in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("torch", reason="training needs PyTorch, the agent does not")

from pose_nano.quantise import take_numbers, with_open_sides  # after the skip


def test_a_graph_whose_sides_are_opened_answers_as_before_and_at_other_sizes(repo_dir: Path) -> None:
    file = repo_dir / "models/pose-nano/model.onnx"
    fixed = onnxruntime.InferenceSession(file)
    opened = onnxruntime.InferenceSession(with_open_sides(onnx.load(file)).SerializeToString())
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 480, 640)).astype(np.float32)
    for before, after in zip(fixed.run(None, {"input": image}), opened.run(None, {"input": image}), strict=True):
        np.testing.assert_array_equal(after, before)
    dets, keypoints = opened.run(None, {"input": image[:, :, :288, :384]})
    assert (dets.shape, keypoints.shape) == ((1, 30, 5), (1, 30, 17, 3))
    assert dets[0, :, [0, 2]].max() < 384 + 96
    assert dets[0, :, [1, 3]].max() < 288 + 96


def graph(file: Path, **numbers: list[float]) -> Path:
    """The sum of its input and every one of `numbers`."""
    nodes, before = [], "x"
    for name in numbers:
        nodes.append(onnx.helper.make_node("Add", [before, name], [f"{before}+"]))
        before += "+"
    value = onnx.helper.make_tensor_value_info
    stored = [onnx.numpy_helper.from_array(np.array(number, np.float32), name) for name, number in numbers.items()]
    ends = [value("x", 1, [2])], [value(before, 1, [2])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "sum", *ends, stored),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, file)
    return file


def test_numbers_come_from_the_earlier_graph(tmp_path: Path) -> None:
    new = graph(tmp_path / "new.onnx", a=[1.0, 2.0], b=[3.0, 4.0])
    take_numbers(new, graph(tmp_path / "old.onnx", a=[10.0, 20.0], b=[30.0, 40.0], c=[5.0, 5.0]))
    (out,) = onnxruntime.InferenceSession(new).run(None, {"x": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(out, [40.0, 60.0])


@pytest.mark.parametrize("other", [{"a": [1.0, 2.0]}, {"a": [1.0, 2.0], "b": [1.0]}])
def test_numbers_of_another_network_are_refused(tmp_path: Path, other: dict[str, list[float]]) -> None:
    new = graph(tmp_path / "new.onnx", a=[1.0, 2.0], b=[3.0, 4.0])
    before = new.read_bytes()
    with pytest.raises(SystemExit, match="has no b of the shape"):
        take_numbers(new, graph(tmp_path / "old.onnx", **other))
    assert new.read_bytes() == before
