"""What the broker said when it took the connection (CONNACK, MQTT 5, 3.2.2.3); MQTT 3.1.1 leaves the defaults."""

from __future__ import annotations

from dataclasses import dataclass

from paho.mqtt.properties import Properties

MOST_IN_FLIGHT = 65_535


@dataclass(frozen=True, slots=True)
class Terms:
    """receive_maximum: QoS 1 publishes that it takes unacknowledged; max_packet_bytes: None = any size."""

    receive_maximum: int = MOST_IN_FLIGHT
    max_packet_bytes: int | None = None
    topic_alias_maximum: int = 0
    maximum_qos: int = 2
    retains: bool = True
    session_present: bool = False

    @classmethod
    def of(cls, properties: Properties | None, *, session_present: bool) -> Terms:
        """From the properties of a CONNACK."""
        return cls(
            receive_maximum=getattr(properties, "ReceiveMaximum", MOST_IN_FLIGHT),
            max_packet_bytes=getattr(properties, "MaximumPacketSize", None),
            topic_alias_maximum=getattr(properties, "TopicAliasMaximum", 0),
            maximum_qos=getattr(properties, "MaximumQoS", 2),
            retains=bool(getattr(properties, "RetainAvailable", 1)),
            session_present=session_present,
        )
