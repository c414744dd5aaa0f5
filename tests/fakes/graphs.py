"""Small ONNX graphs with the contracts of RTMO and ST-GCN++, built at test time. They compute something that can be checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
BRIGHT = 200
"""A pixel whose first plane is above this belongs to the `person` that `rtmo_graph` finds."""


class _Builder:
    """Nodes and constants of a graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def save(self, path: Path, inputs: Sequence[Any], outputs: Sequence[Any]) -> Path:
        graph = helper.make_graph(self.nodes, path.stem, list(inputs), list(outputs), self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


def rtmo_graph(
    path: Path,
    *,
    size: tuple[int, int] = (64, 96),
    dynamic_size: bool = False,
    batch: int | None = None,
    extra_dets: NDArray[np.float32] | None = None,
    extra_keypoints: NDArray[np.float32] | None = None,
    names: tuple[str, str] = ("dets", "keypoints"),
    columns: int = 5,
    half: bool = False,
    conv_layers: int = 0,
) -> Path:
    """RTMO's contract: (B, 3, H, W) -> (B, N, 5), (B, N, 17, 3).

    Row 0 is the bounding box of all pixels above BRIGHT in plane 0 (no such pixel: score 0, no area); its score is the
    brightest pixel / 255, key point k lies k/16 of the way from the box's top left to its bottom right.
    extra_dets (N, 5), extra_keypoints (N, 17, 3): more rows, the same for each picture. conv_layers: 3x3 convolutions of 64
    channels at a quarter of the size whose result counts for nothing, to cost time.
    """
    g = _Builder()
    height, width = size
    element = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    shape = ["B" if batch is None else batch, 3, *(("H", "W") if dynamic_size else size)]
    g.node("Cast", ["input"], "picture", to=TensorProto.FLOAT)
    g.node("Slice", ["picture", g.constant("p0", [0], np.int64), g.constant("p1", [1], np.int64),
                     g.constant("axis1", [1], np.int64)], "plane")  # (B, 1, H, W)  # fmt: skip
    g.node("Squeeze", ["plane", "axis1"], "gray")  # (B, H, W)
    g.node("Greater", ["gray", g.constant("bright", BRIGHT)], "mask")
    g.node("Cast", ["mask"], "lit", to=TensorProto.FLOAT)
    for axis, length, low, high in ((1, width, "x1", "x2"), (2, height, "y1", "y2")):
        any_lit = g.node("ReduceMax", ["lit"], f"any{axis}", axes=[axis], keepdims=0)  # (B, W) or (B, H)
        if dynamic_size:
            up, down, whole = _counted(g, any_lit, axis)
        else:
            up = g.constant(f"up{axis}", np.arange(1, length + 1))
            down = g.constant(f"down{axis}", np.arange(length, 0, -1))
            whole = g.constant(f"length{axis}", length)
        ends = g.node("Mul", [any_lit, up], f"ends{axis}")
        g.node("ReduceMax", [ends], high, axes=[1], keepdims=1)  # last lit + 1, 0 when dark
        starts = g.node("Mul", [any_lit, down], f"starts{axis}")
        first = g.node("ReduceMax", [starts], f"first{axis}", axes=[1], keepdims=1)
        g.node("Sub", [whole, first], low)
    g.node("ReduceMax", ["gray"], "peak", axes=[1, 2], keepdims=0)
    g.node("Unsqueeze", ["peak", "axis1"], "peak1")
    g.node("Greater", ["peak1", "bright"], "some")
    g.node("Cast", ["some"], "some1", to=TensorProto.FLOAT)
    g.node("Mul", ["peak1", "some1"], "lit_peak")
    score = g.node("Div", ["lit_peak", g.constant("full", 255)], "score")
    if conv_layers:
        score = _costly(g, score, conv_layers)
    g.node("Concat", ["x1", "y1", "x2", "y2", score], "det", axis=1)
    g.node("Unsqueeze", ["det", "axis1"], "det1")  # (B, 1, 5)
    _keypoints_along_diagonal(g, score)
    _with_extra_rows(g, names, columns, extra_dets, extra_keypoints)
    outputs = [
        helper.make_tensor_value_info(names[0], TensorProto.FLOAT, [shape[0], "N", columns]),
        helper.make_tensor_value_info(names[1], TensorProto.FLOAT, [shape[0], "N", 17, 3]),
    ]
    return g.save(path, [helper.make_tensor_value_info("input", element, shape)], outputs)


def _counted(g: _Builder, row: str, axis: int) -> tuple[str, str, str]:
    """1..length, length..1 and length along the second axis of `row` (B, length), whatever that is."""
    nothing = g.node("Mul", [row, g.constant(f"zero{axis}", 0)], f"nothing{axis}")
    ones = g.node("Add", [nothing, g.constant(f"one{axis}", 1)], f"ones{axis}")
    along = g.constant(f"along{axis}", 1, np.int64)
    up = g.node("CumSum", [ones, along], f"up{axis}")
    down = g.node("CumSum", [ones, along], f"down{axis}", reverse=1)
    return up, down, g.node("ReduceMax", [up], f"length{axis}", axes=[1], keepdims=1)


def _costly(g: _Builder, score: str, layers: int) -> str:
    random = np.random.default_rng(0)
    x = g.node(
        "Conv", ["picture", g.constant("stem", random.standard_normal((64, 3, 4, 4)) * 0.01)], "c", strides=[4, 4]
    )
    for layer in range(layers):
        weight = g.constant(f"w{layer}", random.standard_normal((64, 64, 3, 3)) * 0.04)
        conv = g.node("Conv", [x, weight], f"conv{layer}", pads=[1, 1, 1, 1])
        x = g.node("Relu", [conv], f"relu{layer}")
    mean = g.node("ReduceMean", [x], "mean", axes=[1, 2, 3], keepdims=0)
    column = g.node("Unsqueeze", [mean, "axis1"], "mean1")
    nothing = g.node("Mul", [column, g.constant("tiny", 1e-30)], "nothing")
    return g.node("Add", [score, nothing], "score_costly")


def _keypoints_along_diagonal(g: _Builder, score: str) -> None:
    """keypoints1 (B, 1, 17, 3) from det1."""
    along = g.constant("along", np.linspace(0, 1, 17))
    for axis, low, high in (("x", "x1", "x2"), ("y", "y1", "y2")):
        span = g.node("Sub", [high, low], f"span_{axis}")  # (B, 1)
        way = g.node("Mul", [span, along], f"way_{axis}")  # (B, 17)
        g.node("Add", [way, low], f"k_{axis}")
    g.node("Mul", [score, g.constant("ones17", np.ones(17))], "k_score")
    last = g.constant("last", [2], np.int64)
    for part in ("k_x", "k_y", "k_score"):
        g.node("Unsqueeze", [part, last], f"{part}1")
    g.node("Concat", ["k_x1", "k_y1", "k_score1"], "k", axis=2)  # (B, 17, 3)
    g.node("Unsqueeze", ["k", "axis1"], "keypoints1")


def _with_extra_rows(
    g: _Builder,
    names: tuple[str, str],
    columns: int,
    dets: NDArray[np.float32] | None,
    keypoints: NDArray[np.float32] | None,
) -> None:
    count = 0 if dets is None else len(dets)
    rows = np.zeros((1, count, 5), np.float32) if dets is None else dets[None]
    points = np.zeros((1, count, 17, 3), np.float32) if keypoints is None else keypoints[None]
    g.node("Shape", ["input"], "input_shape")
    zero = g.constant("zero", [0], np.int64)
    one = g.constant("one", [1], np.int64)
    g.node("Slice", ["input_shape", zero, one], "batch")
    for kind, first, constant, tail in (
        (names[0], "det1", rows, [count, 5]),
        (names[1], "keypoints1", points, [count, 17, 3]),
    ):
        g.node("Concat", ["batch", g.constant(f"tail_{kind}", tail, np.int64)], f"shape_{kind}", axis=0)
        g.node("Expand", [g.constant(f"rows_{kind}", constant), f"shape_{kind}"], f"more_{kind}")
        g.node("Concat", [first, f"more_{kind}"], kind if kind != names[0] or columns == 5 else "dets5", axis=1)
    if columns != 5:
        g.node("Slice", ["dets5", zero, g.constant("columns", [columns], np.int64), g.constant("axis2", [2], np.int64)],
               names[0])  # fmt: skip


def stgcn_graph(
    path: Path,
    *,
    window: tuple[int | None, int | None, int | None, int | None] = (4, 100, 17, 3),
    batch: int | None = None,
    classes: int = 2,
    softmax: bool = False,
    gain: float = 1.0,
    half: bool = False,
) -> Path:
    """ST-GCN++'s contract: (B, M, T, V, C) -> (B, K).

    Class k scores gain * k * (mean of the window's first channel); None in `window` = varies.
    """
    g = _Builder()
    names = ("M", "T", "V", "C")
    shape = ["B" if batch is None else batch, *(n if s is None else s for n, s in zip(names, window, strict=True))]
    g.node("Cast", ["input_tensor"], "x", to=TensorProto.FLOAT)
    first = [g.constant("from", [0], np.int64), g.constant("to", [1], np.int64), g.constant("axis4", [4], np.int64)]
    g.node("Slice", ["x", *first], "channel")
    g.node("ReduceMean", ["channel"], "mean", axes=[1, 2, 3], keepdims=0)  # (B, 1)
    logits = "logits" if softmax else "cls_score"
    g.node("MatMul", ["mean", g.constant("classes", gain * np.arange(classes)[None])], logits)
    if softmax:
        g.node("Softmax", ["logits"], "cls_score", axis=1)
    element = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("input_tensor", element, shape)]
    return g.save(path, inputs, [helper.make_tensor_value_info("cls_score", TensorProto.FLOAT, [shape[0], classes])])
