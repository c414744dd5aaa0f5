"""Files and folders as sources: what is read, what is skipped, what is refused and why."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from fakes.video import make_video, number_of

from agent.capture.files import FileSource, FolderSource, natural_key
from agent.errors import SourceError
from agent.ports import VideoSource

MS = 1_000_000


def read_all(source: VideoSource) -> tuple[list[int], list[int]]:
    """Numbers of the pictures and their times in ms."""
    source.open()
    numbers, times = [], []
    while (picture := source.read()) is not None:
        numbers.append(number_of(picture[0]))
        times.append(round(picture[1] / MS))
    source.close()
    return numbers, times


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.h264"])
def test_every_frame_of_a_file_comes_once_in_order(tmp_path: Path, name: str) -> None:
    numbers, times = read_all(FileSource(make_video(tmp_path / name, 12)))
    assert numbers == list(range(12))
    assert times[0] == 0
    step = 40 if name.endswith("h264") else 100  # a raw stream has no times: FFmpeg's 25 fps stand in
    assert times[1:] == pytest.approx([step * index for index in range(1, 12)], abs=101)
    assert all(later > earlier for earlier, later in itertools.pairwise(times))


def test_a_relative_path_with_a_colon_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_video(tmp_path / "plain.mp4", 3).rename(tmp_path / "http:12.mp4")
    monkeypatch.chdir(tmp_path)
    assert read_all(FileSource(Path("http:12.mp4")))[0] == [0, 1, 2]


def bad_text(path: Path) -> None:
    path.write_text("this is no video\n" * 100)


def bad_cut(path: Path) -> None:
    whole = make_video(path.with_name("whole.mkv")).rename(path).read_bytes()
    path.write_bytes(whole[:40])


def bad_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.touch(), "the file is empty"),
        (bad_text, "not a readable video"),
        (bad_cut, "not a readable video"),
        (bad_folder, "(not a regular file|Is a directory)"),
    ],
    ids=["missing", "empty", "text", "cut", "folder"],
)
def test_a_bad_file_is_refused_with_path_and_reason(tmp_path: Path, prepare: object, reason: str) -> None:
    path = tmp_path / "film.mp4"
    prepare(path)  # type: ignore[operator]
    with pytest.raises(SourceError, match=f"film.mp4: {reason}"):
        FileSource(path).open()


def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = make_video(tmp_path / "film.mp4", 2)
    path.chmod(0)
    tmp_path.chmod(0o755)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)  # modes do not bind root
    try:
        with pytest.raises(SourceError, match="Permission denied"):
            FileSource(path).open()
    finally:
        if was_root:
            os.seteuid(0)


def test_an_mp4_cut_off_before_its_index_is_refused(tmp_path: Path) -> None:
    path = make_video(tmp_path / "film.mkv").rename(tmp_path / "film.mp4")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SourceError, match="not a readable video"):
        FileSource(path).open()


def test_a_file_that_breaks_in_the_middle_gives_what_it_has_and_says_so(tmp_path: Path) -> None:
    path = make_video(tmp_path / "film.mp4", 60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    source = FileSource(path)
    numbers, _ = read_all(source)
    assert 5 < len(numbers) < 58
    assert f"{len(numbers)} of 60 frames could be read" in source.problem


def test_damage_in_the_middle_is_stepped_over(tmp_path: Path) -> None:
    path = make_video(tmp_path / "film.mp4", 100, size=(320, 240), codec="mpeg4")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(range(256)) + bytes(144)
    path.write_bytes(content)
    assert len(read_all(FileSource(path))[0]) > 60


def test_a_file_can_be_read_again_after_close(tmp_path: Path) -> None:
    source = FileSource(make_video(tmp_path / "film.mp4", 5))
    assert read_all(source) == read_all(source)


def test_a_change_of_resolution_in_a_file_is_survived(tmp_path: Path) -> None:
    small = make_video(tmp_path / "a.ts", 6, size=(64, 48))
    large = make_video(tmp_path / "b.ts", 6, size=(128, 96), first=6)
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    assert read_all(FileSource(both))[0] == list(range(12))


def test_a_folder_is_one_stream_in_natural_order(tmp_path: Path) -> None:
    for name, first in (("clip10.mp4", 8), ("clip2.mp4", 4), ("Clip1.avi", 0)):
        make_video(tmp_path / name, 4, first=first)
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / ".hidden.mp4").write_text("no video")
    source = FolderSource(tmp_path)
    numbers, times = read_all(source)
    assert numbers == list(range(12))
    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    assert times[-1] == pytest.approx(1100, abs=310)
    assert source.problem == ""


def test_unreadable_files_of_a_folder_are_skipped_counted_and_named(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 3)
    bad_text(tmp_path / "b.mp4")
    (tmp_path / "c.mp4").touch()
    make_video(tmp_path / "d.mp4", 3, first=3)
    source = FolderSource(tmp_path)
    assert read_all(source)[0] == list(range(6))
    assert source.problem.startswith("2 faulty file(s)")
    assert "b.mp4: not a readable video" in source.problem
    assert "c.mp4: the file is empty" in source.problem


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no videos in this folder"):
        FolderSource(tmp_path).open()


def test_a_folder_of_nothing_but_bad_files_is_refused(tmp_path: Path) -> None:
    bad_text(tmp_path / "a.mp4")
    with pytest.raises(SourceError, match=r"1 faulty file.*a\.mp4: not a readable video"):
        FolderSource(tmp_path).open()


def test_natural_order_compares_numbers_by_value() -> None:
    names = ["x1y10", "x1y9", "x", "10", "9", "x01y8", "²"]
    assert sorted(names, key=natural_key) == ["9", "10", "x", "x01y8", "x1y9", "x1y10", "²"]
