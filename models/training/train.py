"""Train a service's model: grouped folds for the figures and the calibration, then the release on all training clips.

    python models/training/train.py fight --windows runs/fight.npz --data DATA --out runs/fight [--synthetic runs/mocap.npz]
    python models/training/train.py fight ... --stage pretrain|folds|release|dev

pretrain: a network on the synthetic windows alone; the others start from it when its file is there.
folds: five folds of the training clips, grouped by source video (falls: by subject), so a camera is never on both sides.
release: the networks that ship, on all training clips. dev: the figures on the development clips, to be run once, last.
Every network is a file in --out and is not trained again when it is there, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch
from clips import Samples
from fit import Pool, fit, margins
from metrics import calibrate, figures, sigmoid
from network import SlimSTGCN
from numpy.typing import NDArray
from recipes import RECIPES, Recipe

FOLDS = 5
NOBODY = -20.0
"""Margin of a clip without a window: nobody was seen well enough, so the agent says nothing."""
TEST_VARIANT = "481x641"
"""Figures are for the estimator that the shipped configuration names, at the clips' own frame rate."""


class Clips:
    """What is known about each clip of `samples`: label, split and group, as arrays over `samples.files`."""

    def __init__(self, service: str, samples: Samples, data: Path) -> None:
        with (data / "fight" / "sources.csv").open(newline="") as stream:
            groups = {f"fight/{row['file']}": f"fight:{row['source']}" for row in csv.DictReader(stream)}
        with (data / "fight" / "clips.csv").open(newline="") as stream:
            rows = {f"fight/{row['file']}": row for row in csv.DictReader(stream)}
        with (data / "fall" / "clips.csv").open(newline="") as stream:
            falls = {f"fall/{row['file']}": row for row in csv.DictReader(stream)}
        groups |= {file: f"fall:{row['subject']}" for file, row in falls.items()}
        self.group = np.array([groups[file] for file in samples.files])
        self.split = np.array([rows[file]["split"] if file in rows else "train" for file in samples.files])
        positive = {file for file, row in rows.items() if row["label"] == "fight"} if service == "fight" else {
            file for file, row in falls.items() if row["kind"] == "fall"
        }  # fmt: skip
        self.label = np.array([file in positive for file in samples.files]).astype(int)
        self.fold = self._folds(service)

    def _folds(self, service: str) -> NDArray[np.int64]:
        """Greedy: the largest groups first, each to the fold with the fewest clips of its majority label."""
        fold = np.full(len(self.group), -1)
        if service == "fall":  # two subjects; the fight data set's sources are negatives, spread over both
            names = sorted(set(self.group.tolist()))
            number = {name: (0 if name.endswith("subject2") else 1) if name.startswith("fall:") else index % 2
                      for index, name in enumerate(names)}  # fmt: skip
            return np.array([number[name] for name in self.group])
        train = self.split == "train"
        names, counts = np.unique(self.group[train], return_counts=True)
        load = np.zeros((FOLDS, 2))
        for name in names[np.lexsort((names, -counts))]:
            rows = train & (self.group == name)
            content = np.bincount(self.label[rows], minlength=2)
            cost = ((load + content) ** 2).sum(axis=1) - (load**2).sum(axis=1)
            best = int(np.argmin(cost))
            fold[rows] = best
            load[best] += content
        return fold


def pool_of(recipe: Recipe, samples: Samples, clips: Clips, use: NDArray[np.bool_], synthetic: Path | None) -> Pool:
    """The windows of the clips in `use`; each label half of the weight, within it each clip the same."""
    rows = use[samples.clip] & (samples.label >= 0)
    tensor, label, clip = samples.tensor[rows], samples.label[rows], samples.clip[rows]
    pair = clip.astype(np.int64) * 2 + label
    _, inverse, count = np.unique(pair, return_inverse=True, return_counts=True)
    weight = 1 / count[inverse]
    if recipe.service == "fall":  # the fight data set's clips are many: together half of the negatives
        other = np.char.startswith(clips.group[clip], "fight:")
        weight[other] *= (weight[(label == 0) & ~other].sum()) / max(weight[other].sum(), 1e-9)
    for value in (0, 1):
        weight[label == value] /= max(weight[label == value].sum(), 1e-9)
    if synthetic is not None:
        extra = synthetic_pool(synthetic)
        tensor, label = np.concatenate((tensor, extra.tensor)), np.concatenate((label, extra.label))
        weight = np.concatenate((weight, extra.weight))
    # An empty window is nothing: one row of zeros that is drawn now and then.
    tensor = np.concatenate((tensor, np.zeros_like(tensor[:1])))
    return Pool(tensor, np.append(label, np.int8(0)), np.append(weight, 0.01 * weight.sum()))


def network_at(file: Path, recipe: Recipe, pool: Pool, seed: int) -> SlimSTGCN:
    """Load it, or train and save it."""
    network = SlimSTGCN(width=recipe.width, drop=recipe.drop, wide=recipe.wide)
    if file.is_file():
        network.load_state_dict(torch.load(file, weights_only=True))
        return network.eval()
    pretrained = file.parent / "pretrained.pt"
    start: SlimSTGCN | None = None
    if pretrained.is_file():
        start = SlimSTGCN(width=recipe.width, drop=recipe.drop)
        start.load_state_dict(torch.load(pretrained, weights_only=True))
    network = fit(recipe, pool, seed, start)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), file)
    return network


