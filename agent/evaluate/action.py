"""`evaluate action`: clips with a label against the probabilities a service gave them. Pure functions but the readers.

The list of clips is a CSV with the columns `file` and `label`, more are ignored; paths are relative to the CSV. A label equal
to the service's name is positive, every other one negative. A clip's probability is the highest of its windows.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import DataError

ECE_BINS = 10
_NAMED = 5
_Z95 = 1.959964
"""Half the width of the central 95 % of the normal distribution, in standard deviations."""
_Row = tuple[int, dict[str, str]]
"""A line of a table: its number and its fields by column."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One line of the list. file: as it stands there; path: where it is; source: the camera or subject, may be empty."""

    file: str
    label: str
    path: Path
    source: str = ""


@dataclass(frozen=True, slots=True)
class ClipResult:
    """A clip's probability of the service's action, 0-1; 0 when there was no window to classify."""

    file: str
    label: str
    probability: float
    source: str = ""


@dataclass(frozen=True, slots=True)
class ClipColumns:
    """Which columns of the list mean what. where: only lines that hold these values in these columns count."""

    label: str = "label"
    source: str = "source"
    where: Mapping[str, str] = field(default_factory=dict)


def read_clips(table: Path, columns: ClipColumns | None = None, sources: Path | None = None) -> list[Clip]:
    """The clips of `table`, in its order.

    sources: a CSV with the columns file and source, for lists without the latter.
    Raises DataError with file:line for everything wrong in it, all at once.
    """
    columns = columns or ClipColumns()
    rows = _read(table, ("file", columns.label, *columns.where))
    by_file = {row["file"]: row["source"] for _, row in _read(sources, ("file", "source"))} if sources else {}
    rows = _chosen(table, rows, columns)
    problems = [problem for line, row in rows for problem in _problems(table, line, row, columns.label)]
    _refuse(problems + _again(table, rows, columns.label))
    return [
        Clip(
            row["file"],
            row[columns.label],
            table.parent / row["file"],
            by_file.get(row["file"]) or row.get(columns.source, ""),
        )
        for _, row in rows
    ]


def read_predictions(table: Path, columns: ClipColumns | None = None) -> list[ClipResult]:
    """Probabilities made elsewhere, e.g. of cross-validation: columns file, label, probability, maybe source.

    Raises DataError as `read_clips`; the files need not be there.
    """
    columns = columns or ClipColumns()
    problems: list[str] = []
    results: list[ClipResult] = []
    rows = _chosen(table, _read(table, ("file", columns.label, "probability", *columns.where)), columns)
    for line, row in rows:
        problems += _empty(table, line, row, columns.label)
        try:
            probability = float(row["probability"])
        except ValueError:
            probability = math.nan
        if not 0 <= probability <= 1:
            problems.append(f"{table}:{line}: probability {row['probability']!r} is not 0-1")
        results.append(ClipResult(row["file"], row[columns.label], probability, row.get(columns.source, "")))
    _refuse(problems + _again(table, rows, columns.label))
    return results


def none_positive(labels: Iterable[str], service: str) -> str:
    """What the user should know when no label is the service's name, and there is no action to find; else nothing."""
    known = Counter(labels)
    if service in known:
        return ""
    names = ", ".join(repr(name) for name, _ in known.most_common(_NAMED))
    return (
        f"no clip is positive, so precision, recall and f1 are 0: no label is {service!r} (hint: the clips of the service "
        f"carry its name; here are {names}{', ...' if len(known) > _NAMED else ''}; --label-column picks another column)"
    )


