"""Sample numbers -> batches: number n is the same picture whenever and wherever it is made, so a run resumes exactly."""

from __future__ import annotations

import os
import signal
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pose_nano.augment import Recipe, view
from pose_nano.geometry import checked_size
from pose_nano.losses import Batch
from pose_nano.store import Sample, Shard
from pose_nano.targets import Targets, draw


@dataclass(frozen=True, slots=True)
class Mix:
    """What some of the batches are made of. share: of the batches, relative to the other mixes; sources: shards, and how often
    each is drawn from, relative to the others."""

    sources: Mapping[Path, float]
    recipe: Recipe
    share: float = 1.0


def read_mixes(file: Path, shards: Path) -> list[Mix]:
    """The tables `[[mix]]` of a TOML file: share, sources (folders in `shards`) and the fields of `Recipe`.

    Raises ValueError, with the file's name and what is wrong.
    """
    try:
        tables = tomllib.loads(file.read_text())["mix"]
        return [_mix(table, shards) for table in tables]
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}; wanted: tables [[mix]] with share, sources and fields of Recipe") from error


def _mix(table: dict[str, Any], shards: Path) -> Mix:
    recipe = recipe_of({key: value for key, value in table.items() if key not in {"share", "sources"}})
    sources = {shards / name: float(share) for name, share in table["sources"].items()}
    missing = [str(folder) for folder in sources if not (folder / "people.npz").exists()]
    if missing:
        raise ValueError(f"no shard at {', '.join(missing)}")
    return Mix(sources, recipe, float(table["share"]))


def recipe_of(table: Mapping[str, Any]) -> Recipe:
    """From TOML, where pairs are lists. Raises TypeError, ValueError."""
    pairs = {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
    if "canvas" in pairs:
        height, width = pairs["canvas"]
        pairs["canvas"] = checked_size((height, width))
    return Recipe(**pairs)


class Views(Dataset[dict[str, Tensor]]):
    """Augmented pictures by number, with their targets; all `batch` numbers of one batch are of one mix."""

    def __init__(self, mixes: Sequence[Mix], seed: int, batch: int) -> None:
        self._mixes, self._seed, self.batch = mixes, seed, batch
        # Opened where they are read: memory maps do not travel well between processes.
        self._shards: dict[Path, Shard] = {}

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        shares = [mix.share for mix in self._mixes]
        mix = self._mixes[_chosen(shares, np.random.default_rng([self._seed, number // self.batch, 1]))]
        rng = np.random.default_rng([self._seed, number])
        sample = view(lambda: self._draw(mix.sources, rng), mix.recipe, rng)
        targets = draw(sample.people, *mix.recipe.canvas)
        arrays = {
            field.name: torch.from_numpy(np.ascontiguousarray(getattr(targets, field.name)))
            for field in fields(Targets)
        }
        return {"image": torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1))), **arrays}

    def _draw(self, sources: Mapping[Path, float], rng: np.random.Generator) -> Sample:
        folder = list(sources)[_chosen(list(sources.values()), rng)]
        if folder not in self._shards:
            self._shards[folder] = Shard(folder)
        shard = self._shards[folder]
        return shard[int(rng.integers(len(shard)))]


def _chosen(shares: Sequence[float], rng: np.random.Generator) -> int:
    weights = np.array(shares)
    return int(rng.choice(len(weights), p=weights / weights.sum()))


def batches(
    views: Views, first: int, *, workers: int = 0, core: int | None = None, part: tuple[int, int] = (0, 1)
) -> Iterator[tuple[Tensor, Batch]]:
    """Endless batches from sample number `first` on: images (B, 3, H, W) float32, and targets.

    core: the CPU that the workers keep to, None = any; part: (number, count) of the process among those that share each batch.
    """
    size = views.batch // part[1]
    starts = count(first // views.batch * views.batch + part[0] * size, views.batch)
    loader = DataLoader(
        views,
        batch_sampler=(range(start, start + size) for start in starts),  # type: ignore[arg-type]  # any iterable does
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=lambda _: _settle(core),
    )
    for content in loader:
        image = content.pop("image").float().contiguous(memory_format=torch.channels_last)
        yield image, Batch(**content)


def _settle(core: int | None) -> None:
    # Who ends a group of processes means the trainer, which saves first.
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if core is not None:
        os.sched_setaffinity(0, {core})
