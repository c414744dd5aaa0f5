"""What is normal: learned from the first blocks on this device, held against the figures of the model's card. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Cells = dict[int, list[float]]
"""Observations of a block by condition: [number, sum]."""

MIN_CONDITION_BLOCKS = 3
"""A condition seen in fewer blocks has no mean of its own."""
SIGMA_FLOOR = 0.01
"""Blocks are never believed to agree better than this: a replayed recording would make any change significant."""
MAX_CORRELATION = 0.9
MAX_ERROR = 0.75
_TINY = 1e-6
PRECISION = 10.0
"""The mean must be known this much more exactly than the shift to be found."""


@dataclass(frozen=True, slots=True)
class MeanBaseline:
    """Mean by condition, and how far the mean of a block strays from it.

    condition: what legitimately changes the value: the time of day (confidence is lower under infrared light), the
    number of images in a batch (latency). means: by condition; overall: for those seen too rarely to have one. sigma: of the relative
    deviation of a block, widened for the correlation of neighbouring blocks; in logarithms it is that of the difference.
    """

    overall: float
    means: Mapping[int, float]
    sigma: float
    blocks: int
    logarithmic: bool

    def expected(self, cells: Cells) -> float:
        """The mean that a block with these conditions should have."""
        number = sum(cell[0] for cell in cells.values())
        return sum(cell[0] * self.means.get(condition, self.overall) for condition, cell in cells.items()) / number

    def deviation(self, cells: Cells, level: float | None = None) -> float:
        """How far a block is off, as a fraction (a difference of logarithms where `logarithmic`).

        level: takes the place of `overall`; the profile over the conditions is kept in proportion.
        """
        expected, mean = self.expected(cells), mean_of(cells)
        if self.logarithmic:
            return mean - expected
        scale = level / max(self.overall, _TINY) if level is not None else 1.0
        return mean / max(expected * scale, _TINY) - 1

    def precise(self, shift: float) -> bool:
        """Whether enough was learned to find a change of `shift`."""
        return self.sigma / math.sqrt(self.blocks) <= shift / PRECISION

    def widening(self, shift: float) -> float:
        """By how much more evidence is needed because the mean is only known to two standard errors.

        A mean that is off by e makes the sum of the ratios climb as if the chance were exp(-limit (1 - 2 e / shift)).
        """
        error = 2 * self.sigma / math.sqrt(self.blocks)
        return 1 / (1 - min(2 * error / shift, MAX_ERROR))

    def state(self) -> dict[str, Any]:
        """For JSON; `restore` takes it back."""
        means = {str(condition): mean for condition, mean in self.means.items()}
        return {"overall": self.overall, "means": means, "sigma": self.sigma, "blocks": self.blocks}

    @classmethod
    def restore(cls, state: Mapping[str, Any], *, logarithmic: bool) -> MeanBaseline:
        """Raises KeyError, TypeError, ValueError for what `state` did not make."""
        means = {int(condition): float(mean) for condition, mean in state["means"].items()}
        return cls(float(state["overall"]), means, float(state["sigma"]), int(state["blocks"]), logarithmic)


def mean_of(cells: Cells) -> float:
    """Mean of a block that has observations."""
    return sum(cell[1] for cell in cells.values()) / sum(cell[0] for cell in cells.values())


def learn_mean(blocks: Sequence[Cells], *, logarithmic: bool) -> MeanBaseline:
    """The baseline of two or more blocks, in the order of time."""
    overall = _pooled(blocks, None)
    conditions = {condition for block in blocks for condition in block}
    means = {
        condition: _pooled(blocks, condition)
        for condition in conditions
        if sum(condition in block for block in blocks) >= MIN_CONDITION_BLOCKS
    }
    draft = MeanBaseline(overall, means, SIGMA_FLOOR, len(blocks), logarithmic)
    sigma = max(SIGMA_FLOOR, _long_run_sigma([draft.deviation(block) for block in blocks]))
    return MeanBaseline(overall, means, sigma, len(blocks), logarithmic)


def _pooled(blocks: Sequence[Cells], condition: int | None) -> float:
    cells = [cell for block in blocks for name, cell in block.items() if condition is None or name == condition]
    return sum(cell[1] for cell in cells) / sum(cell[0] for cell in cells)


def _long_run_sigma(deviations: Sequence[float]) -> float:
    """Standard deviation, widened as a first-order autoregression asks for: sqrt((1 + r) / (1 - r))."""
    mean = sum(deviations) / len(deviations)
    centred = [value - mean for value in deviations]
    square = sum(value * value for value in centred)
    if square == 0.0:
        return 0.0
    neighbours = sum(a * b for a, b in itertools.pairwise(centred))
    correlation = min(max(neighbours / square, 0.0), MAX_CORRELATION)
    return math.sqrt(square / (len(deviations) - 1) * (1 + correlation) / (1 - correlation))
