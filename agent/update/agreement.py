"""Do two models see the same? Figures of a shadow run: the running model's answers beside the candidate's, to the same input. Pure.

Neither of the two is the truth: a candidate that is better differs, too. So the figures say how far apart the two are, and the
floor below which nobody would call it the same job; what is better is measured where the labels are, before the release.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agent.tracking.association import assign, pairwise_iou, pairwise_oks
from agent.types import People

MATCH = 0.5
"""Likeness from which two detections are the same person: OKS 0.5 of COCO's AP50, or IoU 0.5."""
SEEN = 0.3
"""Key points of a lower score are guesses."""
FEW_JOINTS = 4
"""A person of whom fewer joints are seen by both models is compared by the box."""
MAX_VERDICTS = 4096
"""Pairs kept for the correlation of ranks; the oldest give way."""
MIN_POSITIVES = 10.0
"""Positive verdicts, on the average of both models, from which their agreement means something."""
FEW = 0.2
"""Of the samples wanted: with fewer nothing is proven, and only what does not even reach half of the floor is refused; with half as few
nothing."""
_Z = 1.96
"""Normal quantile at 0.975."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a tally amounts to. good: nothing speaks against the candidate; enough: there were as many samples as wanted; proven: as
    many as it takes to say something for it, too."""

    good: bool
    enough: bool
    proven: bool
    text: str


class PoseTally:
    """Two estimators over many frames.

    sure: score (0-1) from which a person has to be seen by the other model, too; the other one may be less sure of it, so that
    nobody is counted for flickering about the threshold.
    """

    def __init__(self, sure: float) -> None:
        self._sure = sure
        self.frames = 0
        self.people = 0
        """Sure people, of both models."""
        self.matched = 0
        """... of those, the ones that the other model sees as well."""
        self._counts = [0, 0]
        self._distances_px: list[float] = [0.0, 0.0]  # sum, number of joints

    def add(self, running: People, candidate: People) -> None:
        """One frame: what each of the two found in it."""
        self.frames += 1
        rows, columns = match_people(running, candidate)
        for side, people, found in ((0, running, rows), (1, candidate, columns)):
            sure = people.scores >= self._sure
            self._counts[side] += int(sure.sum())
            self.people += int(sure.sum())
            self.matched += int(sure[found].sum())
        seen = (running.keypoint_scores[rows] >= SEEN) & (candidate.keypoint_scores[columns] >= SEEN)
        offsets = np.linalg.norm(running.keypoints[rows] - candidate.keypoints[columns], axis=-1)
        self._distances_px[0] += float(offsets[seen].sum())
        self._distances_px[1] += int(seen.sum())

    @property
    def agreement(self) -> float:
        """Share of the sure people of both models that the other one sees, 0-1 (Dice 1945); 1 while there are none."""
        return self.matched / self.people if self.people else 1.0

    def figures(self) -> dict[str, float]:
        """By name: `agreement` 0-1, `frames`, sure people of each model, mean distance of key points that both see, px."""
        found: dict[str, float] = {
            "frames": self.frames, "people_running": self._counts[0], "people_candidate": self._counts[1],
        }  # fmt: skip
        if self.people:
            found["agreement"] = round(self.agreement, 4)
        if self._distances_px[1]:
            found["keypoint_distance_px"] = round(self._distances_px[0] / self._distances_px[1], 2)
        return found

    def opinion(self, floor: float, wanted: int) -> Opinion:
        """wanted: people that are enough to judge by; with fewer only what is clearly below `floor` is refused."""
        return _judge(self.matched, self.people, floor, wanted, "people")


