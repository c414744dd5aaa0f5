"""Files of the MOT Challenge: one box a line, `frame,id,left,top,width,height,score[,x,y,z]`.

Frames count from 1, lengths are px. In detections the id is -1; in ground truth the seventh column is a flag, 0 = ignore.
"""

from __future__ import annotations

import configparser
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from agent.errors import DataError
from agent.types import Tracks

_COLUMNS = "frame,id,left,top,width,height,score[,x,y,z]"
_MIN_COLUMNS = 7
_MAX_COLUMNS = 10
_MAX_WHOLE = float(1 << 53)
"""Up to here every whole number is a float of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class MotBoxes:
    """Boxes of a file in its order.

    frames, ids: (N,) int64; boxes: (N, 4) float64 xyxy px; scores: (N,) float64, the seventh column.
    """

    frames: NDArray[np.int64]
    ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.frames)

    @classmethod
    def of_frame(
        cls, frame: int, ids: NDArray[np.int64], boxes: NDArray[np.floating], scores: NDArray[np.floating] | None = None
    ) -> MotBoxes:
        """The boxes (N, 4) xyxy px of one frame; without scores they are 1."""
        n = len(ids)
        certain = np.ones(n) if scores is None else scores.astype(np.float64)
        return cls(np.full(n, frame, np.int64), ids, boxes.astype(np.float64), certain)

    @classmethod
    def join(cls, parts: Sequence[MotBoxes]) -> MotBoxes:
        """All of them in one, in order; at least one."""
        return cls(
            np.concatenate([part.frames for part in parts]),
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.scores for part in parts]),
        )

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> MotBoxes:
        """The boxes at `rows` (integer or boolean array)."""
        return MotBoxes(self.frames[rows], self.ids[rows], self.boxes[rows], self.scores[rows])

    def by_frame(self, first: int, last: int) -> Iterator[MotBoxes]:
        """One value per frame from `first` to `last`, empty where the frame has no box."""
        order = np.argsort(self.frames, kind="stable")
        edges = np.searchsorted(self.frames[order], np.arange(first, last + 2))
        for start, end in itertools.pairwise(edges.tolist()):
            yield self.take(order[start:end])


def read_detections(path: Path) -> MotBoxes:
    """Every row of a detection file; boxes without extent are left to the tracker. Raises DataError."""
    return _as_boxes([values for _, values in _rows(path)])


def read_truth(path: Path) -> MotBoxes:
    """The rows of a ground-truth file whose flag is not 0.

    Raises DataError for a malformed row, an empty box, an identity that stands twice in a frame, or no row at all.
    """
    kept: list[list[float]] = []
    seen: dict[tuple[float, float], int] = {}
    for line, values in _rows(path):
        if values[6] == 0:
            continue
        if values[4] <= 0 or values[5] <= 0:
            raise _problem(path, line, f"box of {values[4]:g} x {values[5]:g} px", "width and height are positive")
        key = (values[0], values[1])
        if key in seen:
            raise _problem(
                path,
                line,
                f"identity {values[1]:g} of frame {values[0]:g} stands in line {seen[key]} already",
                "an identity has one box a frame",
            )
        seen[key] = line
        kept.append(values)
    if not kept:
        raise DataError(f"{path}: no box to compare with (hint: rows are {_COLUMNS}; score 0 means ignore)")
    return _as_boxes(kept)


def sequence_fps(detections: Path) -> float | None:
    """`frameRate` of the `seqinfo.ini` beside the file or one folder up, as the MOT Challenge lays it out.

    None without such a file. Raises DataError when it is there and unusable.
    """
    for folder in (detections.parent, detections.parent.parent):
        info = folder / "seqinfo.ini"
        if not info.is_file():
            continue
        parser = configparser.ConfigParser()
        try:
            parser.read(info, encoding="utf-8")
            fps = parser.getfloat("Sequence", "frameRate")
        except (configparser.Error, ValueError) as error:
            raise DataError(f"{info}: no usable frameRate: {error} (hint: give the frame rate yourself)") from error
        if not (math.isfinite(fps) and fps > 0):
            raise DataError(f"{info}: frameRate {fps:g} (hint: a positive number of frames a second)")
        return fps
    return None


def write_tracks(file: TextIO, frame: int, tracks: Tracks) -> None:
    """Append the people of one frame (counted from 1) to a MOT file of 10 columns."""
    people = tracks.people
    rows = zip(tracks.track_ids.tolist(), people.boxes.tolist(), people.scores.tolist(), strict=True)
    file.writelines(
        f"{frame},{track_id},{left:.2f},{top:.2f},{right - left:.2f},{bottom - top:.2f},{score:.4f},-1,-1,-1\n"
        for track_id, (left, top, right, bottom), score in rows
    )


def _as_boxes(rows: list[list[float]]) -> MotBoxes:
    table = np.array([row[:_MIN_COLUMNS] for row in rows], np.float64).reshape(-1, _MIN_COLUMNS)
    boxes = np.concatenate((table[:, 2:4], table[:, 2:4] + table[:, 4:6]), axis=1)
    return MotBoxes(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), boxes, table[:, 6])


def _rows(path: Path) -> Iterator[tuple[int, list[float]]]:
    """Line number and values of every row that is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror} (hint: a text file with rows {_COLUMNS})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file (hint: rows are {_COLUMNS})") from error
    for line, row in enumerate(text.splitlines(), start=1):
        if row.strip():
            yield line, _values(path, line, row)


def _values(path: Path, line: int, row: str) -> list[float]:
    """The numbers of one row, checked."""
    fields = row.strip().rstrip(",").split(",")
    if not _MIN_COLUMNS <= len(fields) <= _MAX_COLUMNS:
        raise _problem(path, line, f"{len(fields)} columns", f"7 to 10, separated by commas: {_COLUMNS}")
    try:
        values = [float(field) for field in fields]
    except ValueError as error:
        raise _problem(path, line, str(error), f"every column is a number: {_COLUMNS}") from error
    if not all(map(math.isfinite, values)):
        raise _problem(path, line, "a number that is not finite", "leave such a row out")
    frame, identity = values[:2]
    whole = frame.is_integer() and identity.is_integer()
    if not (whole and 0 <= frame <= _MAX_WHOLE and abs(identity) <= _MAX_WHOLE):
        raise _problem(path, line, f"frame {fields[0]}, id {fields[1]}", "whole numbers, frames from 1")
    return values


def _problem(path: Path, line: int, message: str, hint: str) -> DataError:
    return DataError(f"{path}:{line}: {message} (hint: {hint})")
