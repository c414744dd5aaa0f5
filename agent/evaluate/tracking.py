"""`evaluate tracking`: the tracker over recorded detections, scored against ground truth.

HOTA (Luiten et al. 2021), MOTA (CLEAR MOT, Bernardin and Stiefelhagen 2008) and IDF1 (Ristani et al. 2016) come from
TrackEval, the reference implementation, on plain arrays: rows flagged 0 are left out, nothing else is preprocessed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.config.schema import TrackingConfig
from agent.errors import ConfigError, ConfigProblem, DataError, ModelError
from agent.evaluate.lapses import Lapses, lapses_of, worst
from agent.evaluate.mot import MotBoxes, read_detections, read_truth, sequence_fps
from agent.tracking import ByteTracker
from agent.tracking.association import assign, pairwise_iou

DEFAULT_FPS = 30.0
_MATCH_IOU = 0.5
_GOES_ON_BONUS = 10.0
_MAX_FRAMES = 1_000_000
"""A sequence longer than this (nine hours) is taken for a typing error in a frame number."""


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """One frame to score. truth, tracks: identities as 0, 1, 2, ...; iou: (truth, tracks)."""

    truth: NDArray[np.int64]
    tracks: NDArray[np.int64]
    iou: NDArray[np.float64]


def evaluate_tracking(
    detections: Path, truth: Path, config: TrackingConfig | None = None, *, fps: float | None = None
) -> dict[str, Any]:
    """Track `detections` (MOT det.txt) frame by frame and score the result against `truth` (MOT gt.txt).

    config: the tracker's parameters, upstream's by default. fps: of the sequence; by default that of its `seqinfo.ini`,
    30 where there is none.

    Returns fractions 0-1 `HOTA`, `MOTA` (may be negative), `IDF1` and `id_consistency`, the count `id_switches`,
    `ms_per_frame` (median of the tracker's time) and, to read them by, `ms_per_frame_p95`, `fps`, `frames`,
    `detections`, `dropped_detections`, `truth_boxes`, `truth_ids`, `track_boxes`, `track_ids`, `by_alpha` and `worst`.

    id_consistency: of all ground-truth boxes that were matched (IoU 0.5 or more, a pair of the frame before goes first),
    the share that carries the identity which its person carries most often. by_alpha: HOTA and its parts over the IoU
    that counts as a match. worst: the people who were followed worst, see `agent.evaluate.lapses`, matched in the same way.

    Raises DataError (files), ConfigError (fps), ModelError (TrackEval is not installed).
    """
    return evaluate_sequences([(detections, truth)], config, fps=fps)


def evaluate_sequences(
    files: Sequence[tuple[Path, Path]], config: TrackingConfig | None = None, *, fps: float | None = None
) -> dict[str, Any]:
    """`evaluate_tracking` over several (detections, truth), all boxes weighing the same (TrackEval's combination).

    Of more than one sequence `sequences` holds the main figures of each; `fps` is then None where the rates differ.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise ConfigError(
            [ConfigProblem(f"frame rate {fps:g}", path="fps", hint="a positive number of frames a second")]
        )
    runs: dict[str, _SequenceRun] = {}
    for detections, truth in files:
        name = _sequence_name(detections, truth)
        name = name if name not in runs else f"{name} ({len(runs) + 1})"
        runs[name] = _track_sequence(detections, truth, config or TrackingConfig(), fps)
    metrics = _metrics()
    times_ms = np.concatenate([run.times_ms for run in runs.values()])
    rates = {run.fps for run in runs.values()}
    report = _scores(metrics, [run.frames for run in runs.values()])
    report |= {
        "ms_per_frame": float(np.median(times_ms)),
        "ms_per_frame_p95": float(np.quantile(times_ms, 0.95)),
        "fps": rates.pop() if len(rates) == 1 else None,
        "frames": len(times_ms),
    }
    for count in next(iter(runs.values())).counts:
        report[count] = sum(run.counts[count] for run in runs.values())
    report["worst"] = worst({name: run.lapses for name, run in runs.items()})
    if len(runs) > 1:
        report["sequences"] = {name: _scores(metrics, [run.frames], curves=False) for name, run in runs.items()}
    return report


@dataclass(frozen=True, slots=True, eq=False)
class _SequenceRun:
    """A tracked sequence beside its truth. times_ms: (frames,)."""

    frames: list[_Frame]
    times_ms: NDArray[np.float64]
    fps: float
    counts: dict[str, int]
    lapses: list[Lapses]


def _track_sequence(detections: Path, truth: Path, config: TrackingConfig, fps: float | None) -> _SequenceRun:
    found, wanted = read_detections(detections), read_truth(truth)
    rate = fps or sequence_fps(detections) or DEFAULT_FPS
    last = int(max(wanted.frames.max(), found.frames.max(initial=0)))
    if last > _MAX_FRAMES:
        raise DataError(f"{detections}, {truth}: frame {last} (hint: sequences have at most {_MAX_FRAMES} frames)")
    first = int(min(1, wanted.frames.min(), found.frames.min(initial=1)))
    tracker = ByteTracker(config, fps=rate)
    tracks, times_ms = _run(tracker, found, first, last)
    counts = {
        "detections": len(found),
        "dropped_detections": tracker.dropped_inputs,
        "truth_boxes": len(wanted),
        "truth_ids": len(np.unique(wanted.ids)),
        "track_boxes": len(tracks),
        "track_ids": len(np.unique(tracks.ids)),
    }
    frames = _pair(wanted, tracks, first, last)
    return _SequenceRun(frames, times_ms, float(rate), counts, _lapses(frames, wanted, tracks, first))


def _sequence_name(detections: Path, truth: Path) -> str:
    """That of the sequence's folder in the layout of the MOT Challenge, else the truth's file name."""
    folder = detections.absolute().parent
    return folder.parent.name if folder.name == "det" else truth.stem


def score_tracks(truth: MotBoxes, tracks: MotBoxes, first: int, last: int) -> dict[str, float]:
    """`HOTA`, `MOTA`, `IDF1`, `id_switches` and `id_consistency` of tracks over the frames first..last.

    Raises ModelError when TrackEval is not installed.
    """
    return _scores(_metrics(), [_pair(truth, tracks, first, last)], curves=False)


def score_sequences(sequences: Sequence[tuple[MotBoxes, MotBoxes, int, int]]) -> dict[str, Any]:
    """The figures of `score_tracks` over several (truth, tracks, first frame, last frame), all boxes weighing the same."""
    return _scores(_metrics(), [_pair(*sequence) for sequence in sequences], curves=False)


def _scores(metrics: tuple[Any, Any, Any], sequences: list[list[_Frame]], *, curves: bool = True) -> dict[str, Any]:
    """The main figures over sequences, and with `curves` what the picture shows."""
    hota, clear, identity = (
        metric.combine_sequences(
            {str(n): metric.eval_sequence(_trackeval_data(frames)) for n, frames in enumerate(sequences)}
        )
        for metric in metrics
    )
    counts = [_identities_carried(frames) for frames in sequences]
    matched = sum(int(count.sum()) for count in counts)
    report: dict[str, Any] = {
        "HOTA": float(np.mean(hota["HOTA"])),
        "MOTA": float(clear["MOTA"]),
        "IDF1": float(identity["IDF1"]),
        "id_switches": int(clear["IDSW"]),
        "id_consistency": sum(int(count.max(axis=1).sum()) for count in counts) / matched if matched else 0.0,
    }
    if curves:
        parts = {name: np.round(hota[name], 4).tolist() for name in ("HOTA", "DetA", "AssA")}
        report["by_alpha"] = {"alpha": np.round(metrics[0].array_labels, 2).tolist(), **parts}
    return report


def _identities_carried(frames: list[_Frame]) -> NDArray[np.int64]:
    """How many boxes of each person (rows) carried which identity (columns); a column at least."""
    truth_ids = 1 + max(int(frame.truth.max(initial=-1)) for frame in frames)
    track_ids = 1 + max(int(frame.tracks.max(initial=0)) for frame in frames)
    count = np.zeros((truth_ids, track_ids), np.int64)
    for matched, carried in _matches(frames):
        count[matched, carried] += 1
    return count


def _matches(frames: list[_Frame]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Per frame the people that were matched (IoU 0.5 or more, a pair of the frame before goes first) and their tracks."""
    before = np.full(1 + max(int(frame.truth.max(initial=-1)) for frame in frames), -1)
    for frame in frames:
        goes_on = before[frame.truth][:, None] == frame.tracks
        # The bonus outweighs whatever the two other pairs could gain that a pair that goes on keeps apart.
        cost = np.where(frame.iou >= _MATCH_IOU, 1 - frame.iou - _GOES_ON_BONUS * goes_on, 2.0)
        pairs = assign(cost, 1.0)
        matched, carried = frame.truth[pairs.rows], frame.tracks[pairs.columns]
        before[:] = -1
        before[matched] = carried
        yield matched, carried


def _lapses(frames: list[_Frame], wanted: MotBoxes, tracks: MotBoxes, first: int) -> list[Lapses]:
    """What happened to each person, under the identities of the files; `frames` as `_pair` makes them."""
    truth_ids, track_ids = np.unique(wanted.ids), np.unique(tracks.ids)
    return lapses_of(
        (
            number,
            truth_ids[frame.truth].tolist(),
            dict(zip(truth_ids[matched].tolist(), track_ids[carried].tolist(), strict=True)),
        )
        for number, (frame, (matched, carried)) in enumerate(zip(frames, _matches(frames), strict=True), start=first)
    )


def _metrics() -> tuple[Any, Any, Any]:
    """TrackEval's HOTA, CLEAR and Identity, silent."""
    try:
        from trackeval.metrics import CLEAR, HOTA, Identity
    except ImportError as error:
        raise ModelError(
            "evaluate tracking needs TrackEval (hint: pip install 'recognizer-agent[evaluate]')"
        ) from error
    return HOTA(), CLEAR({"PRINT_CONFIG": False}), Identity({"PRINT_CONFIG": False})


def _run(tracker: ByteTracker, found: MotBoxes, first: int, last: int) -> tuple[MotBoxes, NDArray[np.float64]]:
    """The tracks of all frames, those without detections too, and the time of each frame in ms."""
    parts: list[MotBoxes] = []
    times_ns: list[int] = []
    for frame, seen in enumerate(found.by_frame(first, last), start=first):
        start_ns = time.perf_counter_ns()
        result = tracker.track(seen.boxes, seen.scores)
        times_ns.append(time.perf_counter_ns() - start_ns)
        parts.append(MotBoxes.of_frame(frame, result.track_ids, result.boxes, seen.scores[result.detections]))
    return MotBoxes.join(parts), np.array(times_ns) / 1e6


def _pair(wanted: MotBoxes, tracks: MotBoxes, first: int, last: int) -> list[_Frame]:
    """Truth and result side by side, identities renumbered from 0."""
    truth_ids, track_ids = np.unique(wanted.ids), np.unique(tracks.ids)
    return [
        _Frame(
            np.searchsorted(truth_ids, want.ids),
            np.searchsorted(track_ids, have.ids),
            pairwise_iou(want.boxes.T, have.boxes.T),
        )
        for want, have in zip(wanted.by_frame(first, last), tracks.by_frame(first, last), strict=True)
    ]


def _trackeval_data(frames: list[_Frame]) -> dict[str, Any]:
    """One sequence in the form that TrackEval's metrics take."""
    return {
        "num_timesteps": len(frames),
        "num_gt_ids": 1 + max(int(frame.truth.max(initial=-1)) for frame in frames),
        "num_tracker_ids": 1 + max(int(frame.tracks.max(initial=-1)) for frame in frames),
        "num_gt_dets": sum(len(frame.truth) for frame in frames),
        "num_tracker_dets": sum(len(frame.tracks) for frame in frames),
        "gt_ids": [frame.truth for frame in frames],
        "tracker_ids": [frame.tracks for frame in frames],
        "similarity_scores": [frame.iou for frame in frames],
    }
