"""A bundle of skeletons and the windows' change of the picture -> a bundle that judges by both.

    python models/training/with_change.py fight --windows runs/fight.npz --data DATA --drawn runs/drawn-*.npz \
        --calibration runs/simulated-calibrate.npz --base runs/fight-stgcn --folds docs/reports/folds/fight-skeletons.csv \
        --out docs/reports/folds/fight.csv --bundle models/fight-stgcn --version 0.5.0

The graph of `--base` stays as it is. A forest over `change.ChangeStatistics` is grown on real windows and drawn ones, and where
there is a change at all the log-odds become `(slope - fade * absence) * skeletons + weight * forest + shift`, fitted to clips and
drawn scenes that neither has seen. Absence is the share of a window without even the person who is there longest: a clip of two
seconds fills little more than half a window, and skeletons seen for so short a time say less. Where nothing changes (no pictures, a
camera below 8 frames/s) it is the same without the forest, fitted to the clips and to the windows of `--calibration`.

--folds: what models of skeletons say of every clip that they did not train on (`train.py --stage cross`). The same folds are
used here: a clip is judged by a forest that saw nothing of its source, and for `--out` mixed by figures fitted to the other folds. What ships
is grown and fitted on training clips alone; the development clips are for `evaluate action`.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from change import ChangeStatistics
from clips import Samples
from clipset import Clips
from export import INPUT, OUTPUT, SHAPE, golden_input, manifest_fields, milliseconds
from fit import in_batches
from forest import Forest, grow
from metrics import figures, logistic, sigmoid
from numpy.typing import NDArray
from onnx import compose, helper
from pools import real_rows, simulated_pool
from recipes import RECIPES, Recipe
from torch import Tensor, nn
from train import NOBODY, by_group, tested_rows, write_predictions

from agent.runtime.bundle import GOLDEN, load_bundle, seal_bundle, write_golden

Array = NDArray[np.float64]
TREES, LEAF, SHARE = 150, 2.0, 0.2
NAMES = ("slope", "fade", "shift", "weight")
START = np.array((1.0, 0.0, 0.0, 0.5))
"""What `NAMES` are before anything is known."""
PRIOR = 4.0
_LEAST = 1e-3  # of a probability that becomes log-odds
_SKELETON = "skeleton"


@dataclass(frozen=True, slots=True, eq=False)
class Skeletons:
    """What skeletons say of N clips or windows, (N,) each: log-odds, and `absence`."""

    margin: Array
    absence: Array

    def take(self, rows: NDArray[Any]) -> Skeletons:
        return Skeletons(self.margin[rows], self.absence[rows])

    def design(self, change: Array | None = None) -> Array:
        """(N, 4): the columns of `NAMES`; without the log-odds of a forest (N, 3)."""
        columns = [self.margin, -self.absence * self.margin, np.ones_like(self.margin)]
        return np.stack(columns if change is None else [*columns, change], axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """Windows of drawn scenes: change figures (N, F), labels and weights (N,), skeletons, and a fold by scene (N,)."""

    features: Array
    label: NDArray[np.int8]
    weight: Array
    skeletons: Skeletons
    fold: NDArray[np.int64]


def absence(window: Tensor) -> Tensor:
    """(B, M, T, 17, C) -> (B,): share of the steps without the person who is in most of them."""
    there = (window[..., 2].amax(3) > 0).to(torch.float32)
    return 1 - there.mean(2).amax(1)


class ChangeBranch(nn.Module):
    """(B, M, T, 17, 4) -> skeletons for the base; (B, 1) by which its log-odds are multiplied, and (B, 2) what is added to its logits."""

    def __init__(self, forest: Forest, line: Array, still: Array) -> None:
        """line: the figures of `NAMES`; still: all but the last of them where nothing changes."""
        super().__init__()
        self.statistics, self.forest = ChangeStatistics(), forest
        self.line, self.still = line.tolist(), [*still.tolist(), 0.0]

    def forward(self, input_tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        changes = (input_tensor[..., 3].amax((1, 2, 3)) > 0).to(input_tensor.dtype)[:, None]
        slope, fade, shift, weight = (a + changes * (b - a) for a, b in zip(self.still, self.line, strict=True))
        margin = self.forest.margin(self.statistics(input_tensor))[:, None]
        half = (shift + weight * margin) / 2
        return input_tensor[..., :3], slope - fade * absence(input_tensor)[:, None], torch.cat((-half, half), 1)


def read_folds(file: Path, samples: Samples, clips: Clips) -> Array:
    """(clips,) calibrated log-odds of the skeletons, `NOBODY` where there was no window. Raises SystemExit for other clips or folds."""
    with file.open(newline="") as stream:
        rows = {row["file"]: row for row in csv.DictReader(stream)}
    if set(rows) != set(samples.files) or [int(rows[name]["fold"]) for name in samples.files] != clips.fold.tolist():
        raise SystemExit(f"{file}: not the clips and folds of the windows (train.py --stage cross makes it)")
    probability = np.array([float(rows[name]["probability"]) for name in samples.files])
    return np.where(probability > 0, log_odds(probability), NOBODY)


def log_odds(probability: Array) -> Array:
    """Within what 0.001 and 0.999 have."""
    p = np.clip(probability, _LEAST, 1 - _LEAST)
    return np.log(p) - np.log(1 - p)


def read_drawn(files: list[Path], recipe: Recipe, base: onnxruntime.InferenceSession, temperature: float) -> Drawn:
    """Each file is a part of the folds by itself: its scenes are of other seeds."""
    pools = [simulated_pool([file], recipe.service, channels=recipe.window.channels) for file in files]
    tensor = np.concatenate([pool.tensor for pool in pools])
    return Drawn(
        features=in_batches(ChangeStatistics(), tensor),
        label=np.concatenate([pool.label for pool in pools]),
        weight=np.concatenate([pool.weight for pool in pools]),
        skeletons=skeletons_of(tensor, base, temperature),
        fold=np.repeat(np.arange(len(pools)), [len(pool.label) for pool in pools]),
    )


def skeletons_of(tensor: NDArray[np.float16], base: onnxruntime.InferenceSession, temperature: float) -> Skeletons:
    """What the graph of `--base` says of windows (N, M, T, 17, C)."""
    logits = in_batches(lambda part: torch.from_numpy(base.run(None, {INPUT: part.numpy()})[0]), tensor[..., :3])
    return Skeletons((logits[:, 1] - logits[:, 0]) / temperature, in_batches(absence, tensor))


class Mixer:
    """Grows forests on chosen clips and drawn scenes, and fits how much they say."""

    def __init__(
        self, recipe: Recipe, samples: Samples, clips: Clips, margin: Array, drawn: Drawn, *, share: float
    ) -> None:
        """margin: (clips,) log-odds of the skeletons, see `read_folds`; share: of made windows, where the line is fitted."""
        self._recipe, self._samples, self._clips, self._share = recipe, samples, clips, share
        self._skeletons, self._drawn = Skeletons(margin, shortest_absence(samples, len(margin))), drawn
        self._features = in_batches(ChangeStatistics(), samples.tensor)

    def forest(self, use: NDArray[np.bool_], scenes: NDArray[np.bool_]) -> Forest:
        """On the clips in `use` and the drawn windows in `scenes`."""
        rows, weight = real_rows(self._recipe.service, self._samples, self._clips, use)
        share, drawn = self._recipe.forest_simulated, self._drawn
        scale = weight.sum() * share / (1 - share) / drawn.weight[scenes].sum()
        return grow(
            np.concatenate((self._features[rows], drawn.features[scenes])),
            np.concatenate((self._samples.label[rows], drawn.label[scenes])),
            np.concatenate((weight, drawn.weight[scenes] * scale)),
            trees=TREES, leaf=LEAF, share=SHARE, seed=0,
        )  # fmt: skip

    def judged(self, use: NDArray[np.bool_]) -> tuple[Array, Array]:
        """What forests that saw nothing of a clip's source, or of a drawn scene, say: (clips,) log-odds, and (drawn windows,).

        Of the clips in `use` alone; the others, and those without a window, have `NOBODY`.
        """
        clips, drawn = self._clips, self._drawn
        found, scenes = np.full(len(clips.fold), NOBODY), np.zeros(len(drawn.label))
        parts = drawn.fold.max() + 1
        for number in np.unique(clips.fold[use]).tolist():
            held, held_scenes = clips.fold == number, drawn.fold == number % parts
            forest = self.forest(use & ~held, ~held_scenes)
            rows = tested_rows(self._samples, use & held)
            np.maximum.at(found, self._samples.clip[rows], in_batches(forest.margin, self._features[rows]))
            scenes[held_scenes] = in_batches(forest.margin, drawn.features[held_scenes])
        return found, scenes

    def fitted(self, use: NDArray[np.bool_], clips: Array, scenes: Array) -> Array:
        """The figures of `NAMES`, from clips (those in `use` that have a window) and drawn windows."""
        rows, drawn = use & self._seen(clips), self._drawn
        return self._fit(
            rows, self._skeletons.take(rows).design(clips[rows]), drawn.skeletons.design(scenes), drawn.label
        )

    def fitted_still(self, use: NDArray[np.bool_], made: Skeletons, label: NDArray[np.int8]) -> Array:
        """All but the last of `NAMES` where nothing changes, from clips and windows that were made without pictures."""
        rows = use & (self._skeletons.margin > NOBODY)
        return self._fit(rows, self._skeletons.take(rows).design(), made.design(), label)

    def _fit(self, rows: NDArray[np.bool_], clips: Array, made: Array, label: NDArray[np.int8]) -> Array:
        """Made windows weigh alike, so fights are as rare among them as in the scenes: half of them would be a warning too many."""
        share = self._share
        weight = np.repeat((1.0, len(clips) * share / (1 - share) / len(made)), (len(clips), len(made)))
        labels = np.concatenate((self._clips.label[rows], label))
        return logistic(np.concatenate((clips, made)), labels, weight, START[: clips.shape[1]], PRIOR)

    def mixed(self, line: Array, clips: Array) -> Array:
        """(clips,) probabilities; 0 without a window."""
        return np.where(self._seen(clips), sigmoid(self._skeletons.design(clips) @ line), 0.0)

    def mixed_scenes(self, line: Array, scenes: Array) -> Array:
        """(drawn windows,) probabilities."""
        return sigmoid(self._drawn.skeletons.design(scenes) @ line)

    def _seen(self, clips: Array) -> NDArray[np.bool_]:
        seen: NDArray[np.bool_] = (self._skeletons.margin > NOBODY) & (clips > NOBODY)
        return seen


def shortest_absence(samples: Samples, clips: int) -> Array:
    """(clips,): of the windows of each clip the least; 1 without a window."""
    found = np.ones(clips)
    rows = tested_rows(samples, np.ones(clips, bool))
    np.minimum.at(found, samples.clip[rows], in_batches(absence, samples.tensor[rows]))
    return found


def merge(base: onnx.ModelProto, temperature: float, branch: onnx.ModelProto) -> onnx.ModelProto:
    """One graph of both, with the contract of `base` but for the fourth channel; the temperature is in it."""
    joined = compose.merge_models(
        compose.add_prefix(branch, "change/"), compose.add_prefix(base, "base/"),
        io_map=[(f"change/{_SKELETON}", f"base/{INPUT}")],
        outputs=["change/gain", "change/extra", f"base/{OUTPUT}"],
    )  # fmt: skip
    graph = joined.graph
    graph.initializer.append(helper.make_tensor("temperature", onnx.TensorProto.FLOAT, [1], [temperature]))
    graph.node.extend([
        helper.make_node("Div", [f"base/{OUTPUT}", "temperature"], ["calibrated"]),
        helper.make_node("Mul", ["calibrated", "change/gain"], ["kept"]),
        helper.make_node("Add", ["kept", "change/extra"], [OUTPUT]),
    ])  # fmt: skip
    for node in graph.node:
        node.input[:] = [INPUT if name == f"change/{INPUT}" else name for name in node.input]
    graph.input[0].name = INPUT
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["batch", 2]))
    onnx.checker.check_model(joined, full_check=True)
    return joined


def example() -> NDArray[np.float32]:
    """(3, M, T, V, 4): `export.golden_input`; the first window changes a lot, the second a little, the last not at all."""
    T = SHAPE[1]
    change = np.zeros((3, *SHAPE[:-1], 1), np.float32)
    wave = 0.1 + 0.1 * np.abs(np.sin(np.arange(T) / 3))[:, None] * (1 + np.arange(17) / 17)
    change[0, 0, ..., 0], change[0, 1, ..., 0], change[1, 0, ..., 0] = wave, wave / 2, wave / 8
    return np.concatenate((golden_input(), np.round(change, 3)), axis=-1)


def exported(branch: ChangeBranch, file: Path) -> onnx.ModelProto:
    """As a graph by itself, also left in `file`."""
    names = [_SKELETON, "gain", "extra"]
    torch.onnx.export(
        branch, (torch.from_numpy(example()),), str(file), input_names=[INPUT], output_names=names, opset_version=17,
        dynamic_axes={name: {0: "batch"} for name in (INPUT, *names)}, dynamo=False,
    )  # fmt: skip
    return onnx.load(file)


def write_graph(bundle: Path, base: Path, temperature: float, branch: ChangeBranch) -> None:
    """model.onnx and golden.npz of `bundle`; compared with its parts before."""
    window = example()
    bundle.mkdir(parents=True, exist_ok=True)
    file = bundle / "model.onnx"
    parts = exported(branch, file)
    skeletons = onnx.load(base / "model.onnx")
    parts.ir_version = skeletons.ir_version
    onnx.save(merge(skeletons, temperature, parts), file)
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 1, (5, *window.shape[1:])).astype(np.float32)
    mixed, alone = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (file, base / "model.onnx")
    )
    for given in (window, noise):
        with torch.inference_mode():
            bare, gain, extra = (part.numpy() for part in branch(torch.from_numpy(given)))
        expected = alone.run(None, {INPUT: np.ascontiguousarray(bare)})[0] / temperature * gain + extra
        worst = float(np.abs(mixed.run(None, {INPUT: given})[0] - expected).max())
        print(f"the graph against its parts, batch {len(given)}: at most {worst:.2e} apart")
        if worst > 1e-4:
            raise SystemExit("the graph does not compute what its parts do")
    write_golden(bundle / GOLDEN, {INPUT: window}, {OUTPUT: mixed.run(None, {INPUT: window})[0]})


def seal(bundle: Path, recipe: Recipe, version: str, found: dict[str, object]) -> None:
    """The manifest. The figures on the development clips are those of `evaluate action`, see the card."""
    fields = manifest_fields(
        bundle,
        recipe,
        version,
        1.0,
        {**found, "ms_per_window_one_core": round(_milliseconds(bundle), 2), "recipe": recipe.digest},
    )
    preprocessing = {"kind": "skeleton", "channels": ["x", "y", "score", "change"], "rate_hz": recipe.window.rate_hz}
    fields["inputs"] = [{"name": INPUT, "shape": ["batch", *SHAPE[:-1], 4], "preprocessing": preprocessing}]
    seal_bundle(bundle, fields)
    print(load_bundle(bundle).title)


def _milliseconds(bundle: Path) -> float:
    return milliseconds(bundle, example()[:1])


def cross_probabilities(mixer: Mixer, clips: Clips) -> Array:
    """(clips,): each fold mixed by figures that are fitted to the others."""
    found, scenes = mixer.judged(np.ones(len(clips.fold), bool))
    probability = np.zeros(len(found))
    for number in np.unique(clips.fold).tolist():
        held = clips.fold == number
        probability[held] = mixer.mixed(mixer.fitted(~held, found, scenes), found)[held]
    return probability


def rounded(probability: Array, label: NDArray[np.integer]) -> dict[str, float]:
    """The figures, short."""
    return {name: round(value, 4) for name, value in figures(probability, label).items() if isinstance(value, float)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("service", choices=sorted(RECIPES))
    for name in ("windows", "data", "base", "folds", "out", "bundle"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--drawn", type=Path, nargs="+", required=True, help="of drawn.py; two files or more")
    parser.add_argument("--calibration", type=Path, required=True, help="of simulated.py, seeds that trained nothing")
    parser.add_argument("--share", type=float, help="weight of made windows in the calibration; default: the recipe's")
    parser.add_argument("--version", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe, samples = RECIPES[arguments.service], Samples.load(arguments.windows, channels=4)
    clips = Clips(arguments.service, samples, arguments.data, dev_too=True)
    margin = read_folds(arguments.folds, samples, clips)
    manifest = load_bundle(arguments.base).manifest
    temperature = manifest.outputs[0].temperature
    session = onnxruntime.InferenceSession(arguments.base / "model.onnx", providers=["CPUExecutionProvider"])
    drawn = read_drawn(arguments.drawn, recipe, session, temperature)
    share = recipe.calibration_simulated if arguments.share is None else arguments.share
    mixer = Mixer(recipe, samples, clips, margin, drawn, share=share)
    calm = simulated_pool([arguments.calibration], recipe.service)
    made = skeletons_of(calm.tensor, session, temperature)

    probability = cross_probabilities(mixer, clips)
    write_predictions(arguments.out, recipe, samples, clips, probability)
    train = clips.split == "train"
    found, scenes = mixer.judged(train)
    line, still = mixer.fitted(train, found, scenes), mixer.fitted_still(train, made, calm.label)
    forest = mixer.forest(train, np.ones(len(drawn.label), bool))
    write_graph(arguments.bundle, arguments.base, temperature, ChangeBranch(forest, line, still).eval())
    alone = np.where(margin > NOBODY, sigmoid(margin), 0.0)
    results: dict[str, object] = {
        "cross": rounded(probability, clips.label),
        "folds": rounded(mixer.mixed(line, found)[train], clips.label[train]),
        "change": dict(zip(NAMES, np.round(line, 4).tolist(), strict=True)),
        "still": dict(zip(NAMES, np.round(still, 4).tolist(), strict=False)),
    }
    seal(arguments.bundle, recipe, arguments.version, results)
    results |= {
        "folds, skeletons alone": rounded(alone[train], clips.label[train]),
        "drawn": rounded(mixer.mixed_scenes(line, scenes), drawn.label),
        "drawn, skeletons alone": rounded(sigmoid(drawn.skeletons.margin), drawn.label),
        "drawn, change alone": rounded(sigmoid(scenes), drawn.label),
        "calm": rounded(sigmoid(made.design() @ still), calm.label),
        "calm, skeletons alone": rounded(sigmoid(made.margin), calm.label),
        "by source": by_group(clips.group, probability, clips.label),
    }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
