"""Windows to train and test on, from extracted poses.

    python models/training/dataset.py fight --poses POSES --data DATA --out runs/fight.npz
    python models/training/dataset.py fall  --poses POSES --data DATA --out runs/fall.npz
    python models/training/dataset.py fight --poses POSES --data DATA --out runs/fight-nano.npz --config configs/pose-nano.yaml

POSES/<estimator>/fight/... and POSES/<estimator>/fall/... are what extract_poses.py wrote; DATA holds fight/ and fall/.
The labels of fall windows say whether a falling movement is in them, not whether somebody lies: see `fall_label`.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path

import cv2
import numpy as np
from clips import TRACKING, Samples, extra_windows_of, load_poses, tracks_of, windows_of
from extract_poses import pictures
from recipes import RECIPES, WINDOW, Recipe

from agent.action.windows import WITHOUT_CHANGE
from agent.config.load import load_config
from agent.config.schema import TrackingConfig
from agent.types import ImageArray, People, Poses, Window

WINDOW_S = WINDOW.length / WINDOW.rate_hz


def fall_label(t_start_s: float, t_end_s: float, onset_s: float | None) -> int:
    """1: the onset and at least the second after it are in the window. 0: it ends before the onset, or starts 1.5 s or more
    after it (somebody lies; no fall happens). -1, left out: anything in between.
    """
    if onset_s is None or t_end_s <= onset_s:
        return 0
    if t_start_s <= onset_s + 0.3:
        return 1 if t_end_s >= onset_s + 1.0 else -1
    return 0 if t_start_s >= onset_s + 1.5 else -1


def fall_onsets(folder: Path) -> dict[str, float]:
    """Start of the first Falling interval of each clip that has one."""
    with (folder / "intervals.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["label"].startswith("Falling")]
    return {row["file"]: float(row["start_s"]) for row in sorted(rows, key=lambda row: -float(row["start_s"]))}


def variants(poses: Path, data: str, file: str) -> Iterator[tuple[str, Path, int]]:
    """(name, poses file, every) for each estimator that saw the clip, at full and at half the frame rate."""
    for tag in sorted(path for path in poses.iterdir() if path.is_dir()):
        source = (tag / data / file).with_suffix(".npz")
        if source.is_file():
            yield tag.name, source, 1
            with np.load(source) as arrays:
                if float(arrays["fps"]) >= 20:
                    yield f"{tag.name}/2", source, 2


class Builder:
    """Collects windows."""

    def __init__(self, recipe: Recipe, data: Path, tracking: TrackingConfig) -> None:
        self._data, self._tracking = data, tracking
        self._service = recipe.service_config()
        self._rows: list[tuple[Window, int, int, str, bool]] = []
        self._files: list[str] = []

    def add(self, poses: Path, data: str, file: str, *, label: int | None, onset_s: float | None, ends: int) -> None:
        """All windows of one clip. label None: by `onset_s`. ends: extra windows end every so many frames; 0 = none."""
        self._files.append(f"{data}/{file}")
        for name, source, every in variants(poses, data, file):
            poses_seen = load_poses(source, every)
            tracks = list(tracks_of(poses_seen, self._tracking))
            regular = windows_of(tracks, self._service, self._frames(data, file, every, poses_seen))
            extra = extra_windows_of(tracks, self._service, -(-ends // every)) if ends else []
            for number, window in enumerate(regular + extra):
                end_s = window.t_end_ns * 1e-9
                mark = fall_label(max(0.0, end_s - WINDOW_S), end_s, onset_s) if label is None else label
                self._rows.append((window, mark, len(self._files) - 1, name, number < len(regular)))

    def _frames(
        self, data: str, file: str, every: int, poses: Sequence[Poses]
    ) -> Iterable[tuple[ImageArray, People] | None]:
        """The pictures, where windows look at their change."""
        if self._service.window.channels == WITHOUT_CHANGE:
            return repeat(None)
        images = islice(pictures(cv2.VideoCapture(str(self._data / data / file))), 0, None, every)
        return ((image, frame.people) for image, frame in zip(images, poses, strict=False))

    def samples(self) -> Samples:
        return Samples(
            tensor=np.stack([row[0].tensor for row in self._rows]).astype(np.float16),
            label=np.array([row[1] for row in self._rows], np.int8),
            clip=np.array([row[2] for row in self._rows], np.int32),
            variant=np.array([row[3] for row in self._rows]),
            t_end_s=np.array([row[0].t_end_ns * 1e-9 for row in self._rows], np.float32),
            regular=np.array([row[4] for row in self._rows], bool),
            files=tuple(self._files),
        )


def build(recipe: Recipe, poses: Path, data: Path, tracking: TrackingConfig = TRACKING) -> Samples:
    """The windows of `recipe`'s service. tracking: what suits the scores of the estimator."""
    builder = Builder(recipe, data, tracking)
    with (data / "fight" / "clips.csv").open(newline="") as stream:
        fight_clips = list(csv.DictReader(stream))
    if recipe.service == "fight":
        for row in fight_clips:
            builder.add(poses, "fight", row["file"], label=int(row["label"] == "fight"), onset_s=None, ends=0)
    else:
        onsets = fall_onsets(data / "fall")
        with (data / "fall" / "clips.csv").open(newline="") as stream:
            for row in csv.DictReader(stream):
                every_end = max(2, round(float(row["fps"]) / 4))
                onset_s = onsets.get(row["file"])
                builder.add(poses, "fall", row["file"], label=None, onset_s=onset_s, ends=every_end)
        # A fight may throw somebody to the ground; the clips without one are everyday negatives.
        for row in fight_clips:
            if row["split"] == "train" and row["label"] == "nofight":
                builder.add(poses, "fight", row["file"], label=0, onset_s=None, ends=0)
    return builder.samples()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("service", choices=sorted(RECIPES))
    parser.add_argument("--poses", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, help="its section `tracking`; default: the figures that suit PoseNet")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.service]
    tracking = load_config([arguments.config], env=os.environ).tracking if arguments.config else TRACKING
    samples = build(recipe, arguments.poses, arguments.data, tracking)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    samples.save(arguments.out)
    people = (samples.tensor[..., 2] > 0).any(axis=(2, 3)).sum(axis=1)
    print(f"{len(samples.label)} windows of {len(set(samples.clip.tolist()))} clips, labels "
          f"{dict(zip(*np.unique(samples.label, return_counts=True), strict=True))}, people {np.bincount(people)}")  # fmt: skip


if __name__ == "__main__":
    main()
