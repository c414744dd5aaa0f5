"""Is the agent as well as it was before the exchange? The criteria of probation, over two spells of its life. Pure.

Only what a model (or a configuration) can be blamed for counts: a camera whose cable was pulled sends no model home.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from agent.types import POSE_SLOT

CONFIGURATION_SLOT = "configuration"

AT_ONCE = frozenset({"pose_model", "action_model", "gpu_lost"})
"""Health reasons that end a probation as soon as they appear;"""
LASTING = frozenset(
    {
        "model_fallback", "cpu_high", "memory_high", "gpu_memory_high", "gpu_hot", "gpu_throttled", "degraded_step",
        "part_failed", "stalled",
    }
)  # fmt: skip
"""... those that may pass, and end it when they stay;"""
OF_CONFIGURATIONS = frozenset(
    {
        "camera_offline", "camera_frozen", "camera_blind", "camera_moved", "camera_slow", "config_reload", "evidence",
        "http", "mqtt_offline", "mqtt_rejected", "mqtt_subscription", "no_camera", "sink_failing", "sink_rejected",
        "storage", "storage_full",
    }
)  # fmt: skip
"""... and those that stay and that only a configuration can be blamed for."""
DRIFT = "model_drift"

LASTING_S = 60.0
IDLE_FACTOR = 3.0
"""Time without frames does not count, until a probation has taken so many times as long as is wanted."""
MIN_CALLS = 50
"""Inferences from which their mean time says something, and without which a probation has shown nothing."""
MIN_FAILURES = 10
FAILURE_SHARE = 0.02
"""More of the inferences fail than before, by this share."""
FPS_LOSS = 0.25
SLOWED = 1.1
"""A frame rate that falls is the model's fault only where its time has risen by this factor."""
MIN_EVENTS = 5
RARE = 1e-4
"""A number of events that chance explains less often than this is no chance."""
MIN_MEAN_SAMPLES = 100
MIN_MEAN_S = 60.0
"""Pictures that follow each other are alike: a hundred of them are a few seconds of one scene, and say little about a model."""


