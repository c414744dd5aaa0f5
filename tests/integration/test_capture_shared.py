"""Capture on real footage of `../shared`."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from agent.capture.camera import open_camera
from agent.capture.files import FileSource
from agent.capture.viewpoint import Viewpoint, thumbnail
from agent.capture.watch import PictureWatch, View, sample_points
from agent.config.schema import CameraConfig

pytestmark = pytest.mark.shared


def clips(shared_dir: Path) -> list[Path]:
    data = shared_dir / "data"
    return sorted(
        [*data.glob("video/*.mp4"), *data.glob("video/*.avi"), *data.glob("f*/*.mp4"), *data.glob("fight/*/*.mp4")]
    )


def views(path: Path, frozen_after_s: float, blind_after_s: float) -> set[View]:
    """Every state the picture watch takes on `path`."""
    source = FileSource(path)
    watch = PictureWatch(frozen_after_s, blind_after_s)
    seen = set()
    source.open()
    while (pts_ns := source.grab()) is not None:
        if watch.due(pts_ns):
            seen.add(watch.update(sample_points(source.retrieve()), pts_ns))
    source.close()
    return seen


def test_no_clip_is_called_frozen_or_blind(shared_dir: Path) -> None:
    """With times far shorter than the defaults (10 s, 5 s), since most clips last two seconds. The usual run looks
    at a sample of them and at the recording with the stillest scene."""
    paths = clips(shared_dir)
    chosen = [path for path in paths if path.name.startswith("one-by-one")] + paths[::25]
    assert chosen
    assert {path.name: seen for path in chosen if (seen := views(path, 2.0, 0.4)) != {View.CLEAR}} == {}


@pytest.mark.slow
def test_no_clip_at_all_is_called_frozen_or_blind(shared_dir: Path) -> None:
    paths = clips(shared_dir)
    assert len(paths) >= 200
    assert {path.name: seen for path in paths if (seen := views(path, 2.0, 0.4)) != {View.CLEAR}} == {}


def test_a_camera_that_is_knocked_is_moved_and_one_that_films_a_busy_place_is_not(shared_dir: Path) -> None:
    """The recording is twenty times as long as it was, as pictures are looked at; then the same through a window that shifted."""
    source = FileSource(shared_dir / "data/video/vtest.avi")
    source.open()
    still, knocked = Viewpoint(60.0), Viewpoint(60.0)
    seen: dict[bool, list[bool]] = {False: [], True: []}
    for index in range(795):
        assert source.grab() is not None
        image, now_ns = source.retrieve(), index * 2 * 10**9
        left = 0.15 if index > 400 else 0.0
        height, width = image.shape[:2]
        for viewpoint, share in ((still, 0.0), (knocked, left)):
            window = image[: round(0.8 * height), round(share * width) : round((share + 0.8) * width)]
            seen[viewpoint is knocked].append(viewpoint.update(thumbnail(window), now_ns))
    source.close()
    assert not any(seen[False])
    assert (seen[True].index(True) - 400) * 2 in range(40, 100)
    assert seen[True][-1]


async def test_every_frame_of_a_recording_arrives_with_its_time(shared_dir: Path) -> None:
    path = shared_dir / "data/video/vtest.avi"
    seqs, times = [], []
    async with open_camera(CameraConfig(id="cam", source=str(path))) as camera:
        async for frame in camera.frames():
            seqs.append(frame.stamp.seq)
            times.append(frame.stamp.t_mono_ns)
    assert seqs == list(range(795))
    assert times == [index * 100_000_000 for index in range(795)]


async def test_a_camera_gives_the_pictures_a_bare_loop_gives(shared_dir: Path) -> None:
    path = shared_dir / "data/video/test_video_structuralize.mp4"
    bare = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    async with open_camera(CameraConfig(id="cam", source=str(path))) as camera:
        async for frame in camera.frames():
            done, image = bare.read()
            assert done
            assert (frame.image == image).all()
    assert not bare.read()[0]
