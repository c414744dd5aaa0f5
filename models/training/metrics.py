"""Calibration and figures of a binary classifier, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_STILL = 1e-9


def sigmoid(margin: Array) -> Array:
    """Probability of the action from the difference of its logit and the other's."""
    return 1 / (1 + np.exp(-np.clip(margin, -50, 50)))


def calibrate(
    margin: Array, label: NDArray[np.integer], weight: Array | None = None, prior: float = 4.0
) -> tuple[float, float]:
    """(temperature, shift): `sigmoid((margin + shift) / temperature)` fits the labels best (Platt 1999, Guo et al. 2017).

    weight: how many clips a row counts for, 1 if not given. A normal prior towards temperature 1 and shift 0 worth about
    `prior` clips keeps it sane for few clips.
    """
    weight = np.ones(len(margin)) if weight is None else weight
    design = np.stack((margin, np.ones_like(margin)), axis=1)
    found = logistic(design, label, weight, np.array((1.0, 0.0)), prior)
    slope, offset = max(float(found[0]), 0.05), float(found[1])
    return 1 / slope, offset / slope


def logistic(design: Array, label: NDArray[np.integer], weight: Array, start: Array, prior: float) -> Array:
    """(K,): the line over the columns of `design` (N, K) whose log-odds fit the labels best, drawn towards `start`."""

    def loss(line: Array) -> float:
        logit = design @ line
        fit = float((weight * (np.logaddexp(0, logit) - label * logit)).sum())
        return fit + prior * 0.125 * float(((line - start) ** 2).sum())

    found = start
    for _ in range(100):  # Newton; a full step may overshoot where margins are large, so it is halved until it helps
        p = sigmoid(design @ found)
        gradient = design.T @ (weight * (p - label)) + prior * 0.25 * (found - start)
        hessian = (design * (weight * p * (1 - p))[:, None]).T @ design + prior * 0.25 * np.eye(len(start))
        step = np.linalg.solve(hessian, gradient)
        while np.abs(step).max() > _STILL and loss(found - step) > loss(found):
            step = step / 2
        found = found - step
        if np.abs(step).max() <= _STILL:
            break
    return found


@dataclass(frozen=True, slots=True, eq=False)
class MadeMargins:
    """Margins (N,) and labels (N,) 0-1 of made windows that no model has trained on; share: of the calibration's weight."""

    margin: Array
    label: NDArray[np.integer]
    share: float


def joined(parts: Sequence[MadeMargins]) -> MadeMargins | None:
    """All in one; None for none."""
    if not parts:
        return None
    return MadeMargins(
        np.concatenate([part.margin for part in parts]), np.concatenate([part.label for part in parts]), parts[0].share
    )


def calibrate_both(margin: Array, label: NDArray[np.integer], made: MadeMargins | None) -> tuple[float, float]:
    """As `calibrate`, on real clips and made windows: few clips alone cannot say what a high margin is worth."""
    if made is None:
        return calibrate(margin, label)
    each = made.share / (1 - made.share) * len(margin) / len(made.margin)
    weight = np.concatenate((np.ones(len(margin)), np.full(len(made.margin), each)))
    return calibrate(np.concatenate((margin, made.margin)), np.concatenate((label, made.label)), weight)


def cross_fitted(
    margin: Array, label: NDArray[np.integer], fold: NDArray[np.integer], made: MadeMargins | None = None
) -> Array:
    """(N,) probabilities: those of each fold calibrated by the margins of the others, so that no clip calibrates itself."""
    probability = np.zeros(len(margin))
    for number in np.unique(fold):
        held = fold == number
        temperature, shift = calibrate_both(margin[~held], label[~held], made)
        probability[held] = sigmoid((margin[held] + shift) / temperature)
    return probability


def expected_calibration_error(probability: Array, label: NDArray[np.integer], bins: int = 10) -> float:
    """Mean gap between the probability of the action and its frequency over equal-width bins, weighted by their size."""
    index = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [abs(probability[index == b].mean() - label[index == b].mean()) * (index == b).mean()
            for b in range(bins) if (index == b).any()]  # fmt: skip
    return float(sum(gaps))


def auc(score: Array, label: NDArray[np.integer]) -> float:
    """Area under the ROC curve; ties count half."""
    positive, negative = score[label == 1], score[label == 0]
    if not len(positive) or not len(negative):
        return float("nan")
    difference = positive[:, None] - negative[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def figures(probability: Array, label: NDArray[np.integer], threshold: float = 0.5) -> dict[str, float]:
    """accuracy, precision, recall, f1, ece, auc, false_alarms (share of the negatives), n."""
    said = probability >= threshold
    true = label == 1
    hits, said_n, true_n = int((said & true).sum()), int(said.sum()), int(true.sum())
    precision = hits / said_n if said_n else 0.0
    recall = hits / true_n if true_n else 0.0
    return {
        "n": len(label),
        "accuracy": float((said == true).mean()),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "false_alarms": float((said & ~true).sum() / max(1, (~true).sum())),
        "ece": expected_calibration_error(probability, label),
        "auc": auc(probability, label),
    }
