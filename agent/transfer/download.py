"""One file over HTTP: resumed where it stopped, never larger than announced, by way of the environment's proxy.

The part file and a note beside it (address, entity tag) survive failures and restarts. Whether the bytes are the right ones
is the caller's question: where a checksum is known, a part is worth resuming from any place that has the file.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Protocol

import aiohttp
from yarl import URL

from agent import __version__
from agent.backoff import full_jitter
from agent.hosts import is_loopback
from agent.throttle import Throttle
from agent.transfer.faults import DownloadError, NoNetworkError, RefusedDownloadError, may_pass, network_errors
from agent.transfer.tls import Tls

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)$")
WORTH_BYTES = 1_000_000
"""An attempt that brought this much was a success cut short: the count of failures starts again."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is known about the file beforehand.

    size_bytes: None = unknown, then max_bytes is the limit; resumable: is there a checksum to judge a resumed file by?
    Without one, a part is resumed only where the server vouches for it (entity tag), and plain HTTP is refused.
    """

    size_bytes: int | None
    max_bytes: int
    checksum_known: bool

    @property
    def limit_bytes(self) -> int:
        return self.max_bytes if self.size_bytes is None else self.size_bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how often.

    connect_s: for a connection; stall_s: in which `stall_bytes` have to arrive; attempts: failures in a row; initial_wait_s,
    max_wait_s: of the backoff between them; redirects: from one address to the next. max_bytes_per_s: for links that others use
    too, 0 = as fast as it comes. reserve_bytes: of the disk, left free.
    """

    connect_s: float = 15.0
    stall_s: float = 30.0
    stall_bytes: int = 16_384
    attempts: int = 4
    initial_wait_s: float = 1.0
    max_wait_s: float = 30.0
    redirects: int = 5
    max_bytes_per_s: float = 0.0
    reserve_bytes: int = 64_000_000


@dataclass(frozen=True, slots=True)
class Access:
    """What a server may ask for. headers: go to the host of the first address only."""

    headers: Mapping[str, str] = field(default_factory=dict)
    tls: Tls = field(default_factory=Tls)


