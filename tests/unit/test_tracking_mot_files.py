"""MOT files: what is read, what is refused and how it is said, what is written."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from agent.errors import DataError
from agent.evaluate.mot import read_detections, read_truth, sequence_fps, write_tracks
from agent.types import FrameStamp, People, Tracks

GOOD = "1,-1,10,20,30,40,0.9,-1,-1,-1\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "file.txt"
    path.write_text(text)
    return path


def test_rows_become_boxes_with_corners(tmp_path: Path) -> None:
    found = read_detections(written(tmp_path, GOOD + "\n3,-1,0,0,5,5,0.25\n"))
    assert found.frames.tolist() == [1, 3]
    np.testing.assert_allclose(found.boxes, [[10, 20, 40, 60], [0, 0, 5, 5]])
    np.testing.assert_allclose(found.scores, [0.9, 0.25])


def test_frames_come_in_order_and_none_is_left_out(tmp_path: Path) -> None:
    found = read_detections(written(tmp_path, "3,-1,0,0,5,5,0.3\n1,-1,0,0,5,5,0.1\n3,-1,0,0,5,5,0.4\n"))
    assert [frame.scores.tolist() for frame in found.by_frame(1, 4)] == [[0.1], [], [0.3, 0.4], []]


def test_empty_detection_file_is_a_scene_without_detections(tmp_path: Path) -> None:
    assert len(read_detections(written(tmp_path, ""))) == 0


def test_truth_leaves_out_rows_flagged_zero(tmp_path: Path) -> None:
    truth = read_truth(written(tmp_path, "1,7,0,0,5,5,1\n1,8,0,0,5,5,0\n"))
    assert truth.ids.tolist() == [7]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,-1,10,20,30", "5 columns"),
        ("1,-1,10,20,30,40,1,2,3,4,5", "11 columns"),
        ("1 -1 10 20 30 40 1", "1 columns"),
        ("1,-1,10,x,30,40,0.9", "could not convert string to float: 'x'"),
        ("1,-1,10,nan,30,40,0.9", "not finite"),
        ("1.5,-1,10,20,30,40,0.9", "frame 1.5"),
        ("-1,-1,10,20,30,40,0.9", "frame -1"),
        ("1e19,-1,10,20,30,40,0.9", "frame 1e19, id -1"),
        ("1,-1e19,10,20,30,40,0.9", "frame 1, id -1e19"),
    ],
)
def test_malformed_row_is_named_with_file_line_and_hint(tmp_path: Path, row: str, message: str) -> None:
    path = written(tmp_path, GOOD + row + "\n")
    with pytest.raises(DataError) as error:
        read_detections(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)
    assert "hint: " in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,1,0,0,5,5,1\n1,1,9,9,5,5,1\n", ":2: identity 1 of frame 1 stands in line 1 already"),
        ("1,1,0,0,0,5,1\n", ":1: box of 0 x 5 px"),
        ("1,1,0,0,5,5,0\n", "no box to compare with"),
    ],
)
def test_truth_that_cannot_be_true_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_truth(written(tmp_path, text))


def test_missing_and_binary_files_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_detections(tmp_path / "absent.txt")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="not a text file"):
        read_detections(binary)


def test_frame_rate_comes_from_the_sequence_file_beside_or_above(tmp_path: Path) -> None:
    det = tmp_path / "det" / "det.txt"
    det.parent.mkdir()
    assert sequence_fps(det) is None
    (tmp_path / "seqinfo.ini").write_text("[Sequence]\nframeRate=14\n")
    assert sequence_fps(det) == 14.0


@pytest.mark.parametrize(
    "text", ["[Sequence]\n", "nonsense", "[Sequence]\nframeRate=fast\n", "[Sequence]\nframeRate=0\n"]
)
def test_unusable_sequence_file_is_a_data_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "seqinfo.ini").write_text(text)
    with pytest.raises(DataError, match=r"seqinfo\.ini"):
        sequence_fps(tmp_path / "det.txt")


def test_written_tracks_read_back(tmp_path: Path) -> None:
    people = People(
        np.array([[10.25, 20, 40, 60]], np.float32),
        np.zeros((1, 17, 2), np.float32),
        np.zeros((1, 17), np.float32),
        np.array([0.875], np.float32),
    )
    stamp = FrameStamp("cam", 4, 0, datetime(2026, 1, 1, tzinfo=UTC), 640, 480)
    out = io.StringIO()
    write_tracks(out, 5, Tracks(stamp, people, np.array([3]), np.array([1])))
    assert out.getvalue() == "5,3,10.25,20.00,29.75,40.00,0.8750,-1,-1,-1\n"
    back = read_truth(written(tmp_path, out.getvalue()))
    assert (back.frames.tolist(), back.ids.tolist()) == ([5], [3])
    np.testing.assert_allclose(back.boxes, people.boxes)
