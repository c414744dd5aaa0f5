"""Who asks: devices by token or certificate, people and programs by bearer token and role. Whatever is not allowed is refused."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiohttp import web
from sqlalchemy import Connection

from ota.server.services import SERVICES, Services
from ota.server.tokens import hash_of, matches
from ota.store import audit, devices, users
from ota.store.errors import ConflictError
from ota.store.polls import Poll
from ota.store.rows import Device, Entry, Role, UpdateStatus, User

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
HandlerT = TypeVar("HandlerT", bound=Handler)
USER = web.RequestKey("user", User)
_ROLE = "fleet_role"
_PEOPLE = "management"
DEVICE = "device"
"""The role of a device in the audit log."""
MAX_TOKEN = 512


def allowed(role: Role) -> Callable[[HandlerT], HandlerT]:
    """Mark a handler as for users of `role` (or more). Below /api/ a handler without it answers nobody."""

    def mark(handler: HandlerT) -> HandlerT:
        setattr(handler, _ROLE, role)
        return handler

    return mark


def role_of(handler: object) -> Role | None:
    """The mark that `allowed` left."""
    role = getattr(handler, _ROLE, None)
    return role if isinstance(role, Role) else None


def who(request: web.Request) -> User:
    """The user that the middleware let in."""
    return request[USER]


@web.middleware
async def authorise(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Management: deny by default."""
    role = role_of(request.match_info.handler)
    if role is not None:
        request[USER] = await authorise_as(request, role)
    elif request.path.startswith("/api/") and request.match_info.http_exception is None:
        raise web.HTTPForbidden(reason="nobody may do this")
    return await handler(request)


async def authorise_as(request: web.Request, role: Role) -> User:
    """The user of a bearer token, when its role covers `role`. Raises 401, 403, 429."""
    services = request.app[SERVICES]
    address = client_address(request)
    refuse_hasty(services, address, _PEOPLE)
    user = await user_of(request)
    if user is None:
        services.failures.note(address, _PEOPLE)
        services.metrics.refused.labels("management").inc()
        raise web.HTTPUnauthorized(reason="a valid token is needed", headers={"WWW-Authenticate": "Bearer"})
    if not user.role.covers(role):
        raise web.HTTPForbidden(reason=f"this needs the role {role}")
    return user


async def user_of(request: web.Request) -> User | None:
    """Who the bearer token belongs to now. Raises StorageError."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme != "Bearer" or not 0 < len(token) <= MAX_TOKEN:
        return None
    return await request.app[SERVICES].store.read(users.find_by_token, hash_of(token))


def refuse_hasty(services: Services, address: str, name: str) -> None:
    """Raises 429 while too many sign-ins of this one have failed."""
    wait_s = services.failures.wait_s(address, name)
    if wait_s > 0:
        raise web.HTTPTooManyRequests(
            reason="too many failed sign-ins", headers={"Retry-After": str(math.ceil(wait_s))}
        )


async def admit(request: web.Request) -> Poll:
    """The device of a DDI request, known or just registered. Raises 401, 429, 404 for another tenant."""
    services = request.app[SERVICES]
    if request.match_info["tenant"].lower() != services.settings.tenant.lower():
        raise web.HTTPNotFound(reason="there is no such tenant")
    controller_id = request.match_info["controller"]
    if not is_controller_id(controller_id):
        raise web.HTTPBadRequest(reason="not a controller id: 1 to 256 visible characters")
    address = client_address(request)
    refuse_hasty(services, address, controller_id)
    poll = await services.polls.look(controller_id)
    if not _is_device(request, services, controller_id, poll):
        services.failures.note(address, controller_id)
        services.metrics.refused.labels("device").inc()
        reason = _what_is_needed(request, services, controller_id, poll)
        raise web.HTTPUnauthorized(reason=reason, headers={"WWW-Authenticate": "TargetToken"})
    if poll is None:
        poll = await _register(services, controller_id, address)
    elif poll.device.update_status is UpdateStatus.UNKNOWN:
        await services.store.write(devices.registered, poll.device.id)
    services.heard.note(poll.device.id, services.clock_ms(), address)
    return poll


def is_controller_id(text: str) -> bool:
    return 0 < len(text) <= 256 and text.isprintable() and not set(text) & set("/\\ ") and text not in (".", "..")


def _is_device(request: web.Request, services: Services, controller_id: str, poll: Poll | None) -> bool:
    """A token or a certificate of a known device; of an unknown one only the gateway's token counts."""
    certified = certified_name(request) == controller_id
    if services.settings.require_certificates and not certified:
        return False
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme == "GatewayToken" and 0 < len(token) <= MAX_TOKEN:
        return matches(token, services.gateway_hash)
    if scheme == "TargetToken" and 0 < len(token) <= MAX_TOKEN:
        return matches(token, poll.device.token_hash if poll is not None else None)
    return poll is not None and certified