class Progress(Protocol):
    """Who watches a download."""

    def advance(self, received: int, total: int | None) -> None:
        """So many bytes are there (resumed ones included)."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...


async def download(
    url: str,
    part: Path,
    wanted: Wanted,
    progress: Progress,
    *,
    limits: Limits | None = None,
    access: Access | None = None,
) -> None:
    """Fill `part` with what `url` has, from where it stopped; on return it is complete and on the disk.

    Proxies come from HTTPS_PROXY, HTTP_PROXY and NO_PROXY. Raises DownloadError after `attempts` failures in a row,
    NoNetworkError, RefusedDownloadError (the address is wrong, the size is not the announced one, no room), OSError.
    """
    limits, access = limits or Limits(), access or Access()
    job = _Download(URL(url), part, wanted, progress, limits=limits, access=access)
    timeout = aiohttp.ClientTimeout(
        total=None, connect=limits.connect_s, sock_connect=limits.connect_s, sock_read=limits.stall_s
    )
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=access.tls.context or True),
        trust_env=True,
        auto_decompress=False,
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"recognizer-agent/{__version__}", "Accept-Encoding": "identity"},
    ) as session:
        await job.run(session)


def forget_part(part: Path) -> None:
    """Delete an unfinished download and its note."""
    part.unlink(missing_ok=True)
    _note_file(part).unlink(missing_ok=True)


class _Download:
    def __init__(
        self,
        url: URL,
        part: Path,
        wanted: Wanted,
        progress: Progress,
        *,
        limits: Limits,
        access: Access,
    ) -> None:
        self.url = url
        self.part = part
        self.wanted = wanted
        self.progress = progress
        self.limits = limits
        self._headers = access.headers
        self._tls = access.tls
        self._throttle = Throttle(limits.max_bytes_per_s, time.monotonic)
        self._random = random.Random()  # noqa: S311 - jitter, no secret

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Attempts until the file is whole."""
        _require_allowed(self.url, came_from=None, checksum_known=self.wanted.checksum_known)
        failures, reached = 0, False
        while True:
            before = self._size()
            try:
                await self._attempt(session)
            except DownloadError as error:
                gained = self._size() - before
                reached = reached or gained > 0
                failures = 1 if gained >= WORTH_BYTES else failures + 1
                if failures >= self.limits.attempts or (isinstance(error, NoNetworkError) and not reached):
                    raise
                await self._wait(failures, error)
            else:
                return

    async def _wait(self, failures: int, error: DownloadError) -> None:
        limits = self.limits
        jittered_s = full_jitter(failures - 1, limits.initial_wait_s, limits.max_wait_s, self._random.random)
        wait_s = min(max(jittered_s, error.wait_s), limits.max_wait_s)
        have = self._size()
        go_on = f"goes on at {have / 1e6:.1f} MB" if have else "tries again"
        self.progress.note(f"{error}; {go_on} in {wait_s:.0f} s")
        await asyncio.sleep(wait_s)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    async def _attempt(self, session: aiohttp.ClientSession) -> None:
        offset, headers = self._resume_point()
        if offset and offset == self.wanted.size_bytes:
            return  # whole since an earlier run
        async with self._opened(session, headers) as response:
            offset = self._accepted_offset(response, offset)
            self._check_announcement(response, offset)
            self._write_note(response)
            await self._receive(response, offset)

    def _resume_point(self) -> tuple[int, dict[str, str]]:
        """Where to go on, and how to ask for that."""
        offset = self._size()
        too_long = self.wanted.size_bytes is not None and offset > self.wanted.size_bytes
        validator = self._validator()
        if not offset or too_long or not (validator or self.wanted.checksum_known):
            forget_part(self.part)
            return 0, {}
        headers = {"Range": f"bytes={offset}-"}
        return offset, headers | ({"If-Range": validator} if validator else {})

    def _validator(self) -> str:
        """Entity tag of the part, if it came from this address. A weak one does not identify bytes (RFC 9110, 13.1.5)."""
        try:
            note = json.loads(_note_file(self.part).read_bytes())
            same_place = note["url"] == str(self.url)
            return str(note["etag"]) if same_place and not note["etag"].startswith("W/") else ""
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return ""

    def _write_note(self, response: aiohttp.ClientResponse) -> None:
        note = {"url": str(self.url), "etag": response.headers.get("ETag", "")}
        _note_file(self.part).write_text(json.dumps(note))

    def _accepted_offset(self, response: aiohttp.ClientResponse, offset: int) -> int:
        """From which byte on the answer is; 0 when the server starts over. Raises for every answer without the file."""
        place, status = _place(response.url), response.status
        if status == HTTPStatus.OK:
            return 0
        if status == HTTPStatus.PARTIAL_CONTENT and offset:
            match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            total_fits = match and (self.wanted.size_bytes is None or match[3] in {"*", str(self.wanted.size_bytes)})
            if match and int(match[1]) == offset and total_fits:
                return offset
            forget_part(self.part)
            raise DownloadError(f"{place} sent another range than asked for")
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            forget_part(self.part)
            raise DownloadError(f"{place} does not have the rest of what is here")
        if may_pass(status):
            raise DownloadError(f"{place} answers {status} {response.reason}", _retry_after_s(response))
        raise RefusedDownloadError(f"{place} answers {status} {response.reason} for {_shown(self.url)}")

    def _check_announcement(self, response: aiohttp.ClientResponse, offset: int) -> None:
        place = _place(response.url)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise RefusedDownloadError(f"{place} sends the file encoded, which was not asked for")
        length = response.content_length
        if length is not None:
            size = offset + length
            wrong = size > self.wanted.max_bytes if self.wanted.size_bytes is None else size != self.wanted.size_bytes
            if wrong:
                hint = " (hint: a page of a proxy or a login?)" if response.content_type == "text/html" else ""
                raise RefusedDownloadError(f"{place} has a file of {size:,} bytes, {self._expectation()}{hint}")
        self._require_room(length if length is not None else self.wanted.limit_bytes - offset)

    def _expectation(self) -> str:
        limit = f"{self.wanted.limit_bytes:,}"
        return f"at most {limit} are allowed" if self.wanted.size_bytes is None else f"it should have {limit}"

    def _require_room(self, need: int) -> None:
        free, need = shutil.disk_usage(self.part.parent).free, need + self.limits.reserve_bytes
        if free < need:
            raise RefusedDownloadError(
                f"{self.part.parent}: {free / 1e6:,.0f} MB free, {need / 1e6:,.0f} MB needed "
                "(hint: make room, or put the models elsewhere with RECOGNIZER_MODELS)"
            )

    async def _receive(self, response: aiohttp.ClientResponse, offset: int) -> None:
        place = _place(response.url)
        try:
            with self.part.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                file.truncate()
                with network_errors(place, self._tls):
                    have = await self._copy(response, file, offset)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # aiohttp's are translated by now: this is the disk
            raise RefusedDownloadError(f"{self.part}: cannot be written: {error.strerror}") from error
        if self.wanted.size_bytes is not None and have < self.wanted.size_bytes:
            raise DownloadError(f"{place} stopped at {have:,} of {self.wanted.size_bytes:,} bytes")

    async def _copy(self, response: aiohttp.ClientResponse, file: BinaryIO, have: int) -> int:
        """Body to file. A server that trickles is as good as one that stalls: so many bytes in so many seconds, or else."""
        limits, fresh = self.limits, 0
        total = self.wanted.size_bytes
        if total is None and response.content_length is not None:
            total = have + response.content_length
        self.progress.advance(have, total)
        clock = asyncio.get_running_loop().time
        async with asyncio.timeout(limits.stall_s) as stall:
            async for chunk in response.content.iter_any():
                have += len(chunk)
                if have > self.wanted.limit_bytes:
                    raise RefusedDownloadError(
                        f"{_place(response.url)} sends more than announced; {self._expectation()}"
                    )
                file.write(chunk)
                fresh += len(chunk)
                if fresh >= limits.stall_bytes:
                    fresh = 0
                    stall.reschedule(clock() + limits.stall_s)
                self.progress.advance(have, total)
                await self._pace(len(chunk), stall)
        return have

    async def _pace(self, size: int, stall: asyncio.Timeout) -> None:
        """Keep to the rate; what we wait of our own will is not the server's stalling."""
        self._throttle.charge(size, urgent=False)
        wait_s = self._throttle.wait_s(urgent=False)
        if wait_s:
            stall.reschedule((stall.when() or 0.0) + wait_s)
            await asyncio.sleep(wait_s)

    @asynccontextmanager
    async def _opened(
        self, session: aiohttp.ClientSession, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer at the end of all redirects. Followed by hand: aiohttp would go from https to http."""
        url = self.url
        for _ in range(self.limits.redirects + 1):
            own = self._headers if url.origin() == self.url.origin() else {}
            with network_errors(_place(url), self._tls):
                response = await session.get(url, headers=headers | dict(own), allow_redirects=False)
            try:
                if response.status not in _REDIRECTS:
                    yield response
                    return
                url = _next_address(response, url, checksum_known=self.wanted.checksum_known)
            finally:
                response.close()
        raise RefusedDownloadError(f"{_place(self.url)} redirects more than {self.limits.redirects} times")


def _next_address(response: aiohttp.ClientResponse, url: URL, *, checksum_known: bool) -> URL:
    location = response.headers.get("Location", "")
    try:
        # As it stands: to quote a signed address anew would break its signature.
        target = url.join(URL(location, encoded=location.isascii() and location.isprintable() and " " not in location))
    except ValueError:
        target = URL()
    if not location or not target.host or target.scheme not in {"http", "https"}:
        raise RefusedDownloadError(f"{_place(url)} redirects to no web address")
    target = target.with_user(None)  # nobody tells us a password
    _require_allowed(target, came_from=url, checksum_known=checksum_known)
    return target


def _require_allowed(url: URL, *, came_from: URL | None, checksum_known: bool) -> None:
    """Plain HTTP only where a checksum judges the bytes, and never as a step down from HTTPS.

    This machine is no network: from itself to itself everything goes. A stranger does not send us there.
    """
    from_here = came_from is None or is_loopback(came_from.host or "")
    if url.scheme == "https" or (from_here and is_loopback(url.host or "")):
        return
    if came_from is not None and came_from.scheme == "https":
        raise RefusedDownloadError(f"{_place(came_from)} redirects from https to http ({_place(url)}): refused")
    if not checksum_known:
        raise RefusedDownloadError(f"{_shown(url)}: plain http, and no checksum to judge the file by: refused")


def _place(url: URL) -> str:
    return url.host if url.host and url.is_default_port() else f"{url.host}:{url.port}"


def _shown(url: URL) -> str:
    return str(url.with_user(None).with_query(None))


def _retry_after_s(response: aiohttp.ClientResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def _note_file(part: Path) -> Path:
    return part.with_suffix(".json")
