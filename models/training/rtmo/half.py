"""FP16 of an exported RTMO graph, with FP32 where FP16 loses people: positions, norms, coordinates, suppression."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

FP32_MODULES = ("encoding", "norm", "norm1", "norm2", "boxes", "decode")
"""Parts of the network, by the names in it, that stay FP32; the names of the nodes hold them (`/classifier/encoding/Cos`).

What belongs to no part (`/Concat_3`) does so, too: it carries coordinates to the outputs.
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
    modules = node.name.split("/")[1:-1]
    return node.op_type in FP32_OPERATORS or not modules or any(part in FP32_MODULES for part in modules)


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
    onnx.save(half, target)
    return len(names)
