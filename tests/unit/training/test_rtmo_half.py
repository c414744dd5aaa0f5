"""What the converter to FP16 leaves behind and runtimes do not load."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper
from rtmo.half import drop_repeated


def test_casts_that_are_there_twice_go_and_the_first_stays_where_it_is() -> None:
    cast = helper.make_node("Cast", ["x"], ["half"], name="cast", to=TensorProto.FLOAT16)
    other = helper.make_node("Cast", ["x"], ["half_too"], name="another", to=TensorProto.FLOAT16)
    joined = helper.make_node("Add", ["half", "half_too"], ["y"], name="add")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [cast, other, joined, cast],
        "twice",
        [value("x", TensorProto.FLOAT, [2])],
        [value("y", TensorProto.FLOAT16, [2])],
    )
    drop_repeated(graph)
    assert [node.name for node in graph.node] == ["cast", "another", "add"]
    onnx.checker.check_model(helper.make_model(graph))
