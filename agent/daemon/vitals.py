"""What the running agent was like lately: kept all the time, so that a change can be judged by what was before it."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from agent.drift.card import frame_means, window_confidence
from agent.types import POSE_SLOT, ActionScores, People, action_slot
from agent.update.probation import Spell

BUCKET_S = 5.0
KEPT_S = 600.0
"""What "before" means: so much of the past."""
INCIDENTS_KEPT_S = 86_400.0
MAX_INCIDENTS = 4096
_MAX_PENDING = 8192

Means = dict[tuple[str, str], list[float]]
"""By slot and signal: [number, sum]."""


@dataclass(slots=True)
class _Bucket:
    """A few seconds. items of the models' calls, timed: of those whose time counts, their seconds, and failures: by slot; frames: by
    camera."""

    started_s: float
    ended_s: float = 0.0
    reasons: set[str] = field(default_factory=set)
    items: Counter[str] = field(default_factory=Counter)
    timed: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    frames: Counter[str] = field(default_factory=Counter)
    means: Means = field(default_factory=dict)


class FrameGaps:
    """The longest silence of any camera while it is watched. usual_s: the mean distance of frames."""

    def __init__(self, last_s: Mapping[str, float]) -> None:
        self._last_s = dict(last_s)
        self._total_s = 0.0
        self.frames: Counter[str] = Counter()
        self.longest_s = 0.0

    def note(self, camera_id: str, now_s: float) -> None:
        """A frame has gone through."""
        self.frames[camera_id] += 1
        last_s, self._last_s[camera_id] = self._last_s.get(camera_id, now_s), now_s
        self.longest_s = max(self.longest_s, now_s - last_s)
        self._total_s += now_s - last_s

    @property
    def usual_s(self) -> float:
        return self._total_s / max(1, self.frames.total())


class Vitals:
    """Fed by the pipelines; asked by whoever changes something. All but `batch` and `reasons` belongs to the loop. Monotonic clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.started_s = clock()
        self._buckets: deque[_Bucket] = deque([_Bucket(self.started_s)])
        self._pending: deque[tuple[str, int, float | None]] = deque(maxlen=_MAX_PENDING)
        self._told: deque[tuple[float, frozenset[str]]] = deque(maxlen=_MAX_PENDING)
        self._incidents: deque[tuple[float, str]] = deque(maxlen=MAX_INCIDENTS)
        self._active: dict[str, float] = {}  # reason -> since when
        self._last_frame_s: dict[str, float] = {}
        self._gaps: list[FrameGaps] = []
        self.smaller_pictures = False
        """The governor has the pose model see less: its times and means compare with none before or after."""

    # --- fed ----------------------------------------------------------------------------------------------------------

    def batch(self, slot: str, items: int, seconds: float) -> None:
        """One good call of a model; from any thread."""
        self._pending.append((slot, items, None if self.smaller_pictures and slot == POSE_SLOT else seconds))

    def frame(self, camera_id: str, people: People) -> None:
        """A frame has gone through."""
        now_s = self._clock()
        self._last_frame_s[camera_id] = now_s
        for gaps in self._gaps:
            gaps.note(camera_id, now_s)
        bucket = self._bucket(now_s)
        bucket.frames[camera_id] += 1
        if not self.smaller_pictures and (seen := frame_means(people)) is not None:
            for signal, value in seen._asdict().items():
                _add(bucket.means, (POSE_SLOT, signal), value)

    def scores(self, scores: ActionScores) -> None:
        """A window was classified."""
        if (confidence := window_confidence(scores)) is not None:
            _add(self._bucket().means, (action_slot(scores.service), "window_confidence"), confidence)

    def failure(self, slot: str) -> None:
        """An inference of the model in `slot` failed."""
        self._bucket().failures[slot] += 1

    def incident(self, kind: str) -> None:
        """An incident began."""
        self._incidents.append((self._clock(), kind))

    def reasons(self, raised: Iterable[str]) -> None:
        """The health reasons that are raised now; from any thread."""
        self._told.append((self._clock(), frozenset(raised)))

    # --- asked --------------------------------------------------------------------------------------------------------

    def now_s(self) -> float:
        """On the clock of `mark`."""
        return self._clock()

    def raised_s(self) -> dict[str, float]:
        """Health reasons that are raised now, and for how long, seconds."""
        now_s = self._clock()
        self._bucket(now_s)
        return {reason: now_s - since_s for reason, since_s in self._active.items()}

    def mark(self) -> float:
        """Begin a stretch; the time to give to `spell`."""
        now_s = self._clock()
        self._bucket(now_s)
        self._open(now_s)
        return now_s

    def spell(self, slot: str, kinds: Iterable[str], from_s: float | None = None) -> Spell:
        """From `from_s`, which `mark` gave, until now, but for incidents at most the last `KEPT_S`; None: from the start.

        kinds: of the incidents that count.
        """
        now_s = self._clock()
        self._bucket(now_s)
        begin_s = max(self.started_s if from_s is None else from_s, now_s - KEPT_S)
        buckets = [bucket for bucket in self._buckets if bucket.started_s >= begin_s]
        timed = sum(bucket.timed[slot] for bucket in buckets)
        seconds = sum(bucket.seconds.get(slot, 0.0) for bucket in buckets)
        means: Means = {}
        for bucket in buckets:
            for key, (number, total) in bucket.means.items():
                _add(means, key, total, number)
        counted, wanted = self._incidents_since(self.started_s if from_s is None else from_s, now_s), set(kinds)
        return Spell(
            seconds=now_s - begin_s,
            reasons=frozenset().union(*(bucket.reasons for bucket in buckets)),
            calls=sum(bucket.items[slot] for bucket in buckets),
            failures=sum(bucket.failures[slot] for bucket in buckets),
            latency_ms=1e3 * seconds / timed if timed else None,
            fps=_rates(buckets, now_s),
            incidents=sum(kind in wanted for kind in counted[0]),
            incident_s=counted[1],
            means={
                signal: (int(number), total / number) for (at, signal), (number, total) in means.items() if at == slot
            },
        )

    def watch_gaps(self) -> FrameGaps:
        """From now on, until `forget_gaps`."""
        now_s = self._clock()
        gaps = FrameGaps({name: last_s for name, last_s in self._last_frame_s.items() if now_s - last_s < BUCKET_S})
        self._gaps.append(gaps)
        return gaps

    def forget_gaps(self, gaps: FrameGaps) -> None:
        """End a watch."""
        self._gaps.remove(gaps)

    def streaming(self) -> set[str]:
        """Cameras that have delivered a frame in the last seconds."""
        now_s = self._clock()
        return {name for name, last_s in self._last_frame_s.items() if now_s - last_s < BUCKET_S}

    # ------------------------------------------------------------------------------------------------------------------

    def _incidents_since(self, from_s: float, now_s: float) -> tuple[list[str], float]:
        begin_s = max(from_s, now_s - INCIDENTS_KEPT_S)
        return [kind for at_s, kind in self._incidents if at_s >= begin_s], now_s - begin_s

    def _bucket(self, now_s: float | None = None) -> _Bucket:
        """The present one, with all in it that other threads have told until now."""
        now_s = self._clock() if now_s is None else now_s
        bucket = self._buckets[-1]
        while self._pending:
            slot, items, seconds = self._pending.popleft()
            bucket.items[slot] += items
            if seconds is not None:
                bucket.timed[slot] += items
                bucket.seconds[slot] = bucket.seconds.get(slot, 0.0) + seconds
        while self._told:
            at_s, raised = self._told.popleft()
            self._active = {reason: self._active.get(reason, at_s) for reason in raised}
            bucket.reasons |= raised
        return self._open(now_s) if now_s - bucket.started_s >= BUCKET_S else bucket

    def _open(self, now_s: float) -> _Bucket:
        self._buckets[-1].ended_s = now_s
        self._buckets.append(_Bucket(now_s, reasons=set(self._active)))
        while self._buckets[0].ended_s and self._buckets[0].ended_s < now_s - KEPT_S:
            self._buckets.popleft()
        return self._buckets[-1]


def _add(means: Means, key: tuple[str, str], total: float, number: float = 1.0) -> None:
    cell = means.setdefault(key, [0.0, 0.0])
    cell[0] += number
    cell[1] += total


def _rates(buckets: Iterable[_Bucket], now_s: float) -> dict[str, float]:
    """Frames a second by camera, over the buckets in which it delivered any."""
    frames: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    for bucket in buckets:
        for camera_id, number in bucket.frames.items():
            frames[camera_id] += number
            seconds[camera_id] = seconds.get(camera_id, 0.0) + (bucket.ended_s or now_s) - bucket.started_s
    return {name: number / seconds[name] for name, number in frames.items() if seconds[name] > 0}
