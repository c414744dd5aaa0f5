"""Prepared pictures on disk: one memory-mapped array of pixels and one file of people, so that training decodes no JPEG.

A shard is a folder:
    images.npy   (N, 480, 640, 3) uint8 BGR, each picture at the top left, the rest 114
    people.npz   sizes (N, 2) int64 height and width of each picture; counts (N,) int64 people per picture; of all P people in
                 the order of the pictures: boxes (P, 4) float32 xyxy px; keypoints (P, 17, 2) float32 px; weights (P, 17)
                 float32, how much the position is believed, 0-1; seen (P, 17) float32, what the score map should say there:
                 1 seen, less when hidden, -1 unknown; labelled (P,) bool, false = a region where nothing is known
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.types import NUM_KEYPOINTS, FloatArray, ImageArray

HEIGHT, WIDTH = 480, 640
PAD = 114

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """People of one picture; arrays as `people.npz` has them."""

    boxes: FloatArray
    keypoints: FloatArray
    weights: FloatArray
    seen: FloatArray
    labelled: Bools

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def empty(cls) -> Annotations:
        return cls.joined([])

    @classmethod
    def joined(cls, parts: Sequence[Annotations]) -> Annotations:
        """All of them in one."""
        shapes = ((4,), (NUM_KEYPOINTS, 2), (NUM_KEYPOINTS,), (NUM_KEYPOINTS,))
        names = ("boxes", "keypoints", "weights", "seen")
        arrays = [
            np.concatenate([np.zeros((0, *shape), np.float32), *(getattr(part, name) for part in parts)])
            for name, shape in zip(names, shapes, strict=True)
        ]
        return cls(*arrays, np.concatenate([np.zeros(0, bool), *(part.labelled for part in parts)]))

    def rows(self, index: Bools | slice) -> Annotations:
        """Those people."""
        return Annotations(
            self.boxes[index], self.keypoints[index], self.weights[index], self.seen[index], self.labelled[index]
        )

    def scaled(self, factor: float) -> Annotations:
        """In a picture that is `factor` times as large."""
        return replace(self, boxes=self.boxes * np.float32(factor), keypoints=self.keypoints * np.float32(factor))


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """image: (H, W, 3) uint8 BGR, read-only."""

    image: ImageArray
    people: Annotations


class Shard:
    """An opened shard; pictures stay on disk until they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._images = np.load(folder / "images.npy", mmap_mode="r")
        with np.load(folder / "people.npz") as file:
            self._sizes = file["sizes"]
            self._starts = np.concatenate([[0], np.cumsum(file["counts"])])
            self._people = Annotations(
                file["boxes"], file["keypoints"], file["weights"], file["seen"], file["labelled"]
            )

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> Sample:
        height, width = self._sizes[index]
        rows = slice(int(self._starts[index]), int(self._starts[index + 1]))
        return Sample(self._images[index, :height, :width], self._people.rows(rows))


def parts(out: Path, numbers: range, size: int) -> Iterator[tuple[Path, range]]:
    """Folders and what goes into them: all to `out`, or where `size` is not 0 so many each to OUT-FIRST, each there when it is whole."""
    if not size:
        yield out, numbers
        return
    for start in range(0, len(numbers), size):
        part = numbers[start : start + size]
        yield Path(f"{out}-{part[0]}"), part


class ShardWriter:
    """Writes `capacity` pictures or fewer; the folder appears whole on `close`."""

    def __init__(self, folder: Path, capacity: int) -> None:
        self._folder, self._partial = folder, folder.with_name(folder.name + ".partial")
        self._partial.mkdir(parents=True, exist_ok=True)
        shape = (capacity, HEIGHT, WIDTH, 3)
        self._images = np.lib.format.open_memmap(self._partial / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        self._sizes: list[tuple[int, int]] = []
        self._people: list[Annotations] = []

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, image: ImageArray, people: Annotations) -> None:
        """Keep a picture (any size) with its people, in px of that picture."""
        factor = min(HEIGHT / image.shape[0], WIDTH / image.shape[1])
        height, width = round(image.shape[0] * factor), round(image.shape[1] * factor)
        method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        row = self._images[len(self)]
        row[...] = PAD
        row[:height, :width] = cv2.resize(image, (width, height), interpolation=method)
        self._sizes.append((height, width))
        self._people.append(people.scaled(factor))

    def close(self) -> None:
        people = Annotations.joined(self._people)
        self._images.flush()
        if len(self) < len(self._images):
            shorter = np.array(self._images[: len(self)])
            np.save(self._partial / "images.npy", shorter)
        np.savez_compressed(
            self._partial / "people.npz",
            sizes=np.array(self._sizes, np.int64).reshape(-1, 2),
            counts=np.array([len(part) for part in self._people], np.int64),
            boxes=people.boxes, keypoints=people.keypoints, weights=people.weights, seen=people.seen,
            labelled=people.labelled,
        )  # fmt: skip
        self._partial.rename(self._folder)
