"""What single choices give: each left out or changed by itself, folds grouped by source (falls: by subject).

    python models/training/ablate.py fight --windows runs/fight.npz --data DATA --out runs/ablations [--only NAME...]

One network a fold on real clips alone, from random weights: what is compared are the choices, not what ships. Every finished
line is kept in OUT/SERVICE-ablations.csv and not computed again. The sampling error of 160 clips is 0.03, so smaller differences are hints.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from augment import augment
from clips import Samples
from clipset import Clips
from fit import Pool, fit, margins
from metrics import figures, sigmoid
from network import Mixture, SlimSTGCN
from numpy.typing import NDArray
from pools import real_pool
from recipes import RECIPES
from torch import Tensor, nn
from train import NOBODY, tested_rows

Windows = NDArray[np.float16]
JOINTS, BONES, MOTION, SCORE, NEARNESS = (0, 1), (2, 3), (4, 5, 7, 8), (6,), (9, 10, 11, 12)
"""Channels of `network.Streams`."""


@dataclass(frozen=True, slots=True)
class Change:
    """One choice made otherwise. off: channels of the streams that are nought; people, steps: of the window that are kept (the
    best, the newest); augmented, statistics: whether these are used."""

    off: tuple[int, ...] = ()
    people: int = 4
    steps: int = 100
    augmented: bool = True
    statistics: bool = True

    def windows(self, tensor: Windows) -> Windows:
        """(N, M, T, V, 3) with what is left out set to nought."""
        kept = tensor.copy()
        kept[:, self.people :] = 0
        kept[:, :, : tensor.shape[2] - self.steps] = 0
        return kept


CHANGES = {
    "as it is": Change(),
    "joints alone": Change(off=BONES + MOTION + NEARNESS),
    "bones alone": Change(off=JOINTS + MOTION + NEARNESS),
    "motion alone": Change(off=JOINTS + BONES + NEARNESS),
    "without joints": Change(off=JOINTS),
    "without bones": Change(off=BONES),
    "without motion": Change(off=MOTION),
    "without nearness": Change(off=NEARNESS),
    "without scores": Change(off=SCORE),
    "without the statistics past the convolutions": Change(statistics=False),
    "two people": Change(people=2),
    "one person": Change(people=1),
    "50 steps": Change(steps=50),
    "without augmentation": Change(augmented=False),
}


def silence(off: Sequence[int], network: SlimSTGCN) -> None:
    """Make these channels of its streams nought, now and in copies of it."""
    if off:
        network.streams.register_forward_hook(partial(_silenced, off=tuple(off)))


def _silenced(
    _module: nn.Module, _inputs: tuple[Tensor], output: tuple[Tensor, Tensor], *, off: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    features, present = output
    kept = torch.ones(features.shape[2], dtype=features.dtype)
    kept[list(off)] = 0
    return features * kept[None, None, :, None, None], present


def _as_it_is(window: Tensor, _generator: torch.Generator) -> Tensor:
    return window


def out_of_fold(service: str, change: Change, samples: Samples, clips: Clips) -> dict[str, float]:
    """Figures over the training clips, each judged by a network that saw nothing of its source."""
    recipe = RECIPES[service]
    recipe = replace(recipe, wide=recipe.wide and change.statistics)
    margin = np.full(len(clips.fold), NOBODY)
    disturb: Callable[[Tensor, torch.Generator], Tensor] = augment if change.augmented else _as_it_is
    for number in sorted(set(clips.fold[clips.fold >= 0].tolist())):
        held = clips.fold == number
        pool = real_pool(service, samples, clips, (clips.fold >= 0) & ~held)
        pool = Pool(change.windows(pool.tensor), pool.label, pool.weight, pool.doubt)
        network = fit(recipe, pool, number, note=lambda _: None, change=partial(silence, change.off), disturb=disturb)
        rows = tested_rows(samples, held)
        found = margins(Mixture([network]).eval(), change.windows(samples.tensor[rows]))
        np.maximum.at(margin, samples.clip[rows], found)
    everyone = clips.fold >= 0
    return figures(sigmoid(margin[everyone]), clips.label[everyone])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("service", choices=sorted(RECIPES))
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=sorted(CHANGES), default=list(CHANGES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    samples = Samples.load(arguments.windows)
    clips = Clips(arguments.service, samples, arguments.data)
    table = arguments.out / f"{arguments.service}-ablations.csv"
    arguments.out.mkdir(parents=True, exist_ok=True)
    done = {row["choice"] for row in csv.DictReader(table.open(newline=""))} if table.is_file() else set()
    for name in arguments.only:
        if name in done or (CHANGES[name].statistics is False and not RECIPES[arguments.service].wide):
            continue
        found = out_of_fold(arguments.service, CHANGES[name], samples, clips)
        row = {"choice": name, **{key: f"{found[key]:.4f}" for key in ("accuracy", "auc", "f1")}}
        fresh = not table.is_file()
        with table.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, row)
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
