"""What each reason code of a PUBACK means for the message (docs/mqtt.md has the same table). Pure."""

from __future__ import annotations

from enum import Enum, auto

FAILURE = 0x80
"""Reason codes from here on are refusals."""
TOPIC_INVALID, PACKET_TOO_LARGE, PAYLOAD_INVALID = 0x90, 0x95, 0x99


class Verdict(Enum):
    """What becomes of a message."""

    DELIVERED = auto()
    UNHEARD = auto()  # delivered, and nobody has subscribed to it
    UNEXPLAINED = auto()  # try again, not for ever
    QUOTA = auto()  # wait the longest
    OUT_OF_STEP = auto()  # the two sides count packets differently: only a new connection helps
    REJECTED = auto()  # dead letter


_VERDICTS = {
    0x00: Verdict.DELIVERED,
    0x10: Verdict.UNHEARD,  # no matching subscribers
    0x80: Verdict.UNEXPLAINED,  # unspecified error
    0x83: Verdict.UNEXPLAINED,  # implementation specific error
    0x87: Verdict.REJECTED,  # not authorised
    TOPIC_INVALID: Verdict.REJECTED,
    0x91: Verdict.OUT_OF_STEP,  # packet identifier in use
    PACKET_TOO_LARGE: Verdict.REJECTED,  # found on this side
    0x97: Verdict.QUOTA,  # quota exceeded
    PAYLOAD_INVALID: Verdict.REJECTED,
}


def verdict(reason_code: int) -> Verdict:
    """Of a reason code; codes that the specification does not know are judged by their class."""
    return _VERDICTS.get(reason_code, Verdict.DELIVERED if reason_code < FAILURE else Verdict.UNEXPLAINED)
