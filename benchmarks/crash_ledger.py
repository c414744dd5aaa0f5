"""The books of the crash campaign: what was committed, what arrived, and whether the two agree. No I/O."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

_STATE = 2
_EXAMPLES = 5


@dataclass(slots=True)
class Verdict:
    """What the books say. Everything from `lost` on must be zero.

    committed, delivered: alarms and events by id. duplicates: arrivals beyond the first of an id. lost: committed ids that never
    arrived; missing: sequence numbers up to the highest that never arrived; disordered: first arrivals below an earlier one of their
    lane; conflicts: an id that came with two contents; repeated: sequence numbers given twice; stale_states: state topics
    whose last committed state never arrived; gaps: losses that the device announced. examples: some of each.
    """

    committed: int = 0
    delivered: int = 0
    states: int = 0
    duplicates: int = 0
    lost: int = 0
    missing: int = 0
    disordered: int = 0
    conflicts: int = 0
    repeated: int = 0
    stale_states: int = 0
    gaps: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """0 when the promise held."""
        return (
            self.lost + self.missing + self.disordered + self.conflicts + self.repeated + self.stale_states + self.gaps
        )

    def figures(self) -> dict[str, Any]:
        """As a mapping."""
        return asdict(self)


class Ledger:
    """`committed` and `arrived` may be called from one thread each; `verdict` when both are still."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}  # id to number, alarms and events
        self._told_sequence = 0
        self._told_state: dict[str, int] = {}  # topic to its latest number
        self._first: dict[str, int] = {}  # id to hash of topic and payload
        self._by_sequence: dict[int, str] = {}
        self._last: dict[int, int] = {}
        self._last_state: dict[str, int] = {}
        self._found = Verdict()

    def committed(self, lane: int, sequence: int | None, number: int, event_id: str, topic: str) -> None:
        """A put returned."""
        if lane == _STATE:
            self._told_state[topic] = number
            return
        self._told[event_id] = number
        if sequence is not None:
            if sequence <= self._told_sequence:
                self._found.repeated += 1
                self._note(f"sequence {sequence} was given after {self._told_sequence}")
            self._told_sequence = sequence

    def arrived(self, topic: str, payload: bytes) -> int | None:
        """A message reached the subscriber; returns its number when it is the first with its id."""
        if topic.endswith("/events/gap"):
            self._found.gaps += 1
            self._note(f"gap announced: {payload[:200]!r}")
            return None
        body = json.loads(payload)
        event_id, lane, number = body["id"], body["lane"], body["number"]
        content = hash((topic, payload))
        if event_id in self._first:
            self._found.duplicates += 1
            if self._first[event_id] != content:
                self._found.conflicts += 1
                self._note(f"{event_id} arrived with two contents")
            return None
        self._first[event_id] = content
        if lane == _STATE:
            self._found.states += 1
            self._last_state[topic] = number
            place = number
        else:
            place = body["sequence"]
            if self._by_sequence.setdefault(place, event_id) != event_id:
                self._found.repeated += 1
                self._note(f"sequence {place} belongs to two ids")
        if place <= self._last.get(lane, 0):
            self._found.disordered += 1
            self._note(f"lane {lane}: {place} arrived after {self._last[lane]}")
        self._last[lane] = max(place, self._last.get(lane, 0))
        return int(number)

    def outstanding(self) -> int:
        """Committed alarms and events that have not arrived yet."""
        return sum(event_id not in self._first for event_id in list(self._told))

    def verdict(self) -> Verdict:
        """The final sums."""
        found = self._found
        found.committed, found.delivered = len(self._told), len(self._by_sequence)
        lost = sorted(number for event_id, number in self._told.items() if event_id not in self._first)
        highest = max(max(self._by_sequence, default=0), self._told_sequence)
        missing = [n for n in range(1, highest + 1) if n not in self._by_sequence]
        found.lost, found.missing = len(lost), len(missing)
        stale = [topic for topic, number in self._told_state.items() if self._last_state.get(topic, 0) < number]
        found.stale_states = len(stale)
        kinds: dict[str, list[Any]] = {"lost puts": lost, "missing sequences": missing, "stale states": stale}
        for what, cases in kinds.items():
            if cases:
                self._note(f"{what}: {cases[:_EXAMPLES]}")
        return found

    def _note(self, text: str) -> None:
        if len(self._found.examples) < 4 * _EXAMPLES:
            self._found.examples.append(text)
