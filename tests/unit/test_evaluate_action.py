"""Clip lists and the figures of an action service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.errors import ConfigError
from agent.evaluate.action import Clip, ClipResult, action_report, expected_calibration_error, read_clips


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
    with pytest.raises(ConfigError) as caught:
        read_clips(path)
    assert [(problem.line, problem.message) for problem in caught.value.problems] == [
        (3, "no file"),
        (4, "no such file: gone.mp4"),
        (5, "no label"),
    ]
    assert f"{path}:4" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("", "column"), ("file\nx.mp4\n", "label"), ("file,label\n", "no clips")]
)
def test_a_table_without_columns_or_clips_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_clips(table(tmp_path, text))


def test_a_missing_or_binary_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_clips(tmp_path / "none.csv")
    (tmp_path / "bad.csv").write_bytes(b"file,label\n\xff\xfe,fight\n")
    with pytest.raises(ConfigError, match="UTF-8"):
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


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_an_impossible_probability_is_refused_by_name(probability: float) -> None:
    with pytest.raises(ValueError, match=r"1\.mp4"):
        action_report(results(("fight", 0.5), ("fight", probability)), "fight")


def test_no_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="no clips"):
        action_report([], "fight")
