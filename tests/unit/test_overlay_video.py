"""The overlay of a video: every frame at its time, people where they are, heads gone, and what a full disk does."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import av
import numpy as np
import pytest
from fakes.replay import RecordingListener, walkers
from fakes.video import make_video, numbered_image

from agent.errors import DataError, ModelError, SourceError
from agent.offline import file_source
from agent.overlay import ActionBar
from agent.overlay_video import OVERLAY, VERDICT_SHOWN_S, ActionTrace, SceneNotes, draw_overlay
from agent.types import ActionScores, Event, EventPhase, Frame, FrameStamp, ImageArray, People, Tracks

T0 = datetime(2026, 11, 23, tzinfo=UTC)
SIZE = (320, 240)


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def tracks_of(stamp: FrameStamp, people: People) -> Tracks:
    """Everybody followed, as #1, #2, ..."""
    return Tracks(stamp, people, np.arange(1, len(people) + 1), np.ones(len(people), np.int64))


def watch(video: Path, notes: SceneNotes, recording: Sequence[People | None]) -> None:
    """Tell `notes` of each frame of `video` as a pipeline would. None: inference failed."""
    with closing(file_source(video)) as source:
        source.open()
        number = 0
        while (picture := source.read()) is not None:
            image, t_ns = picture
            stamp = FrameStamp("cam", number, t_ns, T0, image.shape[1], image.shape[0])
            people = recording[number % len(recording)]
            if people is None:
                notes.on_failure("cam", "pose", ModelError("out of order"))
                people = People.empty()
            notes.on_tracks(Frame(stamp, image), people, tracks_of(stamp, people), 0.0)
            number += 1


def overlay(video: Path, out: Path, recording: Sequence[People | None], *, blur_faces: bool = True) -> Path:
    done: list[tuple[int, int]] = []
    path = out / OVERLAY
    out.mkdir(exist_ok=True)
    with SceneNotes(RecordingListener(), out, {}) as notes:
        watch(video, notes, recording)
        asyncio.run(
            draw_overlay(video, notes, path, blur_faces=blur_faces, progress=lambda n, total: done.append((n, total)))
        )
        assert done == [(n, notes.frames) for n in range(1, notes.frames + 1)]
    return path


