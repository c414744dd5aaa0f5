"""Train a service's model: grouped folds for the figures and the calibration, then the release on all training clips.

    python models/training/train.py fight --windows runs/fight.npz --data DATA --out runs/fight \
        --simulated runs/simulated-train.npz --stage folds

pretrain: a network on made windows alone (simulated scenes, synthetic falls); the others start from it when its file is there.
folds: five folds of the training clips, grouped by source video (falls: by subject), so a camera is never on both sides.
cross: the same over the development clips too, for the figure over all clips; nothing is chosen or shipped from it.
--calibration: simulated windows of other seeds, which have their share in the calibration.
release: the networks that ship, on all training clips. dev: the figures on the development clips, to be run once, last.
Every network is a file in --out and is not trained again when it is there, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from clips import Samples
from clipset import Clips
from fit import Pool, augmented, fit, margins, statistics
from forest import Forest, grow
from metrics import MadeMargins, calibrate_both, cross_fitted, figures, joined, sigmoid
from network import Mixture, SlimSTGCN
from numpy.typing import NDArray
from pools import mixed, real_pool, real_rows, seeds_of, simulated_pool, synthetic_pool, with_nobody
from recipes import RECIPES, Recipe

NOBODY = -20.0
"""Margin of a clip without a window: nobody was seen well enough, so the agent says nothing."""
FOREST_WINDOWS = 3000
"""Simulated windows of each label that a forest is grown on; more bring nothing, and every one costs time."""
TESTED = ("481x641", "nano")
"""Figures are for poses of the first of these that the windows hold, at the clips' own frame rate: those of PoseNet as its configuration names
it, or of pose-nano where a model is trained on nothing else."""
SYNTHETIC, SYNTHETIC_BESIDE_SCENES = 1 / 3, 0.1
"""Share of the motion-capture falls where they are used: alone, and beside simulated scenes."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where things are: the folder of networks, made windows beside the real ones, and others to calibrate on (None = none)."""

    out: Path
    synthetic: Path | None
    simulated: tuple[Path, ...] = ()
    calibration: Path | None = None

    def made(self, recipe: Recipe) -> list[tuple[Pool, float]]:
        """The made windows and their shares of all."""
        pools = []
        if self.synthetic is not None:
            pools.append((synthetic_pool(self.synthetic), SYNTHETIC_BESIDE_SCENES if self.simulated else SYNTHETIC))
        if self.simulated:
            scenes = simulated_pool(self.simulated, recipe.service)
            scenes = replace(scenes, doubt=np.full_like(scenes.doubt, recipe.doubt_of_made))
            pools.append((scenes, recipe.simulated))
        return pools


class ForestTable:
    """What forests are grown on: the statistics of every real window and of some simulated ones, computed once."""

    def __init__(self, recipe: Recipe, samples: Samples, files: Files) -> None:
        self._recipe = recipe
        self._label = samples.label
        self._real = statistics(samples.tensor)
        self._made: tuple[NDArray[np.float64], Pool] | None = None
        if files.simulated:
            made = simulated_pool(files.simulated, recipe.service, FOREST_WINDOWS)
            # Real clips are short, simulated windows full: those come cropped and disturbed.
            self._made = statistics(augmented(made.tensor, seed=0)), made

    def grow(self, rows: NDArray[np.intp], weight: NDArray[np.float64]) -> Forest:
        """A forest on these real windows and the simulated ones."""
        features, label = self._real[rows], self._label[rows]
        if self._made is not None:
            made_features, made = self._made
            share = self._recipe.forest_simulated
            scale = weight.sum() * share / (1 - share) / made.weight.sum()
            features = np.concatenate((features, made_features))
            label = np.concatenate((label, made.label))
            weight = np.concatenate((weight, made.weight * scale))
        recipe = self._recipe
        return grow(features, label, weight, trees=recipe.trees, leaf=recipe.leaf, share=recipe.features, seed=0)


