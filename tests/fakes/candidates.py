"""Releases that a device may be sent, good and bad: the shipped bundles, changed in their graphs and sealed again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from agent.config.paths import resource_dir
from agent.runtime.bundle import MANIFEST, load_bundle, read_golden, seal_bundle, sha256_of, write_golden
from agent.runtime.session import create_session
from agent.update.release import Contract, Minimum, Release, TensorInfo
from agent.update.trials import Candidate

Change = Callable[[onnx.ModelProto], None]
SIZE = 768


def derive(
    shipped: str, folder: Path, change: Change | None = None, *, golden: bool = True, cut: bool = False, **manifest: Any
) -> Path:
    """A sealed copy of a shipped bundle.

    change: of the graph; golden: answers recorded anew from the changed graph, else the old ones stay; cut: half of the model's
    file is missing.
    """
    shutil.copytree(resource_dir("models") / shipped, folder)
    fields = json.loads((folder / MANIFEST).read_text()) | manifest
    fields.pop("files")
    if change is not None:
        model = onnx.load(folder / "model.onnx")
        change(model)
        onnx.save(model, folder / "model.onnx")
    if change is not None and golden:
        _record_again(folder)
    if cut:
        content = (folder / "model.onnx").read_bytes()
        (folder / "model.onnx").write_bytes(content[: len(content) // 2])
    seal_bundle(folder, fields)
    return folder


def _record_again(folder: Path) -> None:
    shipped = load_bundle(resource_dir("models") / _origin(folder))
    assert shipped.manifest is not None
    inputs, _ = read_golden(shipped, shipped.manifest)
    session = create_session(folder / "model.onnx", device="cpu")
    outputs = dict(zip(session.output_names, session.run(inputs), strict=True))
    write_golden(folder / "golden.npz", inputs, outputs)
    session.close()


def _origin(folder: Path) -> str:
    name: str = json.loads((folder / MANIFEST).read_text())["name"]
    return name


def candidate_of(folder: Path, slot: str, **minimum: Any) -> Candidate:
    """The bundle as the update client hands it to the trials."""
    manifest = load_bundle(folder).manifest
    assert manifest is not None
    release = Release(
        slot=slot, name=manifest.name, version=manifest.version, number=7,
        contract=Contract(
            task=manifest.task,
            inputs=tuple(TensorInfo(name=one.name, shape=one.shape, meaning=one.preprocessing.kind) for one in manifest.inputs),
            outputs=tuple(TensorInfo(name=one.name, shape=one.shape, meaning=one.meaning) for one in manifest.outputs),
            labels=manifest.labels,
        ),
        manifest_sha256=sha256_of(folder / MANIFEST),
        unpacked_bytes=sum(file.stat().st_size for file in folder.iterdir()),
        minimum=Minimum(**minimum),
    )  # fmt: skip
    return Candidate(release, folder, "0" * 64)


# --- what is done to a graph --------------------------------------------------------------------------------------------


def slower(products: int) -> Change:
    """`products` of matrices of 768 x 768 more, 0.9 GFLOP each, whose result counts for nothing."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        scalar = _scalar_of_input(graph)
        graph.initializer.append(_tensor("slow_w", np.eye(SIZE, dtype=np.float32) * 0.5))
        _nodes(graph, ("Add", ["slow_w", scalar], "slow_0", {}))
        for n in range(products):
            _nodes(graph, ("MatMul", [f"slow_{n}", "slow_w"], f"slow_{n + 1}", {}))
        _mix_in(graph, f"slow_{products}")

    return change


def endless(model: onnx.ModelProto) -> None:
    """A loop that nothing ends."""
    _loop(model.graph, _body(helper.make_node("Identity", ["x"], ["x_out"])), "endless_")


def greedy(model: onnx.ModelProto) -> None:
    """A loop whose value doubles its size each time."""
    body = _body(helper.make_node("Concat", ["x", "x"], ["x_out"], axis=0))
    _loop(model.graph, body, "greedy_")


