"""Trained networks -> a sealed bundle: one ONNX graph, known answers, manifest.

    python models/training/export.py fight --runs runs/fight --bundle models/fight-stgcn --version 0.3.0

The networks are averaged and mixed with the forest in one graph (their logits), the shift of the calibration is in it, its temperature is in the
manifest. The graph is compared with PyTorch and timed on one core. CARD.md is written by hand.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from forest import Forest
from network import Mixture, SlimSTGCN
from numpy.typing import NDArray
from recipes import RECIPES, WINDOW, Recipe

from agent.runtime.bundle import GOLDEN, load_bundle, seal_bundle, write_golden

INPUT, OUTPUT = "input_tensor", "cls_score"
SHAPE = (WINDOW.people, WINDOW.length, 17, 3)


def golden_input() -> NDArray[np.float32]:
    """(3, M, T, V, 3): two who close in on each other, one who sinks to the ground, nobody. Made up, rounded to pack well."""
    T = WINDOW.length
    skeleton = np.array(
        [(0, -9), (1, -9), (-1, -9), (1, -9), (-1, -9), (2, -7), (-2, -7), (3, -5), (-3, -5), (3, -2), (-3, -2), (1, -2),
         (-1, -2), (1, 2), (-1, 2), (1, 6), (-1, 6)]) / 20  # fmt: skip
    t = np.arange(T)[:, None, None] / T
    window = np.zeros((3, *SHAPE), np.float32)
    swing = 0.08 * np.sin(40 * t + np.arange(17)[None, :, None])
    window[0, 0, ..., :2] = skeleton + swing + np.array((-0.6, 0)) + t * np.array((0.5, 0))
    window[0, 1, ..., :2] = skeleton - swing + np.array((0.6, 0)) - t * np.array((0.5, 0))
    fall = np.clip(3 * t - 1, 0, 1) * np.pi / 2
    x, y = skeleton[None, :, 0], skeleton[None, :, 1] - 0.3
    c, s = np.cos(fall[..., 0]), np.sin(fall[..., 0])
    window[1, 0, ..., 0], window[1, 0, ..., 1] = x * c - y * s, x * s + y * c + 0.3
    window[0, :2, ..., 2] = window[1, 0, ..., 2] = 0.75
    return np.round(window, 3)


def load_parts(recipe: Recipe, runs: Path, name: str) -> tuple[list[SlimSTGCN], Forest | None]:
    """The networks (and the forest, where the recipe has one) that `train.py` made under `name`."""
    members = []
    for number in range(recipe.members):
        member = SlimSTGCN(width=recipe.width, drop=recipe.drop, wide=recipe.wide)
        member.load_state_dict(torch.load(runs / f"{name}-{number}.pt", weights_only=True))
        members.append(member)
    return members, Forest.loaded(torch.load(runs / f"{name}-forest.pt", weights_only=True)) if recipe.trees else None


def load_model(recipe: Recipe, runs: Path, shift: float) -> Mixture:
    """What `train.py` released."""
    members, forest = load_parts(recipe, runs, "release")
    return Mixture(members, forest, recipe.forest_weight, shift).eval()


def export(recipe: Recipe, runs: Path, bundle: Path) -> float:
    """Write model.onnx and golden.npz; returns the calibration's temperature."""
    calibration = json.loads((runs / "folds.json").read_text())
    if (calibration["members"], calibration["forest_weight"]) != (recipe.members, recipe.forest_weight):
        raise SystemExit("folds.json calibrates another mixture: run train.py --stage folds with the recipe's members")
    model = load_model(recipe, runs, calibration["shift"])
    example = torch.from_numpy(golden_input())
    bundle.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model, (example,), str(bundle / "model.onnx"), input_names=[INPUT], output_names=[OUTPUT], opset_version=17,
        dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}, dynamo=False,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    noise = rng.uniform(-1, 1, (5, *SHAPE)).astype(np.float32)
    noise[..., 2] = rng.uniform(0, 1, noise.shape[:-1]) * (rng.uniform(0, 1, noise.shape[:-1]) > 0.3)
    session = _session(bundle)
    for window in (golden_input(), noise):
        with torch.inference_mode():
            expected = model(torch.from_numpy(window)).numpy()
        found = session.run(None, {INPUT: window})[0]
        worst = float(np.abs(found - expected).max())
        print(f"PyTorch against ONNX Runtime, batch {len(window)}: at most {worst:.2e} apart")
        if worst > 1e-4:
            raise SystemExit("the graph does not compute what the network does")
    write_golden(bundle / GOLDEN, {INPUT: golden_input()}, {OUTPUT: session.run(None, {INPUT: golden_input()})[0]})
    return float(calibration["temperature"])


def _session(bundle: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(bundle / "model.onnx", options, providers=["CPUExecutionProvider"])


def milliseconds(bundle: Path, window: NDArray[np.float32], repeats: int = 60) -> float:
    """Of one window on one core: the fastest quarter's median, since other work shares the machine."""
    session = _session(bundle)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        session.run(None, {INPUT: window})
        times.append(time.perf_counter() - started)
    return float(np.median(sorted(times)[: repeats // 4]) * 1e3)


def manifest_fields(
    bundle: Path, recipe: Recipe, version: str, temperature: float, figures: dict[str, object]
) -> dict[str, object]:
    """manifest.json of `bundle`, whose folder is its name, without the checksums."""
    what = {"fight": "people fighting", "fall": "a person falling"}[recipe.service]
    source = {
        "fight": "surveillance camera fight dataset, train split of 160 clips; simulated scenes (see CARD.md)",
        "fall": "GMDCSA24 subjects 2 and 3, CMU and DeepMimic motion capture, simulated scenes, no-fight clips of the "
        "surveillance camera fight dataset (see CARD.md)",
    }[recipe.service]
    return {
        "name": bundle.name,
        "version": version,
        "task": "action",
        "description": f"Slim ST-GCN++ that tells {what} from anything else, on windows of up to four skeletons.",
        "inputs": [
            {
                "name": INPUT,
                "shape": ["batch", *SHAPE],
                "preprocessing": {"kind": "skeleton", "rate_hz": WINDOW.rate_hz},
            }
        ],
        "outputs": [{"name": OUTPUT, "shape": ["batch", 2], "meaning": "logits", "temperature": round(temperature, 4)}],
        "labels": [recipe.negative, recipe.service],
        "licence": "Apache-2.0",
        "training_data": source,
        "figures": figures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("service", choices=sorted(RECIPES))
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--version", default="0.1.0")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.service]
    temperature = export(recipe, arguments.runs, arguments.bundle)
    figures: dict[str, object] = {}
    # What was least chosen by comes first.
    for name, key in (("dev", None), ("cross", "cross_fitted"), ("folds", "cross_fitted")):
        file = arguments.runs / f"{name}.json"
        if file.is_file():
            content = json.loads(file.read_text())
            chosen = content[key] if key else content
            figures[name] = {key: round(value, 4) for key, value in chosen.items() if isinstance(value, int | float)}
    figures |= {
        "ms_per_window_one_core": round(milliseconds(arguments.bundle, golden_input()[:1]), 2),
        "recipe": recipe.digest,
    }
    seal_bundle(arguments.bundle, manifest_fields(arguments.bundle, recipe, arguments.version, temperature, figures))
    print(f"{load_bundle(arguments.bundle).title}: {figures}")


if __name__ == "__main__":
    main()
