"""The errors that a broker's no becomes."""

from __future__ import annotations

from paho.mqtt.reasoncodes import ReasonCode

from agent.errors import QuotaError, RejectedError, TransientError, UnexplainedError
from agent.mqtt.transport import named
from agent.mqtt.verdicts import Verdict

_LOGIN_REFUSED = frozenset({0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C, 0x90, 0x95, 0x99, 0x9A, 0x9B, 0x9C, 0x9D})
"""CONNACK: what a person has to change before it can work: version, identifier, password, rights, will, server."""
_RETAIN_NOT_SUPPORTED = 0x9A


class LoginRefusedError(TransientError):
    """The broker answered and does not want this client as it is configured."""


class RetainRefusedError(LoginRefusedError):
    """The broker retains nothing, not even the will."""


class AliasTroubleError(TransientError):
    """The broker and this client may not agree on topic aliases."""


class FloodError(TransientError):
    """The broker sends more than fits; it would send the same again from its session."""


def login_refusal(reason: ReasonCode) -> TransientError:
    """The error for a CONNACK that is a no."""
    text = f"the broker refused the connection: {named(reason)}"
    if reason.value == _RETAIN_NOT_SUPPORTED:
        return RetainRefusedError(text)
    return LoginRefusedError(text) if reason.value in _LOGIN_REFUSED else TransientError(text)


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