def _what_is_needed(request: web.Request, services: Services, controller_id: str, poll: Poll | None) -> str:
    """For the person who looks why a device is not let in. Only who holds its certificate learns whether the device is known."""
    name = certified_name(request)
    if "Authorization" in request.headers and (name == controller_id or not services.settings.require_certificates):
        return "a valid token of this device is needed"
    if name is not None and name != controller_id:
        return f"the certificate is for {name[:64]!a}, not for this device"
    if name is not None and poll is None:
        return "the certificate is good, but there is no such device: enter it first"
    if services.settings.require_certificates:
        return "a certificate in the name of this device is needed"
    return (
        "a valid token of this device"
        + (", or a certificate in its name," if services.settings.takes_certificates else "")
        + " is needed"
    )


async def _register(services: Services, controller_id: str, address: str) -> Poll:
    now_ms = services.clock_ms()

    def enter(connection: Connection) -> Device:
        made = devices.create(connection, controller_id, now_ms=now_ms, address=address, seen=True)
        audit.add(connection, Entry(now_ms, controller_id, DEVICE, address, "device.register", controller_id, {}))
        return made

    try:
        device = await services.store.write(enter)
    except ConflictError:  # two requests of a new device at once
        device = await services.store.read(devices.get, controller_id)
    else:
        services.metrics.registrations.inc()
        services.feed.tell("device", device.controller_id, change="registered")
    return Poll(device, None, None)


def certified_name(request: web.Request) -> str | None:
    """Common name of the client's certificate, checked by our TLS or by a proxy that we trust; None without one, or with several."""
    if request.transport is not None and (certificate := request.transport.get_extra_info("peercert")):
        names = [value for part in certificate["subject"] for key, value in part if key == "commonName"]
        return names[0] if len(names) == 1 else None
    header = request.app[SERVICES].settings.proxy.client_header
    if header and _is_trusted(request, request.remote or ""):
        return request.headers.get(header)
    return None


def client_address(request: web.Request) -> str:
    """The nearest address that is no proxy of ours."""
    address = request.remote or ""
    if _is_trusted(request, address):
        forwarded = request.headers.get("X-Forwarded-For", "")
        for hop in reversed([part.strip() for part in forwarded.split(",") if part.strip()]):
            address = hop
            if not _is_trusted(request, hop):
                break
    return address[:64]


def base_url(request: web.Request) -> str:
    """What links in answers begin with: as configured, else as the device (or the proxy we trust) addressed us. Raises 400."""
    services = request.app[SERVICES]
    if services.settings.public_url:
        return services.settings.public_url.rstrip("/")
    scheme, host = request.scheme, request.host
    if _is_trusted(request, request.remote or ""):
        scheme = request.headers.get("X-Forwarded-Proto", scheme)
        host = request.headers.get("X-Forwarded-Host", host)
    if not (scheme + host).isascii():
        raise web.HTTPBadRequest(reason="the Host header is no name or address")
    return f"{scheme}://{host}"


def _is_trusted(request: web.Request, address: str) -> bool:
    trusted = request.app[SERVICES].settings.proxy.trusted
    if not trusted:
        return False
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in trusted)