@dataclass(frozen=True, slots=True)
class Spell:
    """A stretch of the agent's life, as far as one slot is concerned.

    reasons: health reasons raised at any time in it. calls, failures: inferences of the slot's model that gave something or
    failed; latency_ms: mean time of one picture or window, None = unknown. fps: frames a second by camera, while it delivered.
    incidents, incident_s: how many began in how long. means: number and mean of each signal that a model's card promises.
    """

    seconds: float
    reasons: frozenset[str] = frozenset()
    calls: int = 0
    failures: int = 0
    latency_ms: float | None = None
    fps: Mapping[str, float] = field(default_factory=dict)
    incidents: int = 0
    incident_s: float = 0.0
    means: Mapping[str, tuple[int, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """latency_ratio: time of one picture or window against before; mean_drop: relative fall of a card's signal, 0-1; lasting_s:
    how long a reason that may pass must stay."""

    latency_ratio: float = 1.5
    mean_drop: float = 0.2
    lasting_s: float = LASTING_S


@dataclass(frozen=True, slots=True)
class Finding:
    """Why the change does not stay. reason: a word of `agent.update.trials.Refusal`."""

    reason: str
    text: str


class Standing(StrEnum):
    """Where a probation without a finding stands."""

    ON_TIME = "on time"
    LATE = "late"
    PASSED = "passed"
    UNPROVEN = "unproven"


@dataclass(slots=True)
class Course:
    """How long a probation goes on: for `wanted_s` with frames, and until something was judged in it, `MIN_CALLS` inferences in view at once.

    Time without frames counts once it has taken `IDLE_FACTOR` times as long. Where nothing was judged by then
    - a classifier whose cameras deliver stays all the same: it computes only where people are, and has had its shadow run on them;
    - every other model is waited for, up to `longest_s` (never less than the above), and then it is unproven.
    A configuration has no inferences: time alone counts. wanted_s = 0: none is asked for. spent_s: what it took in earlier lives of the
    agent, which counts towards the limits; elapsed_s, counted_s: in this life, altogether and with frames.
    """

    slot: str
    wanted_s: float
    longest_s: float
    spent_s: float = 0.0
    elapsed_s: float = 0.0
    counted_s: float = 0.0
    judged: bool = False

    @property
    def total_s(self) -> float:
        """In all lives."""
        return self.spent_s + self.elapsed_s

    @property
    def share(self) -> float:
        """Of the time that is wanted, 0-1."""
        share = min(1.0, self.counted_s / self.wanted_s) if self.wanted_s else 1.0
        return share * (1.0 if self._free else 0.9)

    @property
    def doing(self) -> str:
        """For people."""
        if self.counted_s < self.wanted_s or self._free:
            return "probation"
        return f"probation: waiting for {'people' if self._waits_for_people else 'frames'}"

    def advance(self, seconds: float, since: Spell, *, frames: bool) -> None:
        """So much later. since: from the change until now; frames: a camera of the slot delivers."""
        self.elapsed_s += seconds
        self.counted_s += seconds if frames else 0.0
        self.judged = self.judged or since.calls >= MIN_CALLS

    def standing(self, since: Spell) -> Standing:
        """Whether it is over."""
        seen, patient = self.counted_s >= self.wanted_s, self.total_s >= IDLE_FACTOR * self.wanted_s
        if not (seen or (patient and self.elapsed_s >= self.wanted_s)):
            return Standing.ON_TIME
        quiet = self._waits_for_people and seen and patient and since.failures <= since.calls
        if self._free or quiet:
            return Standing.PASSED
        return Standing.UNPROVEN if patient and self.total_s >= self.longest_s else Standing.LATE

    def note(self, since: Spell) -> str:
        """Of one that has passed: what it has not seen; empty = nothing."""
        if self.counted_s < self.wanted_s:
            return "hardly any frames came"
        return "" if self._free else f"hardly anybody came: {since.calls} inferences"

    @property
    def _free(self) -> bool:
        """Nothing but time is to be waited for."""
        return self.judged or self.slot == CONFIGURATION_SLOT or not self.wanted_s

    @property
    def _waits_for_people(self) -> bool:
        return self.slot not in {POSE_SLOT, CONFIGURATION_SLOT}


def judge(
    slot: str,
    before: Spell,
    since: Spell,
    raised_s: Mapping[str, float],
    *,
    limits: Limits,
    cards: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {}),
) -> Finding | None:
    """The first reason why what came into `slot` must go again; None while there is none.

    raised_s: health reasons that are raised now, and for how long, seconds; cards: what the cards of the model before and of the
    new one promise, by signal.
    """
    return (
        _reasons(slot, before, raised_s, limits)
        or _failures(before, since)
        or _times(before, since, limits)
        or _incidents(before, since)
        or _means(before, since, cards, limits)
    )


def figures(before: Spell, since: Spell) -> dict[str, float]:
    """What was measured, for the report: times ms, rates per second, shares 0-1."""
    found: dict[str, float] = {"inferences": since.calls}
    if since.failures:
        found["failures"] = since.failures
    if since.latency_ms is not None:
        found["latency_ms"] = round(since.latency_ms, 3)
    if since.latency_ms is not None and before.latency_ms:
        found["latency_before_ms"] = round(before.latency_ms, 3)
        found["latency_ratio"] = round(since.latency_ms / before.latency_ms, 3)
    common = before.fps.keys() & since.fps.keys()
    if common:
        found["fps"] = round(sum(since.fps[name] for name in common), 2)
        found["fps_before"] = round(sum(before.fps[name] for name in common), 2)
    if since.incidents:
        found["incidents"] = since.incidents
    return found


def _reasons(slot: str, before: Spell, raised_s: Mapping[str, float], limits: Limits) -> Finding | None:
    for reason, seconds in raised_s.items():
        code, _, subject = reason.partition(":")
        if reason in before.reasons:
            continue
        if code == DRIFT and (
            slot == CONFIGURATION_SLOT or subject.split("/")[: slot.count("/") + 1] == slot.split("/")
        ):
            return Finding("drift", f"the drift watch has raised {reason}")
        stays = seconds >= limits.lasting_s
        blamed = LASTING | OF_CONFIGURATIONS if slot == CONFIGURATION_SLOT else LASTING
        if code in AT_ONCE or (code in blamed and stays):
            since = f" for {seconds:.0f} s" if stays else ""
            return Finding("unhealthy", f"{reason} is raised{since}, which it was not before")
    return None


def _failures(before: Spell, since: Spell) -> Finding | None:
    share, usual = _failure_share(since), _failure_share(before)
    if since.failures < MIN_FAILURES or share <= usual + FAILURE_SHARE:
        return None
    return Finding(
        "unhealthy", f"{since.failures} of {since.failures + since.calls} inferences failed ({usual:.1%} before)"
    )


def _failure_share(spell: Spell) -> float:
    total = spell.calls + spell.failures
    return spell.failures / total if total else 0.0


def _times(before: Spell, since: Spell, limits: Limits) -> Finding | None:
    if since.latency_ms is None or not before.latency_ms or min(since.calls, before.calls) < MIN_CALLS:
        return None
    ratio = since.latency_ms / before.latency_ms
    if ratio > limits.latency_ratio:
        times = f"{since.latency_ms:.1f} ms against {before.latency_ms:.1f} ms"
        return Finding(
            "slower",
            f"it takes {ratio:.2f} times as long as the one before ({times}; allowed: {limits.latency_ratio:g})",
        )
    common = before.fps.keys() & since.fps.keys()
    usual, now = (sum(spell.fps[name] for name in common) for spell in (before, since))
    if ratio > SLOWED and now < usual * (1 - FPS_LOSS):
        return Finding("slower", f"the cameras deliver {now:.1f} frames a second, {usual:.1f} before")
    return None


def _incidents(before: Spell, since: Spell) -> Finding | None:
    if since.incidents < MIN_EVENTS or before.incident_s <= 0:
        return None
    share = since.incident_s / (since.incident_s + before.incident_s)
    chance = binomial_tail(since.incidents, since.incidents + before.incidents, share)
    if chance >= RARE:
        return None
    return Finding(
        "worse",
        f"{since.incidents} incidents in {since.incident_s:.0f} s, {before.incidents} in {before.incident_s:.0f} s before: "
        f"one in {1 / max(chance, 1e-12):.0f} by chance",
    )


def _means(
    before: Spell, since: Spell, cards: tuple[Mapping[str, float], Mapping[str, float]], limits: Limits
) -> Finding | None:
    """Each card was measured on other material than what is seen here: how far the old model was below its own card here is
    expected of the new one as well."""
    if since.seconds < MIN_MEAN_S:
        return None
    for signal, promised in cards[1].items():
        number, mean = since.means.get(signal, (0, 0.0))
        if number < MIN_MEAN_SAMPLES:
            continue
        usual_number, usual = before.means.get(signal, (0, 0.0))
        known = cards[0].get(signal, 0.0) if usual_number >= MIN_MEAN_SAMPLES else 0.0
        expected = promised * min(1.0, usual / known) if known else promised
        if mean < expected * (1 - limits.mean_drop):
            return Finding("drift", f"{signal} is {mean:.3f}, expected of this model here: {expected:.3f}")
    return None


def binomial_tail(hits: int, trials: int, share: float) -> float:
    """P(X >= hits) of a binomial distribution.

    Of incidents in two spells, given their sum, those of the second are binomial with its share of the time, whatever their rate
    is (Przyborowski and Wilenski 1940): so no rate has to be known.
    """
    if hits <= 0 or share >= 1:
        return 1.0
    if share <= 0:
        return 0.0
    logs = [
        math.lgamma(trials + 1) - math.lgamma(n + 1) - math.lgamma(trials - n + 1)
        + n * math.log(share) + (trials - n) * math.log1p(-share)
        for n in range(hits, trials + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(math.exp(value) for value in logs))


def reasons_that_count(slot: str) -> frozenset[str]:
    """Codes of the health reasons that may end a probation of `slot`."""
    counted = AT_ONCE | LASTING | {DRIFT}
    return counted | OF_CONFIGURATIONS if slot == CONFIGURATION_SLOT else counted


def kinds_of(slot: str, services: Sequence[str]) -> frozenset[str]:
    """The services whose incidents a change of `slot` can multiply."""
    service = slot.partition("/")[2]
    return frozenset({service} if service and slot != POSE_SLOT else services)
