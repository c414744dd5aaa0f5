"""For subscribers: events of Recognizer agents as they are, each once, and what is missing (docs/client.md)."""

from agent.client.items import Drift, Gap, Item, MissingRange, Restarted, SinkGap, Unreadable
from agent.client.options import SubscribeOptions
from agent.client.replay import ReplayAnswer
from agent.client.subscription import Subscription, subscribe
from agent.events.cloudevents import ReceivedEvent

__all__ = [
    "Drift",
    "Gap",
    "Item",
    "MissingRange",
    "ReceivedEvent",
    "ReplayAnswer",
    "Restarted",
    "SinkGap",
    "SubscribeOptions",
    "Subscription",
    "Unreadable",
    "subscribe",
]
