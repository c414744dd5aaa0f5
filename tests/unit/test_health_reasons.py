"""Reasons raised and cleared, the level they amount to, and who is told."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.health.reasons import FAILED_REASONS, HealthSnapshot, HealthState, Reason, level_of, reason_key
from agent.ports import HealthSink
from agent.types import Level

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("reasons", "level"),
    [
        ([], Level.OK),
        (["mqtt_offline"], Level.DEGRADED),
        (["camera_offline:front"], Level.DEGRADED),
        (["something_new"], Level.DEGRADED),
        (["storage"], Level.FAILED),
        (["storage:events.db", "mqtt_offline"], Level.FAILED),
    ],
)
def test_level_follows_from_the_set_of_reasons(reasons: list[str], level: Level) -> None:
    assert level_of(reasons) is level


def test_state_is_a_health_sink_and_keeps_the_first_time_with_the_latest_detail() -> None:
    times, seconds = iter([T0, T0.replace(year=2027)]), iter([5.0, 7.0])
    state = HealthState(lambda: next(times), lambda: next(seconds))
    sink: HealthSink = state
    sink.raise_reason(Reason.MQTT_OFFLINE, "refused")
    sink.raise_reason(Reason.MQTT_OFFLINE, "timed out")
    (reason,) = state.snapshot().reasons
    assert (reason.reason, reason.detail, reason.since_utc) == ("mqtt_offline", "timed out", T0)
    assert reason.latest_s == 7.0


def test_snapshot_is_json() -> None:
    state = HealthState(lambda: T0)
    state.raise_reason(reason_key(Reason.CAMERA_FROZEN, "gate:2"), "10 s")
    assert json.loads(json.dumps(state.snapshot().as_dict())) == {
        "level": "degraded",
        "reasons": [
            {
                "reason": "camera_frozen:gate:2",
                "code": "camera_frozen",
                "subject": "gate:2",
                "detail": "10 s",
                "since": "2026-01-02T03:04:05.000+00:00",
            }
        ],
    }


def test_listeners_hear_changes_only_and_can_leave() -> None:
    state = HealthState()
    heard: list[HealthSnapshot] = []
    leave = state.subscribe(heard.append)
    state.raise_reason("a", "1")
    state.raise_reason("a", "2")
    state.clear_reason("b")
    state.clear_reason("a")
    leave()
    state.raise_reason("c")
    assert [[reason.reason for reason in snapshot.reasons] for snapshot in heard] == [["a"], []]


def test_a_listener_may_raise_reasons_itself() -> None:
    state = HealthState()
    state.subscribe(lambda snapshot: state.set_reason("second", active=bool(snapshot.reasons)))
    state.raise_reason("first")
    assert {reason.reason for reason in state.snapshot().reasons} == {"first", "second"}


def test_threads_do_not_lose_reasons() -> None:
    state = HealthState()

    def work(number: int) -> None:
        for round_ in range(200):
            state.raise_reason(f"r{number}:{round_}")
        for round_ in range(0, 200, 2):
            state.clear_reason(f"r{number}:{round_}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(state.snapshot().reasons) == 4 * 100


def test_operations_guide_explains_every_reason(repo_dir: Path) -> None:
    guide = (repo_dir / "docs/operations.md").read_text()
    rows = {line.split("|")[1].strip(" `"): line for line in guide.splitlines() if line.startswith("| `")}
    for reason in Reason:
        assert reason in rows, f"docs/operations.md does not explain {reason}"
        assert ("failed" in rows[reason].split("|")[2]) == (reason in FAILED_REASONS), reason
