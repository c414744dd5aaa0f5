"""A sealed FP32 bundle -> a sealed INT8 one: the convolutions in 8 bits, the decoding as it was.

    python -m pose_nano.quantise --bundle models/pose-nano --calibration shards/simulated --out models/pose-nano-int8

Static quantisation of ONNX Runtime, weights per channel, ranges of activations at the 99.999th percentile (5 GB of memory for 48
pictures). Weights keep 7 bits: without VNNI, products of two full 8-bit numbers overflow the 16-bit sums of AVX2, and the answers
would depend on the CPU. Both heads and the features of key points stay in FP32: places need more than 8 bits
(a quarter of the error for 1.5 ms); and so do the first two layers, of three and sixteen channels, which 8-bit kernels are slow at. What only joins or
clips 8-bit numbers (ReLU, sums, enlarged maps) stays in them. The sides of the input are open: on slow CPUs the agent takes smaller
pictures. Known answers are of pictures that give them on any CPU: see `steady`. Measure AP of both bundles before one replaces the other.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from agent.pose.preprocess import Letterbox
from agent.runtime.bundle import GOLDEN, load_bundle, seal_bundle, write_golden
from agent.runtime.people import Tolerance, compare_people
from pose_nano.export import DETS, INPUT, KEYPOINTS, golden_images, milliseconds, open_session
from pose_nano.geometry import LARGEST_STRIDE
from pose_nano.store import Shard

_PICTURES = 48
_IN_FP32 = ("stem", "stages.0.0", "person_head", "point_head", "coarse_points.1", "fine_points")
_FOLLOWS = {"Relu", "Add", "Resize"}
_AGREEMENT = {"min_score": 0.3, "score": 0.05, "position_px": 4.0}
"""Of known answers: sums in another order round differently."""
_GOLDEN, _GOLDEN_SEEDS = 3, range(11, 60)
_SHAKEN, _GREY = 12, 2


class _Pictures(CalibrationDataReader):
    """Pictures of a shard, evenly spread, one at a time."""

    def __init__(self, shard: Shard, count: int, size: tuple[int, int]) -> None:
        self._shard, self._letterbox = shard, Letterbox(size)
        self._left = list(np.linspace(0, len(shard) - 1, count).astype(int))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        if not self._left:
            return None
        batch, _ = self._letterbox.fill([self._shard[self._left.pop()].image])
        return {INPUT: np.array(batch, np.float32)}


def in_8_bits(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that get 8 bits: convolutions but those of `_IN_FP32`, and what gets all it computes from such."""
    names, exact = list[str](), {node.name for node in graph.input}
    for node in graph.node:  # in the order in which they are computed
        chosen = node.op_type == "Conv" and not any(f"/{part}" in node.name for part in _IN_FP32)
        if chosen or (node.op_type in _FOLLOWS and not exact.intersection(node.input)):
            names.append(node.name)
        else:
            exact.update(node.output)
    return names


def quantise(source: Path, shard: Shard, target: Path, size: tuple[int, int]) -> None:
    """Write the INT8 graph of the FP32 graph `source`, its ranges seen at `size` (H, W), for inputs of any size."""
    with tempfile.TemporaryDirectory() as folder:
        opened, prepared = Path(folder) / "opened.onnx", Path(folder) / "prepared.onnx"
        onnx.save(with_open_sides(onnx.load(source)), opened)
        quant_pre_process(str(opened), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared), str(target), _Pictures(shard, _PICTURES, size), quant_format=QuantFormat.QDQ, per_channel=True,
            reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            nodes_to_quantize=in_8_bits(onnx.load(prepared).graph), op_types_to_quantize=["Conv", *sorted(_FOLLOWS)],
            calibrate_method=CalibrationMethod.Percentile,
        )  # fmt: skip


