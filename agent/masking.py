"""Credentials in texts that people will read: messages, logs."""

from __future__ import annotations

import re

MASK = "***"
# The first form: people write passwords with a slash or an @ in them, unescaped. Better one mask too many.
_USERINFO = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,31}://)(?:[^\s/:@]+:[^\s'\"<>]*|[^\s/?#'\"<>]*)@")


def mask_userinfo(text: str) -> str:
    """`text` without the user names and passwords of the URLs in it.

    >>> mask_userinfo("rtsp://admin:p@ss/word@10.0.0.7/live is not there")
    'rtsp://***@10.0.0.7/live is not there'
    """
    return _USERINFO.sub(rf"\1{MASK}@", text) if "@" in text else text
