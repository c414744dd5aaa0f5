"""Clips onto disk: `<root>/<camera>/<date>/<incident>/` with snapshot.jpg, clip.mp4, skeleton.jsonl and meta.json.

A folder is written aside, made durable and renamed: what is there is whole. Whatever goes wrong with the disk or the
encoder is a result, never an exception: evidence is worth less than the event it belongs to.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from agent.durable import sync
from agent.errors import DataError
from agent.events.evidence import Clip, EvidenceFrame, step_time_ns
from agent.overlay import ActionBar, draw
from agent.types import ImageArray

SNAPSHOT, VIDEO, SKELETONS, META = "snapshot.jpg", "clip.mp4", "skeleton.jsonl", "meta.json"
TEMPORARY_PREFIX = ".writing-"
_PARTS = (SNAPSHOT, SKELETONS, VIDEO)  # in the order of writing: a full disk then costs the largest first

_MS = Fraction(1, 1000)
ENCODER = "libx264"
_X264 = {"preset": "veryfast", "crf": "26", "threads": "1"}  # one thread: the pipeline needs the other cores more


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What came of writing one clip.

    folder: where it is, None when nothing was written; bytes: on disk; errors: one line per part that is missing, or
    the one that kept everything from being written; full: because the disk, or a quota, has no room.
    """

    folder: Path | None
    bytes: int
    errors: tuple[str, ...]
    full: bool = False


def write_clip(root: Path, clip: Clip, jpeg_quality: int = 85) -> WriteResult:
    """Write `clip` under `root`; blocks for as long as the encoder needs (about a tenth of the clip's length)."""
    final = root / clip.folder
    temporary = root / f"{TEMPORARY_PREFIX}{clip.opened.incident_id}"
    try:
        temporary.mkdir(mode=0o750, parents=True)
        errors, full = _write_parts(temporary, clip, jpeg_quality)
        if len(errors) == len(_PARTS):
            shutil.rmtree(temporary, ignore_errors=True)
            return WriteResult(None, 0, errors, full)
        size = sum(path.stat().st_size for path in temporary.iterdir())
        _sync(temporary)
        final.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        temporary.rename(final)
        sync(final.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        return WriteResult(None, 0, (f"{clip.folder}: {error}",), _is_full(error))
    return WriteResult(final, size, errors, full)


def _write_parts(folder: Path, clip: Clip, jpeg_quality: int) -> tuple[tuple[str, ...], bool]:
    """The files of the folder; names and reasons of those that could not be made, and whether one did not fit. Raises OSError for
    meta.json."""
    writers: tuple[Callable[[Path], None], ...] = (
        lambda path: _write_snapshot(path, clip, jpeg_quality),
        lambda path: _write_skeletons(path, clip.frames),
        lambda path: encode_video(path, clip.frames),
    )
    errors, full = [], False
    for name, write in zip(_PARTS, writers, strict=True):
        if full:  # FFmpeg would keep a file open whose very beginning does not fit
            errors.append(f"{clip.folder}/{name}: not tried, a smaller part did not fit")
            continue
        try:
            write(folder / name)
        except (OSError, DataError, ValueError, av.FFmpegError, cv2.error) as error:  # an unknown codec is a ValueError
            errors.append(f"{clip.folder}/{name}: {error}")
            full |= _is_full(error)
            (folder / name).unlink(missing_ok=True)
    files = sorted(path.name for path in folder.iterdir())
    meta = json.dumps(describe(clip, files, errors), indent=2, allow_nan=False) + "\n"
    (folder / META).write_text(meta, encoding="utf-8")
    return tuple(errors), full


def _is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT}  # FFmpeg's errors have one as well


def describe(clip: Clip, files: Sequence[str], errors: Sequence[str]) -> dict[str, object]:
    """The content of meta.json."""
    opened, latest = clip.opened, clip.latest
    span_ns = clip.frames[-1].t_mono_ns - clip.frames[0].t_mono_ns if clip.frames else 0
    return {
        "version": 1,
        "incident_id": opened.incident_id,
        "kind": opened.kind,
        "camera": opened.camera_id,
        "started_at": _utc(opened.t_onset_utc),
        "detected_at": _utc(opened.t_utc),
        "ended_at": None if clip.truncated else _utc(latest.t_utc),
        "phase": latest.phase.value,
        "duration_s": round(latest.duration_s, 3),
        "confidence": round(latest.confidence, 4),
        "track_ids": list(latest.track_ids),
        "first_frame_at": _utc(clip.frames[0].tracks.stamp.t_utc) if clip.frames else None,
        "frames": len(clip.frames),
        "clip_s": round(span_ns / 1e9, 3),
        "truncated": clip.truncated,
        "faces_blurred": clip.faces_blurred,
        "files": list(files),
        "errors": list(errors),
    }