class Trainer:
    """Models on chosen clips: loaded, or trained and saved."""

    def __init__(self, recipe: Recipe, samples: Samples, clips: Clips, files: Files) -> None:
        self.recipe, self.samples, self.clips, self.files = recipe, samples, clips, files
        self._table: ForestTable | None = None
        self._made: list[tuple[Pool, float]] | None = None
        self._calibration: Pool | None = None

    def model(self, name: str, members: int, seed: int, use: NDArray[np.bool_]) -> Mixture:
        """`members` networks and the forest, called `name`, of the clips in `use`."""
        forest = self._forest(name, use) if self.recipe.trees else None
        networks = [self._network(f"{name}-{number}.pt", seed + number, use) for number in range(members)]
        return Mixture(networks, forest, self.recipe.forest_weight).eval()

    def _network(self, name: str, seed: int, use: NDArray[np.bool_]) -> SlimSTGCN:
        file, recipe = self.files.out / name, self.recipe
        if file.is_file():
            return _loaded(file, recipe)
        pretrained = file.parent / "pretrained.pt"
        start = _loaded(pretrained, recipe) if pretrained.is_file() else None
        if start is None:
            print(f"no {pretrained}: {name} begins with random weights", flush=True)
        network = fit(recipe, self._pool(use), seed, start)
        _save(network, file)
        return network

    def _pool(self, use: NDArray[np.bool_]) -> Pool:
        real = real_pool(self.recipe.service, self.samples, self.clips, use)
        self._made = self.files.made(self.recipe) if self._made is None else self._made
        return with_nobody(mixed([(real, 1 - sum(share for _, share in self._made)), *self._made]))

    def made_margins(self, model: Mixture) -> list[MadeMargins]:
        """What `model` says of the windows of `--calibration`; empty where there are none."""
        if self.files.calibration is None:
            return []
        if self._calibration is None:
            self._calibration = simulated_pool([self.files.calibration], self.recipe.service)
        pool = self._calibration
        if not len(pool.label):
            raise SystemExit(f"{self.files.calibration}: no windows of {self.recipe.service} to calibrate on")
        return [MadeMargins(margins(model, pool.tensor), pool.label, self.recipe.calibration_simulated)]

    def _forest(self, name: str, use: NDArray[np.bool_]) -> Forest:
        file = self.files.out / f"{name}-forest.pt"
        if file.is_file():
            return Forest.loaded(torch.load(file, weights_only=True))
        if self._table is None:
            self._table = ForestTable(self.recipe, self.samples, self.files)
        forest = self._table.grow(*real_rows(self.recipe.service, self.samples, self.clips, use))
        _save(forest, file)
        return forest


def _loaded(file: Path, recipe: Recipe) -> SlimSTGCN:
    network = SlimSTGCN(width=recipe.width, drop=recipe.drop, wide=recipe.wide)
    network.load_state_dict(torch.load(file, weights_only=True))
    return network.eval()


def _save(module: torch.nn.Module, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), file)


def tested_variant(samples: Samples) -> str:
    """The poses that figures are for. Raises SystemExit where there are no such."""
    there = set(samples.variant.tolist())
    for variant in TESTED:
        if variant in there:
            return variant
    raise SystemExit(f"no windows of the poses {' or '.join(TESTED)}, only of {', '.join(sorted(there))}")


def tested_rows(samples: Samples, use: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The windows that the agent itself would make of the clips in `use`, with the poses of `tested_variant`."""
    return np.flatnonzero(use[samples.clip] & (samples.variant == tested_variant(samples)) & samples.regular)


def clip_margins(model: Mixture, samples: Samples, use: NDArray[np.bool_]) -> dict[int, float]:
    """Highest margin over a clip's windows at the recipe's stride; clips without a window are missing.

    The shipped stride is shorter, so `evaluate action` sees more windows of a clip that is longer than one.
    """
    rows = tested_rows(samples, use)
    best: dict[int, float] = {}
    for row, value in zip(rows.tolist(), margins(model, samples.tensor[rows]).tolist(), strict=True):
        clip = int(samples.clip[row])
        best[clip] = max(value, best.get(clip, -np.inf))
    return best


def by_group(group: NDArray[np.str_], probability: NDArray[np.float64], label: NDArray[np.int64]) -> dict[str, str]:
    """Per source: right calls of all, as `5/7`. A model may have learnt the camera in place of the action."""
    right = (probability >= 0.5) == (label == 1)
    return {str(name): f"{int(right[group == name].sum())}/{int((group == name).sum())}" for name in np.unique(group)}


def run_folds(trainer: Trainer, stage: str, members: int) -> None:
    """Out-of-fold margins -> calibration and figures, saved as STAGE.json; every clip's probability as STAGE.csv."""
    samples, clips = trainer.samples, trainer.clips
    prefix = "cross" if stage == "cross" else "fold"
    margin = np.full(len(clips.fold), NOBODY)
    others: list[MadeMargins] = []
    for number in sorted(set(clips.fold[clips.fold >= 0].tolist())):
        held = clips.fold == number
        model = trainer.model(f"{prefix}{number}", members, 0, (clips.fold >= 0) & ~held)
        for clip, value in clip_margins(model, samples, held).items():
            margin[clip] = value
        others += trainer.made_margins(model)
        print(f"fold {number}: {figures(sigmoid(margin[held]), clips.label[held])}", flush=True)
    everyone, seen = clips.fold >= 0, (clips.fold >= 0) & (margin > NOBODY)
    made = joined(others)
    temperature, shift = calibrate_both(margin[seen], clips.label[seen], made)
    calibrated = np.zeros(len(margin))
    calibrated[seen] = cross_fitted(margin[seen], clips.label[seen], clips.fold[seen], made)
    result: dict[str, object] = {
        "raw": figures(sigmoid(margin[everyone]), clips.label[everyone]),
        "cross_fitted": figures(calibrated[everyone], clips.label[everyone]),
        "folds": [
            figures(calibrated[clips.fold == k], clips.label[clips.fold == k]) for k in np.unique(clips.fold[everyone])
        ],
        "by_source": by_group(clips.group[everyone], calibrated[everyone], clips.label[everyone]),
        "made": figures(sigmoid((made.margin + shift) / temperature), made.label) if made else None,
        "members": members,
        "forest_weight": trainer.recipe.forest_weight,
        "temperature": temperature,
        "shift": shift,
        "without_window": [samples.files[i] for i in np.flatnonzero(everyone & ~seen).tolist()],
        "margins": {samples.files[i]: float(margin[i]) for i in np.flatnonzero(seen).tolist()},
    }
    (trainer.files.out / f"{stage}.json").write_text(json.dumps(result, indent=1))
    write_predictions(trainer.files.out / f"{stage}.csv", trainer.recipe, samples, clips, calibrated)
    print(json.dumps({key: result[key] for key in ("raw", "cross_fitted", "made", "temperature", "shift")}, indent=1))


def write_predictions(
    file: Path, recipe: Recipe, samples: Samples, clips: Clips, probability: NDArray[np.float64]
) -> None:
    """Every clip as judged by a model that saw nothing of its source: what `evaluate action --predictions` reads."""
    with file.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("file", "label", "source", "fold", "probability", "recipe"))
        for row in np.flatnonzero(clips.fold >= 0).tolist():
            label = recipe.service if clips.label[row] else recipe.negative
            source = clips.group[row].partition(":")[2]
            table.writerow(
                (samples.files[row], label, source, clips.fold[row], f"{probability[row]:.4f}", recipe.digest)
            )


