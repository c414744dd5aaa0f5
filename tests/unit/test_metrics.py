"""Metrics: names that dashboards expect, values that come out as they went in, cost of a call."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.observe.metrics import Metrics


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """(name, labels) -> value, read back with the library's own parser."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, frozenset(labels.items())]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("1.2.3")


def test_expected_names_are_there_from_the_start(metrics: Metrics) -> None:
    text = metrics.render().decode()
    for name in (
        "pose_estimation_duration_seconds",
        "tracking_duration_seconds",
        "classification_duration_seconds",
        "api_requests_total",
        "api_request_duration_seconds",
        "active_realtime_sessions",
        "gpu_memory_usage_bytes",
        "frames_total",
        "frames_dropped_total",
        "camera_reconnects_total",
        "events_total",
        "outbox_depth",
        "outbox_oldest_age_seconds",
        "publish_total",
        "inference_errors_total",
        "degradation_step",
        "health_level",
        "build_info",
    ):
        assert f"# HELP recognizer_{name} " in text, name


def test_pipeline_figures(metrics: Metrics) -> None:
    camera = metrics.camera("gate")
    camera.frame()
    camera.frame()
    camera.dropped(3)
    camera.reconnected()
    camera.streaming(True)
    metrics.observe_pose(0.018)
    metrics.observe_tracking(0.0004)
    metrics.observe_classification("fight", 0.03)
    metrics.count_event("fight", "detected")
    metrics.count_inference_error("rtmo-s")
    assert value(metrics, "recognizer_frames_total", camera="gate") == 2
    assert value(metrics, "recognizer_frames_dropped_total", camera="gate") == 3
    assert value(metrics, "recognizer_camera_reconnects_total", camera="gate") == 1
    assert value(metrics, "recognizer_camera_streaming", camera="gate") == 1
    assert value(metrics, "recognizer_pose_estimation_duration_seconds_bucket", le="0.02") == 1
    assert value(metrics, "recognizer_pose_estimation_duration_seconds_bucket", le="0.015") == 0
    assert value(metrics, "recognizer_tracking_duration_seconds_sum") == 0.0004
    assert value(metrics, "recognizer_classification_duration_seconds_count", service="fight") == 1
    assert value(metrics, "recognizer_events_total", kind="fight", phase="detected") == 1
    assert value(metrics, "recognizer_inference_errors_total", model="rtmo-s") == 1


def test_delivery_figures(metrics: Metrics) -> None:
    metrics.set_outbox({"alarm": 2, "event": 0}, 12.5)
    metrics.count_publish("ok")
    metrics.count_lost_messages("telemetry", "age", 3)
    metrics.set_mqtt_connected(True)
    assert value(metrics, "recognizer_outbox_depth", lane="alarm") == 2
    assert value(metrics, "recognizer_outbox_oldest_age_seconds") == 12.5
    assert value(metrics, "recognizer_publish_total", result="ok") == 1
    assert value(metrics, "recognizer_messages_dropped_total", lane="telemetry", cause="age") == 3
    assert value(metrics, "recognizer_mqtt_connected") == 1


def test_figures_of_further_sinks(metrics: Metrics) -> None:
    metrics.set_sink("pager", 3, 1.5)
    metrics.count_sink("pager", "ok", 5)
    metrics.count_sink("pager", "ok", 0)
    assert value(metrics, "recognizer_sink_depth", sink="pager") == 3
    assert value(metrics, "recognizer_sink_oldest_age_seconds", sink="pager") == 1.5
    assert value(metrics, "recognizer_sink_deliveries_total", sink="pager", result="ok") == 5


def test_machine_figures_and_unknown_ones_get_no_series(metrics: Metrics) -> None:
    metrics.set_system(
        cpu=0.5, process_cpu=0.25, memory=0.4, rss_bytes=1000, disk_free_bytes=None, open_fds=7, threads=3
    )
    metrics.set_gpu(
        "0",
        memory_used_bytes=5,
        memory_total_bytes=10,
        temperature_c=None,
        utilisation=0.3,
        clock_mhz=1500,
    )
    assert value(metrics, "recognizer_cpu_usage_ratio", scope="process") == 0.25
    assert value(metrics, "recognizer_gpu_memory_usage_bytes", gpu_id="0") == 5
    assert value(metrics, "recognizer_gpu_clock_hertz", gpu_id="0") == 1.5e9
    assert ("recognizer_gpu_temperature_celsius", frozenset({("gpu_id", "0")})) not in samples(metrics)


def test_a_gpu_that_says_nothing_more_loses_its_series(metrics: Metrics) -> None:
    """The last temperature of a dead card must not look like one of now."""
    said = {
        "memory_used_bytes": 5,
        "memory_total_bytes": 10,
        "temperature_c": 80.0,
        "utilisation": 0.3,
        "clock_mhz": 9.0,
    }
    metrics.set_gpu("0", **said)
    metrics.set_gpu("1", **said)
    metrics.set_gpu("0", **dict.fromkeys(said))
    metrics.set_gpu("0", **dict.fromkeys(said))
    left = {labels for name, labels in samples(metrics) if name.startswith("recognizer_gpu_")}
    assert left == {frozenset({("gpu_id", "1")})}


def test_health_keeps_only_the_reasons_of_now(metrics: Metrics) -> None:
    metrics.set_health("degraded", {"mqtt_offline", "cpu_high"})
    metrics.set_health("failed", {"storage"})
    metrics.set_degradation_step(2)
    metrics.count_restart("mqtt")
    raised = {labels for name, labels in samples(metrics) if name == "recognizer_health_reason"}
    assert raised == {frozenset({("reason", "storage")})}
    assert value(metrics, "recognizer_health_level") == 2
    assert value(metrics, "recognizer_degradation_step") == 2
    assert value(metrics, "recognizer_part_restarts_total", part="mqtt") == 1


def test_requests_and_sessions(metrics: Metrics) -> None:
    metrics.observe_request("GET", "/health", 200, 0.004)
    metrics.session_opened()
    metrics.session_opened()
    metrics.session_closed()
    assert value(metrics, "recognizer_api_requests_total", method="GET", route="/health", status="200") == 1
    assert value(metrics, "recognizer_api_request_duration_seconds_count", method="GET", route="/health") == 1
    assert value(metrics, "recognizer_active_realtime_sessions") == 1


def test_two_agents_in_one_process_do_not_share_figures(metrics: Metrics) -> None:
    metrics.count_event("fall", "detected")
    other = Metrics("1.2.3")
    assert ("recognizer_events_total", frozenset({("kind", "fall"), ("phase", "detected")})) not in samples(other)
    assert value(other, "recognizer_build_info", version="1.2.3") == 1


def test_hot_calls_cost_microseconds(metrics: Metrics) -> None:
    camera = metrics.camera("gate")
    calls: list[Callable[[], None]] = [camera.frame, lambda: metrics.observe_pose(0.01)]
    for call in calls:
        best_s = min(_timed(call) for _ in range(5))
        assert best_s < 50e-6  # 0.5 to 2 us on an idle core; the bound only catches a change of kind


def _timed(call: Callable[[], None], rounds: int = 1000) -> float:
    started = time.perf_counter()
    for _ in range(rounds):
        call()
    return (time.perf_counter() - started) / rounds
