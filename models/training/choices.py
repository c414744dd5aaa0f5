"""What networks, the forest and other poses give: mixtures of the folds' models that `train.py --stage folds` left, judged again.

    python models/training/choices.py fight --windows runs/fight.npz --data DATA --runs runs/fight --out choices.csv

Each training clip is judged by models that saw nothing of its source, uncalibrated, called at even odds. Nothing is trained.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from clips import Samples
from clipset import Clips
from export import load_parts
from fit import margins
from metrics import figures, sigmoid
from network import Mixture
from recipes import RECIPES, Recipe
from train import NOBODY, tested_variant

ENOUGH = 0.8
"""Of the windows that the shipped estimator's poses give: others say more about missing windows than about models."""
FOREST_WEIGHTS = (0.0, 0.15, 0.3, 0.5, 1.0)


def mixtures(recipe: Recipe) -> Iterator[tuple[int, float]]:
    """(networks, weight of the forest) to try."""
    for members in sorted({1, recipe.members}):
        for weight in FOREST_WEIGHTS if recipe.trees else (0.0,):
            if weight < 1 or members == 1:  # a forest alone needs no network
                yield members, weight


def judged(recipe: Recipe, runs: Path, samples: Samples, clips: Clips, variant: str) -> Iterator[dict[str, object]]:
    """A row for each mixture: accuracy, auc and f1 over the training clips with the poses `variant`."""
    rows = np.flatnonzero((samples.variant == variant) & samples.regular)
    folds = np.unique(clips.fold[clips.fold >= 0]).tolist()
    parts = {number: load_parts(recipe, runs, f"fold{number}") for number in folds}
    for members, weight in mixtures(recipe):
        margin = np.full(len(clips.fold), NOBODY)
        for number, (networks, forest) in parts.items():
            held = rows[(clips.fold == number)[samples.clip[rows]]]
            model = Mixture(networks[:members], forest, weight).eval()
            np.maximum.at(margin, samples.clip[held], margins(model, samples.tensor[held]))
        everyone = clips.fold >= 0
        found = figures(sigmoid(margin[everyone]), clips.label[everyone])
        row: dict[str, object] = {"poses": variant, "networks": members, "forest": weight}
        yield row | {name: f"{found[name]:.4f}" for name in ("accuracy", "auc", "f1")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("service", choices=sorted(RECIPES))
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="where train.py left the folds' models")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    samples = Samples.load(arguments.windows)
    clips, recipe = Clips(arguments.service, samples, arguments.data), RECIPES[arguments.service]
    windows = {
        name: np.count_nonzero(samples.regular & (samples.variant == name)) for name in set(samples.variant.tolist())
    }
    tested = tested_variant(samples)
    variants = [name for name, count in windows.items() if count >= ENOUGH * windows[tested]]
    variants.sort(key=lambda name: (name != tested, name))
    table = [row for name in variants for row in judged(recipe, arguments.runs, samples, clips, name)]
    with arguments.out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, table[0])
        writer.writeheader()
        writer.writerows(table)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
