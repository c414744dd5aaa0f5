"""What the status codes of a webhook's receiver mean, one by one. Pure."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

from agent.errors import AccessError, BusyError, RejectedError, TransientError, UnexplainedError

_MEANING = {
    400: "the receiver cannot read the event",
    401: "the receiver does not accept the signature",
    403: "the receiver forbids it",
    404: "there is no such receiver",
    405: "the address takes no POST",
    407: "a proxy asks for a password",
    408: "the receiver waited too long",
    410: "the receiver does not want events any more",
    413: "the event is too large for the receiver",
    415: "the receiver does not know the content type",
    422: "the receiver cannot use the event",
    425: "the receiver fears a replay",
    429: "the receiver asks for patience",
}
_REFUSED = frozenset({400, 410, 413, 415, 422})
_FOR_A_PERSON = frozenset({401, 403, 404, 405, 407})
_BUSY = frozenset({408, 425, 429})
_OF_ITS_PROGRAM = frozenset({500, 501})
"""Said by the receiver's own program about this event; other codes from 500 on come from what stands before it."""


def judge(status: int, retry_after: str, now_s: float) -> None:
    """Returns when the event is safe with the receiver, 2xx.

    retry_after: the header, empty = none; now_s: seconds since 1970 UTC. Raises TransientError and its subclasses BusyError
    (a time was named), AccessError and UnexplainedError, or RejectedError, as `EventSink.deliver`.
    """
    if 200 <= status < 300:
        return
    text = f"HTTP {status}: {_MEANING.get(status, 'the receiver failed' if status >= 500 else 'unexpected')}"
    if status in _REFUSED:
        raise RejectedError(text, status)
    if status in _FOR_A_PERSON:
        raise AccessError(text)
    if 300 <= status < 400:
        raise AccessError(f"HTTP {status}: redirects are not followed, name the place itself")
    wait_s = retry_after_s(retry_after, now_s)
    if wait_s is not None and (status in _BUSY or status >= 500):
        raise BusyError(text, wait_s)
    if status in _BUSY or (status >= 500 and status not in _OF_ITS_PROGRAM):
        raise TransientError(text)
    raise UnexplainedError(text, status)


def retry_after_s(header: str, now_s: float) -> float | None:
    """Seconds from now, 0 or more; None when the header says nothing that can be read.

    >>> retry_after_s("120", 0.0), retry_after_s("Thu, 01 Jan 1970 00:01:00 GMT", 20.0), retry_after_s("soon", 0.0)
    (120.0, 40.0, None)
    """
    header = header.strip()
    if header.isascii() and header.isdigit():
        return float(header[:12])
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - now_s)
    except (ValueError, TypeError, OverflowError):
        return None
