"""Videos and the teacher's poses of them -> one shard of pictures with pseudo-labels.

    python -m pose_nano.prepare_real --data data --poses poses/481x641 --poses poses/481x641-flip --out shards/real

Only what may be trained on is read: the `train` split of `fight/clips.csv`, all of `fall/`, and the one video of
`video/` whose licence permits it. Each folder of `--poses` is one pass of `extract_poses.py` with the layout of the data;
a video without poses in the first folder is left out and counted.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2

from agent.types import ImageArray
from pose_nano.store import Sample, ShardWriter
from pose_nano.teacher import Poses, annotate, confirmed, merge, read_pass

RATE_HZ = {"fight": 8.0, "fall": 7.5, "video": 5.0}
"""Pictures per second of video that are kept; neighbouring ones teach little."""
VIDEO = "one-by-one-person-detection.mp4"


def training_videos(data: Path) -> list[Path]:
    """Videos that may be trained on, relative to `data`."""
    with (data / "fight" / "clips.csv").open(newline="") as file:
        fights = [Path("fight") / row["file"] for row in csv.DictReader(file) if row["split"] == "train"]
    falls = sorted(path.relative_to(data) for path in (data / "fall").glob("*.mp4"))
    return [*fights, *falls, Path("video") / VIDEO]


def labelled_frames(video: Path, frames: Sequence[Poses], rate_hz: float) -> Iterator[Sample]:
    """Pictures of `video` at `rate_hz` with the labels that `frames`, the merged poses of all frames, give."""
    capture = cv2.VideoCapture(str(video))
    try:
        step = max(1, round((capture.get(cv2.CAP_PROP_FPS) or 25.0) / rate_hz))
        for index in range(len(frames)):
            if not capture.grab():
                return
            if index % step:
                continue
            good, image = capture.retrieve()
            if good:
                poses, support = confirmed(frames, index)
                yield Sample(_as_bgr(image), annotate(poses, support, image.shape[1], image.shape[0]))
    finally:
        capture.release()


def _as_bgr(image: object) -> ImageArray:
    return image  # type: ignore[return-value]  # OpenCV's stubs do not know the dtype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--poses", type=Path, required=True, action="append", help="one pass of the teacher; repeatable"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--capacity", type=int, default=6000)
    arguments = parser.parse_args()
    writer, absent, labels, regions = ShardWriter(arguments.out, arguments.capacity), 0, 0, 0
    for relative in training_videos(arguments.data):
        files = [folder / relative.with_suffix(".npz") for folder in arguments.poses]
        if not files[0].is_file():
            absent += 1
            continue
        passes = [read_pass(file) for file in files if file.is_file()]
        frames = [merge(poses) for poses in zip(*passes, strict=True)]
        for sample in labelled_frames(arguments.data / relative, frames, RATE_HZ[relative.parts[0]]):
            writer.add(sample.image, sample.people)
            labels += int(sample.people.labelled.sum())
            regions += int((~sample.people.labelled).sum())
    print(f"{len(writer)} pictures, {labels} people, {regions} unknown regions; {absent} videos without poses")
    writer.close()


if __name__ == "__main__":
    main()
