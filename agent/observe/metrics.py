"""The agent's Prometheus metrics, in a registry of its own.

Names are those that dashboards expect, prefixed `recognizer_`; ratios are 0-1, times in seconds, sizes in bytes. Label
values are bounded (cameras, services, lanes, route templates), never ids or paths. Hot calls use children that are
looked up once, so that an observation costs about a microsecond.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_NAMESPACE = "recognizer"
_POSE_BUCKETS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.4, 0.8, 1.6)
_TRACKING_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)
_CLASSIFICATION_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_API_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
LEVEL_VALUES = {"ok": 0, "degraded": 1, "failed": 2}
"""Values of `recognizer_health_level`."""


class Metrics:
    """All metrics of one agent. Thread-safe, as prometheus_client is."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self._pipeline()
        self._delivery()
        self._machine()
        self._service(version)

    def render(self) -> bytes:
        """The exposition in the text format that `CONTENT_TYPE` names."""
        return generate_latest(self.registry)

    # --- definitions --------------------------------------------------------------------------------------------------

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(name, text, labels, namespace=_NAMESPACE, registry=self.registry, buckets=buckets)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, namespace=_NAMESPACE, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, namespace=_NAMESPACE, registry=self.registry)

    def _pipeline(self) -> None:
        self._pose = self._histogram(
            "pose_estimation_duration_seconds", "One call of the pose estimator (a batch).", _POSE_BUCKETS
        )
        self._tracking = self._histogram(
            "tracking_duration_seconds", "One update of a camera's tracker.", _TRACKING_BUCKETS
        )
        self._classification = self._histogram(
            "classification_duration_seconds",
            "One call of an action classifier.",
            _CLASSIFICATION_BUCKETS,
            ("service",),
        )
        self._frames = self._counter("frames_total", "Frames that reached the pipeline.", ("camera",))
        self._dropped = self._counter("frames_dropped_total", "Live frames replaced by a newer one.", ("camera",))
        self._reconnects = self._counter("camera_reconnects_total", "Times a source was opened again.", ("camera",))
        self._camera_up = self._gauge("camera_streaming", "1 while the camera delivers frames.", ("camera",))
        self._inference_errors = self._counter("inference_errors_total", "Failed model calls.", ("model",))
        self._events = self._counter("events_total", "Event steps by kind and phase.", ("kind", "phase"))
        self._accuracy = self._gauge(
            "model_accuracy",
            "Share of the bundle's golden answers still given; there are no labels here.",
            ("model_name",),
        )
        self._drift = self._gauge(
            "model_drift", "Change from the baseline, 1 = what counts as drift; worst camera.", ("model_name", "signal")
        )

    def _delivery(self) -> None:
        self._outbox_depth = self._gauge("outbox_depth", "Messages that wait for the broker.", ("lane",))
        self._outbox_age = self._gauge("outbox_oldest_age_seconds", "Age of the oldest waiting message.")
        self._publish = self._counter("publish_total", "Publishes by result.", ("result",))
        self._lost = self._counter("messages_dropped_total", "Messages given up, by lane and cause.", ("lane", "cause"))
        self._sink = self._counter(
            "sink_deliveries_total", "Deliveries of further sinks by result.", ("sink", "result")
        )
        self._sink_depth = self._gauge("sink_depth", "Numbers of the sequence that a sink has before it.", ("sink",))
        self._sink_age = self._gauge("sink_oldest_age_seconds", "Age of the next message of a sink.", ("sink",))
        self._mqtt_up = self._gauge("mqtt_connected", "1 while the broker is connected.")

    def _machine(self) -> None:
        self._cpu = self._gauge("cpu_usage_ratio", "Share of all cores in use.", ("scope",))
        self._memory_ratio = self._gauge("memory_usage_ratio", "Share of the machine's memory in use.")
        self._rss = self._gauge("memory_resident_bytes", "Resident memory of the agent.")
        self._disk_free = self._gauge("disk_free_bytes", "Free space where the state folder lies.")
        self._fds = self._gauge("open_fds", "Open file descriptors of the agent.")
        self._threads = self._gauge("threads", "Threads of the agent.")
        self._gpu_memory = self._gauge("gpu_memory_usage_bytes", "GPU memory in use.", ("gpu_id",))
        self._gpu_memory_total = self._gauge("gpu_memory_total_bytes", "GPU memory there is.", ("gpu_id",))
        self._gpu_temperature = self._gauge("gpu_temperature_celsius", "GPU temperature.", ("gpu_id",))
        self._gpu_usage = self._gauge("gpu_usage_ratio", "Share of time the GPU is busy.", ("gpu_id",))
        self._gpu_clock = self._gauge("gpu_clock_hertz", "Shader clock.", ("gpu_id",))

    def _service(self, version: str) -> None:
        self._requests = self._counter("api_requests_total", "HTTP requests.", ("method", "route", "status"))
        self._request_time = self._histogram(
            "api_request_duration_seconds", "HTTP request to response.", _API_BUCKETS, ("method", "route")
        )
        self._sessions = self._gauge("active_realtime_sessions", "Open live streams.")
        self._step = self._gauge("degradation_step", "Rung of the degradation ladder, 0 = full service.")
        self._level = self._gauge("health_level", "0 ok, 1 degraded, 2 failed.")
        self._reasons = self._gauge("health_reason", "1 while a health reason is raised.", ("reason",))
        self._restarts = self._counter("part_restarts_total", "Restarts of supervised parts.", ("part",))
        self._updates = self._counter("updates_total", "Updates that came to an end.", ("phase", "reason"))
        self._update_polls = self._counter("update_polls_total", "Turns with the fleet server.", ("result",))
        self._gauge("build_info", "The running version.", ("version",)).labels(version).set(1)

    # --- updates ------------------------------------------------------------------------------------------------------

    def count_update(self, phase: str, reason: str) -> None:
        """An update came to an end; reason: one word, empty where all went well."""
        self._updates.labels(phase, reason).inc()

    def count_update_poll(self, result: str) -> None:
        """How the fleet server took us: `ok`, `offline`, `denied`, `confused`."""
        self._update_polls.labels(result).inc()

    # --- pipeline -----------------------------------------------------------------------------------------------------

    def observe_pose(self, seconds: float) -> None:
        """One call of the pose estimator."""
        self._pose.observe(seconds)

    def mean_pose_s(self) -> float:
        """Mean time of one call of the pose estimator so far, 0 before the first."""
        totals = {
            sample.name.rpartition("_")[2]: sample.value for metric in self._pose.collect() for sample in metric.samples
        }
        return totals["sum"] / totals["count"] if totals["count"] else 0.0

    def observe_tracking(self, seconds: float) -> None:
        """One update of one tracker."""
        self._tracking.observe(seconds)

    def observe_classification(self, service: str, seconds: float) -> None:
        """One call of the classifier of `service`."""
        self._classification.labels(service).observe(seconds)

    def camera(self, camera: str) -> CameraMetrics:
        """The counters of one camera; keep the result."""
        return CameraMetrics(
            self._frames.labels(camera),
            self._dropped.labels(camera),
            self._reconnects.labels(camera),
            self._camera_up.labels(camera),
        )

    def forget_camera(self, camera: str) -> None:
        """The camera is watched no more: its series end."""
        for metric in (self._frames, self._dropped, self._reconnects, self._camera_up):
            with suppress(KeyError):
                metric.remove(camera)

    def count_inference_error(self, model: str) -> None:
        """A failed model call."""
        self._inference_errors.labels(model).inc()

    def count_event(self, kind: str, phase: str) -> None:
        """A committed event step."""
        self._events.labels(kind, phase).inc()

    def set_model_accuracy(self, model: str, agreement: float) -> None:
        """What a check of the golden answers gave, 0-1."""
        self._accuracy.labels(model).set(agreement)

    def set_model_drift(self, strengths: Mapping[tuple[str, str], float]) -> None:
        """By model name and signal; those that are absent lose their series."""
        self._drift.clear()
        for (model, signal), strength in strengths.items():
            self._drift.labels(model, signal).set(strength)

    # --- delivery -----------------------------------------------------------------------------------------------------

    def set_outbox(self, depth: dict[str, int], oldest_age_s: float) -> None:
        """Waiting messages per lane name, and the age of the oldest in s (0 = none waits)."""
        for lane, waiting in depth.items():
            self._outbox_depth.labels(lane).set(waiting)
        self._outbox_age.set(oldest_age_s)

    def count_publish(self, result: str) -> None:
        """A publish that ended: `ok`, `retry` or `rejected`."""
        self._publish.labels(result).inc()

    def count_lost_messages(self, lane: str, cause: str, count: int) -> None:
        """Messages that were given up. cause: a LossReason."""
        self._lost.labels(lane, cause).inc(count)

    def count_sink(self, sink: str, result: str, count: int) -> None:
        """Deliveries that ended: `ok`, `retry` or `rejected`."""
        self._sink.labels(sink, result).inc(count)

    def set_sink(self, sink: str, depth: int, oldest_age_s: float) -> None:
        """How far a sink is behind, and since when (0 = it is not)."""
        self._sink_depth.labels(sink).set(depth)
        self._sink_age.labels(sink).set(oldest_age_s)

    def set_mqtt_connected(self, connected: bool) -> None:
        """The broker connection came or went."""
        self._mqtt_up.set(connected)

    # --- machine ------------------------------------------------------------------------------------------------------

    def set_system(
        self,
        *,
        cpu: float,
        process_cpu: float,
        memory: float,
        rss_bytes: int,
        disk_free_bytes: int | None,
        open_fds: int | None,
        threads: int,
    ) -> None:
        """From a `health.probes.SystemSample`: ratios 0-1, bytes; None leaves a gauge as it is."""
        self._cpu.labels("system").set(cpu)
        self._cpu.labels("process").set(process_cpu)
        self._memory_ratio.set(memory)
        self._rss.set(rss_bytes)
        self._threads.set(threads)
        if disk_free_bytes is not None:
            self._disk_free.set(disk_free_bytes)
        if open_fds is not None:
            self._fds.set(open_fds)

    def set_gpu(
        self,
        gpu_id: str,
        *,
        memory_used_bytes: int | None,
        memory_total_bytes: int | None,
        temperature_c: float | None,
        utilisation: float | None,
        clock_mhz: float | None,
    ) -> None:
        """From a `health.gpu.GpuSample`; what the device does not say gets no series."""
        values = (
            (self._gpu_memory, memory_used_bytes, 1),
            (self._gpu_memory_total, memory_total_bytes, 1),
            (self._gpu_temperature, temperature_c, 1),
            (self._gpu_usage, utilisation, 1),
            (self._gpu_clock, clock_mhz, 1e6),
        )
        for gauge, value, factor in values:
            if value is not None:
                gauge.labels(gpu_id).set(value * factor)
            else:
                with suppress(KeyError):  # it never said it
                    gauge.remove(gpu_id)

    # --- service ------------------------------------------------------------------------------------------------------

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A finished HTTP request; route is the template (`/api/v1/events/{id}`), never the path as asked."""
        self._requests.labels(method, route, str(status)).inc()
        self._request_time.labels(method, route).observe(seconds)

    def session_opened(self) -> None:
        """A live stream began."""
        self._sessions.inc()

    def session_closed(self) -> None:
        """A live stream ended."""
        self._sessions.dec()

    def set_health(self, level: str, codes: set[str]) -> None:
        """level: `ok`, `degraded`, `failed`; codes: of the reasons that are raised now."""
        self._level.set(LEVEL_VALUES[level])
        self._reasons.clear()
        for code in codes:
            self._reasons.labels(code).set(1)

    def set_degradation_step(self, step: int) -> None:
        """The governor moved."""
        self._step.set(step)

    def count_restart(self, part: str) -> None:
        """A supervised part was started again."""
        self._restarts.labels(part).inc()


class CameraMetrics:
    """One camera's counters, looked up once."""

    __slots__ = ("_dropped", "_frames", "_reconnects", "_up")

    def __init__(self, frames: Counter, dropped: Counter, reconnects: Counter, up: Gauge) -> None:
        self._frames = frames
        self._dropped = dropped
        self._reconnects = reconnects
        self._up = up

    def frame(self) -> None:
        """A frame reached the pipeline."""
        self._frames.inc()

    def dropped(self, count: int = 1) -> None:
        """Live frames were replaced by newer ones."""
        self._dropped.inc(count)

    def reconnected(self, count: int = 1) -> None:
        """The source was opened again."""
        self._reconnects.inc(count)

    def streaming(self, streaming: bool) -> None:
        """Frames arrive, or no longer do."""
        self._up.set(streaming)
