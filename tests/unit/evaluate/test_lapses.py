"""Who was lost and when, who was taken for another, and that the sums are those of the reference implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.evaluate.lapses import WORST, Lapses, lapses_of, worst
from agent.evaluate.pages import page
from agent.evaluate.tracking import evaluate_tracking


def followed(*tracks: int | None, first: int = 1, person: int = 7) -> Lapses:
    """A person who is there in each frame from `first` on, and the track in each."""
    (one,) = lapses_of(
        (number, [person], {} if track is None else {person: track}) for number, track in enumerate(tracks, start=first)
    )
    return one


def test_a_person_who_keeps_one_track_has_none() -> None:
    assert followed(3, 3, 3) == Lapses(7, boxes=3, _track=3)
    assert worst({"a": [followed(3, 3, 3)]}) == []


def test_misses_are_counted_and_the_longest_stretch_is_named() -> None:
    one = followed(None, 3, None, None, 3, None, None, 3, first=10)
    assert (one.boxes, one.missed, one.longest_miss, one.switches) == (8, 5, (12, 13), [])
    assert followed(3, None, None, None).longest_miss == (2, 4)


def test_a_stretch_goes_on_over_frames_in_which_the_person_is_not_there() -> None:
    (one,) = lapses_of([(1, [7], {7: 2}), (2, [7], {}), (3, [], {}), (40, [7], {}), (41, [7], {7: 2})])
    assert (one.boxes, one.missed, one.longest_miss) == (4, 2, (2, 40))


def test_a_switch_counts_whoever_followed_between() -> None:
    one = followed(3, 3, 5, None, None, 5, None, 3, first=100)
    assert one.switches == [(102, 3, 5), (107, 5, 3)]


def test_most_switches_first_then_most_misses_and_no_more_than_fit() -> None:
    sequences = {
        "b": [followed(1, 2, person=1), followed(1, None, None, person=2)],
        "a": [followed(1, None, person=3), followed(1, 2, 1, person=4), followed(1, 1, person=5)],
    }
    named = worst(sequences)
    assert [(one["sequence"], one["person"]) for one in named] == [("a", 4), ("b", 1), ("b", 2), ("a", 3)]
    assert named[0] == {
        "sequence": "a", "person": 4, "boxes": 3, "missed": 0, "longest_miss": None, "switches": [[2, 1, 2], [3, 2, 1]],
    }  # fmt: skip
    assert len(worst({"a": [followed(1, None, person=n) for n in range(50)]})) == WORST


def mot_files(folder: Path) -> tuple[Path, Path]:
    """Two people; nobody sees person 20 for 40 frames from frame 11 on, so that the tracker gives up and starts anew."""
    truth, found = [], []
    for frame in range(1, 101):
        for person, left in ((10, 100 + frame), (20, 400 - frame)):
            truth.append(f"{frame},{person},{left},50,40,90,1")
            if person == 10 or not 10 < frame <= 50:
                found.append(f"{frame},-1,{left},50,40,90,0.9")
    paths = folder / "det.txt", folder / "gt.txt"
    for path, rows in zip(paths, (found, truth), strict=True):
        path.write_text("\n".join(rows))
    return paths


def test_the_report_names_the_frames_and_the_page_shows_them(tmp_path: Path) -> None:
    report = evaluate_tracking(*mot_files(tmp_path))
    (person,) = report["worst"]
    assert (person["sequence"], person["person"], person["boxes"]) == ("gt", 20, 100)
    assert report["id_switches"] == len(person["switches"]) == 1
    frame, before, after = person["switches"][0]
    assert 51 <= frame <= 53
    assert before != after
    assert person["longest_miss"] == [11, frame - 1]
    assert person["missed"] == frame - 11
    text = page("tracking", report | {"sequences": {}}, {})
    assert f"| gt | 20 | 100 | {frame - 11} | 11-{frame - 1} | 1 | {frame}: {before} > {after} |" in text


def test_long_lists_of_switches_are_cut_on_the_page(tmp_path: Path) -> None:
    many = worst({"a": [followed(*(n % 2 for n in range(40)))]})
    report = evaluate_tracking(*mot_files(tmp_path)) | {"worst": many}
    (row,) = (line for line in page("tracking", report, {}).splitlines() if line.startswith("| a | 7 "))
    assert row.endswith("9: 1 > 0, ... |")
    assert "| 39 |" in row


@pytest.mark.shared
@pytest.mark.parametrize("sequence", ["PETS09-S2L1", "ETH-Bahnhof"])
def test_switches_and_misses_add_up_to_those_of_the_reference(
    shared_dir: Path, sequence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.evaluate.lapses.WORST", 10_000)
    folder = shared_dir / "data" / "mot" / "mot15" / sequence
    report = evaluate_tracking(folder / "det" / "det.txt", folder / "gt" / "gt.txt")
    switches = sum(len(one["switches"]) for one in report["worst"])
    missed = sum(one["missed"] for one in report["worst"])
    assert switches == report["id_switches"]
    matched = report["truth_boxes"] - missed
    false = report["track_boxes"] - matched
    assert report["MOTA"] == pytest.approx((matched - false - switches) / report["truth_boxes"])
    assert np.all([one["missed"] <= one["boxes"] for one in report["worst"]])
