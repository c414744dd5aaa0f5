"""A watched mixture: how often there is one person in the picture, two, a crowd. Pure."""

from __future__ import annotations

from collections import deque
from typing import Any

from agent.drift.charts import index_by_chance, stability_index
from agent.drift.signals import Pace, Reading, optional

WINDOW_BUCKETS = 168
"""Parts of the sliding window of a mixture, one hour each at the default of a week."""


class MixtureSignal:
    """Shares of several kinds: the stability index of a sliding window against the first window of the same length.

    edges: a value belongs to the last bin whose edge it reaches. The window is as long as the longest rhythm of a place
    (a week), which is why weekends are no drift. pace.block_s and warmup_s are ignored in favour of `window_s`.
    """

    def __init__(self, pace: Pace, edges: tuple[int, ...], index: float, window_s: float) -> None:
        self._pace = pace
        self._edges = edges
        self._index = index
        self._bucket_s = window_s / WINDOW_BUCKETS
        self._counts = [0] * len(edges)
        self._samples = 0
        self._bucket_end_s: float | None = None
        self._passed = 0
        self._buckets: deque[list[int] | None] = deque(maxlen=WINDOW_BUCKETS)
        self._reference: list[int] | None = None
        self._reference_size = 0
        self._value = 0.0
        self._found = self._index
        self._since_s: float | None = None
        self._onset_s: float | None = None
        self._active = False

    def observe(self, value: int) -> None:
        """One observation."""
        bin_ = len(self._edges) - 1
        while bin_ and value < self._edges[bin_]:
            bin_ -= 1
        self._counts[bin_] += 1
        self._samples += 1

    def tick(self, t_s: float) -> bool:
        if self._bucket_end_s is None:
            self._bucket_end_s = t_s + self._bucket_s
        if t_s < self._bucket_end_s:
            return False
        self._bucket_end_s = t_s + self._bucket_s
        self._buckets.append(self._counts if self._samples >= self._pace.min_samples else None)
        self._counts, self._samples = [0] * len(self._edges), 0
        self._passed += 1
        filled = [bucket for bucket in self._buckets if bucket is not None]
        if self._passed < WINDOW_BUCKETS or len(filled) < self._pace.min_blocks:
            return False
        total = [sum(column) for column in zip(*filled, strict=True)]
        if self._reference is None:
            self._reference, self._reference_size, self._passed = total, len(filled), 0
            return False
        self._value = stability_index(self._reference, total)
        self._found = max(self._index, index_by_chance(len(self._edges), self._reference_size, len(filled)))
        return self._step(t_s)

    def _step(self, t_s: float) -> bool:
        """Hysteresis in value (half the index clears) and in time."""
        due = self._value < self._found / 2 if self._active else self._value >= self._found
        if not due:
            self._since_s = None
            return False
        if self._since_s is None:
            self._since_s = t_s
        if t_s - self._since_s < (self._pace.clear_after_s if self._active else self._pace.raise_after_s):
            return False
        self._active, self._onset_s, self._since_s = not self._active, self._since_s, None
        return True

    @property
    def reading(self) -> Reading:
        known = self._reference is not None
        baseline = 0.0 if known else None
        strength, current = self._value / self._found, self._value if known else None
        return Reading(
            baseline, current, self._value, strength, self._found, "local", self._passed,
            self._active, self._onset_s if self._active else None,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        return {
            "buckets": list(self._buckets), "passed": self._passed, "reference": self._reference,
            "reference_size": self._reference_size, "value": self._value, "found": self._found, "since_s": self._since_s,
            "active": self._active,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        for counts in (
            *(bucket for bucket in state["buckets"] if bucket is not None),
            state["reference"] or self._counts,
        ):
            if len(counts) != len(self._edges):
                raise ValueError(f"expected {len(self._edges)} bins, got {len(counts)}")
        self._buckets.extend(state["buckets"])
        self._passed, self._value, self._found = int(state["passed"]), float(state["value"]), float(state["found"])
        self._reference, self._reference_size = state["reference"], int(state["reference_size"])
        self._since_s, self._active = optional(state["since_s"]), bool(state["active"])
