"""A simulated run as files: COCO key points, MOT ground truth, a table of what happened, pictures, a video.

    python -m agent.simulation.export --scenario crowd --seed 1 --people 4 --seconds 10 --out DIR [--images] [--video]

Writes `person_keypoints.json`, `gt/gt.txt` with `seqinfo.ini` (MOT Challenge), `intervals.csv` (action, start_s, end_s,
actor ids separated by spaces), with --images `img1/000001.jpg` ..., with --video `video.mp4`.
"""

from __future__ import annotations

import argparse
import csv
import errno
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from agent.simulation.background import PLACES
from agent.simulation.scene import build_scene
from agent.simulation.scripts import MAX_PEOPLE, SCENARIOS, build_script
from agent.simulation.values import MIN_VISIBLE_SHARE, Interval, Scene, Shot, Truth
from agent.types import KEYPOINTS, SKELETON, ImageArray

_JPEG_QUALITY = 92


@dataclass(slots=True)
class CocoKeypoints:
    """Annotations of a run in COCO's key-point format, picture by picture.

    Boxes are the visible ones (x, y, width, height); `area` is 0.53 of the box, what a person's mask takes of it on
    average (there are no masks). Extra fields: `track_id`, `action`, `visible_share`.
    """

    width: int
    height: int
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)

    def add(self, truth: Truth, file_name: str) -> None:
        """Append one picture; ids count from 1."""
        image_id = len(self.images) + 1
        size = {"width": self.width, "height": self.height}
        self.images.append({"id": image_id, "file_name": file_name, **size, "t_s": round(truth.t_s, 6)})
        for row in range(len(truth.actor_ids)):
            self.annotations.append(_annotation(truth, row, len(self.annotations) + 1, image_id))

    def as_dict(self) -> dict[str, Any]:
        """The file's content."""
        skeleton = [[start + 1, end + 1] for start, end in SKELETON]
        category = {"id": 1, "name": "person", "supercategory": "person", "keypoints": KEYPOINTS, "skeleton": skeleton}
        return {"images": self.images, "annotations": self.annotations, "categories": [category]}


def _annotation(truth: Truth, row: int, annotation_id: int, image_id: int) -> dict[str, Any]:
    left, top, right, bottom = (round(float(value), 2) for value in truth.boxes[row])
    visibility = truth.visibility[row]
    pixels = np.round(truth.keypoints[row].astype(np.float64), 2) * (visibility > 0)[:, None]
    triplets = np.column_stack([pixels, visibility])
    share = float(truth.visible_share[row])
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
        "area": round((right - left) * (bottom - top) * 0.53, 2),
        "iscrowd": int(share < MIN_VISIBLE_SHARE),
        "keypoints": [value for x, y, seen in triplets.tolist() for value in (x, y, int(seen))],
        "num_keypoints": int(np.count_nonzero(visibility)),
        "track_id": int(truth.actor_ids[row]),
        "action": truth.actions[row],
        "visible_share": round(share, 4),
    }


def mot_rows(truth: Truth, frame: int) -> Iterator[str]:
    """Lines of a MOT ground-truth file of 10 columns for picture `frame` (from 1): visible boxes, flag 1."""
    for row, actor_id in enumerate(truth.actor_ids.tolist()):
        left, top, right, bottom = truth.boxes[row].tolist()
        if truth.visible_share[row] >= MIN_VISIBLE_SHARE and right > left and bottom > top:
            yield f"{frame},{actor_id},{left:.2f},{top:.2f},{right - left:.2f},{bottom - top:.2f},1,-1,-1,-1\n"


