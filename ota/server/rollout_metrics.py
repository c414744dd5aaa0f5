"""Figures of rollouts, in the server's registry."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from ota.rollouts.engine import State
from ota.rollouts.records import Stored

_AT = ("waiting", "open", "ending", "succeeded", "failed", "left", "returning", "returned", "stuck")


class RolloutMetrics:
    """Devices only of rollouts that have not ended: a figure for every rollout there ever was would have no bound."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._states = Gauge("recognizer_fleet_rollouts", "Rollouts by state", ("state",), registry=registry)
        self._devices = Gauge(
            "recognizer_fleet_rollout_devices", "Devices of a rollout at work, by group and by where they stand",
            ("rollout", "group", "at"), registry=registry,
        )  # fmt: skip
        self._moved = Counter(
            "recognizer_fleet_rollout_moves", "Devices that were offered a release, had it cancelled or were sent back",
            ("what",), registry=registry,
        )  # fmt: skip

    def moved(self, what: str, devices: int) -> None:
        self._moved.labels(what).inc(devices)

    def show(self, states: dict[str, int], alive: Sequence[Stored]) -> None:
        """Before each exposition."""
        for state in State:
            self._states.labels(state).set(states.get(state, 0))
        self._devices.clear()
        for stored in alive:
            for group in stored.rollout.groups:
                for at in _AT:
                    self._devices.labels(stored.id, group.plan.name, at).set(getattr(group.tally, at))
