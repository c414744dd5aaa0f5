"""Credentials in texts that people will read: messages, logs."""

from __future__ import annotations

import re

MASK = "***"
# The first form: people write passwords with a slash or an @ in them, unescaped. Better one mask too many.
_USERINFO = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,31}://)(?:[^\s/:@]+:[^\s'\"<>]*|[^\s/?#'\"<>]*)@")
# What messages say after the colon; whoever has one of these for a password has none. Anything else is masked.
_PROSE = (
    r"(?:required|missing|wrong|incorrect|invalid|expired|rejected|refused|denied|unknown(?: key)?|required key"
    r"|not (?:set|given|found|known|valid|correct|accepted|allowed|permitted|a valid)|must (?:not )?be|(?:input|string) should"
    r"|the environment variable|\[Errno \d+\]"
    # Of a file whose name ends like that (`/etc/fleet-token: others can read or write it`): two words at least.
    r"|others can read|it belongs to another|(?:larger|shorter) than|not plain text|not a file|holds no token|should hold|empty, or more"
    r"|cannot be read|a secret starts|what follows|expected \d+ to|no such file|permission denied|operation not permitted"
    r"|(?:is|not) a directory|too many levels|file name too long|input/output error)(?=[.,;:!)]*(?:\s|$))"
)
_ASSIGNMENT = re.compile(
    r"(?i)(?<![a-z0-9])((?:password|passwd|passphrase|(?:login)?pass?|pwd|pw|secret|(?:access)?token|(?:api|private)[_-]?key|authorization)"
    rf"(?:\\*['\"])?\s*(?:=|:(?! {_PROSE}))\s*)"
    r"(?:(?:Bearer|Basic)\s+)?(\\*\"[^\"]*\"|\\*'[^']*'|[^\s&;,'\"}\])]+)",
)
_SCHEME = re.compile(r"\b(Bearer|Basic|TargetToken|GatewayToken)\s+(?=\S*[0-9A-Z=])[A-Za-z0-9._~+/=-]{6,}")


def mask_userinfo(text: str) -> str:
    """`text` without the user names and passwords of the URLs in it.

    >>> mask_userinfo("rtsp://admin:p@ss/word@10.0.0.7/live is not there")
    'rtsp://***@10.0.0.7/live is not there'
    """
    return _USERINFO.sub(rf"\1{MASK}@", text) if "@" in text else text


def mask_text(text: str) -> str:
    """`text` without credentials: URL user info, `password=...` and the like, authorization schemes.

    >>> mask_text("cannot open rtsp://admin:s3cret@10.0.0.7/live?token=abc")
    'cannot open rtsp://***@10.0.0.7/live?token=***'
    >>> mask_text("password: not set, password: hunter2")
    'password: not set, password: ***'
    >>> mask_text("/etc/fleet-token: others can read or write it, fleet-token: hunter2")
    '/etc/fleet-token: others can read or write it, fleet-token: ***'
    """
    text = _ASSIGNMENT.sub(rf"\1{MASK}", mask_userinfo(text))
    return _SCHEME.sub(rf"\1 {MASK}", text)
