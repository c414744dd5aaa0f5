"""The tracker on recorded sequences: the authors' figures, the reference vectors of the C++ port, the evaluation."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from agent.config.schema import TrackingConfig
from agent.errors import ConfigError, DataError, ModelError
from agent.evaluate.tracking import evaluate_tracking
from agent.tracking import PALACE, ByteTracker

UPSTREAM = {
    # HOTA, MOTA, IDF1 in percent, identity switches: the authors' code on the same detections, TrackEval
    "PETS09-S2L1": (37.49, 63.03, 47.38, 72),
    "TUD-Stadtmitte": (53.73, 69.90, 75.77, 10),
    "ADL-Rundle-6": (35.39, 37.59, 49.39, 77),
    "ETH-Bahnhof": (41.48, 40.61, 54.39, 63),
    "ETH-Pedcross2": (39.74, 45.23, 54.18, 101),
    "KITTI-17": (47.29, 56.96, 72.20, 11),
}


@pytest.mark.shared
@pytest.mark.parametrize("sequence", UPSTREAM)
def test_sequence_scores_as_the_authors_code(shared_dir: Path, sequence: str) -> None:
    folder = shared_dir / "data" / "mot" / "mot15" / sequence
    report = evaluate_tracking(folder / "det" / "det.txt", folder / "gt" / "gt.txt")
    hota, mota, idf1, switches = UPSTREAM[sequence]
    assert 100 * report["HOTA"] == pytest.approx(hota, abs=0.05)
    assert 100 * report["MOTA"] == pytest.approx(mota, abs=0.05)
    assert 100 * report["IDF1"] == pytest.approx(idf1, abs=0.05)
    assert report["id_switches"] == switches
    assert 0.5 < report["id_consistency"] <= 1
    json.dumps(report, allow_nan=False)


def rows_by_frame(path: Path, *keys: str) -> dict[int, np.ndarray]:
    """frame -> (N, keys + 4) with boxes as xyxy; every number is a string in these files."""
    frames: dict[int, list[list[float]]] = defaultdict(list)
    for row in json.loads(path.read_text())["results"]:
        x, y, width, height = (float(row[key]) for key in ("x", "y", "width", "height"))
        frames[int(row["frame_id"])].append([*(float(row[key]) for key in keys), x, y, x + width, y + height])
    return {frame: np.array(rows) for frame, rows in frames.items()}


@pytest.mark.shared
def test_palace_variant_repeats_all_314_frames_of_the_reference(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "mot" / "bytetrack_palace"
    detections = rows_by_frame(folder / "detection_results.json", "prob")
    reference = rows_by_frame(folder / "tracking_results.json", "track_id")
    tracker = ByteTracker(PALACE, fps=30)
    equal = 0
    for frame in range(314):
        seen, wanted = detections[frame], reference[frame]
        found = tracker.track(seen[:, 1:], seen[:, 0])
        mine, theirs = np.argsort(found.track_ids), np.argsort(wanted[:, 0])
        equal += np.array_equal(found.track_ids[mine], wanted[theirs, 0]) and np.allclose(
            found.boxes[mine], wanted[theirs, 1:], atol=0.05, rtol=0
        )
    assert equal == 314


@pytest.mark.shared
def test_upstream_variant_does_not_repeat_the_reference(shared_dir: Path) -> None:
    """The two differ where it matters, so the test above proves something."""
    folder = shared_dir / "data" / "mot" / "bytetrack_palace"
    detections = rows_by_frame(folder / "detection_results.json", "prob")
    reference = rows_by_frame(folder / "tracking_results.json", "track_id")
    tracker = ByteTracker(PALACE.model_copy(update={"variant": "upstream"}))
    ids = [sorted(tracker.track(detections[f][:, 1:], detections[f][:, 0]).track_ids.tolist()) for f in range(314)]
    assert ids != [sorted(reference[f][:, 0].tolist()) for f in range(314)]


def scene(folder: Path, detections: str, truth: str) -> tuple[Path, Path]:
    paths = folder / "det.txt", folder / "gt.txt"
    for path, text in zip(paths, (detections, truth), strict=True):
        path.write_text(text)
    return paths


def walk(identity: int, score: float, left: float, frames: range) -> str:
    return "".join(f"{frame},{identity},{left + 2 * frame},50,40,100,{score},-1,-1,-1\n" for frame in frames)


def test_perfect_detections_score_perfectly(tmp_path: Path) -> None:
    detections = walk(-1, 0.9, 0, range(1, 21)) + walk(-1, 0.8, 300, range(1, 21))
    truth = walk(4, 1, 0, range(1, 21)) + walk(9, 1, 300, range(1, 21))
    report = evaluate_tracking(*scene(tmp_path, detections, truth))
    assert report["HOTA"] > 0.95  # boxes are the filter's, so not quite the truth's
    assert (report["MOTA"], report["IDF1"], report["id_switches"], report["id_consistency"]) == (1, 1, 0, 1)
    assert (report["frames"], report["fps"], report["track_ids"]) == (20, 30.0, 2)


def test_identity_that_changes_midway_halves_the_consistency(tmp_path: Path) -> None:
    """The person is out of sight for longer than the buffer and comes back as somebody else."""
    seen = [range(1, 21), range(81, 101)]
    detections = "".join(walk(-1, 0.9, 0, part) for part in seen)
    truth = "".join(walk(1, 1, 0, part) for part in seen)
    report = evaluate_tracking(*scene(tmp_path, detections, truth))
    assert report["id_switches"] == 1
    assert report["id_consistency"] == pytest.approx(20 / 39)  # the second identity is confirmed at its second hit


def test_rows_flagged_zero_are_no_truth(tmp_path: Path) -> None:
    detections = walk(-1, 0.9, 0, range(1, 21))
    truth = walk(4, 1, 0, range(1, 21)) + walk(9, 0, 300, range(1, 21))
    assert evaluate_tracking(*scene(tmp_path, detections, truth))["MOTA"] == 1


def test_scene_without_detections_scores_nothing(tmp_path: Path) -> None:
    report = evaluate_tracking(*scene(tmp_path, "", walk(4, 1, 0, range(1, 4))))
    assert (report["HOTA"], report["MOTA"], report["IDF1"], report["id_consistency"]) == (0, 0, 0, 0)


def test_unusable_detections_are_counted(tmp_path: Path) -> None:
    detections = walk(-1, 0.9, 0, range(1, 5)) + "2,-1,10,10,0,-5,0.9\n"
    assert evaluate_tracking(*scene(tmp_path, detections, walk(4, 1, 0, range(1, 5))))["dropped_detections"] == 1


def test_frame_rate_is_given_or_read_or_thirty(tmp_path: Path) -> None:
    paths = scene(tmp_path, walk(-1, 0.9, 0, range(1, 5)), walk(4, 1, 0, range(1, 5)))
    assert evaluate_tracking(*paths)["fps"] == 30
    (tmp_path / "seqinfo.ini").write_text("[Sequence]\nframeRate=12\n")
    assert evaluate_tracking(*paths)["fps"] == 12
    assert evaluate_tracking(*paths, TrackingConfig(), fps=25)["fps"] == 25
    with pytest.raises(ConfigError, match="frame rate 0"):
        evaluate_tracking(*paths, fps=0)


def test_frame_number_beyond_reason_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="frame 20000000"):
        evaluate_tracking(*scene(tmp_path, "20000000,-1,0,0,9,9,0.9\n", walk(4, 1, 0, range(1, 5))))


def test_missing_trackeval_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackeval.metrics", None)
    with pytest.raises(ModelError, match=r"recognizer-agent\[evaluate\]"):
        evaluate_tracking(*scene(tmp_path, walk(-1, 0.9, 0, range(1, 5)), walk(4, 1, 0, range(1, 5))))
