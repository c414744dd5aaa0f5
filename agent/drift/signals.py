"""The watched quantities: each gathers blocks, learns what is normal, and then judges block after block. Pure.

Time is `t_s`, seconds that the watch has been running, stops of the agent left out. A block ends when it is long enough
and has enough observations: an empty street ends none, and says nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

from agent.drift.baseline import MIN_CONDITION_BLOCKS, Cells, MeanBaseline, learn_mean
from agent.drift.charts import Alarm, gaussian_llr, poisson_llr

EWMA_WEIGHT = 0.1
"""Of the newest block in the value that is shown (Roberts 1959)."""
RARE_HITS = 10.0
"""Of something rare as many happenings, not as many blocks, make the value that is shown."""
MAX_WARMUPS = 7.0
"""A mean too noisy to be known exactly enough is learned no longer than this many warm-ups."""
MAX_LEARNED = 4096
"""Blocks kept while learning; a stream that needs more has enough."""
SEEN_FACTOR = 2.0
"""Times `block_s`: of a block that took longer, no more was watched. The rest was a night without anybody."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long and how much. min_samples: observations of a block; min_blocks: to learn from; limit: of evidence, nats."""

    block_s: float
    min_samples: int
    warmup_s: float
    min_blocks: int
    raise_after_s: float
    clear_after_s: float
    limit: float

    def alarm(self) -> Alarm:
        """A fresh pair of charts."""
        return Alarm.of(limit=self.limit, raise_after_s=self.raise_after_s, clear_after_s=self.clear_after_s)

    def seen_s(self, length_s: float) -> float:
        """For how long the stream was watched in a block that took `length_s`."""
        return min(length_s, SEEN_FACTOR * self.block_s)


@dataclass(frozen=True, slots=True)
class Reading:
    """Where a signal stands.

    baseline, current: in the signal's unit, None while it learns; change: current / baseline - 1 (a stability index for
    mixtures, lost agreement for golden answers); strength: 0 = as the baseline, 1 = at the figure that counts as drift.
    blocks: judged, or learned so far. basis: `card`, `local`, `golden`. onset_s: estimated begin of the change that the
    alarm is about, where `active`.
    """

    baseline: float | None
    current: float | None
    change: float
    strength: float
    limit: float
    basis: str
    blocks: int
    active: bool
    onset_s: float | None = None


class Signal(Protocol):
    """What the watch asks of each signal."""

    def tick(self, t_s: float) -> bool:
        """End the block if it is time; whether an alarm has just begun or ended (`reading.active` says which)."""
        ...

    @property
    def reading(self) -> Reading: ...

    def state(self) -> dict[str, Any]:
        """For JSON; `restore` takes it back. The open block is left out."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Raises KeyError, TypeError, ValueError for what `state` did not make."""
        ...


