"""Where tracking failed: per true person the frames in which nobody followed them, and those in which the track changed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

WORST = 20
"""People named in a report."""


@dataclass(slots=True)
class Lapses:
    """What happened to one true person, in frame numbers of the truth.

    boxes, missed: frames in which they are there, and of these without a track; longest_miss: first and last frame of the
    longest stretch without one; switches: (frame, track before, track from then on), however long nobody followed between.
    """

    person: int
    boxes: int = 0
    missed: int = 0
    longest_miss: tuple[int, int] | None = None
    switches: list[tuple[int, int, int]] = field(default_factory=list)
    _track: int | None = None
    _miss: tuple[int, int, int] | None = None  # first frame, last frame, boxes of the stretch that goes on
    _longest: int = 0

    def step(self, frame: int, track: int | None) -> None:
        """The next frame in which the person is there, and who follows them."""
        self.boxes += 1
        if track is None:
            self.missed += 1
            first, _, boxes = self._miss or (frame, frame, 0)
            self._miss = (first, frame, boxes + 1)
            if boxes + 1 > self._longest:
                self._longest, self.longest_miss = boxes + 1, (first, frame)
            return
        self._miss = None
        if self._track is not None and track != self._track:
            self.switches.append((frame, self._track, track))
        self._track = track

    def as_json(self) -> dict[str, Any]:
        """The person in a report."""
        return {
            "person": self.person, "boxes": self.boxes, "missed": self.missed,
            "longest_miss": self.longest_miss and list(self.longest_miss),
            "switches": [list(switch) for switch in self.switches],
        }  # fmt: skip


def lapses_of(frames: Iterable[tuple[int, Iterable[int], Mapping[int, int]]]) -> list[Lapses]:
    """Everybody of one sequence. frames: number, people who are there, and of these who is followed: person -> track."""
    everybody: dict[int, Lapses] = {}
    for number, people, followed in frames:
        for person in people:
            everybody.setdefault(person, Lapses(person)).step(number, followed.get(person))
    return list(everybody.values())


def worst(sequences: Mapping[str, Iterable[Lapses]]) -> list[dict[str, Any]]:
    """The `WORST` people with something wrong, most switches first, then most misses; each with its `sequence`."""
    wrong = [
        {"sequence": name, **one.as_json()}
        for name, people in sequences.items()
        for one in people
        if one.switches or one.missed
    ]
    return sorted(wrong, key=lambda one: (-len(one["switches"]), -one["missed"], one["sequence"], one["person"]))[
        :WORST
    ]
