"""The reader of ONNX files, beside the package `onnx` on files that package wrote."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from fakes.graphs import rtmo_graph, stgcn_graph
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from agent.errors import ModelError
from agent.runtime.onnx_file import read_graph_facts

FLOAT = TensorProto.FLOAT


def save(file: Path, nodes: list[onnx.NodeProto], **extra: object) -> Path:
    """A graph x -> y of `nodes`."""
    x, y = (helper.make_tensor_value_info(name, FLOAT, [1]) for name in "xy")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("custom", 3)]
    initializers = extra.pop("initializer", [])
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], initializers), opset_imports=opsets, **extra)
    file.write_bytes(model.SerializeToString())
    return file


def external(name: str, location: str) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.zeros(1, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    return tensor


@pytest.mark.parametrize("graph", [rtmo_graph, stgcn_graph])
def test_agrees_with_the_onnx_package(tmp_path: Path, graph: object) -> None:
    file = graph(tmp_path / "model.onnx")  # type: ignore[operator]
    model = onnx.load(file)
    facts = read_graph_facts(file)
    assert facts.opsets == {entry.domain: entry.version for entry in model.opset_import}
    assert facts.operators == {(node.domain, node.op_type) for node in model.graph.node}
    assert not facts.external_files


def test_operators_of_another_domain_show_also_inside_branches(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Secret", ["x"], ["z"], domain="custom")],
        "then",
        [],
        [helper.make_empty_tensor_value_info("z")],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    facts = read_graph_facts(save(tmp_path / "m.onnx", [node]))
    assert facts.operators == {("", "If"), ("custom", "Secret")}
    assert facts.opsets == {"": 17, "custom": 3}


def test_functions_that_the_file_brings_along_are_not_foreign(tmp_path: Path) -> None:
    body = [helper.make_node("Relu", ["a"], ["b"])]
    function = helper.make_function("custom", "Mine", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("Mine", ["x"], ["y"], domain="custom")]
    assert read_graph_facts(save(tmp_path / "m.onnx", nodes, functions=[function])).operators == {("", "Relu")}


def test_files_that_hold_weights_are_named_wherever_the_tensor_stands(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=external("v", "../other.bin"))
    nodes = [constant, helper.make_node("Add", ["x", "w"], ["y"])]
    file = save(tmp_path / "m.onnx", nodes, initializer=[external("w", "weights.bin")])
    assert read_graph_facts(file).external_files == {"weights.bin", "../other.bin"}


def test_the_default_domain_has_one_name(tmp_path: Path) -> None:
    facts = read_graph_facts(save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")]))
    assert facts.operators == {("", "Relu")}


def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    graph = helper.make_graph([], "leaf", [], [])
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "g", [], [])
    file = tmp_path / "m.onnx"
    file.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(ModelError, match="nests graphs too deeply"):
        read_graph_facts(file)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04", b"\x3a\xff\xff\xff\xff\x0f", b"\x08\x08"])
def test_what_is_no_onnx_file_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx: "):
        read_graph_facts(file)
    with pytest.raises(ModelError, match="cannot be read"):
        read_graph_facts(tmp_path / "none.onnx")


@given(cut=st.floats(0, 1), change=st.binary(max_size=8))
def test_damaged_files_end_in_an_answer_or_a_model_error(
    tmp_path_factory: pytest.TempPathFactory, cut: float, change: bytes
) -> None:
    folder = tmp_path_factory.mktemp("m")
    content = bytearray(stgcn_graph(folder / "model.onnx").read_bytes())
    place = int(cut * len(content))
    content[place : place + len(change)] = change
    if not change:
        del content[place:]
    (folder / "model.onnx").write_bytes(content)
    with contextlib.suppress(ModelError):
        read_graph_facts(folder / "model.onnx")
