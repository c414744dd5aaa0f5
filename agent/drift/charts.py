"""Control charts: sequential tests that say when a stream has changed. Pure; `docs/drift.md` says which signal has which.

Every chart is fed with blocks (minutes of observations summed up), not with single observations: the people of one frame
are those of the frame before, so that a test of single frames would take one odd visitor for a thousand witnesses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SMOOTHING = 0.5
"""Added to each bin of a histogram (Jeffreys' prior): an empty bin must not make the index infinite."""
_Z_RARE = 3.719
"""Normal quantile at 1 - 1e-4."""


@dataclass(slots=True)
class Cusum:
    """Cumulative sum of log-likelihood ratios (Page 1954) that must stay high for a while.

    limit: sum at which the evidence is enough. With ln(n), independent blocks give one false alarm in n blocks or fewer,
    whatever their distribution (Lorden 1971). The sum is capped there, so that a short, strong disturbance is forgotten as
    quickly as it came. hold_s: for how long the stream must have been watched with the sum above zero.
    """

    limit: float
    hold_s: float
    total: float = 0.0
    since_s: float = 0.0
    held_s: float = 0.0

    def update(self, llr: float, t_s: float, seen_s: float) -> bool:
        """One block that ended at `t_s` and was watched for `seen_s`; whether evidence and time are enough. Fall back to zero starts both
        again."""
        if self.total <= 0.0:
            self.since_s, self.held_s = t_s, 0.0
        else:
            self.held_s += seen_s
        self.total = min(self.limit, max(0.0, self.total + llr))
        return self.total >= self.limit and self.held_s >= self.hold_s

    def reset(self) -> None:
        """Forget."""
        self.total = 0.0


@dataclass(slots=True)
class Alarm:
    """Two charts against each other: one looks for the change, once that is found the other for its end.

    Both use the same evidence with opposite signs, so that the way back is as long as the way there (hysteresis).
    """

    raising: Cusum
    clearing: Cusum
    active: bool = False
    began_s: float = 0.0

    @classmethod
    def of(cls, *, limit: float, raise_after_s: float, clear_after_s: float) -> Alarm:
        """Charts with the same limit of evidence, in nats."""
        return cls(Cusum(limit, raise_after_s), Cusum(limit, clear_after_s))

    def update(self, llr: float, t_s: float, seen_s: float) -> bool:
        """One block; whether `active` has just changed."""
        done = self.clearing.update(-llr, t_s, seen_s) if self.active else self.raising.update(llr, t_s, seen_s)
        if done:
            self.active, self.began_s = not self.active, self.raising.since_s
            self.raising.reset()
            self.clearing.reset()
        return done

    def require(self, limit: float) -> None:
        """Another limit of evidence, in nats."""
        self.raising.limit = self.clearing.limit = limit

    @property
    def at_rest(self) -> bool:
        """No evidence for a turn."""
        return (self.clearing if self.active else self.raising).total == 0.0

    @property
    def onset_s(self) -> float | None:
        """When the change began that the alarm is about: the sum's last zero, the maximum-likelihood estimate."""
        return self.began_s if self.active else None

    def state(self) -> dict[str, Any]:
        """For JSON; `restore` takes it back."""
        charts = (self.raising, self.clearing)
        return {
            "active": self.active,
            "began_s": self.began_s,
            "charts": [[chart.total, chart.since_s, chart.held_s] for chart in charts],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Raises KeyError, TypeError, ValueError for what `state` did not make."""
        self.active, self.began_s = bool(state["active"]), float(state["began_s"])
        for chart, (total, since_s, *held_s) in zip((self.raising, self.clearing), state["charts"], strict=True):
            chart.total, chart.since_s = float(total), float(since_s)
            (chart.held_s,) = map(float, held_s or [0.0])  # earlier files have none


def gaussian_llr(deviation: float, shift: float, sigma: float) -> float:
    """Evidence of one block, in nats, that the mean has moved by `shift` rather than not at all.

    deviation: of the block's mean from its reference, positive towards the shift; sigma: its standard deviation. Zero at
    half the shift: what stays below that never alarms. Deviations beyond three shifts count as three.
    """
    bounded = min(max(deviation, -3 * shift), 3 * shift)
    return shift / sigma**2 * (bounded - shift / 2)


def poisson_llr(hits: float, expected: float, factor: float, dispersion: float) -> float:
    """Evidence of one block, in nats, that a rate has become `factor` times what was expected (Lucas 1985).

    factor: above 1 for a rise, below for a fall; dispersion: variance of the counts over their mean, 1 or more: what
    comes in bursts proves less (quasi-likelihood).
    """
    return (hits * math.log(factor) - expected * (factor - 1)) / dispersion


def stability_index(reference: Sequence[float], current: Sequence[float]) -> float:
    """Population stability index of two histograms over the same bins (symmetrised Kullback-Leibler divergence), nats.

    0 = the same mixture; by custom 0.1 is a small change and 0.25 a large one.
    """
    bins = len(reference)
    p_total, q_total = sum(reference) + SMOOTHING * bins, sum(current) + SMOOTHING * bins
    total = 0.0
    for p_count, q_count in zip(reference, current, strict=True):
        p, q = (p_count + SMOOTHING) / p_total, (q_count + SMOOTHING) / q_total
        total += (q - p) * math.log(q / p)
    return total


def index_by_chance(bins: int, reference_size: int, current_size: int) -> float:
    """The stability index that two samples of one mixture exceed once in 10,000 times.

    Sizes: independent observations. Under no change the index is about (1/n + 1/m) chi-squared with bins - 1 degrees of
    freedom (Yurdakul and Naranjo 2020); its quantile by Wilson and Hilferty.
    """
    free = bins - 1
    ninth = 2 / (9 * free)
    quantile = free * (1 - ninth + _Z_RARE * math.sqrt(ninth)) ** 3
    return (1 / reference_size + 1 / current_size) * quantile