def encode_video(path: Path, frames: Sequence[EvidenceFrame]) -> None:
    """H.264 in MP4 that browsers play (yuv420p, index in front), each picture at its capture time to the ms.

    All pictures get the size of the first. Raises DataError (no pictures), av.FFmpegError, OSError.
    """
    if not frames:
        raise DataError("no pictures")
    first = frames[0]
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(ENCODER, rate=Fraction(_mean_rate(frames)).limit_denominator(1000), options=_X264)
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, "yuv420p"
        stream.codec_context.time_base = _MS
        last_ms = -1
        for kept in frames:
            at_ms = round((kept.t_mono_ns - first.t_mono_ns) / 1e6)
            if at_ms <= last_ms:
                continue  # a container's times must increase
            last_ms = at_ms
            picture = av.VideoFrame.from_ndarray(_decode(kept, (first.width, first.height)), format="bgr24")
            picture.pts, picture.time_base = at_ms, _MS
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _mean_rate(frames: Sequence[EvidenceFrame]) -> float:
    span_s = (frames[-1].t_mono_ns - frames[0].t_mono_ns) / 1e9
    return max(1.0, (len(frames) - 1) / span_s) if span_s > 0 else 1.0


def _write_snapshot(path: Path, clip: Clip, jpeg_quality: int) -> None:
    """The picture nearest to the alarm, one with people if there is any, skeletons and the action drawn on it."""
    if not clip.frames:
        raise DataError("no pictures")
    opened = clip.opened
    alarm_ns = step_time_ns(opened)
    best = min(clip.frames, key=lambda kept: (len(kept.tracks.people) == 0, abs(kept.t_mono_ns - alarm_ns)))
    image = draw(
        _decode(best, (best.width, best.height)),
        best.tracks,
        actions=[ActionBar(opened.kind, opened.confidence, threshold=0.0)],
        caption=f"{opened.camera_id}  {best.tracks.stamp.t_utc.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
    )
    good, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])
    if not good:
        raise DataError("the snapshot could not be encoded")
    path.write_bytes(encoded.tobytes())


def _write_skeletons(path: Path, frames: Sequence[EvidenceFrame]) -> None:
    """One JSON object per kept frame; coordinates are source pixels, key points as [x, y, score] in COCO order."""
    with path.open("w", encoding="utf-8") as file:
        for kept in frames:
            stamp, people = kept.tracks.stamp, kept.tracks.people
            points = np.concatenate([people.keypoints, people.keypoint_scores[:, :, None]], axis=2).astype(np.float64)
            points[..., :2] = np.nan_to_num(points[..., :2]).round(1)
            points[..., 2] = np.nan_to_num(points[..., 2]).round(3)
            boxes = np.nan_to_num(people.boxes.astype(np.float64)).round(1)
            line = {
                "t_s": round((stamp.t_mono_ns - frames[0].t_mono_ns) / 1e9, 3),
                "t_utc": _utc(stamp.t_utc),
                "width": stamp.width,
                "height": stamp.height,
                "people": [
                    {"track_id": track_id, "box": box, "keypoints": joints}
                    for track_id, box, joints in zip(
                        kept.tracks.track_ids.tolist(), boxes.tolist(), points.tolist(), strict=True
                    )
                ],
            }
            file.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")


def _decode(kept: EvidenceFrame, size: tuple[int, int]) -> ImageArray:
    """(H, W, 3) uint8 BGR of `size` (width, height)."""
    image: ImageArray | None = cv2.imdecode(np.frombuffer(kept.jpeg, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError("a kept picture cannot be decoded")
    if (kept.width, kept.height) != size:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return image


def _sync(folder: Path) -> None:
    """fsync every file of `folder` and the folder itself."""
    for path in [*(entry for entry in folder.iterdir() if entry.is_file()), folder]:
        sync(path)


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