def clip_margins(networks: list[SlimSTGCN], samples: Samples, use: NDArray[np.bool_], variant: str) -> dict[int, float]:
    """Highest mean margin over a clip's windows, as `evaluate action` takes it; clips without a window are missing."""
    rows = np.flatnonzero(use[samples.clip] & (samples.variant == variant) & samples.regular)
    margin = np.mean([margins(network, samples.tensor[rows]) for network in networks], axis=0)
    best: dict[int, float] = {}
    for row, value in zip(rows.tolist(), margin.tolist(), strict=True):
        clip = int(samples.clip[row])
        best[clip] = max(value, best.get(clip, -np.inf))
    return best


def synthetic_pool(file: Path) -> Pool:
    """The windows of make_synthetic.py, both labels alike."""
    with np.load(file) as arrays:
        tensor, label = arrays["tensor"], arrays["label"]
    return Pool(tensor, label, 0.5 / np.bincount(label)[label])


def by_group(group: NDArray[np.str_], probability: NDArray[np.float64], label: NDArray[np.int64]) -> dict[str, str]:
    """Per source: right calls of all, as `5/7`. A model may have learnt the camera in place of the action."""
    right = (probability >= 0.5) == (label == 1)
    return {str(name): f"{int(right[group == name].sum())}/{int((group == name).sum())}" for name in np.unique(group)}


def run_folds(recipe: Recipe, samples: Samples, clips: Clips, out: Path, synthetic: Path | None) -> dict[str, object]:
    """Out-of-fold margins -> calibration and figures, saved as folds.json."""
    margin: dict[int, float] = {}
    by_fold = []
    for number in sorted(set(clips.fold[clips.fold >= 0].tolist())):
        held = clips.fold == number
        pool = pool_of(recipe, samples, clips, (clips.fold >= 0) & ~held, synthetic)
        networks = [network_at(out / f"fold{number}-{seed}.pt", recipe, pool, seed) for seed in range(recipe.members)]
        found = clip_margins(networks, samples, held, TEST_VARIANT)
        margin |= found
        index = np.flatnonzero(held)
        p = sigmoid(np.array([found.get(i, NOBODY) for i in index.tolist()]))
        by_fold.append(figures(p, clips.label[index]))
        print(f"fold {number}: {by_fold[-1]}", flush=True)
    index = np.array(sorted(margin))
    temperature, shift = calibrate(np.array([margin[i] for i in index]), clips.label[index])
    everyone = np.flatnonzero(clips.fold >= 0)
    values = np.array([margin.get(i, NOBODY) for i in everyone.tolist()])
    calibrated = sigmoid((values + shift) / temperature)
    result: dict[str, object] = {
        "raw": figures(sigmoid(values), clips.label[everyone]),
        "calibrated": figures(calibrated, clips.label[everyone]),
        "folds": by_fold,
        "by_source": by_group(clips.group[everyone], calibrated, clips.label[everyone]),
        "temperature": temperature,
        "shift": shift,
        "without_window": [samples.files[i] for i in everyone.tolist() if i not in margin],
        "margins": {samples.files[i]: margin[i] for i in index.tolist()},
    }
    (out / "folds.json").write_text(json.dumps(result, indent=1))
    print(json.dumps({key: result[key] for key in ("raw", "calibrated", "temperature", "shift")}, indent=1))
    return result


def run_release(recipe: Recipe, samples: Samples, clips: Clips, out: Path, synthetic: Path | None) -> list[SlimSTGCN]:
    """The networks that ship: all training clips."""
    pool = pool_of(recipe, samples, clips, clips.split == "train", synthetic)
    return [network_at(out / f"release-{seed}.pt", recipe, pool, 100 + seed) for seed in range(recipe.members)]


def run_dev(networks: list[SlimSTGCN], samples: Samples, clips: Clips, out: Path) -> None:
    """Figures on clips that no choice has seen."""
    folds = json.loads((out / "folds.json").read_text())
    dev = clips.split == "dev"
    found = clip_margins(networks, samples, dev, TEST_VARIANT)
    values = np.array([found.get(i, NOBODY) for i in np.flatnonzero(dev).tolist()])
    p = sigmoid((values + folds["shift"]) / folds["temperature"])
    result: dict[str, object] = dict(figures(p, clips.label[dev]))
    result["by_source"] = by_group(clips.group[dev], p, clips.label[dev])
    result["probabilities"] = {
        samples.files[i]: round(float(q), 4) for i, q in zip(np.flatnonzero(dev).tolist(), p, strict=True)
    }
    (out / "dev.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("service", choices=sorted(RECIPES))
    parser.add_argument("--windows", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path)
    parser.add_argument("--stage", choices=("pretrain", "folds", "release", "dev"), default="folds")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = RECIPES[arguments.service]
    if arguments.stage == "pretrain":
        network_at(arguments.out / "pretrained.pt", recipe.pretraining(), synthetic_pool(arguments.synthetic), 0)
        return
    samples = Samples.load(arguments.windows)
    clips = Clips(arguments.service, samples, arguments.data)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "folds":
        run_folds(recipe, samples, clips, arguments.out, arguments.synthetic)
        return
    networks = run_release(recipe, samples, clips, arguments.out, arguments.synthetic)
    if arguments.stage == "dev":
        run_dev(networks, samples, clips, arguments.out)


if __name__ == "__main__":
    main()
