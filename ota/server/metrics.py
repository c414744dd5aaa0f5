"""Counters of the server, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ota.server.rollout_metrics import RolloutMetrics

_BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """Names begin with `recognizer_fleet_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "recognizer_fleet_request_seconds", "Time to the head of the answer", ("method", "route", "status"),
            buckets=_BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        self.feedback = self._counter("feedback", "Reports of devices, on the disk", "execution", "finished")
        self.refused = self._counter("refused_sign_ins", "Requests without valid credentials", "side")
        self.registrations = self._counter("registrations", "Devices that registered themselves")
        self.sync_failures = self._counter(
            "repository_sync_failures", "The repository could not be read or not be trusted"
        )
        self.devices = self._gauge("devices", "Devices by update status", "status")
        self.online = self._gauge("devices_online", "Devices heard of within three polling intervals")
        self.actions = self._gauge("actions", "Actions by state", "state")
        self.writes = self._gauge("store_writes", "Writes since the start")
        self.commits = self._gauge("store_commits", "Commits since the start: fewer than writes when they share")
        self.listeners = self._gauge("event_listeners", "Open event feeds")
        self.repository_expires = self._gauge(
            "repository_expires_seconds", "When the repository's timestamp expires, Unix time"
        )
        self.rollouts = RolloutMetrics(self.registry)

    def expose(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"recognizer_fleet_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"recognizer_fleet_{name}", text, labels, registry=self.registry)