def export_run(
    scene: Scene,
    intervals: Iterable[Interval],
    out: Path,
    *,
    name: str,
    frames: int,
    fps: float,
    images: bool = False,
    video: bool = False,
) -> None:
    """Write `frames` pictures' truth into the folder `out`, made if need be; what it holds is written over. Raises OSError."""
    (out / "gt").mkdir(parents=True, exist_ok=True)
    if images:
        (out / "img1").mkdir(exist_ok=True)
    coco = CocoKeypoints(scene.width, scene.height)
    with ExitStack() as stack:
        mot = stack.enter_context((out / "gt" / "gt.txt").open("w", encoding="utf-8"))
        write = stack.enter_context(_video(out / "video.mp4", scene, fps)) if video else None
        for number in range(1, frames + 1):
            shot: Shot = scene.shot((number - 1) / fps)
            file_name = f"{number:06d}.jpg"
            coco.add(shot.truth, file_name)
            mot.writelines(mot_rows(shot.truth, number))
            if images:
                _write_picture(out / "img1" / file_name, shot.image)
            if write is not None:
                write(shot.image)
    (out / "person_keypoints.json").write_text(json.dumps(coco.as_dict()), encoding="utf-8")
    (out / "seqinfo.ini").write_text(_seqinfo(name, frames, fps, scene), encoding="utf-8")
    _write_intervals(out / "intervals.csv", intervals)


def _write_picture(path: Path, image: ImageArray) -> None:
    encoded, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not encoded:
        raise OSError(errno.EINVAL, "the picture cannot be encoded", str(path))
    path.write_bytes(data.tobytes())  # unlike cv2.imwrite it says what went wrong


def _seqinfo(name: str, frames: int, fps: float, scene: Scene) -> str:
    return (
        f"[Sequence]\nname={name}\nimDir=img1\nframeRate={fps:g}\nseqLength={frames}\n"
        f"imWidth={scene.width}\nimHeight={scene.height}\nimExt=.jpg\n"
    )


def _write_intervals(path: Path, intervals: Iterable[Interval]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("action", "start_s", "end_s", "actor_ids"))
        for each in intervals:
            actors = " ".join(map(str, each.actor_ids))
            table.writerow((each.action, f"{each.start_s:.3f}", f"{each.end_s:.3f}", actors))


@contextmanager
def _video(path: Path, scene: Scene, fps: float) -> Iterator[Callable[[ImageArray], None]]:
    """H.264 at high quality; takes one picture after the other."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = scene.width // 2 * 2, scene.height // 2 * 2, "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast"}

        def write(image: ImageArray) -> None:
            even = np.ascontiguousarray(image[: stream.height, : stream.width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, "bgr24")))

        yield write
        container.mux(stream.encode())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent.simulation.export", description="A simulated run as files.")
    parser.add_argument("--scenario", choices=SCENARIOS, default=SCENARIOS[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--people", type=int, default=4, choices=range(1, MAX_PEOPLE + 1), metavar="N")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--fps", type=float, default=25.0)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--place", choices=PLACES, default="", help="by chance if not given")
    parser.add_argument("--images", action="store_true", help="also write img1/*.jpg")
    parser.add_argument("--video", action="store_true", help="also write video.mp4")
    parser.add_argument("--out", type=Path, required=True, help="folder, made if need be")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 0, 1 when something cannot be written, 2 on bad usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not (options.seconds > 0 and 0 < options.fps <= 1000 and options.width >= 32 and options.height >= 32):
        parser.error("--seconds and --fps must be positive, --width and --height at least 32")
    if math.isinf(options.seconds) or options.seed < 0:
        parser.error("--seconds must be finite, --seed 0 or more")
    script = build_script(options.scenario, seed=options.seed, people=options.people)
    scene = build_scene(script, seed=options.seed, width=options.width, height=options.height, place=options.place)
    frames = max(1, round(options.seconds * options.fps))
    try:
        export_run(
            scene, script.intervals(0.0, frames / options.fps), options.out, name=f"{options.scenario}-{options.seed}",
            frames=frames, fps=options.fps, images=options.images, video=options.video,
        )  # fmt: skip
    except OSError as error:
        sys.stderr.write(f"error: {error.filename or options.out}: {error.strerror}\n")
        return 1
    sys.stdout.write(f"{options.out}: {frames} pictures\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
