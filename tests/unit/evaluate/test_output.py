"""What a measurement leaves behind: JSON, Markdown and pictures of every kind."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from agent.evaluate.action import ClipResult, action_report
from agent.evaluate.gate import Bar, check
from agent.evaluate.output import clear_pictures, drawn_in, new_pictures, pictures_of, prepare, write_report
from agent.evaluate.pages import cell, table
from agent.evaluate.strips import FRAMES, WIDTH_PX, StripMaker, save_strip
from agent.types import NUM_KEYPOINTS, Frame, FrameStamp, People, Tracks


def action() -> dict[str, Any]:
    clips = [
        ClipResult("a.mp4", "fight", 0.9, "street"), ClipResult("b|c.mp4", "calm", 0.8, "street"),
        ClipResult("d.mp4", "fight", 0.1, "hall"),
    ]  # fmt: skip
    return action_report(clips, "fight")


POSE = {
    "AP": 0.2, "AP50": 0.4, "AP75": 0.1, "AR": 0.3, "AP_medium": None, "AP_large": 0.5, "images": 2, "people": 3, "found": 4,
    "ms_per_image": 12.5, "ap_by_oks": {"0.5": 0.4, "0.75": 0.1},
    "precision": {"recall": [0, 0.5, 1], "0.5": [1, 0.6, 0], "0.75": [0.9, 0.1, 0]},
    "missed": [{"image_id": 1, "file": "x.jpg", "people": 2, "missed": 1}],
}  # fmt: skip
TRACKING = {
    "HOTA": 0.4, "MOTA": 0.5, "IDF1": 0.6, "id_switches": 3, "id_consistency": 0.9, "ms_per_frame": 0.4, "frames": 9,
    "truth_ids": 2, "truth_boxes": 18, "track_ids": 3, "track_boxes": 17,
    "by_alpha": {"alpha": [0.05, 0.5, 0.95], "HOTA": [0.6, 0.4, 0.1], "DetA": [0.5, 0.4, 0.2], "AssA": [0.7, 0.4, 0.1]},
    "sequences": {"a": {"HOTA": 0.4, "MOTA": 0.5, "IDF1": 0.6, "id_switches": 3, "id_consistency": 0.9}},
}  # fmt: skip
SCENE = {
    "hits": [
        {
            "incident": {"kind": "fall", "start_s": 10, "end_s": 15}, "detected_s": 12.0, "delay_s": 2.0,
            "onset_error_s": 0.1, "confidence": 0.9,
        }
    ],
    "missed": [{"kind": "fall", "start_s": 30, "end_s": 33}], "unseen": [],
    "duplicates": [{"kind": "fall", "detected_s": 14.0, "onset_s": 13.0, "ended_s": None, "confidence": 0.8}],
    "false_alarms": [
        {"kind": "fall", "detected_s": 44.0, "onset_s": 43.0, "ended_s": 50.0, "confidence": 0.8, "meanwhile": "hug, sit"}
    ],
}  # fmt: skip
EVENTS = {
    "services": {
        "fall": {
            "incidents": 2, "found": 1, "missed": 1, "duplicates": 1, "false_alarms": 1, "precision": 0.5, "recall": 0.5,
            "f1": 0.5, "delay_s": {"median": 2.0, "p95": 2.0}, "false_alarms_per_hour": 60.0,
        }
    },
    "hours": 1 / 60, "poses": "rtmo-s", "before_s": 1.0, "after_s": 5.0,
    "scenarios": [{"scenario": "fall", "seed": 1, "people": 3, "seconds": 60.0, "services": {"fall": SCENE}}],
}  # fmt: skip
REPORTS = {"pose": POSE, "tracking": TRACKING, "action": action(), "events": EVENTS}


@pytest.mark.parametrize("kind", REPORTS)
def test_a_page_shows_its_figures_and_every_picture_is_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out.json"
    assert write_report(path, kind, REPORTS[kind]) == ""
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "out.json", "out.md"]
    text = (tmp_path / "out.md").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert pictures
    for picture in pictures:
        image = cv2.imread(str(tmp_path / picture))
        assert image is not None
        assert image.std() > 1  # something is drawn
    assert all(line.count("|") > 2 for line in text.splitlines() if line.startswith("|"))
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(Path(name).name for name in pictures)
    clear_pictures(path)
    assert not (tmp_path / "out").exists(), "the next run knows them for its own"


def test_equal_reports_make_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_report(tmp_path / name / "out.json", "action", action())
    first, second = (
        {file.relative_to(tmp_path / name): file.read_bytes() for file in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b")
    )
    assert first == second


def test_the_gate_stands_on_top(tmp_path: Path) -> None:
    outcomes = check(action(), {"accuracy": Bar(min=0.9), "recall": Bar(min=0.5)})
    write_report(tmp_path / "out.json", "action", action(), gate=outcomes)
    text = (tmp_path / "out.md").read_text()
    assert "## Release gate: **missed**" in text
    assert "| accuracy | 0.333 | at least 0.9 | **no** |" in text
    assert "| recall | 0.500 | at least 0.5 | yes |" in text


def test_the_worst_clips_come_first_and_bars_in_names_do_not_break_the_table(tmp_path: Path) -> None:
    write_report(tmp_path / "out.json", "action", action())
    rows = [line for line in (tmp_path / "out.md").read_text().splitlines() if ".mp4" in line]
    assert rows == [
        "| d.mp4 | fight | 0.100 | **wrong** |",
        "| b\\|c.mp4 | calm | 0.800 | **wrong** |",
        "| a.mp4 | fight | 0.900 | right |",
    ]


def test_a_false_alarm_is_shown_with_what_people_did(tmp_path: Path) -> None:
    write_report(tmp_path / "out.json", "events", EVENTS)
    assert "| fall | hug, sit | fall | 1 | 44.000 |" in (tmp_path / "out.md").read_text()


def test_cells() -> None:
    assert [cell(value) for value in (None, 0.12345, 3, "a|b")] == ["-", "0.123", "3", "a\\|b"]
    assert table(("a", "b"), [(1, 0.5)]) == "| a | b |\n|---|---|\n| 1 | 0.500 |"


def test_a_report_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.json"
    prepare(path)
    assert not path.exists()
    write_report(path, "pose", POSE)
    assert json.loads(path.read_text()) == POSE
    assert not list(path.parent.glob("*.partial"))


def test_a_place_that_cannot_be_written_is_known_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        prepare(tmp_path / "file" / "out.json")


@pytest.mark.parametrize("name", ["folder", "folder/.", "page.md", "taken.json", "half.json", "closed.json"])
def test_a_report_that_has_no_place_is_known_at_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "taken").touch()  # where the pictures of taken.json would go
    (tmp_path / "half.json.pictures.partial").touch()
    (tmp_path / "closed").symlink_to("/proc")  # nobody writes there
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"folder|page\.md|taken|half|closed"):
        prepare(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("report", "refused"),
    [
        ("half.json", "half.json.pictures.partial"),
        ("val.json", "val.json"),  # the annotations
        ("images.json", "images"),
        ("link.json", "link"),
        ("set.json", "set"),
        ("notes.json", "notes.md"),
        ("val.new.json", ""),
        ("set/images.json", ""),
        ("images/set.json", ""),
    ],
)
def test_what_is_read_is_no_place_for_a_report(tmp_path: Path, report: str, refused: str) -> None:
    for folder in ("images", "set/of/clips", "half.json.pictures.partial"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("val.json", "set/of/clips/a.csv", "notes.md", "notes.json"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("images")
    names = ("val.json", "set/../images", "set/of/clips/a.csv", "notes.md", "half.json.pictures.partial")
    read = [tmp_path / name for name in names]
    if not refused:
        prepare(tmp_path / report, read)
        return
    with pytest.raises(FileExistsError, match="is read") as caught:
        prepare(tmp_path / report, read)
    assert caught.value.filename == str(tmp_path / refused)


def test_a_page_replaces_that_of_an_earlier_report_alone(tmp_path: Path) -> None:
    path, page = tmp_path / "README.json", tmp_path / "README.md"
    page.write_text("somebody's own")
    with pytest.raises(FileExistsError, match=r"without README\.json beside it") as caught:
        prepare(path)
    assert caught.value.filename == str(page)
    assert list(tmp_path.iterdir()) == [page]
    path.touch()
    prepare(path)


@pytest.mark.parametrize("kind", ["pipe", "link", "link to nowhere"])
def test_a_report_replaces_regular_files_alone(tmp_path: Path, kind: str) -> None:
    """As root one would take the place of `/dev/null`, or of the link `/dev/stdout`."""
    path = tmp_path / "out.json"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "kept.json")
    if kind == "link":
        (tmp_path / "kept.json").write_text("kept")
    with pytest.raises(OSError, match="no regular file, and the report would replace it") as caught:
        prepare(path)
    assert caught.value.filename == str(path)
    assert path.is_symlink() or path.is_fifo()


def test_the_present_folder_is_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="Is a directory"):
        prepare(Path())


def test_pictures_of_the_last_run_go_and_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    folder = pictures_of(path)
    folder.mkdir()
    strangers = ["000001.jpg", "my-calls.png", "notes.txt", "worst-1.jpg.bak", "worst-of-all.jpg"]
    for name in ("worst-1.jpg", "missed-12.jpg", "mistake-3.jpg", "calls.png", "verdicts-fall.png", *strangers):
        (folder / name).touch()
    clear_pictures(path)
    assert sorted(file.name for file in folder.iterdir()) == strangers
    for name in strangers:
        (folder / name).unlink()
    clear_pictures(path)
    assert not folder.exists()
    clear_pictures(path)
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to("elsewhere")
    clear_pictures(path)
    assert folder.is_dir(), "the link was made for more than one report"


@pytest.mark.parametrize("kept", [False, True])
def test_pictures_wait_until_the_report_is_written(tmp_path: Path, kept: bool) -> None:
    path = tmp_path / "out.json"
    write_report(path, "action", action())
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    drawn_in(path).mkdir()
    (drawn_in(path) / "worst-7.jpg").touch()  # of a run that was killed
    strip = drawn_in(path) / "worst-1.jpg"
    with contextlib.suppress(KeyboardInterrupt), new_pictures(path):
        save_strip(strip, np.zeros((9, 9, 3), np.uint8))
        assert {file: file.read_bytes() for file in before} == before
        if not kept:
            raise KeyboardInterrupt
        write_report(path, "events", EVENTS, extra={"The worst": strip})
    assert not drawn_in(path).exists()
    if kept:
        names = ["delays.png", "timelines.png", "worst-1.jpg"]
        assert sorted(file.name for file in pictures_of(path).iterdir()) == names, "not those of the earlier report"
        assert "![The worst](out/worst-1.jpg)" in path.with_suffix(".md").read_text()
    else:
        assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before


# --- strips -----------------------------------------------------------------------------------------------------------


def person(x: float) -> People:
    points = np.tile(np.array([x, 60], np.float32), (1, NUM_KEYPOINTS, 1))
    points[0, 5:, 1] = np.linspace(90, 200, NUM_KEYPOINTS - 5)
    points[0, :5, 0] += np.array([0, 5, -5, 9, -9])
    box = np.array([[x - 30, 40, x + 30, 210]], np.float32)
    return People(box, points, np.ones((1, NUM_KEYPOINTS), np.float32), np.ones(1, np.float32))


def frame(number: int, image: np.ndarray) -> Frame:
    from datetime import UTC, datetime

    stamp = FrameStamp(
        "c", number, number * 40_000_000, datetime(2026, 1, 1, tzinfo=UTC), image.shape[1], image.shape[0]
    )
    return Frame(stamp, image)


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (4, 4), (6, 6), (13, 6), (500, 6)])
def test_a_strip_spans_the_whole_clip(count: int, shown: int) -> None:
    maker = StripMaker()
    for number in range(count):
        image = np.full((240, 480, 3), number * 255 // max(count - 1, 1), np.uint8)
        one = frame(number, image)
        people = People.empty()
        maker.add(one, people, Tracks(one.stamp, people, np.zeros(0, np.int64), np.zeros(0, np.int64)))
    strip = maker.strip()
    assert strip is not None
    assert strip.shape == (120, shown * WIDTH_PX + (shown - 1) * 3, 3)
    levels = [int(strip[60, n * (WIDTH_PX + 3) + 100, 0]) for n in range(shown)]
    assert levels == sorted(levels)
    if count > 1:
        assert levels[0] == 0
        assert levels[-1] > 200
    assert shown <= FRAMES


def test_heads_in_a_strip_cannot_be_recognised(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (240, 480, 3), dtype=np.uint8)
    one, people = frame(0, image), person(240)
    maker = StripMaker()
    maker.add(one, people, Tracks(one.stamp, People.empty(), np.zeros(0, np.int64), np.zeros(0, np.int64)))
    strip = maker.strip()
    assert strip is not None
    head, wall = strip[24:36, 114:126].astype(float), strip[24:36, 14:26].astype(float)
    assert head.std() < wall.std() / 3
    save_strip(tmp_path / "new" / "strip.jpg", strip)
    assert cv2.imread(str(tmp_path / "new" / "strip.jpg")).shape == strip.shape


def test_a_clip_without_a_frame_has_no_strip() -> None:
    assert StripMaker().strip() is None
