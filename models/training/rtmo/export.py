"""RTMO -> ONNX, opset 17: suppression inside, dynamic batch, FP32 or FP16.

    python -m models.training.rtmo.export --out rtmo-s.onnx [--weights FILE.pt] [--half rtmo-s-fp16.onnx] [--seed 0]

Run from the root of the repository. Without weights they are random, and set up so that noise has people in it: the graph
then has the size, speed and operators of the real model, and no use but to test. The result is compared with PyTorch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from agent.runtime.people import Tolerance, compare_people
from models.training.rtmo.half import convert
from models.training.rtmo.network import RTMO_S, Rtmo, enliven, parameter_count
from models.training.rtmo.suppression import SCORE_LIMIT

INPUT, DETS, KEYPOINTS = "input", "dets", "keypoints"
OPSET = 17
TOLERANCE = Tolerance(min_score=SCORE_LIMIT, score=1e-3, position_px=3.0)
"""Random weights amplify rounding: 1 px was seen on a box of 380 px."""


def build(weights: Path | None, seed: int) -> Rtmo:
    """The network to export: trained weights (a state_dict of `Rtmo`), or random ones."""
    torch.manual_seed(seed)
    model = Rtmo(RTMO_S)
    if weights is None:
        enliven(model, seed=seed)
    else:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


def noise_pictures(count: int, seed: int) -> NDArray[np.float32]:
    """(count, 3, H, W) float32, whole numbers 0-255."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 3, *RTMO_S.input_size)).astype(np.float32)


def export(model: Rtmo, path: Path) -> None:
    """Write the graph; folds `model`."""
    model.fold()
    example = torch.from_numpy(noise_pictures(2, 0))
    rows = {0: "batch", 1: "people"}
    torch.onnx.export(
        model, (example,), str(path), input_names=[INPUT], output_names=[DETS, KEYPOINTS], opset_version=OPSET,
        dynamic_axes={INPUT: {0: "batch"}, DETS: rows, KEYPOINTS: rows}, dynamo=False,
    )  # fmt: skip


def difference(model: Rtmo, path: Path, batch: int) -> str:
    """The first difference between the graph and PyTorch on noise, in words; empty = none."""
    pictures = noise_pictures(batch, 1)
    with torch.no_grad():
        dets, keypoints = (part.numpy() for part in model(torch.from_numpy(pictures)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found_dets, found_keypoints = session.run([DETS, KEYPOINTS], {INPUT: pictures})
    return compare_people((dets, keypoints), (found_dets, found_keypoints), TOLERANCE)


def main() -> int:
    """The command of the module's docstring; prints what was made as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--half", type=Path, help="also write the FP16 form there")
    parser.add_argument("--weights", type=Path, help="state_dict of models.training.rtmo.network.Rtmo; absent = random")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = build(args.weights, args.seed)
    trainable = parameter_count(model)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    export(model, args.out)
    report: dict[str, object] = {"parameters": trainable, "bytes": args.out.stat().st_size}
    for batch in (1, 2):
        if problem := difference(model, args.out, batch):
            raise SystemExit(f"the graph differs from PyTorch (batch {batch}): {problem}")
    if args.half is not None:
        report["fp32_nodes"] = convert(args.out, args.half)
        report["half_bytes"] = args.half.stat().st_size
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