def decoded(path: Path) -> tuple[list[ImageArray], list[float]]:
    """Pictures and presentation times in s."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format="bgr24") for frame in frames], [float(frame.time) for frame in frames]


def standing(x: float = 160) -> People:
    """One person, 17 key points in a column and a box around them."""
    points = np.stack([np.full(17, x), np.linspace(60, 200, 17)], axis=1)
    return People(
        np.array([[x - 40, 50, x + 40, 210]], np.float32), points[None].astype(np.float32),
        np.full((1, 17), 0.9, np.float32), np.array([0.9], np.float32),
    )  # fmt: skip


def drawn(image: ImageArray, background: ImageArray, x: float, y: float) -> bool:
    """Whether within 3 px of (x, y) the picture clearly differs from what was there."""
    area = np.s_[max(int(y) - 3, 0) : int(y) + 4, max(int(x) - 3, 0) : int(x) + 4]
    return bool(np.abs(image[area].astype(int) - background[area]).max() > 60)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_people_are_drawn_where_they_are_and_nothing_where_nobody_is(tmp_path: Path) -> None:
    video = make_video(tmp_path / "clip.mp4", 8, size=SIZE, fps=25)
    places = [60, 70, 80, 90, 200, 210, 220, 230]
    recording = [*(standing(x) for x in places[:4]), People.empty(), *(standing(x) for x in places[5:])]
    images, _ = decoded(overlay(video, tmp_path / "out", recording))
    assert len(images) == 8
    for number, (image, x) in enumerate(zip(images, places, strict=True)):
        background = numbered_image(number, SIZE)
        assert image.shape == background.shape
        there = [drawn(image, background, *point) for point in ((x - 40, 130), (x + 40, 130), (x, 150), (x - 35, 48))]
        assert there == [number != 4] * 4, number
        assert not drawn(image, background, 290, 120)
        assert drawn(image, background, 20, 232), "the caption"


@pytest.mark.parametrize(
    "times_ms",
    [[0, 40, 80, 120, 160, 200], [0, 40, 80, 500, 510, 900, 2000, 2001], [7000, 7100, 7500]],
    ids=["even", "uneven", "late"],
)
def test_every_frame_keeps_its_time(tmp_path: Path, times_ms: list[int]) -> None:
    video = make_video(tmp_path / "clip.mkv", len(times_ms), size=SIZE, times_ms=times_ms)
    path = overlay(video, tmp_path / "out", [standing()])
    _, times_s = decoded(path)
    assert times_s == pytest.approx([(t - times_ms[0]) / 1000 for t in times_ms], abs=1e-4)
    with av.open(str(path)) as container:
        assert container.duration / av.time_base >= times_s[-1], "players stop at the end of the file"


@pytest.mark.parametrize("rate", [10, 25, 30, 60])
def test_the_frame_rate_stays(tmp_path: Path, rate: int) -> None:
    video = make_video(tmp_path / "clip.mp4", 12, size=SIZE, fps=rate)
    with av.open(str(overlay(video, tmp_path / "out", [standing()]))) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.frames, stream.codec_context.name) == (rate, 12, "h264")


def test_odd_sides_grow_by_a_pixel(tmp_path: Path) -> None:
    video = make_video(tmp_path / "clip.avi", 3, size=(161, 121), codec="mjpeg")
    images, _ = decoded(overlay(video, tmp_path / "out", [People.empty()]))
    assert {image.shape for image in images} == {(122, 162, 3)}
    assert np.abs(images[0][:100].astype(int) - numbered_image(0)[0, 0]).max() < 12


def test_files_of_a_folder_get_the_size_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    make_video(folder / "1.mp4", 2, size=SIZE)
    make_video(folder / "2.mp4", 2, size=(160, 120), first=2)
    half = standing(160)
    small = People(half.boxes / 2, half.keypoints / 2, half.keypoint_scores, half.scores)
    images, times_s = decoded(overlay(folder, tmp_path / "out", [half, half, small, small]))
    assert times_s == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-4)
    assert all(drawn(image, numbered_image(number, SIZE), 120, 130) for number, image in enumerate(images))


@pytest.mark.parametrize("blur_faces", [True, False])
def test_heads_go_as_the_configuration_says(tmp_path: Path, blur_faces: bool) -> None:
    noise = (
        np.random.default_rng(3).integers(0, 255, (SIZE[1] // 4, SIZE[0] // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    )
    video = tmp_path / "clip.mkv"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "bgr0"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, "bgr24")))
        container.mux(stream.encode())
    with SceneNotes(RecordingListener(), tmp_path, {}) as notes:
        with closing(file_source(video)) as source:
            source.open()
            picture = source.read()
            assert picture is not None
            stamp = FrameStamp("cam", 0, 0, T0, *SIZE)
            nobody = tracks_of(stamp, People.empty())
            notes.on_tracks(Frame(stamp, picture[0]), standing(), nobody, 0.0)  # seen, but not followed
        path = tmp_path / OVERLAY
        asyncio.run(draw_overlay(video, notes, path, blur_faces=blur_faces, progress=lambda *_: None))
    (image,), _ = decoded(path)
    head, wall = image[64:76, 154:166].astype(float), image[64:76, 10:22].astype(float)
    assert (head.std() < wall.std() / 3) == blur_faces


@pytest.mark.parametrize("blur_faces", [True, False])
def test_a_frame_of_which_nobody_knows_the_heads_is_not_shown(tmp_path: Path, blur_faces: bool) -> None:
    video = make_video(tmp_path / "clip.mp4", 20, size=SIZE, fps=5)
    failing = range(5, 18)  # for longer than a head is remembered
    recording = [None if number in failing else standing() for number in range(20)]
    images, _ = decoded(overlay(video, tmp_path / "out", recording, blur_faces=blur_faces))
    for number, image in enumerate(images):
        background = numbered_image(number, SIZE)
        assert (image[100:120, 280:310].max() < 5) == (blur_faces and number in failing), number
        assert drawn(image, background, 20, 232), "the caption"


# --- notes ------------------------------------------------------------------------------------------------------------


def test_notes_give_back_what_they_were_told_and_pass_it_on(tmp_path: Path) -> None:
    video = make_video(tmp_path / "clip.mp4", 5)
    recording = [*walkers(3, 2), People.empty(), None, *walkers(1, 1)]
    listener = RecordingListener()
    with SceneNotes(listener, tmp_path, {}) as notes:
        watch(video, notes, recording)
        for _ in range(2):
            read = list(notes.read())
            assert notes.frames == len(read) == len(listener.tracks) == 5
            for people, (seen, tracks), told in zip(recording, read, listener.tracks, strict=True):
                for name in ("boxes", "keypoints", "keypoint_scores", "scores") if people is not None else ():
                    np.testing.assert_array_equal(getattr(seen, name), getattr(people, name))
                    np.testing.assert_array_equal(getattr(tracks.people, name), getattr(people, name))
                assert (seen is None) == (people is None)
                np.testing.assert_array_equal(tracks.track_ids, told.track_ids)
                assert tracks.stamp.t_mono_ns == told.stamp.t_mono_ns
                assert (tracks.stamp.width, tracks.stamp.height) == (told.stamp.width, told.stamp.height)
        assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4"}, "the notes have no name"


# --- actions ----------------------------------------------------------------------------------------------------------


def verdict(t_s: float, probability: float, service: str = "fight") -> tuple[int, ActionBar]:
    return ns(t_s), ActionBar(service, probability, 0.8)


def step(t_s: float, phase: EventPhase, confidence: float, incident: str = "one") -> tuple[int, Event]:
    event = Event(
        event_id=f"{incident}-{t_s}", incident_id=incident, kind="fight", phase=phase, camera_id="cam", track_ids=(1,),
        t_start_ns=0, t_utc=T0 + timedelta(seconds=t_s), t_onset_utc=T0, duration_s=t_s, confidence=confidence,
    )  # fmt: skip
    return ns(t_s), event


def test_events_are_shown_from_detected_to_resolved() -> None:
    trace = ActionTrace([
        step(6, EventPhase.RESOLVED, 0.95), step(2, EventPhase.DETECTED, 0.8), step(4, EventPhase.ACTIVE, 0.9),
        step(5, EventPhase.DETECTED, 0.7, "two"),
    ])  # fmt: skip
    shown = {t_s: [(bar.label, bar.probability) for bar in trace.at(ns(t_s))] for t_s in (1.9, 2, 3, 4, 5, 6, 6.1, 99)}
    one, two = "EVENT fight", ("EVENT fight", 0.7)
    assert shown == {
        1.9: [], 2: [(one, 0.8)], 3: [(one, 0.8)], 4: [(one, 0.9)], 5: [(one, 0.9), two], 6: [(one, 0.95), two],
        6.1: [two], 99: [two],
    }  # fmt: skip


def test_the_newest_verdict_of_each_service_is_shown_while_it_is_fresh() -> None:
    trace = ActionTrace([verdict(1, 0.2), verdict(1, 0.6, "fall"), verdict(2, 0.9), verdict(2.5, float("nan"), "fall")])
    assert trace.at(ns(0.9)) == []
    assert [(bar.label, bar.probability) for bar in trace.at(ns(1.5))] == [("fight", 0.2), ("fall", 0.6)]
    assert trace.at(ns(2))[0] == ActionBar("fight", 0.9, 0.8)
    assert [bar.label for bar in trace.at(ns(2 + VERDICT_SHOWN_S))] == ["fight", "fall"]
    assert [bar.label for bar in trace.at(ns(2.1 + VERDICT_SHOWN_S))] == ["fall"]


def test_notes_keep_verdicts_and_events_at_their_moment(tmp_path: Path) -> None:
    listener = RecordingListener()
    with SceneNotes(listener, tmp_path, {"fight": 0.7}) as notes:
        scores = ActionScores("cam", "fight", 0.9, {}, ns(1), ns(4), T0, (1,), 0.0)
        notes.on_scores(scores)
        moment_ns, event = step(5, EventPhase.DETECTED, 0.9)
        asyncio.run(notes.on_event(event))
    assert notes.actions == [(ns(4), ActionBar("fight", 0.9, 0.7)), (moment_ns, event)]
    assert (listener.scores, listener.events) == ([scores], [event])


# --- what goes wrong --------------------------------------------------------------------------------------------------


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The kernel refuses to let files grow beyond `size` bytes, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [0, 500, 4000])
def test_a_disk_without_room_for_the_video_is_named_and_nothing_is_left(tmp_path: Path, room: int) -> None:
    video = make_video(tmp_path / "clip.mp4", 40, size=SIZE)
    whole = overlay(video, tmp_path / "out", [standing()])
    assert whole.stat().st_size > room
    with SceneNotes(RecordingListener(), tmp_path / "out", {}) as notes:
        watch(video, notes, [standing()])
        list(notes.read())  # all of it on the disk
        with (
            files_up_to(room),
            pytest.raises(DataError, match=rf"{whole}: the overlay cannot be written: File too large"),
        ):
            asyncio.run(draw_overlay(video, notes, whole, blur_faces=True, progress=lambda *_: None))
    assert list((tmp_path / "out").iterdir()) == [], "an earlier overlay is not this one's"


def test_a_disk_without_room_for_the_notes_disturbs_nobody_before_the_overlay(tmp_path: Path) -> None:
    video, listener = make_video(tmp_path / "clip.mp4", 40), RecordingListener()
    with SceneNotes(listener, tmp_path, {}) as notes:
        with files_up_to(10_000):
            watch(video, notes, walkers(9, 40))  # more than is buffered, 128 KiB since Python 3.14
        assert len(listener.tracks) == 40
        with pytest.raises(DataError, match="overlay cannot be written: File too large"):
            asyncio.run(draw_overlay(video, notes, tmp_path / OVERLAY, blur_faces=True, progress=lambda *_: None))
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    video = make_video(tmp_path / "clip.mp4", 3)
    with SceneNotes(RecordingListener(), tmp_path, {}) as notes:
        watch(video, notes, [standing()])
        with pytest.raises(DataError, match=r"/proc/overlay\.mp4: the overlay cannot be written: No such file"):
            asyncio.run(draw_overlay(video, notes, Path("/proc") / OVERLAY, blur_faces=True, progress=lambda *_: None))


@pytest.mark.parametrize("change", ["shorter", "gone"])
def test_a_video_that_changes_meanwhile_is_named(tmp_path: Path, change: str) -> None:
    video = make_video(tmp_path / "clip.mp4", 10)
    with SceneNotes(RecordingListener(), tmp_path, {}) as notes:
        watch(video, notes, [standing()])
        make_video(video, 5) if change == "shorter" else video.unlink()
        with pytest.raises(SourceError, match=r"clip\.mp4: (it has fewer frames|no such file)"):
            asyncio.run(draw_overlay(video, notes, tmp_path / OVERLAY, blur_faces=True, progress=lambda *_: None))
    assert {path.name for path in tmp_path.iterdir()} <= {"clip.mp4"}


def test_without_a_frame_there_is_no_overlay_and_none_of_an_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / OVERLAY
    path.touch()
    with SceneNotes(RecordingListener(), tmp_path, {}) as notes:
        asyncio.run(draw_overlay(tmp_path / "none.mp4", notes, path, blur_faces=True, progress=lambda *_: None))
    assert not path.exists()
