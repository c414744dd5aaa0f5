"""A webhook: one signed HTTP POST for each event."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import aiohttp

from agent import __version__
from agent.errors import AccessError, RejectedError, TransientError
from agent.sinks.answers import judge
from agent.sinks.signature import signed_headers
from agent.types import OutboxRecord

_KEEP_OPEN_S = 15.0
"""A connection that was not used for longer is not used again: receivers close them, and a POST must not run into that."""


class WebhookSink:
    """Implements `EventSink`. Redirects are not followed, proxies of the environment not used, answers not read beyond their status.

    url: without user and password; it may hold secrets, so that no error names more than its host. keys: one or more, see
    `signature`. timeout_s: from the first attempt to connect to the answer. tls: for https, None = the system's authorities.
    clock_s: wall time, seconds since 1970 UTC.
    """

    max_batch = 1

    def __init__(
        self,
        url: str,
        keys: Sequence[bytes],
        *,
        timeout_s: float,
        tls: ssl.SSLContext | None = None,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        if not keys:
            raise ValueError("a webhook needs at least one key")
        self._url = url
        self._host = urlsplit(url).netloc
        self._keys = tuple(keys)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._tls = tls
        self._clock_s = clock_s
        self._session: aiohttp.ClientSession | None = None

    async def deliver(self, records: Sequence[OutboxRecord]) -> int:
        """As in `EventSink`."""
        record = records[0]
        now_s = self._clock_s()
        try:
            headers = signed_headers(self._keys, record.event_id, int(now_s), record.payload)
        except ValueError as error:
            raise RejectedError(str(error), 0) from error
        headers["Content-Type"] = record.content_type
        status, retry_after = await self._post(headers, record.payload)
        judge(status, retry_after, now_s)
        return 1

    async def close(self) -> None:
        """As in `EventSink`."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _post(self, headers: dict[str, str], body: bytes) -> tuple[int, str]:
        """Status and `Retry-After`."""
        try:
            async with self._open_session().post(
                self._url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                return answer.status, answer.headers.get("Retry-After", "")
        except TimeoutError:  # aiohttp's are of this kind as well
            raise TransientError(f"{self._host}: no answer within {self._timeout.total:g} s") from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise AccessError(f"{self._host}: TLS: {_why(error)}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TransientError(f"{self._host}: {_why(error)}") from None

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=1, ssl=self._tls or True, keepalive_timeout=_KEEP_OPEN_S)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": f"recognizer-agent/{__version__}"},
                auto_decompress=False,
            )
        return self._session


def _why(error: Exception) -> str:
    """What went wrong, without the URL that aiohttp likes to name."""
    cause = error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else error
    cause = cause.os_error if isinstance(cause, aiohttp.ClientConnectorError) else cause
    if isinstance(cause, ssl.SSLError | socket.gaierror):
        text = getattr(cause, "verify_message", "") or cause.strerror
    else:
        text = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
