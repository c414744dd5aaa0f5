"""Files over HTTP: whole or in part (RFC 9110: Range, If-Range, If-None-Match, If-Match), with an ETag that the caller knows.

aiohttp's own FileResponse takes only dates in If-Range: a download that is resumed by ETag would go on with other bytes.
"""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import structlog
from aiohttp import web

_log = structlog.get_logger(__name__)
_PIECE = 1 << 18


def open_below(folder: Path, name: str) -> tuple[BinaryIO, int]:
    """A regular file below `folder` and its size. Raises FileNotFoundError, also for a name that leads out of it."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\x00" in part or "\\" in part for part in parts):
        raise FileNotFoundError(name)
    path = folder.joinpath(*parts)
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve(strict=True)):
            raise FileNotFoundError(name)
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise FileNotFoundError(name) from error
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise FileNotFoundError(name)
    return file, status.st_size


async def send_file(
    request: web.Request, folder: Path, name: str, headers: dict[str, str], *, etag: str = ""
) -> web.StreamResponse:
    """etag: without quotes; empty = made of size and time. Raises 404, 412."""
    try:
        file, size = await asyncio.to_thread(open_below, folder, name)
    except FileNotFoundError:
        raise web.HTTPNotFound(reason="there is no such file") from None
    try:
        if not etag:
            etag = f"{os.fstat(file.fileno()).st_mtime_ns:x}-{size:x}"
        return await _send(request, file, size, f'"{etag}"', headers)
    finally:
        file.close()


async def _send(
    request: web.Request, file: BinaryIO, size: int, etag: str, headers: dict[str, str]
) -> web.StreamResponse:
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    wanted = request.headers
    if "If-Match" in wanted and not _names(wanted["If-Match"], etag):
        raise web.HTTPPreconditionFailed(reason="it is another one now")
    if "If-None-Match" in wanted and _names(wanted["If-None-Match"], etag):
        return web.Response(status=304, headers={key: headers[key] for key in headers if key != "Content-Type"})
    start, end, partial = 0, size, False
    if "Range" in wanted and wanted.get("If-Range", etag) == etag:
        found = range_in(wanted["Range"], size)
        if found is not None and found[0] >= found[1]:
            no_part = {"ETag": etag, "Content-Range": f"bytes */{size}"}
            return web.json_response({"error": "there is no such part"}, status=416, headers=no_part)
        if found is not None:
            (start, end), partial = found, True
    response = web.StreamResponse(status=206 if partial else 200, headers=headers)
    response.content_length = end - start
    if partial:
        response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    await response.prepare(request)
    if request.method != "HEAD":
        with suppress(ConnectionError):  # the reader left, or was let go
            await _copy(request, response, file, start, end)
    return response


async def _copy(request: web.Request, response: web.StreamResponse, file: BinaryIO, start: int, end: int) -> None:
    at = start
    while at < end:
        piece = await asyncio.to_thread(os.pread, file.fileno(), min(_PIECE, end - at), at)
        if not piece:
            _log.error("fleet_file_became_shorter", path=request.path, at_bytes=at)
            if request.transport is not None:  # an answer that has begun can only be torn off: its length was promised
                request.transport.abort()
            return
        await response.write(piece)
        at += len(piece)
    await response.write_eof()


def _names(header: str, etag: str) -> bool:
    return header.strip() == "*" or etag in (part.strip().removeprefix("W/") for part in header.split(","))


def range_in(header: str, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of `bytes=a-b`, `bytes=a-`, `bytes=-n`; start >= end when there is no such part.

    None: a form that we answer as if it were not there (several ranges, other units, nonsense), which RFC 9110 allows.

    >>> range_in("bytes=10-19", 100), range_in("bytes=-5", 100), range_in("bytes=100-", 100), range_in("bytes=5-4,7-", 100)
    ((10, 20), (95, 100), (100, 100), None)
    """
    unit, _, spec = header.partition("=")
    first, dash, last = spec.strip().partition("-")
    numbers = [part for part in (first, last) if part]
    if unit.strip().lower() != "bytes" or not dash or not numbers:
        return None
    if not all(part.isascii() and part.isdecimal() and len(part) < 19 for part in numbers):
        return None
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size
