"""`evaluate action`: clips with a label against the probabilities a service gave them. Pure functions but `read_clips`.

The list of clips is a CSV with the columns `file` and `label`, more are ignored; paths are relative to the CSV. A label equal
to the service's name is positive, every other one negative. A clip's probability is the highest of its windows.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import ConfigError, ConfigProblem

ECE_BINS = 10


@dataclass(frozen=True, slots=True)
class Clip:
    """One line of the list. file: as it stands there; path: where it is."""

    file: str
    label: str
    path: Path


@dataclass(frozen=True, slots=True)
class ClipResult:
    """A clip's probability of the service's action, 0-1; 0 when there was no window to classify."""

    file: str
    label: str
    probability: float


def read_clips(table: Path) -> list[Clip]:
    """The clips of `table`, in its order. Raises ConfigError with file:line for everything wrong in it, all at once."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in ("file", "label") if name not in (reader.fieldnames or ())]
            if missing:
                hint = "the first line names the columns; needed are file and label"
                raise ConfigError([ConfigProblem(f"no column {', '.join(missing)}", str(table), 1, hint=hint)])
            # The line number belongs to the reader: a quoted field may hold line breaks.
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise ConfigError([ConfigProblem(f"cannot be read: {error.strerror}", str(table))]) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError([ConfigProblem(f"not a CSV file in UTF-8: {error}", str(table))]) from error
    problems = [problem for line, row in rows for problem in _problems(table, line, row)]
    if not rows:
        problems.append(ConfigProblem("no clips in it", str(table), 1))
    if problems:
        raise ConfigError(problems)
    return [Clip(row["file"].strip(), row["label"].strip(), table.parent / row["file"].strip()) for _, row in rows]


def _problems(table: Path, line: int, row: dict[str, str]) -> list[ConfigProblem]:
    found = [
        ConfigProblem(f"no {name}", str(table), line) for name in ("file", "label") if not (row[name] or "").strip()
    ]
    if not found and not (table.parent / row["file"].strip()).is_file():
        found.append(
            ConfigProblem(f"no such file: {row['file'].strip()}", str(table), line, hint="relative to the CSV file")
        )
    return found


def action_report(clips: Sequence[ClipResult], service: str, threshold: float = 0.5) -> dict[str, Any]:
    """accuracy, precision, recall, f1, ece (all 0-1), confusion_matrix, false_alarm_rate, clips, threshold, service.

    A clip is called positive at `threshold` or more. Without a positive call precision is 0, without a positive clip
    recall is 0. Raises ValueError for no clips or a probability outside 0-1.
    """
    if not clips:
        raise ValueError("no clips to report on")
    probability = np.array([clip.probability for clip in clips], np.float64)
    if not ((probability >= 0) & (probability <= 1)).all():
        worst = clips[int(np.argmin((probability >= 0) & (probability <= 1)))]
        raise ValueError(f"{worst.file}: expected a probability of 0-1, got {worst.probability}")
    truth = np.array([clip.label == service for clip in clips])
    called = probability >= threshold
    hits, false_alarms = int((called & truth).sum()), int((called & ~truth).sum())
    misses, rejections = int((~called & truth).sum()), int((~called & ~truth).sum())
    precision, recall = _ratio(hits, hits + false_alarms), _ratio(hits, hits + misses)
    return {
        "service": service,
        "threshold": threshold,
        "accuracy": _ratio(hits + rejections, len(clips)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "ece": expected_calibration_error(probability, truth),
        "false_alarm_rate": _ratio(false_alarms, false_alarms + rejections),
        "confusion_matrix": {
            "true_positive": hits,
            "false_positive": false_alarms,
            "false_negative": misses,
            "true_negative": rejections,
        },
        "clips": [asdict(clip) for clip in clips],
    }


def expected_calibration_error(probability: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Gap between the probability of the action and how often it was there, 0-1 (Naeini et al. 2015).

    Ten equal-width bins of the probability (N,), each weighted by the clips in it.
    """
    index = np.minimum((probability * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    count = np.bincount(index, minlength=ECE_BINS)
    gap = np.bincount(index, probability - truth, minlength=ECE_BINS)
    return float(np.abs(gap).sum() / max(count.sum(), 1))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
