"""Verification: a sound bundle passes, and every way to be unsound is named, all of them at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fakes.bundles import make_bundle
from fakes.graphs import rtmo_graph, stgcn_graph

from agent.catalogue.examine import examine
from agent.errors import ConfigError
from agent.runtime.bundle import seal_bundle
from agent.runtime.onnx_file import GraphFacts, graph_problems


def reseal(folder: Path, **changes: Any) -> None:
    fields = json.loads((folder / "manifest.json").read_text())
    fields.pop("files")
    seal_bundle(folder, fields | changes)


def test_a_sound_bundle_is_good_and_says_what_was_looked_at(bundle: Path) -> None:
    found = examine(bundle)
    assert (found.good, found.title, found.notes) == (True, "tiny 1.0.0", [])
    assert found.checked == ["2 checksums", "opset 17, 13 operators", "inputs and outputs", "golden answers"]


def test_all_broken_files_are_named(bundle: Path) -> None:
    (bundle / "golden.npz").unlink()
    (bundle / "model.onnx").write_bytes(b"x")
    (bundle / "weights.bin").write_bytes(b"x")
    problems = examine(bundle).problems
    assert len(problems) == 3
    for words in ("golden.npz: listed in the manifest, but cannot be read", "model.onnx: sha256 is", "weights.bin"):
        assert any(words in problem for problem in problems)


def test_all_broken_promises_are_named(bundle: Path) -> None:
    inputs = [
        {"name": "input", "shape": ["batch", 3, 64, 64], "dtype": "float16", "preprocessing": {"kind": "letterbox"}},
        {"name": "mask", "shape": [1], "preprocessing": {"kind": "letterbox"}},
    ]
    outputs = [{"name": "boxes", "shape": ["batch", "people", 5], "meaning": "detections"}]
    reseal(bundle, inputs=inputs, outputs=outputs)
    assert examine(bundle).problems == [
        "input 'input' should have the shape (batch, 3, 64, 64), the graph says input (?, 3, 64, 96) float32",
        "the graph has no input 'mask'; it has input (?, 3, 64, 96) float32",
        "the graph has no output 'boxes'; it has dets (?, 1, 5) float32, keypoints (?, 1, 17, 3) float32",
        "input 'input' should be float16, the graph takes float32",
    ]


def test_an_input_that_nobody_would_fill_is_named(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "two", golden=False)
    graph = onnx.load(folder / "model.onnx")
    graph.graph.input.append(onnx.helper.make_tensor_value_info("extra", onnx.TensorProto.FLOAT, [1]))
    onnx.save(graph, folder / "model.onnx")
    reseal(folder)
    assert examine(folder).problems == ["the graph wants an input that the manifest does not know: extra (1) float32"]


def test_another_number_of_labels_than_the_graph_has_verdicts_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "fight"
    folder.mkdir()
    stgcn_graph(folder / "model.onnx")
    fields: dict[str, Any] = {
        "name": "fight", "version": "0.1.0", "task": "action", "licence": "MIT", "training_data": "none",
        "labels": ["normal", "fight"],
        "inputs": [{"name": "input_tensor", "shape": ["B", 4, 100, 17, 3], "preprocessing": {"kind": "skeleton"}}],
        "outputs": [{"name": "cls_score", "shape": ["B", "K"], "meaning": "logits"}],
    }  # fmt: skip
    seal_bundle(folder, fields)
    assert examine(folder).problems == []
    seal_bundle(folder, fields | {"labels": ["normal", "fight", "fall"]})
    assert examine(folder).problems == ["3 labels (normal, fight, fall) do not fit the output cls_score (?, 2) float32"]


def test_wrong_answers_are_named(bundle: Path) -> None:
    ghost = np.array([[10, 10, 30, 60, 0.9]], np.float32)
    rtmo_graph(bundle / "model.onnx", size=(64, 96), extra_dets=ghost, extra_keypoints=np.zeros((1, 17, 3), np.float32))
    reseal(bundle)
    (problem,) = examine(bundle).problems
    assert "tiny 1.0.0: golden picture 0: a person of score 0.90 at [10, 10, 30, 60] should not be there" in problem


def test_what_a_bundle_lacks_is_noted(tmp_path: Path) -> None:
    found = examine(make_bundle(tmp_path / "bare", golden=False))
    assert found.good
    assert "no golden answers" in found.notes[0]


def test_answers_recorded_here_are_called_that(bundle: Path) -> None:
    reseal(bundle, golden={"origin": "self"})
    assert examine(bundle).checked[-1] == "answers as recorded here"


def test_a_bare_file_shows_its_checksum(tmp_path: Path) -> None:
    found = examine(rtmo_graph(tmp_path / "model.onnx"))
    assert found.good
    assert "its sha256 is" in found.notes[0]


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x08\x08"])
def test_a_file_that_is_no_model_is_a_problem(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert len(examine(tmp_path / "model.onnx").problems) == 1


def test_nothing_at_all_is_a_problem(tmp_path: Path) -> None:
    assert "no such model" in examine(tmp_path / "none").problems[0]
    assert "a bundle is a folder with it" in examine(tmp_path).problems[0]


def test_a_device_that_is_not_here_is_a_wrong_argument(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="--device"):
        examine(bundle, device="cuda:7")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (GraphFacts({"": 9}, frozenset(), frozenset()), "opset 9, needs 11 or newer"),
        (GraphFacts({}, frozenset(), frozenset()), "opset 0"),
        (GraphFacts({"": 17}, frozenset({("mmdeploy", "NMSRotated")}), frozenset()), "not have: mmdeploy::NMSRotated"),
        (GraphFacts({"": 17}, frozenset(), frozenset({"/etc/passwd"})), "'/etc/passwd', which is outside its folder"),
        (GraphFacts({"": 17}, frozenset(), frozenset({"a/../../b"})), "outside its folder"),
        (GraphFacts({"": 17}, frozenset(), frozenset({"..\\b"})), "outside its folder"),
        (GraphFacts({"": 17}, frozenset(), frozenset({"a\0b"})), "outside its folder"),
        (
            GraphFacts({"": 17}, frozenset(), frozenset({"a" * 300})),
            "weights",
        ),  # outside its folder, from Python 3.14 on missing
        (GraphFacts({"": 17}, frozenset(), frozenset({"weights.bin"})), "should be in weights.bin, which is missing"),
    ],
)
def test_graphs_that_must_not_be_loaded(tmp_path: Path, facts: GraphFacts, words: str) -> None:
    (problem,) = graph_problems(tmp_path / "model.onnx", facts)
    assert words in problem


def test_links_do_not_hide_where_weights_come_from(tmp_path: Path) -> None:
    (tmp_path / "outside.bin").write_bytes(b"x")
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "weights.bin").symlink_to(tmp_path / "outside.bin")
    facts = GraphFacts({"": 17}, frozenset({("com.microsoft", "FusedConv")}), frozenset({"weights.bin"}))
    assert "outside its folder" in next(graph_problems(folder / "model.onnx", facts))


def test_weights_behind_links_in_a_circle_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").symlink_to("weights.bin")
    facts = GraphFacts({"": 17}, frozenset(), frozenset({"weights.bin"}))
    assert "weights" in next(
        graph_problems(tmp_path / "model.onnx", facts)
    )  # outside its folder; from Python 3.13 on missing


def test_an_old_operator_set_is_noted_for_fp16(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    graph = onnx.load(stgcn_graph(folder / "model.onnx"))
    graph.opset_import[0].version = 16
    onnx.save(graph, folder / "model.onnx")
    assert any("keep TensorRT at fp32" in note for note in examine(folder / "model.onnx").notes)