def _read(table: Path, needed: Sequence[str]) -> list[_Row]:
    """Line number and stripped fields of each line. Raises DataError."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                hint = f"the first line names the columns; needed are {', '.join(needed)}"
                raise DataError(f"{table}:1: no column {', '.join(missing)} (hint: {hint})")
            # The line number belongs to the reader: a quoted field may hold line breaks.
            return [
                (reader.line_num, {str(name): (value or "").strip() for name, value in row.items() if name is not None})
                for row in reader
            ]
    except OSError as error:
        raise DataError(f"{table}: {error.strerror} (hint: a CSV file with the columns {', '.join(needed)})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a CSV file in UTF-8: {error}") from error


def _chosen(table: Path, rows: Iterable[_Row], columns: ClipColumns) -> list[_Row]:
    """The lines that count. Raises DataError when there are none."""
    chosen = [(line, row) for line, row in rows if all(row[name] == value for name, value in columns.where.items())]
    if not chosen:
        which = ", ".join(f"{name} = {value}" for name, value in columns.where.items())
        raise DataError(f"{table}: no clips in it{f' with {which}' if which else ''}")
    return chosen


def _refuse(problems: Sequence[str]) -> None:
    """Raises DataError with all of them, if there are any."""
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        raise DataError("\n  ".join([f"{len(problems)} problems", *problems]))


def _problems(table: Path, line: int, row: Mapping[str, str], label: str) -> list[str]:
    found = _empty(table, line, row, label)
    if not found and not (table.parent / row["file"]).is_file():
        found.append(f"{table}:{line}: no such file: {row['file']} (hint: relative to the CSV file)")
    return found


def _empty(table: Path, line: int, row: Mapping[str, str], label: str) -> list[str]:
    return [f"{table}:{line}: no {name}" for name in ("file", label) if not row[name]]


def _again(table: Path, rows: Iterable[_Row], label: str) -> list[str]:
    """Files that are listed twice: they would count twice, maybe as two kinds."""
    first: dict[str, int] = {}
    found: list[str] = []
    for line, row in rows:
        if _empty(table, line, row, label):
            continue
        before = first.setdefault(os.path.normpath(table.parent.absolute() / row["file"]), line)
        if before != line:
            what = f"{row['file']} is listed in line {before} already (hint: each clip counts once)"
            found.append(f"{table}:{line}: {what}")
    return found


def action_report(clips: Sequence[ClipResult], service: str, threshold: float = 0.5) -> dict[str, Any]:
    """`accuracy`, `precision`, `recall`, `f1`, `ece` (all 0-1), `confusion_matrix`, `clips` and what explains them.

    A clip is called positive at `threshold` or more. Without a positive call precision is 0, without a positive clip
    recall is 0. accuracy_95: Wilson's interval; auc: area under `roc`, None when only one kind of clip is there;
    ece_by_chance: the `ece` that a perfectly calibrated model would show; reliability: the bins of `ece`; by_source: calls per source, where sources are known.
    Raises ValueError for no clips or a probability outside 0-1.
    """
    if not clips:
        raise ValueError("no clips to report on")
    probability = np.array([clip.probability for clip in clips], np.float64)
    if not ((probability >= 0) & (probability <= 1)).all():
        worst = clips[int(np.argmin((probability >= 0) & (probability <= 1)))]
        raise ValueError(f"{worst.file}: expected a probability of 0-1, got {worst.probability}")
    truth = np.array([clip.label == service for clip in clips])
    called = probability >= threshold
    counts = _counts(truth, called)
    hits, false_alarms = counts["true_positive"], counts["false_positive"]
    precision, recall = _ratio(hits, hits + false_alarms), _ratio(hits, int(truth.sum()))
    right = hits + counts["true_negative"]
    report = {
        "service": service, "threshold": threshold,
        "accuracy": right / len(clips),
        "accuracy_95": list(wilson_interval(right, len(clips))),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "ece": expected_calibration_error(probability, truth),
        "ece_by_chance": calibration_error_by_chance(probability),
        "auc": area_under_roc(probability, truth),
        "false_alarm_rate": _ratio(false_alarms, int((~truth).sum())),
        "confusion_matrix": counts,
        "roc": roc(probability, truth),
        "reliability": reliability(probability, truth),
        "clips": [{name: value for name, value in asdict(clip).items() if value != ""} for clip in clips],
    }  # fmt: skip
    sources = sorted({clip.source for clip in clips if clip.source})
    if sources:
        of_clip = np.array([clip.source for clip in clips])
        report["by_source"] = {name: _source(truth[of_clip == name], called[of_clip == name]) for name in sources}
    return report


def _counts(truth: NDArray[np.bool_], called: NDArray[np.bool_]) -> dict[str, int]:
    return {
        "true_positive": int((called & truth).sum()),
        "false_positive": int((called & ~truth).sum()),
        "false_negative": int((~called & truth).sum()),
        "true_negative": int((~called & ~truth).sum()),
    }


def _source(truth: NDArray[np.bool_], called: NDArray[np.bool_]) -> dict[str, float]:
    """One source's clips: a model that learnt the camera in place of the action shows here."""
    counts = _counts(truth, called)
    return {
        "clips": len(truth),
        "positive": int(truth.sum()),
        "missed": counts["false_negative"],
        "false_alarms": counts["false_positive"],
        "accuracy": _ratio(int((truth == called).sum()), len(truth)),
    }


