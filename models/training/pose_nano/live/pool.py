"""Pictures and their people in a device's memory, from which batches are drawn; the oldest make room for new ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agent.types import NUM_KEYPOINTS
from pose_nano.store import HEIGHT, WIDTH

MOST_PEOPLE = 12
"""Kept of a picture; a scene has no more."""


@dataclass(frozen=True, slots=True, eq=False)
class Crowd:
    """`Annotations` of B pictures with room for P people each; rows that are not `there` mean nobody.

    boxes (B, P, 4) xyxy px; keypoints (B, P, 17, 2) px; weights, seen (B, P, 17); labelled, there (B, P) bool.
    """

    boxes: Tensor
    keypoints: Tensor
    weights: Tensor
    seen: Tensor
    labelled: Tensor
    there: Tensor

    @classmethod
    def empty(cls, pictures: int, people: int, device: torch.device | None = None) -> Crowd:
        shapes = ((4,), (NUM_KEYPOINTS, 2), (NUM_KEYPOINTS,), (NUM_KEYPOINTS,))
        arrays = [torch.zeros(pictures, people, *shape, device=device) for shape in shapes]
        flags = [torch.zeros(pictures, people, dtype=torch.bool, device=device) for _ in range(2)]
        return cls(*arrays, *flags)

    def rows(self, index: Tensor) -> Crowd:
        """Those pictures."""
        return Crowd(*(getattr(self, field.name)[index] for field in fields(Crowd)))

    def packed(self) -> Crowd:
        """The same with no more room than the fullest picture needs, one at least."""
        room = max(1, int(self.there.sum(dim=1).max()))
        order = self.there.float().sort(dim=1, descending=True, stable=True).indices[:, :room]

        def taken(values: Tensor) -> Tensor:
            index = order.reshape(*order.shape, *(1,) * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
            return values.gather(1, index)

        return Crowd(*(taken(getattr(self, field.name)) for field in fields(Crowd)))


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """N pictures: images (N, 480, 640, 3) uint8 BGR, the picture at the top left; sizes (N, 2) height and width; their people."""

    images: Tensor
    sizes: Tensor
    people: Crowd

    def __len__(self) -> int:
        return len(self.images)


def read_pictures(folder: Path) -> Pictures:
    """A shard (`store.py`), whole, in memory. Of more than `MOST_PEOPLE` people the first are kept."""
    images = torch.from_numpy(np.load(folder / "images.npy"))
    with np.load(folder / "people.npz") as file:
        counts, content = file["counts"], {name: file[name] for name in file.files}
    people = Crowd.empty(len(counts), MOST_PEOPLE)
    picture = np.repeat(np.arange(len(counts)), counts)
    row = np.arange(len(picture)) - np.repeat(np.cumsum(counts) - counts, counts)
    keep = row < MOST_PEOPLE
    for name in ("boxes", "keypoints", "weights", "seen", "labelled"):
        getattr(people, name)[picture[keep], row[keep]] = torch.from_numpy(content[name][keep])
    people.there[picture[keep], row[keep]] = True
    return Pictures(images, torch.from_numpy(content["sizes"]), people)


class Pool:
    """Pictures on a device, in sections of so many each; `images`, `sizes` (N, 2) float and `people` have a row for each place."""

    def __init__(self, capacity: Mapping[str, int], device: torch.device) -> None:
        places = sum(capacity.values())
        self.images = torch.zeros(places, HEIGHT, WIDTH, 3, dtype=torch.uint8, device=device)
        self.sizes = torch.ones(places, 2, device=device)
        self.people = Crowd.empty(places, MOST_PEOPLE, device)
        ends = list(accumulate(capacity.values()))
        self._sections = {
            name: _Section(end - size, size) for (name, size), end in zip(capacity.items(), ends, strict=True)
        }

    def add(self, section: str, pictures: Pictures) -> None:
        """Take pictures in, in place of the section's oldest where there is no room."""
        index = self._sections[section].places(len(pictures)).to(self.images.device)
        self.images[index] = pictures.images[: len(index)].to(index.device, non_blocking=True)
        self.sizes[index] = pictures.sizes[: len(index)].to(index.device).float()
        for field in fields(Crowd):
            getattr(self.people, field.name)[index] = getattr(pictures.people, field.name)[: len(index)].to(
                index.device
            )

    def taken_in(self) -> dict[str, int]:
        """Pictures that each section ever got."""
        return {name: section.taken_in for name, section in self._sections.items()}

    def draw(self, shares: Mapping[str, float], count: int, generator: torch.Generator) -> Tensor:
        """(count,) places of pictures, from the sections by their shares; sections without pictures are passed over.

        Raises ValueError if none has any.
        """
        filled = {name: share for name, share in shares.items() if self._sections[name].taken_in}
        if not filled:
            raise ValueError(f"no pictures yet in {', '.join(shares)}")
        device = self.images.device
        sections = [self._sections[name] for name in filled]
        chosen = torch.multinomial(
            torch.tensor(list(filled.values()), dtype=torch.float32, device=device),
            count,
            replacement=True,
            generator=generator,
        )
        first = torch.tensor([section.first for section in sections], device=device)[chosen]
        size = torch.tensor([min(section.size, section.taken_in) for section in sections], device=device)[chosen]
        return first + (torch.rand(count, generator=generator, device=device) * size).long().clamp(max=size - 1)


@dataclass(slots=True)
class _Section:
    """Places from `first` on, filled in turn."""

    first: int
    size: int
    taken_in: int = 0

    def places(self, count: int) -> Tensor:
        """Of the next `count` pictures, or of as many as there is room for."""
        count = min(count, self.size)
        index = self.first + (self.taken_in + torch.arange(count)) % self.size
        self.taken_in += count
        return index
