"""Fetches TUF metadata: python-tuf asks, the agent's own HTTP client goes, so that its rules for proxies, TLS and redirects hold.

A request ends at a size, at a deadline, and when too few bytes come in a while: neither an endless nor a trickling answer holds
the client up (python-tuf's own fetcher waits for each chunk, however slowly its bytes come).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp
from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError, SlowRetrievalError
from tuf.ngclient.fetcher import FetcherInterface
from yarl import URL

from agent import __version__
from agent.errors import ModelError, TransientError
from agent.transfer.faults import network_errors
from agent.transfer.tls import Tls

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """How long one file may take. connect_s: for a connection; stall_s: in which `stall_bytes` have to arrive; total_s: for all
    of it, redirects included; redirects: from one address to the next; max_bytes: where the caller names no limit."""

    connect_s: float = 15.0
    stall_s: float = 20.0
    stall_bytes: int = 2048
    total_s: float = 120.0
    redirects: int = 5
    max_bytes: int = 5_000_000


class MetadataFetcher(FetcherInterface):
    """Synchronous, as python-tuf wants it: use it in a thread that has no event loop, as a context manager.

    headers: go to the host of the asked address only. `last`: the newest file that came
    whole. Errors as python-tuf knows them; behind a DownloadError stands the agent's own.
    """

    def __init__(
        self,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        limits: FetchLimits | None = None,
    ) -> None:
        self.last = b""
        self._tls = tls or Tls()
        self._headers = dict(headers or {})
        self._limits = limits or FetchLimits()
        self._runner = asyncio.Runner()
        self._session: aiohttp.ClientSession | None = None
        self._given_up = False
        self._work: tuple[asyncio.AbstractEventLoop, asyncio.Task[object]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._session is not None:
            self._runner.run(self._session.close())
        self._runner.close()

    def _fetch(self, url: str) -> Iterator[bytes]:
        return iter((self.download_bytes(url, self._limits.max_bytes),))

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """The file at `url`. max_length: bytes; one more and the answer is given up.

        Raises DownloadHTTPError, DownloadLengthMismatchError, SlowRetrievalError, DownloadError."""
        try:
            self.last = self._runner.run(self._get(URL(url, encoded=True), max_length))
        except asyncio.CancelledError:
            raise DownloadError(f"{url}: given up, the agent stops") from None
        except (TransientError, ModelError) as error:
            raise DownloadError(str(error)) from error
        except TimeoutError as error:
            limits = self._limits
            raise SlowRetrievalError(
                f"{url}: gave up on a slow answer: fewer than {limits.stall_bytes} bytes in {limits.stall_s:g} s, "
                f"or not done after {limits.total_s:g} s"
            ) from error
        return self.last

    def give_up(self) -> None:
        """From any thread: what is under way ends in a DownloadError at once, and whatever comes after."""
        self._given_up = True
        if (work := self._work) is not None:
            loop, task = work
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                loop.call_soon_threadsafe(task.cancel)

    async def _get(self, url: URL, max_length: int) -> bytes:
        place = url
        if (task := asyncio.current_task()) is not None:
            self._work = asyncio.get_running_loop(), task
        if self._given_up:
            raise asyncio.CancelledError
        async with asyncio.timeout(self._limits.total_s):
            for _ in range(self._limits.redirects + 1):
                with network_errors(_host(place), self._tls):
                    response = await (await self._opened()).get(
                        place, headers=self._headers if place.origin() == url.origin() else {}, allow_redirects=False
                    )
                try:
                    if response.status not in _REDIRECTS:
                        return await self._read(response, max_length)
                    place = _next_place(response, place)
                finally:
                    response.close()
        raise DownloadError(f"{_host(url)} redirects more than {self._limits.redirects} times")

    async def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            limits = self._limits
            self._session = aiohttp.ClientSession(
                trust_env=True, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(ssl=self._tls.context or True),
                timeout=aiohttp.ClientTimeout(total=None, connect=limits.connect_s, sock_connect=limits.connect_s),
                headers={"User-Agent": f"recognizer-agent/{__version__}", "Accept-Encoding": "identity"},
            )  # fmt: skip
        return self._session

    async def _read(self, response: aiohttp.ClientResponse, max_length: int) -> bytes:
        if response.status != 200:
            raise DownloadHTTPError(
                f"{_host(response.url)} answers {response.status} {response.reason} for {response.url.path}",
                response.status,
            )
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise DownloadError(f"{_host(response.url)} sends {response.url.path} encoded, which was not asked for")
        if (response.content_length or 0) > max_length:
            raise _too_long(response, max_length)
        limits, clock = self._limits, asyncio.get_running_loop().time
        content, fresh = bytearray(), 0
        async with asyncio.timeout(limits.stall_s) as stall:
            with network_errors(_host(response.url), self._tls):
                async for chunk in response.content.iter_any():
                    content += chunk
                    fresh += len(chunk)
                    if len(content) > max_length:
                        raise _too_long(response, max_length)
                    if fresh >= limits.stall_bytes:
                        fresh = 0
                        stall.reschedule(clock() + limits.stall_s)
        return bytes(content)


def _too_long(response: aiohttp.ClientResponse, max_length: int) -> DownloadLengthMismatchError:
    return DownloadLengthMismatchError(
        f"{_host(response.url)} sends more than the {max_length:,} bytes that {response.url.path} may have"
    )


def _next_place(response: aiohttp.ClientResponse, place: URL) -> URL:
    try:
        target = place.join(URL(response.headers.get("Location", ""))).with_user(None)
    except ValueError:
        target = URL()
    if target.scheme not in {"http", "https"} or not target.host:
        raise DownloadError(f"{_host(place)} redirects to no web address")
    if place.scheme == "https" and target.scheme != "https":
        raise DownloadError(f"{_host(place)} redirects from https to http ({_host(target)}): refused")
    return target


def _host(url: URL) -> str:
    return url.host if url.host and url.is_default_port() else f"{url.host}:{url.port}"