def expected_calibration_error(probability: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Gap between the probability of the action and how often it was there, 0-1 (Naeini et al. 2015).

    Ten equal-width bins of the probability (N,), each weighted by the clips in it.
    """
    index = _bins(probability)
    count = np.bincount(index, minlength=ECE_BINS)
    gap = np.bincount(index, probability - truth, minlength=ECE_BINS)
    return float(np.abs(gap).sum() / max(count.sum(), 1))


def calibration_error_by_chance(probability: NDArray[np.float64]) -> float:
    """The `expected_calibration_error` to expect where every probability (N,) is right: few clips never fall out evenly.

    Mean absolute deviation of the sum of each bin's clips, taken as normal (Roelofs et al. 2022, arXiv:2012.08668, on the bias).
    """
    spread = np.bincount(_bins(probability), probability * (1 - probability), minlength=ECE_BINS)
    return float(np.sqrt(2 / np.pi * spread).sum() / max(len(probability), 1))


def reliability(probability: NDArray[np.float64], truth: NDArray[np.bool_]) -> list[dict[str, float]]:
    """The bins of `expected_calibration_error` that hold a clip: what was said and what was so."""
    index = _bins(probability)
    return [
        {
            "from": number / ECE_BINS,
            "to": (number + 1) / ECE_BINS,
            "clips": int((index == number).sum()),
            "mean_probability": round(float(probability[index == number].mean()), 4),
            "positive": round(float(truth[index == number].mean()), 4),
        }
        for number in np.unique(index).tolist()
    ]


def _bins(probability: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((probability * ECE_BINS).astype(np.int64), ECE_BINS - 1)


def roc(probability: NDArray[np.float64], truth: NDArray[np.bool_]) -> list[dict[str, float]]:
    """False alarm rate and recall at every threshold that changes a call, from the strictest (nothing called) down."""
    points = [{"threshold": 1.0, "false_alarm_rate": 0.0, "recall": 0.0}]
    for threshold in np.unique(probability)[::-1].tolist():
        counts = _counts(truth, probability >= threshold)
        points.append({
            "threshold": round(threshold, 6),
            "false_alarm_rate": round(_ratio(counts["false_positive"], int((~truth).sum())), 6),
            "recall": round(_ratio(counts["true_positive"], int(truth.sum())), 6),
        })  # fmt: skip
    return points


def corners(curve: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The points of `roc` at which the curve turns: thousands of verdicts, the same line."""

    def straight(before: Mapping[str, float], point: Mapping[str, float], after: Mapping[str, float]) -> bool:
        return any(before[axis] == point[axis] == after[axis] for axis in ("false_alarm_rate", "recall"))

    inner = zip(curve, curve[1:], curve[2:], strict=False)
    kept = [point for before, point, after in inner if not straight(before, point, after)]
    return [dict(point) for point in (*curve[:1], *kept, *curve[1:][-1:])]


def area_under_roc(probability: NDArray[np.float64], truth: NDArray[np.bool_]) -> float | None:
    """How often a positive clip gets the higher probability than a negative one, equal ones half (Mann-Whitney)."""
    positive, negative = probability[truth][:, None], probability[~truth][None]
    if not positive.size or not negative.size:
        return None
    return float((positive > negative).mean() + (positive == negative).mean() / 2)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Where the true share lies with 95 % confidence (Wilson 1927); honest for small numbers and near 0 and 1."""
    share, z2 = successes / trials, _Z95**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
