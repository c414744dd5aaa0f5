"""Evidence from ring to disk: what is kept, when a clip is complete, what the files hold, what a broken disk does."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from agent.config.schema import EvidenceConfig
from agent.events import evidence_files
from agent.events.evidence import MOST_PASSED_OVER, Clip, EvidenceRing, evidence_folder
from agent.events.evidence_files import META, SKELETONS, SNAPSHOT, TEMPORARY_PREFIX, VIDEO, encode_video, write_clip
from agent.events.evidence_writer import BELIEVED_AFTER_S, DOUBTED, EvidenceWriter
from agent.events.retention import prune, remove_leftovers, shift
from agent.types import Event, EventPhase, Frame, FrameStamp, ImageArray, People, Tracks

T0 = datetime(2026, 11, 23, 23, 59, 50, tzinfo=UTC)
CONFIG = EvidenceConfig(pre_roll_s=2, post_roll_s=1, max_clip_s=20, fps=10, max_width_px=160)
WIDTH, HEIGHT = 320, 240
DAY_S = 86400
YEAR_S = 365 * DAY_S


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


NOISE = np.random.default_rng(7).integers(0, 60, (HEIGHT, WIDTH, 3), np.uint8)


def picture(t: float) -> ImageArray:
    """Noise that brightens with time, so that pictures can be told apart after the encoder."""
    return NOISE + np.uint8(min(t * 10, 190))


def standing() -> People:
    points = np.array([(160, 60), (164, 56), (156, 56), (168, 60), (152, 60)] + [(160, 90 + 10 * i) for i in range(12)])
    return People(
        np.array([[130, 40, 190, 210]], np.float32), points[None].astype(np.float32),
        np.full((1, 17), 0.9, np.float32), np.array([0.9], np.float32),
    )  # fmt: skip


def frame(t: float, people: People | None = None) -> tuple[Frame, People, Tracks]:
    stamp = FrameStamp("yard", round(t * 30), ns(t), T0 + timedelta(seconds=t), WIDTH, HEIGHT)
    people = standing() if people is None else people
    n = len(people)
    return Frame(stamp, picture(t)), people, Tracks(stamp, people, np.arange(1, n + 1), np.ones(n, np.int64))


def step(phase: EventPhase, t: float, onset: float, incident: str = "incident-1") -> Event:
    return Event(
        event_id=f"{incident}-{phase}", incident_id=incident, kind="fight", phase=phase, camera_id="yard",
        track_ids=(1,), t_start_ns=ns(onset), t_utc=T0 + timedelta(seconds=t), t_onset_utc=T0 + timedelta(seconds=onset),
        duration_s=t - onset, confidence=0.9,
    )  # fmt: skip


def play(ring: EvidenceRing, start: float, end: float, fps: float = 30.0) -> list[Clip]:
    times = [start + i / fps for i in range(round((end - start) * fps))]
    return [clip for t in times for clip in ring.offer(*frame(t))]


@cache
def record(
    config: EvidenceConfig = CONFIG, *, onset: float = 5, detected: float = 8, resolved: float = 10, fps: float = 30
) -> Clip:
    """The clip of one incident out of 15 s."""
    ring = EvidenceRing("yard", config)
    clips = play(ring, 0, detected, fps)
    ring.observe(step(EventPhase.DETECTED, detected, onset))
    clips += play(ring, detected, resolved, fps)
    ring.observe(step(EventPhase.RESOLVED, resolved, onset))
    clips += play(ring, resolved, 15, fps)
    (clip,) = clips
    return clip


def times(clip: Clip) -> list[float]:
    return [kept.t_mono_ns / 1e9 for kept in clip.frames]


# --- the ring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [10.0, 15.0, 29.97, 60.0])
def test_pictures_are_thinned_to_the_configured_rate(fps: float) -> None:
    ring = EvidenceRing("yard", CONFIG)
    kept = [t for i in range(round(8 * fps)) if ring.wants(ns(t := i / fps)) and ring.offer(*frame(t)) == []]
    assert len(kept) == pytest.approx(80, abs=1)


def test_slow_cameras_keep_every_picture_and_pauses_cause_no_burst() -> None:
    ring = EvidenceRing("yard", CONFIG)
    for t in (0, 0.5, 1.0, 60.0):
        assert ring.wants(ns(t))
        ring.offer(*frame(t))
    assert not ring.wants(ns(60.03))


def test_ring_holds_pre_roll_and_lookback_and_no_more() -> None:
    ring = EvidenceRing("yard", CONFIG, lookback_s=3)
    play(ring, 0, 10)
    five_seconds = ring.held_bytes
    play(ring, 10, 40)
    assert ring.held_bytes == pytest.approx(five_seconds, rel=0.1)
    ring.look_back(11)
    play(ring, 40, 80)
    assert ring.held_bytes == pytest.approx(13 / 5 * five_seconds, rel=0.1)


def test_clip_spans_pre_roll_before_the_onset_to_post_roll_after_the_end() -> None:
    clip = record()
    assert times(clip)[0] == pytest.approx(3, abs=0.11)
    assert times(clip)[-1] == pytest.approx(11, abs=0.11)
    assert len(clip.frames) == pytest.approx(81, abs=2)
    assert not clip.truncated


def test_pictures_are_scaled_down_to_even_sides_and_small_ones_left() -> None:
    kept = record(CONFIG.model_copy(update={"max_width_px": 155})).frames[0]
    assert (kept.width, kept.height) == (154, 116)
    kept = record(CONFIG.model_copy(update={"max_width_px": 4000})).frames[0]
    assert (kept.width, kept.height) == (WIDTH, HEIGHT)


def test_faces_are_blurred_in_everything_that_is_held() -> None:
    def face_detail(config: EvidenceConfig) -> float:
        image = cv2.imdecode(np.frombuffer(record(config).frames[20].jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
        return float(np.abs(cv2.Laplacian(image[24:35, 75:86].astype(np.float32), cv2.CV_32F)).mean())

    plain = face_detail(CONFIG.model_copy(update={"blur_faces": False}))
    assert face_detail(CONFIG) < plain * 0.2


def face_is_sharp(ring: EvidenceRing) -> bool:
    """In the newest picture, of the one that `standing` stands for."""
    ring.observe(step(EventPhase.DETECTED, 1, 0))
    image = cv2.imdecode(np.frombuffer(ring.flush()[0].frames[-1].jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    return float(np.abs(cv2.Laplacian(image[24:35, 75:86].astype(np.float32), cv2.CV_32F)).mean()) > 5


def test_a_face_that_is_reported_only_between_the_pictures_is_blurred_in_them() -> None:
    ring = EvidenceRing("yard", CONFIG)
    for n in range(31):  # every third frame is kept
        ring.offer(*frame(n / 30, People.empty() if n % 3 == 0 else standing()))
        if n and n % 3 == 0:
            assert not face_is_sharp(ring)
    for n in range(31, 70):  # more than a second later nobody can still be there
        ring.offer(*frame(n / 30, People.empty()))
    assert face_is_sharp(ring)


def test_frames_that_are_passed_over_meanwhile_count_in_the_order_of_their_times() -> None:
    ring = EvidenceRing("yard", CONFIG)
    ring.offer(*frame(0, People.empty()))
    ring.pass_over(ns(0.15), People.empty())  # on another thread, while those below were waiting
    ring.offer(*frame(0.05))
    ring.offer(*frame(0.1, People.empty()))
    assert not face_is_sharp(ring)
    ring.offer(*frame(0.2, People.empty()))
    assert not face_is_sharp(ring)


def test_what_is_remembered_of_frames_passed_over_is_bounded() -> None:
    ring = EvidenceRing("yard", CONFIG)
    for n in range(1000):
        ring.pass_over(ns(n / 1000), standing())
    assert len(ring._passed_over) == MOST_PASSED_OVER
    ring.pass_over(ns(10), standing())
    assert len(ring._passed_over) == 1


def test_long_incident_is_cut_at_the_maximum_and_handed_over_at_once() -> None:
    config = CONFIG.model_copy(update={"max_clip_s": 4.0})
    ring = EvidenceRing("yard", config)
    play(ring, 0, 4)
    ring.observe(step(EventPhase.DETECTED, 4, 3))
    (clip,) = play(ring, 4, 20)
    assert clip.truncated
    assert times(clip)[-1] - times(clip)[0] <= 4.0
    ring.observe(step(EventPhase.RESOLVED, 20, 3))
    assert play(ring, 20, 25) == []


def test_two_incidents_at_once_share_the_pictures() -> None:
    ring = EvidenceRing("yard", CONFIG)
    play(ring, 0, 5)
    ring.observe(step(EventPhase.DETECTED, 5, 4, "a"))
    ring.observe(step(EventPhase.DETECTED, 5, 3, "b"))
    play(ring, 5, 6)
    ring.observe(step(EventPhase.RESOLVED, 6, 4, "a"))
    ring.observe(step(EventPhase.RESOLVED, 6, 3, "b"))
    first, second = play(ring, 6, 9)
    assert set(first.frames) < set(second.frames)


def test_clip_is_complete_by_time_when_the_camera_is_gone() -> None:
    ring = EvidenceRing("yard", CONFIG)
    play(ring, 0, 5)
    ring.observe(step(EventPhase.DETECTED, 5, 4))
    ring.observe(step(EventPhase.RESOLVED, 6, 4))
    assert ring.poll(ns(6.9)) == []
    assert len(ring.poll(ns(7))) == 1
    assert ring.poll(ns(8)) == []


def test_flush_hands_over_what_is_open() -> None:
    ring = EvidenceRing("yard", CONFIG)
    play(ring, 0, 5)
    ring.observe(step(EventPhase.DETECTED, 5, 4))
    (clip,) = ring.flush()
    assert clip.truncated
    assert ring.flush() == []


def test_nothing_is_kept_when_evidence_is_off() -> None:
    ring = EvidenceRing("yard", CONFIG.model_copy(update={"enabled": False}))
    play(ring, 0, 1)
    ring.observe(step(EventPhase.DETECTED, 1, 0))
    assert ring.flush() == []
    assert ring.held_bytes == 0


def test_folder_is_the_same_for_all_steps_and_dated_by_the_onset_in_utc() -> None:
    folders = {
        str(evidence_folder(step(phase, t, 5))) for phase, t in [(EventPhase.DETECTED, 8), (EventPhase.RESOLVED, 20)]
    }
    assert folders == {"yard/2026-11-23/incident-1"}  # the resolution falls on the 24th


# --- the files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Clip]:
    clip = record()
    result = write_clip(tmp_path_factory.mktemp("evidence"), clip)
    assert result.errors == ()
    assert result.folder is not None
    assert result.bytes == sum(path.stat().st_size for path in result.folder.iterdir())
    return result.folder, clip


def test_folder_holds_the_four_files_and_no_temporary_is_left(written: tuple[Path, Clip]) -> None:
    folder, _ = written
    assert {path.name for path in folder.iterdir()} == {SNAPSHOT, VIDEO, SKELETONS, META}
    assert list(folder.parents[2].glob(f"{TEMPORARY_PREFIX}*")) == []


def test_video_is_h264_with_the_capture_times(written: tuple[Path, Clip]) -> None:
    folder, clip = written
    with av.open(str(folder / VIDEO)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        shown = [float(picture.pts * picture.time_base) for picture in container.decode(stream)]
    expected = [t - times(clip)[0] for t in times(clip)]
    assert shown == pytest.approx(expected, abs=0.0011)


def test_video_is_played_by_opencv_too(written: tuple[Path, Clip]) -> None:
    folder, clip = written
    capture = cv2.VideoCapture(str(folder / VIDEO))
    levels = []
    while (got := capture.read())[0]:
        levels.append(float(got[1].mean()))
    capture.release()
    assert len(levels) == len(clip.frames)
    assert levels[-1] > levels[0] + 50  # the pictures come in order: the scene brightens


def test_index_of_the_video_stands_in_front_for_browsers(written: tuple[Path, Clip]) -> None:
    data = (written[0] / VIDEO).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_skeleton_file_has_a_line_per_picture_in_source_pixels(written: tuple[Path, Clip]) -> None:
    folder, clip = written
    lines = [json.loads(line) for line in (folder / SKELETONS).read_text().splitlines()]
    assert len(lines) == len(clip.frames)
    assert (lines[0]["width"], lines[0]["height"]) == (WIDTH, HEIGHT)
    (someone,) = lines[0]["people"]
    assert someone["track_id"] == 1
    assert someone["keypoints"][0] == [160.0, 60.0, 0.9]
    assert someone["box"] == [130.0, 40.0, 190.0, 210.0]


def test_meta_describes_incident_and_clip(written: tuple[Path, Clip]) -> None:
    folder, clip = written
    meta = json.loads((folder / META).read_text())
    assert meta["files"] == sorted([VIDEO, SKELETONS, SNAPSHOT])
    assert (meta["incident_id"], meta["kind"], meta["camera"]) == ("incident-1", "fight", "yard")
    assert (meta["started_at"], meta["ended_at"]) == ("2026-11-23T23:59:55.000Z", "2026-11-24T00:00:00.000Z")
    assert meta["frames"] == len(clip.frames)
    assert meta["clip_s"] == pytest.approx(8, abs=0.2)
    assert meta["faces_blurred"]


def test_snapshot_is_the_scene_at_the_alarm_with_the_skeleton_on_it(written: tuple[Path, Clip]) -> None:
    folder, clip = written
    image = cv2.imread(str(folder / SNAPSHOT))
    alarm = min(clip.frames, key=lambda kept: abs(kept.t_mono_ns - ns(8)))
    plain = cv2.imdecode(np.frombuffer(alarm.jpeg, np.uint8), cv2.IMREAD_COLOR)
    difference = np.abs(image.astype(int) - plain.astype(int)).max(axis=2)
    assert difference[50:100, 78:83].max() > 60  # the spine
    assert np.median(difference[60:110, 110:150]) < 25  # elsewhere it is the picture of that moment


def test_a_camera_that_changes_its_size_gives_one_video(tmp_path: Path) -> None:
    clip = record()
    wide = record(CONFIG.model_copy(update={"max_width_px": 320}))
    encode_video(tmp_path / VIDEO, clip.frames[:10] + wide.frames[10:20])
    with av.open(str(tmp_path / VIDEO)) as container:
        assert {(p.width, p.height) for p in container.decode(video=0)} == {(160, 120)}


def test_time_that_stands_still_loses_pictures_and_no_more(tmp_path: Path) -> None:
    frames = record().frames
    encode_video(tmp_path / VIDEO, (frames[0], *frames[:5]))
    with av.open(str(tmp_path / VIDEO)) as container:
        assert len(list(container.decode(video=0))) == 5


# --- trouble ----------------------------------------------------------------------------------------------------------


def test_a_part_that_fails_leaves_the_others_and_is_named(tmp_path: Path) -> None:
    clip = record()
    broken = replace(clip.frames[40], jpeg=b"not a picture")
    result = write_clip(tmp_path, replace(clip, frames=(*clip.frames[:40], broken, *clip.frames[41:])))
    assert result.folder is not None
    (error,) = result.errors
    assert VIDEO in error
    assert {path.name for path in result.folder.iterdir()} == {SNAPSHOT, SKELETONS, META}
    assert json.loads((result.folder / META).read_text())["errors"] == [error]


def test_an_ffmpeg_without_the_encoder_costs_the_video_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_files, "ENCODER", "libx264-that-is-not-built-in")
    result = write_clip(tmp_path, record())
    assert result.folder is not None
    assert {path.name for path in result.folder.iterdir()} == {SNAPSHOT, SKELETONS, META}
    assert [VIDEO in error for error in result.errors] == [True]


def test_an_incident_without_pictures_still_leaves_its_description(tmp_path: Path) -> None:
    result = write_clip(tmp_path, replace(record(), frames=()))
    assert result.folder is not None
    assert len(result.errors) == 2
    assert {path.name for path in result.folder.iterdir()} == {SKELETONS, META}


def test_a_folder_that_cannot_be_written_is_a_result(tmp_path: Path) -> None:
    (tmp_path / "evidence").write_text("a file where the folder should be")
    result = write_clip(tmp_path / "evidence", record())
    assert result.folder is None
    assert "evidence" in result.errors[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_of_the_part(tmp_path: Path) -> None:
    with pytest.raises((OSError, av.FFmpegError)) as caught:
        encode_video(Path("/dev/full"), record().frames)
    assert "No space left" in str(caught.value)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The kernel refuses to let files grow beyond `size` bytes, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("lost", [{SKELETONS}, {SKELETONS, VIDEO}])
def test_parts_that_do_not_fit_are_left_out_and_named(tmp_path: Path, lost: set[str]) -> None:
    clip = record()
    whole = write_clip(tmp_path / "roomy", clip)
    assert whole.folder is not None
    smallest_lost = min((whole.folder / name).stat().st_size for name in lost)
    with files_up_to(smallest_lost - 1):
        result = write_clip(tmp_path / "tight", clip)
    assert result.folder is not None
    assert {path.name for path in result.folder.iterdir()} == {SNAPSHOT, VIDEO, SKELETONS, META} - lost
    assert {error.split(":")[0].split("/")[-1] for error in result.errors} == lost


@pytest.mark.parametrize("room", [0, 2000], ids=["no byte", "room for meta.json alone"])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, room: int) -> None:
    clip = record()
    with files_up_to(room):
        result = write_clip(tmp_path, clip)
    assert result.folder is None
    assert result.errors
    assert list(tmp_path.rglob("*")) == []


def test_a_neighbour_that_cannot_be_read_does_not_count_against_a_clip(tmp_path: Path) -> None:
    first = write_clip(tmp_path, record()).folder
    assert first is not None
    (first.parent / "unreadable").symlink_to("x" * 300)  # root, too, gets an error for it
    clip = record()
    result = write_clip(tmp_path, replace(clip, opened=replace(clip.opened, incident_id="next")))
    assert (result.folder, result.errors) == (first.parent / "next", ())


def test_the_same_incident_twice_keeps_the_first(tmp_path: Path) -> None:
    clip = record()
    first = write_clip(tmp_path, clip)
    second = write_clip(tmp_path, replace(clip, frames=clip.frames[:10]))
    assert first.folder is not None
    assert second.folder is None
    assert json.loads((first.folder / META).read_text())["frames"] == len(clip.frames)
    assert list(tmp_path.glob(f"{TEMPORARY_PREFIX}*")) == []


# --- retention --------------------------------------------------------------------------------------------------------


def incident(root: Path, name: str, *, age_s: float, size: int = 1000, camera: str = "yard") -> Path:
    folder = root / camera / "2026-11-23" / name
    folder.mkdir(parents=True)
    (folder / VIDEO).write_bytes(b"x" * size)
    os.utime(folder, (1_000_000 - age_s,) * 2)
    return folder


def test_old_incidents_go_and_young_ones_stay(tmp_path: Path) -> None:
    old, young = incident(tmp_path, "old", age_s=101), incident(tmp_path, "young", age_s=100)
    pruned = prune(tmp_path, max_age_s=100, max_bytes=10**9, now_s=1_000_000)
    assert pruned.removed == (old,)
    assert not old.exists()
    assert young.exists()
    assert (pruned.removed_bytes, pruned.kept, pruned.kept_bytes) == (1000, 1, 1000)


def test_the_oldest_of_all_cameras_go_until_the_rest_fits(tmp_path: Path) -> None:
    folders = [incident(tmp_path, f"i{n}", age_s=50 - n, camera=f"cam{n % 2}") for n in range(5)]
    pruned = prune(tmp_path, max_age_s=100, max_bytes=2500, now_s=1_000_000)
    assert pruned.removed == tuple(folders[:3])
    assert pruned.kept_bytes == 2000


def test_emptied_days_and_cameras_are_removed(tmp_path: Path) -> None:
    incident(tmp_path, "old", age_s=1000)
    prune(tmp_path, max_age_s=1, max_bytes=10**9, now_s=1_000_000)
    assert list(tmp_path.iterdir()) == []


def test_links_are_neither_followed_nor_counted(tmp_path: Path) -> None:
    outside = incident(tmp_path / "outside", "precious", age_s=10_000)
    root = tmp_path / "root"
    root.mkdir()
    (root / "yard").symlink_to(outside.parents[1])
    pruned = prune(root, max_age_s=1, max_bytes=0, now_s=1_000_000)
    assert pruned.removed == ()
    assert outside.exists()


def test_a_missing_root_is_empty(tmp_path: Path) -> None:
    assert prune(tmp_path / "none", max_age_s=1, max_bytes=0, now_s=0).kept == 0


def test_a_camera_folder_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    old = incident(tmp_path, "old", age_s=1000)
    (tmp_path / "yard" / "2026-11-23" / "loop").mkdir()
    (tmp_path / "yard" / "2026-11-23" / "loop" / VIDEO).symlink_to("nowhere")
    pruned = prune(tmp_path, max_age_s=1, max_bytes=10**9, now_s=1_000_000)
    assert pruned.removed == (old,)
    assert "loop" in pruned.errors[0]


def test_half_written_folders_of_a_crash_are_cleared(tmp_path: Path) -> None:
    leftover = tmp_path / f"{TEMPORARY_PREFIX}x"
    leftover.mkdir()
    (leftover / VIDEO).write_bytes(b"x")
    kept = incident(tmp_path, "whole", age_s=1)
    assert remove_leftovers(tmp_path) == 1
    assert not leftover.exists()
    assert kept.exists()


# --- the writer -------------------------------------------------------------------------------------------------------


def short_clip(name: str = "incident-1") -> Clip:
    clip = record()
    return replace(clip, opened=replace(clip.opened, incident_id=name), frames=clip.frames[:3])


class Clocks:
    """Of a box: time that has passed, and how far the wall clock is ahead."""

    def __init__(self) -> None:
        self._begin = datetime.now(UTC)
        self.passed_s = self.ahead_s = 0.0

    def utc_now(self) -> datetime:
        return self._begin + timedelta(seconds=self.passed_s + self.ahead_s)

    def monotonic_s(self) -> float:
        return 1000.0 + self.passed_s

    async def passes(self, seconds: float) -> None:
        """In steps that no reader of one clock after the other takes for a jump."""
        for _ in range(round(seconds / 1800)):
            self.passed_s += 1800
            await asyncio.sleep(0.0005)


async def test_writer_writes_counts_and_prunes(tmp_path: Path) -> None:
    old = incident(tmp_path, "old", age_s=0)
    os.utime(old, (0, 0))
    writer = EvidenceWriter(tmp_path, CONFIG)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(writer.run())
        assert writer.submit(short_clip("a"))
        assert writer.submit(short_clip("b"))
        await writer.drain()
        task.cancel()
    stats = writer.stats
    assert (stats.written, stats.failed, stats.pruned, stats.stored) == (2, 0, 1, 2)
    assert stats.stored_bytes > 0
    assert {path.name for path in (tmp_path / "yard" / "2026-11-23").iterdir()} == {"a", "b"}


async def test_evidence_grows_old_while_nothing_is_written(tmp_path: Path) -> None:
    kept = incident(tmp_path, "kept", age_s=0)
    os.utime(kept)  # now
    clocks = Clocks()
    writer = EvidenceWriter(
        tmp_path, CONFIG, utc_now=clocks.utc_now, prune_every_s=0.01, monotonic_s=clocks.monotonic_s
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(writer.run())
        async with asyncio.timeout(10):
            while not writer.stats.stored:
                await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            while not writer.stats.pruned:
                clocks.passed_s += 3000
                await asyncio.sleep(0.001)
        assert clocks.passed_s >= CONFIG.max_age_days * 86400  # the real clock adds its part
        assert not kept.exists()
        assert writer.submit(short_clip("new"))
        await writer.drain()
        task.cancel()
    assert writer.stats.written == 1


async def test_a_clock_that_jumps_ahead_deletes_nothing_until_it_has_stayed_there(tmp_path: Path) -> None:
    clocks = Clocks()
    config = CONFIG.model_copy(update={"max_age_days": 0.1})
    writer = EvidenceWriter(
        tmp_path, config, utc_now=clocks.utc_now, prune_every_s=0.01, monotonic_s=clocks.monotonic_s
    )
    writer.submit(short_clip("kept"))
    task = asyncio.create_task(writer.run())
    await writer.drain()
    clocks.ahead_s = 10 * 365 * 86400
    await asyncio.sleep(0.2)
    assert (writer.stats.stored, writer.stats.pruned) == (1, 0)
    async with asyncio.timeout(10):
        while not writer.stats.pruned:
            clocks.passed_s += 3000
            await asyncio.sleep(0.005)
    assert clocks.passed_s >= BELIEVED_AFTER_S
    task.cancel()
    await asyncio.wait({task})


@asynccontextmanager
async def looked_after(root: Path, clocks: Clocks, max_age_days: float = 10) -> AsyncIterator[EvidenceWriter]:
    """By a writer that has begun, with one incident on the disk."""
    config = CONFIG.model_copy(update={"max_age_days": max_age_days})
    writer = EvidenceWriter(root, config, utc_now=clocks.utc_now, prune_every_s=0.01, monotonic_s=clocks.monotonic_s)
    task = asyncio.create_task(writer.run())
    async with asyncio.timeout(10):
        while not (writer.stats.stored or writer.stats.pruned):
            await asyncio.sleep(0.01)
    yield writer
    task.cancel()
    await asyncio.wait({task})


async def test_a_start_while_the_clock_is_ahead_deletes_nothing(tmp_path: Path) -> None:
    kept, clocks = incident(tmp_path, "kept", age_s=0), Clocks()
    os.utime(kept)  # now
    clocks.ahead_s = 10 * YEAR_S
    for _ in range(2):  # also not when it is started once more
        async with looked_after(tmp_path, clocks) as writer:
            await clocks.passes(3600)
            await asyncio.sleep(0.1)
        assert (writer.stats.stored, writer.stats.pruned) == (1, 0)
    clocks.ahead_s = 0
    async with looked_after(tmp_path, clocks) as writer:
        await clocks.passes(9 * DAY_S)
        await asyncio.sleep(0.1)
        assert kept.exists()
        await clocks.passes(DAY_S)
        async with asyncio.timeout(10):
            while kept.exists():
                await asyncio.sleep(0.01)


async def test_what_was_written_before_the_clock_was_known_gets_its_full_time(tmp_path: Path) -> None:
    kept, clocks = incident(tmp_path, "kept", age_s=0), Clocks()
    clocks.ahead_s = -50 * YEAR_S
    os.utime(kept, (clocks.utc_now().timestamp() - 60,) * 2)
    async with looked_after(tmp_path, clocks):
        clocks.ahead_s = 0
        async with asyncio.timeout(10):
            while kept.stat().st_mtime < clocks.utc_now().timestamp() - YEAR_S:
                await asyncio.sleep(0.01)
    async with looked_after(tmp_path, clocks) as writer:
        await clocks.passes(9 * DAY_S)
        await asyncio.sleep(0.1)
        assert (writer.stats.stored, writer.stats.pruned) == (1, 0)
        await clocks.passes(DAY_S)
        async with asyncio.timeout(10):
            while kept.exists():
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("start_ahead_s", "off_days"),
    [
        pytest.param(-200 * DAY_S, set(), id="starts at the date of its system"),
        pytest.param(0, {4, 5, 6, 7, 8}, id="was off for longer than evidence is kept"),
    ],
)
async def test_a_box_that_is_switched_off_every_evening_keeps_nothing_too_long(
    tmp_path: Path, start_ahead_s: float, off_days: set[int]
) -> None:
    clocks, root = Clocks(), tmp_path / "evidence"
    for day in range(13):
        if day not in off_days:
            clocks.ahead_s = start_ahead_s
            made = incident(root, f"day {day}", age_s=0)
            os.utime(made, (clocks.utc_now().timestamp(),) * 2)
            if day == 0:
                os.utime(root, (clocks.utc_now().timestamp(),) * 2)
            async with looked_after(root, clocks, max_age_days=3):
                clocks.ahead_s = 0  # by the network
                await asyncio.sleep(0.05)
                await clocks.passes(DAY_S / 2)
                await asyncio.sleep(0.05)
            clocks.passed_s += DAY_S / 2
        else:
            clocks.passed_s += DAY_S
    kept = {path.name for path in root.glob("*/*/*")}
    assert kept == {"day 10", "day 11", "day 12"}
    assert not (root / DOUBTED).exists()


def test_a_clock_that_is_ahead_for_a_moment_leaves_the_times_as_they_were(tmp_path: Path) -> None:
    folders = [incident(tmp_path, name, age_s=age_s) for name, age_s in (("old", 5000), ("new", 10))]
    before = [folder.stat().st_mtime for folder in folders]
    shift(tmp_path, by_s=10 * YEAR_S, now_s=1_000_000)
    assert [folder.stat().st_mtime for folder in folders] == [time_s + 10 * YEAR_S for time_s in before]
    shift(tmp_path, by_s=-10 * YEAR_S, now_s=1_000_000 + 10 * YEAR_S)
    assert [folder.stat().st_mtime for folder in folders] == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def free_bytes(disk: Path) -> int:
    state = os.statvfs(disk)
    return state.f_bavail * state.f_frsize


async def test_on_a_full_disk_the_oldest_makes_room_for_the_newest(small_disk: Path) -> None:
    writer = EvidenceWriter(small_disk / "evidence", CONFIG)
    task = asyncio.create_task(writer.run())
    for n in range(10):
        writer.submit(short_clip(f"i{n}"))
        await writer.drain()
    with (small_disk / "somebody-else").open("wb", buffering=0) as greedy, suppress(OSError):
        while True:
            greedy.write(bytes(4096))
    for n in range(10, 13):
        writer.submit(short_clip(f"i{n}"))
        await writer.drain()
    task.cancel()
    await asyncio.wait({task})
    stats = writer.stats
    assert (stats.written, stats.failed, stats.incomplete) == (13, 0, 0), stats.last_error
    kept = sorted(path.name for path in (small_disk / "evidence" / "yard" / "2026-11-23").iterdir())
    assert len(kept) == stats.stored == 13 - stats.pruned
    assert {"i10", "i11", "i12"} <= set(kept)
    assert "i0" not in kept
    assert free_bytes(small_disk) >= 0.1 * 1024 * 1024  # left to the event database


async def test_a_disk_that_others_have_filled_costs_the_clip_and_nothing_else(small_disk: Path) -> None:
    writer = EvidenceWriter(small_disk, CONFIG)
    with (small_disk / ".somebody-else").open("wb", buffering=0) as greedy, suppress(OSError):
        while True:
            greedy.write(bytes(4096))
    task = asyncio.create_task(writer.run())
    writer.submit(short_clip())
    await writer.drain()
    assert (writer.stats.written, writer.stats.failed) == (0, 1)
    (small_disk / ".somebody-else").unlink()
    writer.submit(short_clip())
    await writer.drain()
    task.cancel()
    await asyncio.wait({task})
    assert (writer.stats.written, writer.stats.failed) == (1, 1)


async def test_writer_survives_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "evidence").write_text("a file")
    writer = EvidenceWriter(tmp_path / "evidence", CONFIG)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(writer.run())
        writer.submit(short_clip())
        await writer.drain()
        task.cancel()
    assert writer.stats.failed == 1
    assert "evidence" in writer.stats.last_error


async def test_a_full_queue_drops_the_clip_and_counts_it(tmp_path: Path) -> None:
    writer = EvidenceWriter(tmp_path, CONFIG, max_queued=1)
    clip = short_clip()
    assert writer.submit(clip)
    assert not writer.submit(clip)
    assert writer.stats.dropped == 1
