"""What the means of a model's card are means of, and measuring them over a material: one definition for device and report. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from agent.types import POSE_SLOT, ActionScores, People, action_slot

SIGNALS: Mapping[str, tuple[str, ...]] = {
    "pose": ("person_confidence", "keypoint_visibility"),
    "action": ("window_confidence",),
}
"""What the card of a model for this task may promise: means, above 0 and up to 1."""


class FrameMeans(NamedTuple):
    """What one frame says about the pose model, 0-1: mean score of its people, mean score of all their key points."""

    person_confidence: float
    keypoint_visibility: float


def frame_means(people: People) -> FrameMeans | None:
    """The observation of one frame; None without people, which says nothing about the model, and where a score is no number."""
    count = len(people)
    if not count:
        return None
    scores = people.keypoint_scores
    means = FrameMeans(float(people.scores.sum()) / count, float(scores.sum()) / scores.size)
    return means if all(map(math.isfinite, means)) else None


def window_confidence(scores: ActionScores) -> float | None:
    """The observation of one verdict: the highest probability of any class, 0-1; None when it is no number."""
    return max(scores.probs.values()) if math.isfinite(scores.probability) else None


class CardMeter:
    """The means over everything observed, all cameras together: what `figures.baseline` of a manifest may hold."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, list[float]]] = {}  # by slot and signal: [number, sum]

    def observe_people(self, people: People) -> None:
        """One frame."""
        if (seen := frame_means(people)) is not None:
            for signal, value in seen._asdict().items():
                self._add(POSE_SLOT, signal, value)

    def observe_scores(self, scores: ActionScores) -> None:
        """One verdict."""
        if (confidence := window_confidence(scores)) is not None:
            self._add(action_slot(scores.service), "window_confidence", confidence)

    def add(self, other: CardMeter) -> None:
        """All that `other` has observed."""
        for slot, signals in other._sums.items():
            for signal, (number, total) in signals.items():
                self._add(slot, signal, total, number)

    def means(self) -> dict[str, dict[str, float]]:
        """By slot (`pose`, `action/<service>`) and signal, 0-1; what was never observed is not in it."""
        return {
            slot: {signal: total / number for signal, (number, total) in signals.items()}
            for slot, signals in self._sums.items()
        }

    def _add(self, slot: str, signal: str, total: float, number: float = 1.0) -> None:
        cell = self._sums.setdefault(slot, {}).setdefault(signal, [0.0, 0.0])
        cell[0] += number
        cell[1] += total
