"""FP16 of an exported RTMO graph, with FP32 where FP16 loses people: positions, norms, coordinates, suppression."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
from onnx import TensorProto
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

FP32_MODULES = ("encoding", "norm", "norm1", "norm2", "boxes", "decode")
"""Parts of the network, by the names in it, that stay FP32; the names of the nodes hold them (`/classifier/encoding/Cos`).

What belongs to no part (`/Concat_3`), or to the classifier itself (`/classifier/MatMul`), does so, too: it carries coordinates.
"""
FP32_OPERATORS = (
    "LayerNormalization",
    "NonMaxSuppression",
    "TopK",
    "ScatterND",
    "GatherND",
    "Sigmoid",
    "Softmax",
    "Exp",
)
"""LayerNormalization: sums of squares overflow; Sigmoid, ScatterND, TopK: scores must keep their order;
Softmax, Exp: exponents."""


def stays_fp32(node: onnx.NodeProto) -> bool:
    """Whether a node of an exported graph must not be converted."""
    modules = [re.sub(r"_\d+$", "", part) for part in node.name.split("/")[1:-1]]  # `encoding_1`: its second call
    own = modules in ([], ["classifier"])
    return own or node.op_type in FP32_OPERATORS or any(part in FP32_MODULES for part in modules)


def convert(source: Path, target: Path) -> int:
    """Write the FP16 form of `source`; inputs and outputs stay FP32. Returns how many nodes stayed FP32 by name."""
    model = onnx.load(source)
    names = [node.name for node in model.graph.node if stays_fp32(node)]
    half = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FP32_OPERATORS],
        node_block_list=names,
    )
    drop_repeated(half.graph)
    join_fp32(half.graph)
    onnx.save(half, target)
    return len(names)


def join_fp32(graph: onnx.GraphProto) -> None:
    """Take away the detours over FP16 that the converter leaves between two FP32 nodes: casts there and back again."""
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    for back in casts.values():
        there = casts.get(back.input[0])
        if _target(back) == TensorProto.FLOAT and there is not None and _target(there) == TensorProto.FLOAT16:
            back.input[0] = there.input[0]  # FP32 to FP32: the runtime drops it
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    idle = [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in used]
    for node in idle:
        graph.node.remove(node)


def drop_repeated(graph: onnx.GraphProto) -> None:
    """Take away casts that are there twice, word for word: the converter of onnxruntime 1.31 repeats them, and no runtime loads that."""
    seen: set[bytes] = set()
    repeated = []
    for index, node in enumerate(graph.node):
        content = node.SerializeToString(deterministic=True)
        if node.op_type == "Cast" and content in seen:
            repeated.append(index)
        seen.add(content)
    for index in reversed(repeated):
        del graph.node[index]


def _target(cast: onnx.NodeProto) -> int:
    return int(cast.attribute[0].i)
