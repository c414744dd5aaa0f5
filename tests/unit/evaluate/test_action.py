"""Clip lists and the figures of an action service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.errors import DataError
from agent.evaluate.action import (
    Clip,
    ClipColumns,
    ClipResult,
    action_report,
    calibration_error_by_chance,
    corners,
    expected_calibration_error,
    none_positive,
    read_clips,
    read_predictions,
    wilson_interval,
)


def table(folder: Path, text: str, *clips: str) -> Path:
    for clip in clips:
        file = folder / clip
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    path = folder / "clips.csv"
    path.write_text(text, encoding="utf-8")
    return path


def results(*pairs: tuple[str, float]) -> list[ClipResult]:
    return [ClipResult(f"{number}.mp4", label, p) for number, (label, p) in enumerate(pairs)]


def test_reads_files_relative_to_the_table_and_ignores_other_columns(tmp_path: Path) -> None:
    path = table(tmp_path, "split,file,label\ntrain,a/x.mp4, fight\ndev,y.mp4,nofight\n", "a/x.mp4", "y.mp4")
    assert read_clips(path) == [
        Clip("a/x.mp4", "fight", tmp_path / "a/x.mp4"),
        Clip("y.mp4", "nofight", tmp_path / "y.mp4"),
    ]


def test_names_every_bad_line_at_once(tmp_path: Path) -> None:
    path = table(tmp_path, "file,label\nx.mp4,fight\n,fight\ngone.mp4,fight\nx.mp4,\n", "x.mp4")
    with pytest.raises(DataError) as caught:
        read_clips(path)
    assert str(caught.value).splitlines() == [
        "3 problems",
        f"  {path}:3: no file",
        f"  {path}:4: no such file: gone.mp4 (hint: relative to the CSV file)",
        f"  {path}:5: no label",
    ]


def test_a_file_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    text = "file,label,probability,split\nx.mp4,fight,1,dev\ny.mp4,calm,0,dev\n./x.mp4,calm,0,dev\na/../y.mp4,calm,0,test\n"
    path = table(tmp_path, text, "x.mp4", "y.mp4", "a/z.mp4")
    for read in (read_clips, read_predictions):
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(caught.value).splitlines() == [
            "2 problems",
            f"  {path}:4: ./x.mp4 is listed in line 2 already (hint: each clip counts once)",
            f"  {path}:5: a/../y.mp4 is listed in line 3 already (hint: each clip counts once)",
        ]
        assert len(read(path, ClipColumns(where={"split": "test"}))) == 1, "lines that do not count do no harm"


@pytest.mark.parametrize(
    ("text", "message"), [("", "column"), ("file\nx.mp4\n", "label"), ("file,label\n", "no clips")]
)
def test_a_table_without_columns_or_clips_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_clips(table(tmp_path, text))


def test_a_missing_or_binary_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file or directory"):
        read_clips(tmp_path / "none.csv")
    (tmp_path / "bad.csv").write_bytes(b"file,label\n\xff\xfe,fight\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_clips(tmp_path / "bad.csv")


def test_figures_of_a_known_case() -> None:
    clips = results(("fight", 0.9), ("fight", 0.6), ("fight", 0.2), ("calm", 0.7), ("calm", 0.1))
    report = action_report(clips, "fight")
    assert report["confusion_matrix"] == {
        "true_positive": 2, "false_positive": 1, "false_negative": 1, "true_negative": 1,
    }  # fmt: skip
    assert report["accuracy"] == pytest.approx(3 / 5)
    assert report["precision"] == report["recall"] == report["f1"] == pytest.approx(2 / 3)
    assert report["false_alarm_rate"] == pytest.approx(1 / 2)
    assert report["clips"][0] == {"file": "0.mp4", "label": "fight", "probability": 0.9}


def test_the_threshold_itself_counts_as_positive() -> None:
    assert action_report(results(("fight", 0.8)), "fight", 0.8)["recall"] == 1
    assert action_report(results(("fight", 0.79)), "fight", 0.8)["recall"] == 0


def test_no_positive_call_or_clip_gives_zero_not_an_error() -> None:
    report = action_report(results(("calm", 0.1), ("calm", 0.2)), "fight")
    assert (report["precision"], report["recall"], report["f1"], report["accuracy"]) == (0, 0, 0, 1)


def test_calibration_error_of_a_perfect_and_of_an_overconfident_model() -> None:
    truth = np.array([True, False] * 50)
    assert expected_calibration_error(np.where(truth, 1.0, 0.0), truth) == 0
    assert expected_calibration_error(np.full(100, 0.5), truth) == pytest.approx(0)
    assert expected_calibration_error(np.full(100, 0.95), truth) == pytest.approx(0.45)


@pytest.mark.parametrize("count", [40, 200, 5000])
def test_calibration_error_by_chance_is_that_of_outcomes_drawn_from_the_probabilities(count: int) -> None:
    rng = np.random.default_rng(1)
    probability = rng.beta(0.8, 0.8, count)
    drawn = [expected_calibration_error(probability, rng.random(count) < probability) for _ in range(300)]
    assert calibration_error_by_chance(probability) == pytest.approx(np.mean(drawn), rel=0.1)
    assert calibration_error_by_chance(np.round(probability)) == 0  # who is always sure and right is never off


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_an_impossible_probability_is_refused_by_name(probability: float) -> None:
    with pytest.raises(ValueError, match=r"1\.mp4"):
        action_report(results(("fight", 0.5), ("fight", probability)), "fight")


def test_no_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="no clips"):
        action_report([], "fight")


# --- sources, columns, curves -----------------------------------------------------------------------------------------


def test_sources_come_from_a_column_or_from_a_table_of_their_own(tmp_path: Path) -> None:
    path = table(tmp_path, "file,label,source\nx.mp4,fight,street\ny.mp4,calm,hall\n", "x.mp4", "y.mp4")
    assert [clip.source for clip in read_clips(path)] == ["street", "hall"]
    sources = tmp_path / "sources.csv"
    sources.write_text("file,source\nx.mp4,mall\n")
    assert [clip.source for clip in read_clips(path, sources=sources)] == ["mall", "hall"]
    sources.write_text("clip,source\nx.mp4,mall\n")
    with pytest.raises(DataError, match=r"sources\.csv:1: no column file"):
        read_clips(path, sources=sources)


def test_other_columns_can_hold_label_and_source_and_lines_can_be_picked(tmp_path: Path) -> None:
    path = table(tmp_path, "file,kind,who,split\nx.mp4,fall,ann,dev\ngone.mp4,adl,bob,train\n", "x.mp4")
    columns = ClipColumns(label="kind", source="who", where={"split": "dev"})
    assert read_clips(path, columns) == [Clip("x.mp4", "fall", tmp_path / "x.mp4", "ann")]
    with pytest.raises(DataError, match="no clips in it with split = test"):
        read_clips(path, ClipColumns(label="kind", where={"split": "test"}))


def test_predictions_need_no_files_but_probabilities(tmp_path: Path) -> None:
    path = table(tmp_path, "file,label,probability,source\nx.mp4,fight,0.25,a\n")
    assert read_predictions(path) == [ClipResult("x.mp4", "fight", 0.25, "a")]
    path.write_text("file,label,probability\nx.mp4,fight,1.5\ny.mp4,fight,high\n")
    with pytest.raises(DataError) as caught:
        read_predictions(path)
    assert str(caught.value).splitlines() == [
        "2 problems", f"  {path}:2: probability '1.5' is not 0-1", f"  {path}:3: probability 'high' is not 0-1",
    ]  # fmt: skip
    path.write_text("file,label,probability\nx.mp4,fight,0.5\ny.mp4,,0.5\n,fight,0.5\nz.mp4\n")
    with pytest.raises(DataError) as caught:
        read_predictions(path)
    problems = ["3: no label", "4: no file", "5: no label", "5: probability '' is not 0-1"]
    assert str(caught.value).splitlines()[1:] == [f"  {path}:{problem}" for problem in problems]
    path.write_text("file,label,probability,split\nx.mp4,fight,0.5,dev\n")
    with pytest.raises(DataError, match="no clips in it with split = test"):
        read_predictions(path, ClipColumns(where={"split": "test"}))


def test_labels_among_which_the_service_is_not_are_told() -> None:
    assert none_positive(["fight", "calm"], "fight") == ""
    assert none_positive(["fight"], "fight") == ""
    told = none_positive(["Fight", "calm", "calm"], "fight")
    assert told.startswith("no clip is positive, so precision, recall and f1 are 0: no label is 'fight' (hint: ")
    assert "here are 'calm', 'Fight';" in told
    assert "'0', '1', '2', '3', '4', ...;" in none_positive("0123456", "fight")


def test_a_report_by_source() -> None:
    clips = [
        ClipResult("a", "fight", 0.9, "street"), ClipResult("b", "calm", 0.8, "street"), ClipResult("c", "fight", 0.1, "hall"),
    ]  # fmt: skip
    assert action_report(clips, "fight")["by_source"] == {
        "hall": {"clips": 1, "positive": 1, "missed": 1, "false_alarms": 0, "accuracy": 0},
        "street": {"clips": 2, "positive": 1, "missed": 0, "false_alarms": 1, "accuracy": 0.5},
    }
    assert "by_source" not in action_report(results(("fight", 0.5)), "fight")


def test_a_curve_keeps_the_points_at_which_it_turns() -> None:
    rates = [(0.0, 0.0), (0.0, 0.4), (0.0, 0.8), (0.1, 0.8), (0.2, 0.8), (0.3, 0.9), (1.0, 1.0)]
    curve = [{"threshold": 0.5, "false_alarm_rate": x, "recall": y} for x, y in rates]
    kept = [(point["false_alarm_rate"], point["recall"]) for point in corners(curve)]
    assert kept == [(0.0, 0.0), (0.0, 0.8), (0.2, 0.8), (0.3, 0.9), (1.0, 1.0)]
    assert corners(curve[:1]) == curve[:1]
    assert corners([]) == []


def test_roc_and_its_area() -> None:
    report = action_report(results(("fight", 0.9), ("calm", 0.6), ("fight", 0.6), ("calm", 0.1)), "fight")
    assert [(point["false_alarm_rate"], point["recall"]) for point in report["roc"]] == [
        (0, 0), (0, 0.5), (0.5, 1), (1, 1),
    ]  # fmt: skip
    assert report["auc"] == pytest.approx(0.875)
    area = np.trapezoid([p["recall"] for p in report["roc"]], [p["false_alarm_rate"] for p in report["roc"]])
    assert area == pytest.approx(report["auc"])
    assert action_report(results(("fight", 0.9)), "fight")["auc"] is None


def test_reliability_bins_add_up_to_the_calibration_error() -> None:
    clips = results(("fight", 0.95), ("fight", 0.91), ("calm", 0.93), ("calm", 0.1), ("calm", 0.0), ("fight", 1.0))
    report = action_report(clips, "fight")
    assert [(row["from"], row["clips"]) for row in report["reliability"]] == [(0.0, 1), (0.1, 1), (0.9, 4)]
    gaps = [row["clips"] * abs(row["mean_probability"] - row["positive"]) for row in report["reliability"]]
    assert sum(gaps) / len(clips) == pytest.approx(report["ece"], abs=1e-4)


def test_wilson_interval_of_known_cases() -> None:
    assert wilson_interval(30, 40) == pytest.approx((0.5981, 0.8581), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
