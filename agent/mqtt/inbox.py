"""What is sent to the agent: who handles it, how large it may be, how much of it is taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from paho.mqtt.client import topic_matches_sub

from agent.ports import Received
from agent.throttle import Allowance

log = structlog.get_logger(__name__)

Handler = Callable[[Received], None]


@dataclass(slots=True)
class InboxStats:
    """Messages since the start. unmatched: of an old subscription that the broker remembers; failed: their handler raised."""

    handled: int = 0
    unmatched: int = 0
    too_large: int = 0
    too_many: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Subscription:
    """A filter of topics and who gets what matches it."""

    filter: str
    handler: Handler
    qos: int


class Inbox:
    """Hands messages to the first subscription that matches; drops and counts what is too large or too much.

    Nothing is kept: memory stays bounded by one message. max_bytes: of a payload; max_per_s: over a burst of the same number.
    """

    def __init__(self, max_bytes: int, max_per_s: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.stats = InboxStats()
        self.subscriptions: list[Subscription] = []
        self._max_bytes = max_bytes
        self._max_per_s = max_per_s
        self._allowance = Allowance(max_per_s, max(1.0, max_per_s), clock_s)

    def take(self, message: Received) -> None:
        """Returns when the message may be acknowledged, whatever became of it: one that fails would only come again."""
        subscription = next((one for one in self.subscriptions if topic_matches_sub(one.filter, message.topic)), None)
        if subscription is None:
            self.stats.unmatched += 1
        elif len(message.payload) > self._max_bytes:
            self.stats.too_large += 1
            log.warning("mqtt_message_too_large", topic=message.topic, bytes=len(message.payload))
        elif not self._allowance.take():
            if not self.stats.too_many:
                log.warning("mqtt_messages_dropped", reason=f"more than {self._max_per_s:g} a second")
            self.stats.too_many += 1
        else:
            self._hand_over(subscription, message)

    def _hand_over(self, subscription: Subscription, message: Received) -> None:
        try:
            subscription.handler(message)
        except Exception:  # a message from outside must not end the connection that events leave by
            self.stats.failed += 1
            log.exception("mqtt_handler_failed", topic=message.topic)
        else:
            self.stats.handled += 1
