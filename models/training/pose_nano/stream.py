"""Sample numbers -> batches: number n is the same picture whenever and wherever it is made, so a run resumes exactly."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pose_nano.augment import Recipe, view
from pose_nano.losses import Batch
from pose_nano.store import Sample, Shard
from pose_nano.targets import Targets, draw


@dataclass(frozen=True, slots=True)
class Source:
    """A shard and how often it is drawn from, relative to the others."""

    folder: Path
    share: float


class Views(Dataset[dict[str, Tensor]]):
    """Augmented pictures by number, with their targets."""

    def __init__(self, sources: Sequence[Source], recipe: Recipe, seed: int) -> None:
        self._sources, self._recipe, self._seed = sources, recipe, seed
        self._shards: list[Shard] = []  # opened where they are read: memory maps do not travel well between processes
        shares = np.array([source.share for source in sources])
        self._shares = shares / shares.sum()

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        self._shards = self._shards or [Shard(source.folder) for source in self._sources]
        rng = np.random.default_rng([self._seed, number])
        sample = view(lambda: self._draw(rng), self._recipe, rng)
        targets = draw(sample.people, *self._recipe.canvas)
        arrays = {
            field.name: torch.from_numpy(np.ascontiguousarray(getattr(targets, field.name)))
            for field in fields(Targets)
        }
        return {"image": torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1))), **arrays}

    def _draw(self, rng: np.random.Generator) -> Sample:
        shard = self._shards[int(rng.choice(len(self._shards), p=self._shares))]
        return shard[int(rng.integers(len(shard)))]


def batches(views: Views, first: int, size: int, *, workers: int, core: int | None) -> Iterator[tuple[Tensor, Batch]]:
    """Endless batches from sample number `first` on: images (B, 3, H, W) float32, and targets.

    core: the CPU that the workers keep to, None = any.
    """
    loader = DataLoader(
        views,
        batch_size=size,
        sampler=range(first, 1 << 40),  # type: ignore[arg-type]  # any iterable with a length does
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=lambda _: _settle(core),
    )
    for content in loader:
        image = content.pop("image").float().contiguous(memory_format=torch.channels_last)
        yield image, Batch(**content)


def _settle(core: int | None) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if core is not None:
        os.sched_setaffinity(0, {core})
