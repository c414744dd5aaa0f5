"""The errors that a broker's no becomes."""

from __future__ import annotations

from paho.mqtt.reasoncodes import ReasonCode

from agent.errors import QuotaError, RejectedError, TransientError, UnexplainedError
from agent.mqtt.transport import named
from agent.mqtt.verdicts import Verdict


class LoginRefusedError(TransientError):
    """The broker answered and does not want this client as it is configured."""


class AliasTroubleError(TransientError):
    """The broker and this client may not agree on topic aliases."""


class FloodError(TransientError):
    """The broker sends more than fits; it would send the same again from its session."""


def refusal(judged: Verdict, reason: ReasonCode) -> TransientError | RejectedError | None:
    """The error for whoever waits for the acknowledgement; None for a good one."""
    text = f"the broker did not take the message: {named(reason)}"
    if judged is Verdict.REJECTED:
        return RejectedError(text, reason.value)
    if judged is Verdict.QUOTA:
        return QuotaError(text)
    if judged is Verdict.UNEXPLAINED:
        return UnexplainedError(text, reason.value)
    return TransientError(text) if judged is Verdict.OUT_OF_STEP else None