def with_open_sides(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, whose input may now have any height and width that are multiples of 32: nothing else in it depends on them."""
    (image,) = model.graph.input
    for dimension, name in zip(image.type.tensor_type.shape.dim[2:], ("height", "width"), strict=True):
        dimension.dim_param = name
    del model.graph.value_info[:]
    return model


def take_numbers(file: Path, earlier: Path) -> None:
    """Give the graph `file` every stored number that the graph `earlier` has under the same name.

    Raises SystemExit where one is not there or of another shape: then it is another network.
    """
    model, have = onnx.load(file), {number.name: number for number in onnx.load(earlier).graph.initializer}
    for number in model.graph.initializer:
        if number.name not in have or have[number.name].dims != number.dims:
            raise SystemExit(f"{earlier} has no {number.name} of the shape {list(number.dims)}")
        number.CopyFrom(have[number.name])
    onnx.save(model, file)


def steady(session: onnxruntime.InferenceSession, image: NDArray[np.float32], rng: np.random.Generator) -> bool:
    """Whether a picture (1, 3, H, W) is answered alike, within half of what is allowed, when it is a little different.

    CPUs round what is left in FP32 in their own ways, and one step of 8 bits more may move a key point to another peak that is as
    high: of such a picture the answer is no known one.
    """
    half = Tolerance(_AGREEMENT["min_score"], _AGREEMENT["score"] / 2, _AGREEMENT["position_px"] / 2)
    dets, keypoints = session.run([DETS, KEYPOINTS], {INPUT: image})
    for _ in range(_SHAKEN):
        shaken = np.clip(image + rng.integers(-_GREY, _GREY + 1, image.shape), 0, 255).astype(np.float32)
        other_dets, other_keypoints = session.run([DETS, KEYPOINTS], {INPUT: shaken})
        if compare_people((dets, keypoints), (other_dets, other_keypoints), half):
            return False
    return True


def write_known_answers(bundle: Path, session: onnxruntime.InferenceSession, size: tuple[int, int]) -> None:
    """golden.npz of `_GOLDEN` steady pictures of `size` (H, W). Raises SystemExit where there are too few."""
    rng = np.random.default_rng(0)
    chosen = list[NDArray[np.float32]]()
    for seed in _GOLDEN_SEEDS:
        image = golden_images(size, (seed,))
        if steady(session, image, rng):
            chosen.append(image)
            print(f"known answers: scene {seed}", flush=True)
        if len(chosen) == _GOLDEN:
            break
    else:
        raise SystemExit(f"only {len(chosen)} of {len(_GOLDEN_SEEDS)} pictures are answered alike when they are shaken")
    images = np.concatenate(chosen)
    outputs = session.run([DETS, KEYPOINTS], {INPUT: images})
    write_golden(bundle / GOLDEN, {INPUT: images.astype(np.uint8)}, dict(zip((DETS, KEYPOINTS), outputs, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True, help="shard of pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--version", help="default: that of --bundle")
    parser.add_argument(
        "--numbers", type=Path, metavar="ONNX", help="earlier INT8 graph of this network, whose numbers to take"
    )
    parser.add_argument("--figures", type=Path, help="JSON with measured figures for the manifest")
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = json.loads((arguments.bundle / "manifest.json").read_text())
    height, width = fields["inputs"][0]["shape"][2:]
    quantise(load_bundle(arguments.bundle).model, Shard(arguments.calibration), out / "model.onnx", (height, width))
    if arguments.numbers:
        take_numbers(out / "model.onnx", arguments.numbers)
    write_known_answers(out, open_session(out / "model.onnx", 1), (height, width))
    images = golden_images((height, width))
    measured = json.loads(arguments.figures.read_text()) if arguments.figures else {}
    measured |= {"parameters": fields["figures"]["parameters"], "model_bytes": (out / "model.onnx").stat().st_size}
    measured |= {f"ms_{n}_threads": round(milliseconds(open_session(out / "model.onnx", n), images), 1) for n in (1, 2)}
    fields |= {
        "name": f"{fields['name']}-int8",
        "version": arguments.version or fields["version"],
        "description": f"{fields['description']} Convolutions in 8 bits.",
        "figures": measured,
        "golden": _AGREEMENT,
    }
    fields["inputs"][0]["preprocessing"]["side_step"] = LARGEST_STRIDE
    seal_bundle(out, {key: value for key, value in fields.items() if key != "files"})
    print(f"{load_bundle(out).title}: {measured}")


if __name__ == "__main__":
    main()
