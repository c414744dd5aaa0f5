"""The averaged weights of a run -> a sealed bundle: one ONNX graph with suppression inside, known answers, manifest.

    python -m pose_nano.export --checkpoint runs/pose-nano/last.pt --bundle models/pose-nano --version 0.3.0 \
        [--size 448x608] [--figures figures.json] [--weights models/training/pose_nano/weights.pt]

The graph is compared with PyTorch at batches of 1 and 3 and timed bare. CARD.md is written by hand. --weights also keeps the
averaged weights themselves, in 16 bits: what the next training begins with, since a graph no longer knows its batch norms.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from agent.pose.preprocess import Letterbox
from agent.runtime.bundle import GOLDEN, load_bundle, seal_bundle, write_golden
from agent.simulation.scene import build_scene
from agent.simulation.scripts import build_script
from agent.simulation.sensor import CLEAN
from pose_nano.decoder import PoseNanoDetector
from pose_nano.geometry import CANVAS, size_of
from pose_nano.network import PoseNano, parameter_count
from pose_nano.train import save_whole

INPUT, DETS, KEYPOINTS = "input", "dets", "keypoints"
_GOLDEN_SEEDS = (11, 12, 13)


def load_detector(checkpoint: Path) -> PoseNanoDetector:
    """The network with the averaged weights of a checkpoint, and its decoder."""
    network = PoseNano()
    network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["average"])
    return PoseNanoDetector(network.eval()).eval()


def save_weights(checkpoint: Path, file: Path) -> None:
    """The averaged weights of a checkpoint in float16, to be read by `Trainer.start_from` and `load_detector`."""
    average = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]
    save_whole({"average": {name: v.half() if v.is_floating_point() else v for name, v in average.items()}}, file)


def golden_images(size: tuple[int, int], seeds: Sequence[int] = _GOLDEN_SEEDS) -> NDArray[np.float32]:
    """(len(seeds), 3, H, W) of `size` H, W: simulated scenes without sensor noise, which pack well."""
    letterbox = Letterbox(size, len(seeds))
    shots = [
        build_scene(build_script("crowd", seed=seed, people=6), seed=seed, sensor=CLEAN, night=False).shot(6.0).image
        for seed in seeds
    ]
    batch, _ = letterbox.fill(shots)
    return np.array(batch, np.float32)


def export_graph(detector: PoseNanoDetector, file: Path, size: tuple[int, int]) -> None:
    """Write the ONNX graph: opset 17, batch open, `size` (H, W) fixed."""
    detector = copy.deepcopy(detector)
    detector.network.absorb_gain()
    axes = {name: {0: "batch"} for name in (INPUT, DETS, KEYPOINTS)}
    torch.onnx.export(
        detector, (torch.full((2, 3, *size), 114.0),), str(file), input_names=[INPUT], output_names=[DETS, KEYPOINTS],
        opset_version=17, dynamic_axes=axes, dynamo=False,
    )  # fmt: skip


def compare(detector: PoseNanoDetector, session: onnxruntime.InferenceSession, images: NDArray[np.float32]) -> float:
    """Largest difference, px and score, of people that score 0.05 or more. Raises SystemExit where there is a real one."""
    with torch.inference_mode():
        expected = [part.numpy() for part in detector(torch.from_numpy(images))]
    found = session.run([DETS, KEYPOINTS], {INPUT: images})
    rows = expected[0][..., 4] >= 0.05
    worst = max(
        (
            float(np.abs(have[rows] - want[rows]).max())
            for have, want in zip(found, expected, strict=True)
            if rows.any()
        ),
        default=0.0,
    )
    print(f"PyTorch against ONNX Runtime, batch {len(images)}: {int(rows.sum())} people, at most {worst:.2e} apart")
    if worst > 0.05:
        raise SystemExit("the graph does not compute what the network does")
    return worst


def open_session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    """A bare session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def milliseconds(session: onnxruntime.InferenceSession, images: NDArray[np.float32], repeats: int = 80) -> float:
    """Of one picture: the median of the fastest quarter, since other work may share the machine."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        session.run(None, {INPUT: images[:1]})
        times.append(time.perf_counter() - started)
    return float(np.median(sorted(times)[: repeats // 4]) * 1e3)


def manifest_fields(version: str, size: tuple[int, int], figures: dict[str, Any]) -> dict[str, Any]:
    """manifest.json without the checksums."""
    return {
        "name": "pose-nano",
        "version": version,
        "task": "pose",
        "description": "Small one-stage multi-person pose estimator for CPUs and tests; 17 COCO key points.",
        "inputs": [
            {
                "name": INPUT,
                "shape": ["batch", 3, *size],
                "preprocessing": {"kind": "letterbox", "anchor": "top_left", "channels": "bgr", "pad_value": 114},
            }
        ],
        "outputs": [
            {"name": DETS, "shape": ["batch", "people", 5], "meaning": "detections"},
            {"name": KEYPOINTS, "shape": ["batch", "people", 17, 3], "meaning": "keypoints"},
        ],
        "licence": "Apache-2.0",
        "training_data": "Simulated scenes with motion from CMU and DeepMimic capture; frames of GMDCSA24 (14 clips) and of the train "
        "split of the surveillance camera fight dataset, labelled by PoseNet MobileNet v1 0.75 (see CARD.md)",
        "figures": figures,
        "golden": {"min_score": 0.1, "score": 0.01, "position_px": 0.5},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--size", type=size_of, default=CANVAS, metavar="HxW", help="of the input, multiples of 32")
    parser.add_argument("--figures", type=Path, help="JSON with measured figures for the manifest")
    parser.add_argument("--weights", type=Path, help="file to keep the averaged weights in, float16")
    arguments = parser.parse_args()
    detector, bundle = load_detector(arguments.checkpoint), arguments.bundle
    bundle.mkdir(parents=True, exist_ok=True)
    model = bundle / "model.onnx"
    export_graph(detector, model, arguments.size)
    session, images = open_session(model, 1), golden_images(arguments.size)
    noise = np.random.default_rng(0).uniform(0, 255, images.shape).round().astype(np.float32)
    for batch in (images, images[:1], noise):
        compare(detector, session, batch)
    outputs = session.run([DETS, KEYPOINTS], {INPUT: images})
    write_golden(bundle / GOLDEN, {INPUT: images.astype(np.uint8)}, dict(zip((DETS, KEYPOINTS), outputs, strict=True)))
    figures: dict[str, Any] = json.loads(arguments.figures.read_text()) if arguments.figures else {}
    figures |= {"parameters": parameter_count(detector), "model_bytes": model.stat().st_size}
    figures |= {
        f"ms_{threads}_threads": round(milliseconds(open_session(model, threads), images), 1) for threads in (1, 2)
    }
    seal_bundle(bundle, manifest_fields(arguments.version, arguments.size, figures))
    if arguments.weights:
        save_weights(arguments.checkpoint, arguments.weights)
    print(f"{load_bundle(bundle).title}: {figures}")


if __name__ == "__main__":
    main()
