"""The device's side of hawkBit's Direct Device Integration protocol, v1 (eclipse.dev/hawkbit/apis/ddi_api).

It says what and when. Nothing it says about bytes is believed, and no address that it names is followed: requests go to
`<server>/<tenant>/controller/v1/<controller>` and below, with ids taken from its answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from agent import __version__
from agent.errors import AccessError, BusyError, DataError, TransientError
from agent.transfer.faults import DownloadError, RefusedDownloadError, network_errors
from agent.transfer.tls import Tls
from agent.update.ddi_documents import (
    Deployment,
    Poll,
    Reference,
    config_data_body,
    confirmation_body,
    feedback_body,
    read_cancel,
    read_confirmation,
    read_confirmation_base,
    read_deployment,
    read_poll,
)
from agent.update.machine import Report
from agent.update.records import About

_MAX_BYTES = 1_000_000
_TOTAL_S = 30.0
_BASES: Mapping[About, str] = {
    "deployment": "deploymentBase", "cancel": "cancelAction", "confirmation": "confirmationBase",
}  # fmt: skip
_NO_ACCESS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED})
_GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
_LONGEST_WAIT_S = 86_400.0
_TOLD = 200


class GoneError(DataError):
    """The server knows no such action, or has closed it."""


class ForbiddenError(AccessError):
    """403: we are known, but not allowed this; hawkBit says so too of an action that has been reported on too often."""


class DdiClient:
    """Requests of one device. Use inside `connect`.

    All methods raise TransientError (no network, server trouble), BusyError (come again later), AccessError (token, certificate or
    address are wrong), DataError (the answer makes no sense), GoneError.
    """

    def __init__(self, base: URL, session: aiohttp.ClientSession, tls: Tls, outdated: Callable[[], bool]) -> None:
        self.outdated = outdated
        """Is this device's token or certificate another one by now?"""
        self._base = base
        self._session = session
        self._tls = tls
        self._etag = ""

    async def poll(self) -> Poll | None:
        """What there is to do; None = the same as at the last call."""
        headers = {"If-None-Match": self._etag} if self._etag else {}
        status, body, answer = await self._request("GET", self._base, headers=headers, missing=AccessError)
        if status == HTTPStatus.NOT_MODIFIED:
            return None
        poll = read_poll(body)
        self._etag = answer.get("ETag", "")
        return poll

    def forget(self) -> None:
        """The next poll answers in full: what the last one said could not be done."""
        self._etag = ""

    async def tell_attributes(self, attributes: Mapping[str, str]) -> None:
        """configData."""
        await self._request("PUT", self._base / "configData", config_data_body(attributes))

    async def deployment(self, reference: Reference) -> Deployment:
        """The deployment that a poll named."""
        _, body, _ = await self._request("GET", self._address("deploymentBase", reference))
        return read_deployment(body)

    async def installed(self, reference: Reference) -> Deployment:
        """The deployment that the server takes for installed."""
        _, body, _ = await self._request("GET", self._address("installedBase", reference))
        return read_deployment(body)

    async def confirmation(self, reference: Reference) -> Deployment:
        """The deployment that waits for our consent. Some servers name it only where the link leads to."""
        if not reference.action_id:
            _, body, _ = await self._request("GET", self._base / "confirmationBase")
            found = read_confirmation_base(body)
            if found is None or not found.action_id:
                raise GoneError("the server asks for a confirmation and names no action")
            reference = found
        _, body, _ = await self._request("GET", self._address("confirmationBase", reference))
        return read_confirmation(body)

    async def cancel(self, reference: Reference) -> tuple[str, str]:
        """Ids of the cancel action and of the action to stop."""
        _, body, _ = await self._request("GET", self._address("cancelAction", reference))
        return read_cancel(body)

    async def feedback(self, about: About, action_id: str, report: Report) -> None:
        """Tell how an action stands. Raises GoneError when the server has closed it."""
        address = self._base / _BASES[about] / action_id / "feedback"
        if about == "confirmation":
            body = confirmation_body(report)
        else:
            body = feedback_body(action_id, report, time.time_ns() // 1_000_000)
        await self._request("POST", address, body)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _address(self, name: str, reference: Reference) -> URL:
        if not reference.action_id:
            raise DataError(f"the server's poll: {name}: the link names no action")
        return (self._base / name / reference.action_id).with_query(reference.query or None)

    async def _request(
        self,
        method: str,
        url: URL,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        missing: type[Exception] = GoneError,
    ) -> tuple[int, bytes, Mapping[str, str]]:
        place = f"{url.host}:{url.port}"
        try:
            with network_errors(place, self._tls):
                async with self._session.request(
                    method, url, data=json.dumps(body).encode() if body is not None else None, headers=headers, allow_redirects=False,
                ) as response:  # fmt: skip
                    content = await _read_bounded(response)
                    _check(response, content, f"{place} {method} {url.path}", missing)
                    return response.status, content, response.headers
        except RefusedDownloadError as error:
            raise AccessError(str(error)) from error
        except DownloadError as error:
            raise TransientError(str(error)) from error


@asynccontextmanager
async def connect(
    server: str,
    tenant: str,
    controller_id: str,
    *,
    authorization: str = "",
    tls: Tls | None = None,
    outdated: Callable[[], bool] = lambda: False,
) -> AsyncIterator[DdiClient]:
    """A client of the server at `server`. authorization: the whole header, empty = a client certificate has to do; outdated: is what
    was given here no longer so?"""
    tls = tls or Tls()
    headers = {"User-Agent": f"recognizer-agent/{__version__}", "Accept": "application/hal+json, application/json"}
    if authorization:
        headers["Authorization"] = authorization
    base = URL(server.rstrip("/")) / tenant / "controller" / "v1" / quote(controller_id, safe="-_.~")
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=2, ssl=tls.context or True),
        timeout=aiohttp.ClientTimeout(total=_TOTAL_S, sock_connect=15.0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers | {"Content-Type": "application/json"},
        trust_env=True,
    ) as session:
        yield DdiClient(base, session, tls, outdated)


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > _MAX_BYTES:
            response.close()
            raise DataError(f"{response.url.host} answers with more than {_MAX_BYTES:,} bytes")
    return bytes(content)


def _check(response: aiohttp.ClientResponse, content: bytes, what: str, missing: type[Exception]) -> None:
    status = response.status
    if status < HTTPStatus.MULTIPLE_CHOICES or status == HTTPStatus.NOT_MODIFIED:
        return
    text = f"{what}: {status} {response.reason}{_told(content)}"
    if status in _NO_ACCESS:
        kind = ForbiddenError if status == HTTPStatus.FORBIDDEN else AccessError
        raise kind(f"{text} (hint: update.token_file or update.tls.cert_file, and whether the server knows the device)")
    if status in _GONE:
        raise missing(text)
    retry = response.headers.get("Retry-After", "")
    if status == HTTPStatus.TOO_MANY_REQUESTS or (status >= HTTPStatus.INTERNAL_SERVER_ERROR and retry):
        raise BusyError(text, min(float(retry), _LONGEST_WAIT_S) if retry.isdecimal() else 0.0)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT:
        raise TransientError(text)
    if status < HTTPStatus.BAD_REQUEST:
        raise AccessError(f"{text}: redirects are not followed (hint: give the address it leads to as update.server)")
    raise DataError(text)


def _told(content: bytes) -> str:
    """What the server says about its refusal, one line of it."""
    text = " ".join(content[: _TOLD * 4].decode("utf-8", "replace").split())
    return f": {text[:_TOLD]}" if text and not text.startswith("<") else ""