def run_dev(model: Mixture, trainer: Trainer) -> None:
    """Figures on clips that no choice has seen."""
    samples, clips, files = trainer.samples, trainer.clips, trainer.files
    folds = json.loads((files.out / "folds.json").read_text())
    dev = clips.split == "dev"
    found = clip_margins(model, samples, dev)
    values = np.array([found.get(i, NOBODY) for i in np.flatnonzero(dev).tolist()])
    p = np.where(values > NOBODY, sigmoid((values + folds["shift"]) / folds["temperature"]), 0.0)
    result: dict[str, object] = dict(figures(p, clips.label[dev]))
    result["by_source"] = by_group(clips.group[dev], p, clips.label[dev])
    result["probabilities"] = {
        samples.files[i]: round(float(q), 4) for i, q in zip(np.flatnonzero(dev).tolist(), p, strict=True)
    }
    (files.out / "dev.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("service", choices=sorted(RECIPES))
    parser.add_argument("--windows", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path, help="of make_synthetic.py")
    parser.add_argument("--simulated", type=Path, nargs="+", default=[], help="of simulated.py")
    parser.add_argument("--calibration", type=Path, help="of simulated.py, other seeds: windows that only calibrate")
    parser.add_argument("--stage", choices=("pretrain", "folds", "cross", "release", "dev"), default="folds")
    parser.add_argument("--members", type=int, help="networks a fold; default: as many as the recipe releases")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = RECIPES[arguments.service]
    files = Files(arguments.out, arguments.synthetic, tuple(arguments.simulated), arguments.calibration)
    if arguments.stage == "pretrain":
        made, file = files.made(recipe), arguments.out / "pretrained.pt"
        if not made:
            parser.error("--stage pretrain needs --simulated or --synthetic")
        if not file.is_file():
            _save(fit(recipe.pretraining(), mixed(made), 0), file)
        return
    shared = seeds_of(files.simulated) & seeds_of([files.calibration] if files.calibration else [])
    if shared:
        parser.error(f"--calibration has {len(shared)} seeds of --simulated: it would calibrate on what was trained on")
    samples = Samples.load(arguments.windows)
    clips = Clips(arguments.service, samples, arguments.data, dev_too=arguments.stage == "cross")
    trainer = Trainer(recipe, samples, clips, files)
    if arguments.stage in {"folds", "cross"}:
        run_folds(trainer, arguments.stage, arguments.members or recipe.members)
        return
    model = trainer.model("release", recipe.members, 100, clips.split == "train")
    if arguments.stage == "dev":
        run_dev(model, trainer)


if __name__ == "__main__":
    main()