def match_people(a: People, b: People) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Rows of `a` and of `b` that are the same person, one to one, so that their total likeness is highest (Kuhn 1955)."""
    if not len(a) or not len(b):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    pairs = assign(1.0 - likeness(a, b), 1.0 - MATCH + 1e-9)
    return pairs.rows, pairs.columns


def likeness(a: People, b: People) -> NDArray[np.float64]:
    """(A, B) likeness 0-1 of each person of `a` with each of `b`: object key-point similarity (COCO, Ruggero Ronchi and
    Perona 2017) on the scale of the box in `a`, intersection over union where too few joints are seen by both."""
    poses_a, poses_b = _poses(a), _poses(b)
    extent = np.maximum(a.boxes[:, 2:] - a.boxes[:, :2], 0.0).astype(np.float64)
    oks = pairwise_oks(poses_b, poses_a, extent[:, 0] * extent[:, 1]).T
    seen_a, seen_b = a.keypoint_scores >= SEEN, b.keypoint_scores >= SEEN
    joints = seen_a.astype(np.int64) @ seen_b.T.astype(np.int64)
    iou = pairwise_iou(a.boxes.T.astype(np.float64), b.boxes.T.astype(np.float64))
    return np.where((joints >= FEW_JOINTS) & np.isfinite(oks), oks, iou)


def _poses(people: People) -> NDArray[np.float64]:
    return np.concatenate([people.keypoints, people.keypoint_scores[..., None]], axis=-1).astype(np.float64)


class VerdictTally:
    """Two classifiers over many windows.

    threshold: probability from which a verdict is positive (the service's alert); positive_floor: least agreement about what is
    positive, looked at where there is enough of that.
    """

    def __init__(self, threshold: float, *, positive_floor: float = 0.0) -> None:
        self._threshold = threshold
        self._positive_floor = positive_floor
        self._table = {(side, other): 0 for side in (False, True) for other in (False, True)}
        self._difference = 0.0
        self._pairs: deque[tuple[float, float]] = deque(maxlen=MAX_VERDICTS)

    def add(self, running: float, candidate: float) -> None:
        """One window: the probability of the action by each of the two, 0-1."""
        self._table[running >= self._threshold, candidate >= self._threshold] += 1
        self._difference += abs(running - candidate)
        self._pairs.append((running, candidate))

    @property
    def windows(self) -> int:
        """Compared so far."""
        return sum(self._table.values())

    @property
    def agreement(self) -> float:
        """Share of windows that both put on the same side of the threshold, 0-1; 1 while there are none."""
        same = self._table[True, True] + self._table[False, False]
        return same / self.windows if self.windows else 1.0

    @property
    def positives(self) -> float:
        """Positive verdicts, the mean of both models."""
        return self._table[True, True] + (self._table[True, False] + self._table[False, True]) / 2

    @property
    def positive_agreement(self) -> float:
        """Agreement about what is positive (Cicchetti and Feinstein 1990), 0-1: where nearly all is negative, the share of all
        windows is high whatever the candidate says. 1 while nothing is positive."""
        return self._table[True, True] / self.positives if self.positives else 1.0

    def figures(self) -> dict[str, float]:
        """By name: shares 0-1, mean absolute difference of the probabilities, correlation of their ranks -1..1."""
        if not self.windows:
            return {"windows": 0}
        found = {
            "windows": self.windows,
            "agreement": round(self.agreement, 4),
            "probability_difference": round(self._difference / self.windows, 4),
            "positives_running": self._table[True, True] + self._table[True, False],
            "positives_candidate": self._table[True, True] + self._table[False, True],
        }
        if self.positives:
            found["positive_agreement"] = round(self.positive_agreement, 4)
        correlation = rank_correlation(np.array(self._pairs, np.float64))
        return found if correlation is None else found | {"rank_correlation": round(correlation, 4)}

    def opinion(self, floor: float, wanted: int) -> Opinion:
        """wanted: windows that are enough to judge by; with fewer only what is clearly below `floor` is refused."""
        found = _judge(round(self.agreement * self.windows), self.windows, floor, wanted, "windows")
        if found.good and self.positives >= MIN_POSITIVES and self.positive_agreement < self._positive_floor:
            text = (
                f"of {self.positives:g} positive verdicts the two share {self.positive_agreement:.0%}, "
                f"at least {self._positive_floor:.0%} are asked for"
            )
            return replace(found, good=False, text=text)
        return found


def rank_correlation(pairs: NDArray[np.float64]) -> float | None:
    """Spearman's coefficient (1904) of pairs (N, 2), ties with their mean rank; None where one side is constant."""
    if len(pairs) < 3:
        return None
    ranks = np.stack([_ranks(pairs[:, 0]), _ranks(pairs[:, 1])])
    ranks -= ranks.mean(axis=1, keepdims=True)
    scale = float(np.sqrt((ranks**2).sum(axis=1).prod()))
    return float((ranks[0] * ranks[1]).sum() / scale) if scale > 0 else None


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(np.float64)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def wilson_upper(hits: float, total: int) -> float:
    """Upper end of the 95 % interval of a share (Wilson 1927); 1 for no trials."""
    if not total:
        return 1.0
    share, square = hits / total, _Z * _Z / total
    middle = share + square / 2
    return min(1.0, (middle + _Z * math.sqrt(share * (1 - share) / total + square / (4 * total))) / (1 + square))


def _judge(agreed: int, total: int, floor: float, wanted: int, what: str) -> Opinion:
    if not total:
        return Opinion(good=True, enough=False, proven=False, text=f"no {what} in view: nothing to compare")
    enough, proven = total >= wanted, total >= wanted * FEW
    share = agreed / total
    least = floor if proven else floor / 2
    doubtful = total < wanted * FEW / 2 or wilson_upper(agreed, total) >= least
    good = share >= floor if enough else doubtful
    few = "" if enough else f" (only {total}; {wanted} were wanted)"
    text = f"the two agree on {share:.1%} of {total} {what}{few}, at least {floor:.0%} are asked for"
    return Opinion(good, enough, proven, text)
