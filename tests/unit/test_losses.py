"""What the agent makes of a loss: an announcement, a count, a reason."""

from __future__ import annotations

import json

import jsonschema
import pytest

from agent.daemon.losses import LossDesk
from agent.events.cloudevents import load_schema
from agent.events.ids import Uuid7
from agent.health.reasons import HealthState
from agent.mqtt.topics import Topics
from agent.observe.metrics import Metrics
from agent.types import GAP, Lane, Loss, LossReason


class Office:
    """A desk with real health and metrics."""

    def __init__(self) -> None:
        self.health = HealthState()
        self.metrics = Metrics("0")
        self.desk = LossDesk(Topics("recognizer", "box"), Uuid7(), self.metrics, self.health)

    def counted(self, lane: str, cause: str) -> float:
        text = self.metrics.render().decode()
        name = f'recognizer_messages_dropped_total{{cause="{cause}",lane="{lane}"}}'
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def test_an_announcement_is_an_alarm_with_its_own_number() -> None:
    message = Office().desk.announce(Loss(LossReason.BYTES, Lane.EVENT, ((1, 3),), 3), "00000000002a")
    body = json.loads(message.payload(7))
    jsonschema.Draft202012Validator(load_schema("gap")).validate(body)
    assert (message.lane, message.kind, message.topic) == (Lane.ALARM, GAP, "recognizer/box/events/gap")
    assert (body["id"], body["data"]["sequence"], body["data"]["series"]) == (message.event_id, 7, "00000000002a")


@pytest.mark.parametrize(
    ("loss", "lane", "counted", "said"),
    [
        (Loss(LossReason.SPACE, Lane.ALARM, ((4, 5),), 2), "alarm", 2, "2 events (space)"),
        (Loss(LossReason.AGE, Lane.TELEMETRY, (), 9), "telemetry", 9, ""),
        (Loss(LossReason.REFUSED, Lane.EVENT, ((4, 4),), 1, "no"), "event", 1, ""),
        (Loss(LossReason.DAMAGE, None, ((4, 9),), None, "a page"), "unknown", 0, "numbers 4 to 9 (damage) a page"),
        (Loss(LossReason.CUT_OFF, None, ((4, 9),), None), "unknown", 0, ""),
    ],
)
def test_it_is_counted_and_shown(loss: Loss, lane: str, counted: int, said: str) -> None:
    office = Office()
    office.desk.report(loss)
    assert office.counted(lane, loss.reason.value) == counted
    reasons = {reason.reason: reason.detail for reason in office.health.snapshot().reasons}
    assert said in reasons.get("events_lost", "")
    assert ("events_lost" in reasons) == bool(said)