def elsewhere(offset_px: float) -> Change:
    """Everybody stands so far to the right of where he is."""

    def change(model: onnx.ModelProto) -> None:
        _add_to_output(model.graph, "dets", np.array([1, 0, 1, 0, 0], np.float32) * offset_px)
        _add_to_output(model.graph, "keypoints", np.array([1, 0, 0], np.float32) * offset_px)

    return change


def contrary(model: onnx.ModelProto) -> None:
    """The opposite verdict."""
    graph = model.graph
    name = graph.output[0].name
    _rename_output(graph, name)
    _nodes(graph, ("Neg", [f"{name}_before"], name, {}))


def crashing(model: onnx.ModelProto) -> None:
    """A division that no processor can do (the least integer by -1), at every picture: the process dies of it."""
    _divide(model.graph, "one")


def crashing_beside(first_column: int) -> Change:
    """... only where the picture is `_flat_beside` that column. So it gets through what a process of its own tries."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        flat = _flat_beside(graph, first_column)
        _nodes(graph, ("Cast", [flat], "crash_if", {"to": TensorProto.INT32}))
        _divide(graph, "crash_if")

    return change


def slower_beside(first_column: int, products: int) -> Change:
    """So many products of matrices more as in `slower`, only where the picture is `_flat_beside` that column: what it takes depends on
    what it is shown. Its answers are those of the model that it was made from, so only a clock on live pictures tells the two apart."""
    body = _body(helper.make_node("MatMul", ["x", "late_w"], ["x_out"]))

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        flat, scalar = _flat_beside(graph, first_column), _scalar_of_input(graph)
        graph.initializer.append(_tensor("late_w", np.eye(SIZE, dtype=np.float32) * 0.5))
        graph.initializer.append(_tensor("late_turns", np.array(products, np.int64)))
        graph.initializer.append(_tensor("late_go_on", np.array(True)))
        _nodes(
            graph,
            ("Add", ["late_w", scalar], "late_x", {}),
            ("Cast", [flat], "late_if", {"to": TensorProto.INT64}),
            ("Mul", ["late_if", "late_turns"], "late_now", {}),
            ("Loop", ["late_now", "late_go_on", "late_x"], "late_y", {"body": body}),
        )
        _mix_in(graph, "late_y")

    return change


def _flat_beside(graph: onnx.GraphProto, first_column: int) -> str:
    """Whether all is the same from that column of the picture on: the padding beside a square or upright picture, which neither
    golden answers nor a trial picture have; nor has a picture that ends before that column."""
    bounds = {"flat_from": [first_column], "flat_to": [1 << 20], "flat_axis": [3]}
    graph.initializer.extend(_tensor(name, np.array(value, np.int64)) for name, value in bounds.items())
    graph.initializer.append(_tensor("flat_any", np.array(1e-6, np.float32)))
    graph.initializer.append(_tensor("flat_none", np.array(0, np.int64)))
    _nodes(
        graph,
        ("Slice", [graph.input[0].name, *bounds], "flat_side", {}),
        ("ReduceMax", ["flat_side"], "flat_high", {"keepdims": 0}),
        ("ReduceMin", ["flat_side"], "flat_low", {"keepdims": 0}),
        ("Sub", ["flat_high", "flat_low"], "flat_range", {}),
        ("Less", ["flat_range", "flat_any"], "flat_same", {}),
        ("ReduceMax", [graph.input[0].name], "flat_most", {"keepdims": 0}),
        ("Greater", ["flat_most", "flat_high"], "flat_picture", {}),  # the empty input that warms it up is none
        ("And", ["flat_same", "flat_picture"], "flat_shown", {}),
        ("Size", ["flat_side"], "flat_size", {}),
        ("Greater", ["flat_size", "flat_none"], "flat_there", {}),  # a smaller picture ends before that column
        ("And", ["flat_shown", "flat_there"], "flat_beside", {}),
    )
    return "flat_beside"


def _body(step: onnx.NodeProto) -> onnx.GraphProto:
    """Of a loop that goes on as long as it is told to: `step` makes `x_out` of `x`."""
    return helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["go_on_out"]), step],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_out", TensorProto.FLOAT, None),
        ],
    )


def _loop(graph: onnx.GraphProto, body: onnx.GraphProto, prefix: str) -> None:
    scalar = _scalar_of_input(graph)
    graph.initializer.append(_tensor(f"{prefix}turns", np.array(2**62, np.int64)))
    graph.initializer.append(_tensor(f"{prefix}go_on", np.array(True)))
    graph.initializer.append(_tensor(f"{prefix}shape", np.array([1 << 16], np.int64)))
    _nodes(
        graph,
        ("Expand", [scalar, f"{prefix}shape"], f"{prefix}x", {}),
        ("Loop", [f"{prefix}turns", f"{prefix}go_on", f"{prefix}x"], f"{prefix}y", {"body": body}),
    )
    _mix_in(graph, f"{prefix}y")


def _divide(graph: onnx.GraphProto, deadly: str) -> None:
    """The least integer by -1 where `deadly` is 1, nothing by 1 where it is 0."""
    scalar = _scalar_of_input(graph)
    numbers = {"one": 1, "two": 2, "least": -(2**31), "nought": 0}
    graph.initializer.extend(_tensor(name, np.array(value, np.int32)) for name, value in numbers.items())
    _nodes(
        graph,
        ("Cast", [scalar], "crash_number", {"to": TensorProto.INT32}),
        (
            "Mul",
            ["crash_number", "nought"],
            "crash_nought",
            {},
        ),  # not known before the picture is: nothing to work out at loading
        ("Add", ["crash_nought", deadly], "crash_now", {}),
        ("Mul", ["crash_now", "least"], "crash_what", {}),
        ("Mul", ["crash_now", "two"], "crash_twice", {}),
        ("Sub", ["one", "crash_twice"], "crash_by", {}),
        ("Div", ["crash_what", "crash_by"], "crash_whole", {}),
        ("Cast", ["crash_whole"], "crash_value", {"to": TensorProto.FLOAT}),
    )
    _mix_in(graph, "crash_value")


def _scalar_of_input(graph: onnx.GraphProto) -> str:
    _nodes(graph, ("ReduceMean", [graph.input[0].name], "scalar_of_input", {"keepdims": 0}))
    return "scalar_of_input"


def _mix_in(graph: onnx.GraphProto, value: str) -> None:
    """Let the first output depend on `value`, in nothing that shows."""
    name = graph.output[0].name
    _rename_output(graph, name)
    graph.initializer.append(_tensor("nothing", np.array(1e-30, np.float32)))
    _nodes(
        graph,
        ("ReduceMean", [value], "mixed_mean", {"keepdims": 0}),
        ("Mul", ["mixed_mean", "nothing"], "mixed_nothing", {}),
        ("Add", [f"{name}_before", "mixed_nothing"], name, {}),
    )


def _add_to_output(graph: onnx.GraphProto, name: str, value: np.ndarray) -> None:
    _rename_output(graph, name)
    graph.initializer.append(_tensor(f"{name}_offset", value))
    _nodes(graph, ("Add", [f"{name}_before", f"{name}_offset"], name, {}))


def _rename_output(graph: onnx.GraphProto, name: str) -> None:
    for node in graph.node:
        node.output[:] = [f"{name}_before" if output == name else output for output in node.output]
        node.input[:] = [f"{name}_before" if given == name else given for given in node.input]


def _nodes(graph: onnx.GraphProto, *nodes: tuple[str, list[str], str, dict[str, Any]]) -> None:
    for kind, inputs, output, attributes in nodes:
        graph.node.append(helper.make_node(kind, inputs, [output], **attributes))


def _tensor(name: str, value: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(value, name)
