"""A shard of pictures with pseudo-labels, and pictures to stand before -> one shard of real people before other pictures.

    python -m pose_nano.prepare_pasted --people shards/real2 --backgrounds shards/real2 --backgrounds shards/sim5 \
        --pictures 4000 --out shards/pasted
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from pose_nano.cutouts import Cutout, cut, paste
from pose_nano.store import Sample, Shard, ShardWriter, parts

_MOST = 4  # people before one picture
_HEIGHTS = (0.25, 1.3)
_EVERY = 3
"""Pictures from one that people are cut from to the next: neighbours show the same person."""


def cutouts(people: Shard) -> Iterator[Cutout]:
    """All that can be cut out of every third picture."""
    for number in range(0, len(people), _EVERY):
        sample = people[number]
        for row in range(len(sample.people)):
            found = cut(sample, row)
            if found:
                yield found


def picture(found: list[Cutout], backgrounds: list[Shard], rng: np.random.Generator) -> Sample:
    """One to four of them before a picture."""
    shard = backgrounds[int(rng.integers(len(backgrounds)))]
    sample = shard[int(rng.integers(len(shard)))]
    for _ in range(int(rng.integers(1, _MOST + 1))):
        sample = paste(sample, found[int(rng.integers(len(found)))], rng, _HEIGHTS)
    return sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=Path, required=True, help="shard that people are cut from")
    parser.add_argument("--backgrounds", type=Path, required=True, action="append", help="repeatable; each as often")
    parser.add_argument("--pictures", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--part",
        type=int,
        default=0,
        help="write a shard OUT-NUMBER for every so many pictures, each there when it is whole",
    )
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    rng = np.random.default_rng(arguments.seed)
    found = list(cutouts(Shard(arguments.people)))
    print(f"{len(found)} people cut out", flush=True)
    backgrounds = [Shard(folder) for folder in arguments.backgrounds]
    for folder, part in parts(arguments.out, range(arguments.pictures), arguments.part):
        write_shard(folder, len(part), found, backgrounds, rng)


def write_shard(
    folder: Path, pictures: int, found: list[Cutout], backgrounds: list[Shard], rng: np.random.Generator
) -> None:
    """So many pictures."""
    writer = ShardWriter(folder, pictures)
    for _ in range(pictures):
        sample = picture(found, backgrounds, rng)
        writer.add(sample.image, sample.people)
    writer.close()


if __name__ == "__main__":
    main()
