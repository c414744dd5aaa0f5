"""What a simulated scene's script says happened, as incidents. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection

from agent.evaluate.matching import Incident, merge
from agent.simulation.values import Interval


def incidents_of(kind: str, action: str, intervals: Collection[Interval], *, end_s: float = math.inf) -> list[Incident]:
    """Incidents of `kind`, which the script calls `action`. end_s: nothing after it counts."""
    return merge(
        Incident(kind, one.start_s, min(one.end_s, end_s), lies_until(one, intervals))
        for one in intervals
        if one.action == action and one.start_s <= end_s
    )


def lies_until(interval: Interval, intervals: Collection[Interval]) -> float:
    """When the people of `interval` have got up again, 0 if they did not lie down."""
    lying = [
        one.end_s
        for one in intervals
        if one.action == "lie"
        and interval.start_s <= one.start_s <= interval.end_s + 1
        and one.actor_ids[0] in interval.actor_ids
    ]
    return max(lying, default=0.0)