class MeanSignal:
    """A mean that must not move in the harmful direction: CUSUM over blocks, residuals from a profile over conditions.

    shift: relative change to be found, negative for a fall. logarithmic: geometric means, for times with a long tail. Each condition is
    by itself: one that comes later (a larger batch, since there is another camera; the first night with people) is learned then, and not
    judged by the others. card: the mean that the model's card promises, of one that must not fall: where it is above what was learned, it takes the
    place of the learned level (not of the learned profile). Below, it would only hide a fall from what this device knows.
    """

    def __init__(self, pace: Pace, shift: float, *, logarithmic: bool = False, card: float | None = None) -> None:
        self._pace = pace
        self._figure = shift
        self._sign = math.copysign(1.0, shift)
        self._shift = abs(math.log1p(shift)) if logarithmic else abs(shift)
        self._logarithmic = logarithmic
        self._card = card
        self._cells: Cells = {}
        self._samples = 0
        self._opened_s: float | None = None
        self._began_s: float | None = None
        self._late: Cells = {}  # of conditions that were not there to be learned
        self._late_s: dict[int, float] = {}  # since when
        self._learned: list[Cells] = []
        self._baseline: MeanBaseline | None = None
        self._alarm = pace.alarm()
        self._smooth = 0.0
        self._run = [0.0, 0.0]  # blocks and their deviations since the alarm was last at rest
        self._blocks = 0

    def observe(self, value: float, condition: int = 0) -> None:
        """One observation; above zero where logarithmic."""
        if self._logarithmic:
            value = math.log(value)
        late = self._baseline is not None and condition not in self._baseline.means
        cells = self._late if late else self._cells
        cell = cells.get(condition)
        if cell is None:
            cells[condition] = [1.0, value]
        else:
            cell[0] += 1.0
            cell[1] += value
        self._samples += not late

    def tick(self, t_s: float) -> bool:
        if self._opened_s is None:
            self._opened_s = t_s
        if self._began_s is None:
            self._began_s = t_s
        if self._baseline is not None and self._late:
            self._baseline = self._learn_late(self._baseline, t_s)
        length_s = t_s - self._opened_s
        if self._samples < self._pace.min_samples or length_s < self._pace.block_s:
            return False
        cells, self._cells, self._samples, self._opened_s = self._cells, {}, 0, t_s
        if self._baseline is None:
            self._learn(cells, t_s - self._began_s)
            return False
        return self._judge(self._baseline, cells, t_s, self._pace.seen_s(length_s))

    def _learn(self, cells: Cells, learning_s: float) -> None:
        self._learned.append(cells)
        self._blocks = len(self._learned)
        if learning_s < self._pace.warmup_s or self._blocks % self._pace.min_blocks:
            return
        baseline = learn_mean(self._learned, logarithmic=self._logarithmic)
        late = learning_s >= MAX_WARMUPS * self._pace.warmup_s or self._blocks >= MAX_LEARNED
        if late or baseline.precise(self._shift):
            self._learned, self._blocks = [], 0
            self._use(baseline)

    def _learn_late(self, baseline: MeanBaseline, t_s: float) -> MeanBaseline:
        """With the means of what came late, and was there for as long as the first conditions were learned."""
        means = dict(baseline.means)
        for condition, (number, total) in list(self._late.items()):
            since_s = self._late_s.setdefault(condition, t_s)
            enough = number >= MIN_CONDITION_BLOCKS * self._pace.min_samples
            if enough and t_s - since_s >= self._pace.warmup_s:
                means[condition] = total / number
                del self._late[condition], self._late_s[condition]
        return replace(baseline, means=means)

    def _use(self, baseline: MeanBaseline) -> None:
        self._baseline = baseline
        self._alarm.require(self._pace.limit * baseline.widening(self._shift))

    def _judge(self, baseline: MeanBaseline, cells: Cells, t_s: float, seen_s: float) -> bool:
        deviation = baseline.deviation(cells, self._promised(baseline))
        self._blocks += 1
        self._smooth += max(EWMA_WEIGHT, 1 / self._blocks) * (deviation - self._smooth)
        if self._alarm.at_rest:
            self._run = [0.0, 0.0]
        self._run = [self._run[0] + 1, self._run[1] + deviation]
        changed = self._alarm.update(gaussian_llr(self._sign * deviation, self._shift, baseline.sigma), t_s, seen_s)
        if changed:  # the best estimate of where it is now is the mean since the evidence began to gather
            self._smooth = self._run[1] / self._run[0]
        return changed

    def _promised(self, baseline: MeanBaseline) -> float | None:
        """The card's level where it asks for more than what was learned."""
        return self._card if self._card is not None and self._card > baseline.overall else None

    @property
    def reading(self) -> Reading:
        baseline = self._baseline
        if baseline is None:
            basis = "card" if self._card is not None else "local"
            return Reading(None, None, 0.0, 0.0, self._figure, basis, self._blocks, active=False)
        promised = self._promised(baseline)
        basis, level = ("local", baseline.overall) if promised is None else ("card", promised)
        change = math.expm1(self._smooth) if self._logarithmic else self._smooth
        level = math.exp(level) if self._logarithmic else level
        strength = max(0.0, self._sign * self._smooth) / self._shift
        return Reading(
            level, level * (1 + change), change, strength, self._figure, basis, self._blocks,
            self._alarm.active, self._alarm.onset_s,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        learned = [{str(name): cell for name, cell in block.items()} for block in self._learned]
        return {
            "began_s": self._began_s, "learned": learned, "blocks": self._blocks, "smooth": self._smooth,
            "baseline": self._baseline.state() if self._baseline else None, "alarm": self._alarm.state(),
            "run": self._run, "late": {str(name): [*cell, self._late_s.get(name)] for name, cell in self._late.items()},
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self._began_s = optional(state["began_s"])
        self._learned = [
            {int(name): [float(part) for part in cell] for name, cell in block.items()} for block in state["learned"]
        ]
        if known := state["baseline"]:
            self._use(MeanBaseline.restore(known, logarithmic=self._logarithmic))
        self._blocks, self._smooth = int(state["blocks"]), float(state["smooth"])
        self._alarm.restore(state["alarm"])
        number, total = state["run"]
        self._run = [float(number), float(total)]
        for name, (number, total, since_s) in state.get("late", {}).items():  # earlier files have none
            self._late[int(name)] = [float(number), float(total)]
            if since_s is not None:
                self._late_s[int(name)] = float(since_s)


class RateSignal:
    """How often something happens per observation: a Poisson CUSUM for a rise and one for a fall, by the same factor.

    The rise is held against the highest rate that what was learned allows, the fall against the lowest, one standard error
    away: of three fights in a week nobody knows whether two or five are usual.
    """

    def __init__(self, pace: Pace, factor: float) -> None:
        self._pace = pace
        self._factor = factor
        self._hits = self._samples = 0
        self._opened_s: float | None = None
        self._began_s: float | None = None
        self._learned: list[tuple[int, int]] = []
        self._rate: float | None = None
        self._bounds = (0.0, 0.0)  # lowest and highest rate
        self._dispersion = 1.0
        self._alarms = (pace.alarm(), pace.alarm())  # of a rise, of a fall
        self._smooth = 0.0
        self._blocks = 0

    def observe(self, hit: bool) -> None:
        """One observation, and whether it happened."""
        self._samples += 1
        self._hits += hit

    def tick(self, t_s: float) -> bool:
        if self._opened_s is None:
            self._opened_s = t_s
        if self._began_s is None:
            self._began_s = t_s
        length_s = t_s - self._opened_s
        if self._samples < self._pace.min_samples or length_s < self._pace.block_s:
            return False
        hits, samples = self._hits, self._samples
        self._hits = self._samples = 0
        self._opened_s = t_s
        if self._rate is None:
            self._learned.append((hits, samples))
            self._blocks = len(self._learned)
            if t_s - self._began_s >= self._pace.warmup_s and self._blocks >= self._pace.min_blocks:
                self._finish_learning()
            return False
        return self._judge(self._rate, hits, samples, t_s, self._pace.seen_s(length_s))

    def _finish_learning(self) -> None:
        hits, samples = (sum(column) for column in zip(*self._learned, strict=True))
        rate = (hits + 0.5) / samples
        excess = sum((have - rate * of) ** 2 / (rate * of) for have, of in self._learned)
        self._rate, self._smooth = rate, rate
        self._dispersion = max(1.0, excess / (len(self._learned) - 1))
        error = math.sqrt(self._dispersion * (hits + 1))
        self._bounds = max(0.0, hits - error) / samples, (hits + 1 + error) / samples
        self._learned, self._blocks = [], 0

    def _judge(self, rate: float, hits: int, samples: int, t_s: float, seen_s: float) -> bool:
        self._blocks += 1
        self._smooth += min(EWMA_WEIGHT, rate * samples / RARE_HITS) * (hits / samples - self._smooth)
        before, (lowest, highest) = self.active, self._bounds
        for alarm, known, factor in zip(self._alarms, (highest, lowest), (self._factor, 1 / self._factor), strict=True):
            alarm.update(poisson_llr(hits, known * samples, factor, self._dispersion), t_s, seen_s)
        return self.active != before

    @property
    def active(self) -> bool:
        """Whether either chart has found its change."""
        return any(alarm.active for alarm in self._alarms)

    @property
    def reading(self) -> Reading:
        rate = self._rate
        if rate is None:
            return Reading(None, None, 0.0, 0.0, self._factor, "local", self._blocks, active=False)
        ratio = max(self._smooth, rate / 100) / rate
        strength = abs(math.log(ratio)) / math.log(self._factor)
        onset_s = next((alarm.onset_s for alarm in self._alarms if alarm.active), None)
        return Reading(
            rate, self._smooth, self._smooth / rate - 1, strength, self._factor, "local", self._blocks,
            self.active, onset_s,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        return {
            "began_s": self._began_s, "learned": list(self._learned), "rate": self._rate, "bounds": list(self._bounds),
            "dispersion": self._dispersion, "blocks": self._blocks, "smooth": self._smooth,
            "alarms": [alarm.state() for alarm in self._alarms],
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self._began_s = optional(state["began_s"])
        self._learned = [(int(hits), int(samples)) for hits, samples in state["learned"]]
        self._rate, self._dispersion = optional(state["rate"]), float(state["dispersion"])
        lowest, highest = state.get("bounds") or (self._rate or 0.0, self._rate or 0.0)  # earlier files have none
        self._bounds = float(lowest), float(highest)
        self._blocks, self._smooth = int(state["blocks"]), float(state["smooth"])
        for alarm, known in zip(self._alarms, state["alarms"], strict=True):
            alarm.restore(known)


class AgreementSignal:
    """Share of golden answers that are still given: two checks in a row below 1 - drop are drift, two good ones its end.

    A check is no sample of a distribution but a repeated measurement of the same thing, so it needs no chart.
    """

    CONFIRMATIONS = 2

    def __init__(self, drop: float) -> None:
        self._drop = drop
        self._latest: float | None = None
        self._against = 0
        self._checks = 0
        self._active = False
        self._changed = False

    def observe(self, agreement: float) -> None:
        """One check: share of the golden answers given alike, 0-1."""
        self._latest = agreement
        self._checks += 1
        bad = agreement < 1 - self._drop
        self._against = self._against + 1 if bad is not self._active else 0
        if self._against >= self.CONFIRMATIONS:
            self._active, self._against, self._changed = not self._active, 0, True

    def tick(self, t_s: float) -> bool:
        changed, self._changed = self._changed, False
        return changed

    @property
    def reading(self) -> Reading:
        if self._latest is None:
            return Reading(None, None, 0.0, 0.0, -self._drop, "golden", 0, active=False)
        lost = self._latest - 1.0
        return Reading(1.0, self._latest, lost, -lost / self._drop, -self._drop, "golden", self._checks, self._active)

    def state(self) -> dict[str, Any]:
        return {"latest": self._latest, "against": self._against, "checks": self._checks, "active": self._active}

    def restore(self, state: dict[str, Any]) -> None:
        self._latest, self._against = optional(state["latest"]), int(state["against"])
        self._checks, self._active = int(state["checks"]), bool(state["active"])


def optional(value: object) -> float | None:
    """A number or null of JSON."""
    return float(value) if isinstance(value, int | float) else None
