"""Events against what really happened. Pure: times in seconds of one camera's time line.

One incident wants one event. Events are taken in the order in which they were detected; each goes to

1. an incident that nobody has found yet: one that goes on, else one that ended at most `after_s` ago
   or whose result is still there, else one that starts
   within `before_s`;
2. failing that, to an incident that was found before: a *duplicate*, neither a hit nor a false alarm;
3. failing that, to none: a *false alarm*.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

BEFORE_S = 1.0
"""Fighters square up before the first blow, and somebody who loses his balance has not fallen yet."""
AFTER_S = 5.0
"""A window of 100 steps at 30 Hz and two or three verdicts may end after a short incident."""
MERGE_GAP_S = 2.0
"""Incidents of one kind closer than this are one: a camera has one open event a service."""


@dataclass(frozen=True, slots=True)
class Incident:
    """Something of one kind that really happened from start_s to end_s.

    lasts_s: until then its result is there to see (who fell lies on the ground), and an event still means it; 0 = not
    longer than itself.
    """

    kind: str
    start_s: float
    end_s: float
    lasts_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Alarm:
    """An event as the rules reported it: onset_s: where they place its begin; ended_s: None while it is open."""

    kind: str
    detected_s: float
    onset_s: float
    ended_s: float | None
    confidence: float


@dataclass(frozen=True, slots=True)
class Matching:
    """One kind on one time line. hits: (incident, its first event); duplicates: events of incidents found before.

    covered: the missed incidents during which an event of an earlier one was still open; they are in `missed` too.
    """

    hits: tuple[tuple[Incident, Alarm], ...]
    missed: tuple[Incident, ...]
    covered: tuple[Incident, ...]
    duplicates: tuple[Alarm, ...]
    false_alarms: tuple[Alarm, ...]


def merge(incidents: Iterable[Incident], gap_s: float = MERGE_GAP_S) -> list[Incident]:
    """Incidents of one kind that overlap or follow within `gap_s` become one, in order of start."""
    merged: list[Incident] = []
    for incident in sorted(incidents, key=lambda one: (one.start_s, one.end_s)):
        if merged and incident.start_s - merged[-1].end_s <= gap_s:
            merged[-1] = replace(
                merged[-1],
                end_s=max(merged[-1].end_s, incident.end_s),
                lasts_s=max(merged[-1].lasts_s, incident.lasts_s),
            )
        else:
            merged.append(incident)
    return merged


def match(
    incidents: Sequence[Incident],
    alarms: Iterable[Alarm],
    *,
    before_s: float = BEFORE_S,
    after_s: float = AFTER_S,
) -> Matching:
    """Who found what; all of one kind, `incidents` apart from each other (see `merge`)."""
    found: dict[Incident, Alarm] = {}
    duplicates: list[Alarm] = []
    false_alarms: list[Alarm] = []
    ordered = sorted(alarms, key=lambda alarm: alarm.detected_s)
    for alarm in ordered:
        near = _in_reach(incidents, alarm.detected_s, before_s, after_s)
        new = next((incident for incident in near if incident not in found), None)
        if new is not None:
            found[new] = alarm
        elif near:
            duplicates.append(alarm)
        else:
            false_alarms.append(alarm)
    missed = tuple(incident for incident in incidents if incident not in found)
    return Matching(
        hits=tuple((incident, found[incident]) for incident in incidents if incident in found),
        missed=missed,
        covered=tuple(one for one in missed if any(_open_during(alarm, one) for alarm in ordered)),
        duplicates=tuple(duplicates),
        false_alarms=tuple(false_alarms),
    )


def _in_reach(incidents: Sequence[Incident], t_s: float, before_s: float, after_s: float) -> list[Incident]:
    """Incidents that an event at `t_s` may mean, the likeliest first."""
    going_on = [one for one in incidents if one.start_s <= t_s <= one.end_s]
    over = [one for one in incidents if one.end_s < t_s <= max(one.end_s + after_s, one.lasts_s)]
    coming = [one for one in incidents if t_s < one.start_s <= t_s + before_s]
    return going_on + over[::-1] + coming


def _open_during(alarm: Alarm, incident: Incident) -> bool:
    return alarm.detected_s <= incident.end_s and (alarm.ended_s is None or alarm.ended_s >= incident.start_s)


def event_figures(matchings: Sequence[Matching], hours: float) -> dict[str, Any]:
    """`precision`, `recall`, `f1` (0-1), `delay_s` (median, p95, worst), `false_alarms_per_hour` and the counts behind.

    matchings: of one kind, one per time line; hours: the length of all time lines. delay_s: from the incident's start to
    `detected`, None without a hit. Precision counts hits and false alarms; without an event it is 0 if there was an
    incident and else 1, recall without an incident is 1: there was nothing to get wrong.
    Raises ValueError when `hours` is not above 0.
    """
    if not hours > 0:
        raise ValueError(f"expected more than 0 hours, got {hours}")
    hits = [pair for one in matchings for pair in one.hits]
    missed = sum(len(one.missed) for one in matchings)
    false_alarms = sum(len(one.false_alarms) for one in matchings)
    nothing_happened = not hits and not missed
    precision = _share(len(hits), len(hits) + false_alarms, float(nothing_happened))
    recall = _share(len(hits), len(hits) + missed, 1.0)
    delays_s = [alarm.detected_s - incident.start_s for incident, alarm in hits]
    return {
        "incidents": len(hits) + missed,
        "found": len(hits),
        "missed": missed,
        "covered": sum(len(one.covered) for one in matchings),
        "duplicates": sum(len(one.duplicates) for one in matchings),
        "false_alarms": false_alarms,
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall, 0.0),
        "delay_s": {
            "median": _quantile(delays_s, 0.5), "p95": _quantile(delays_s, 0.95), "worst": _quantile(delays_s, 1.0),
        },
        "false_alarms_per_hour": false_alarms / hours,
    }  # fmt: skip


def _share(part: float, whole: float, otherwise: float) -> float:
    return part / whole if whole else otherwise


def _quantile(values: list[float], q: float) -> float | None:
    return round(float(np.quantile(values, q)), 3) if values else None
