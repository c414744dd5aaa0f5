"""Management of devices and of what a single one is to install."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from ota.rollouts import fleet, steps
from ota.rollouts.steps import Change, Moment, remove_device
from ota.server.auth import allowed, is_controller_id, who
from ota.server.bodies import id_in, number_in, read_body
from ota.server.management import (
    NAME,
    action_json,
    device_json,
    listing,
    page_of,
    report_json,
    serving_of,
)
from ota.server.services import SERVICES, Services, entry_of
from ota.server.tokens import MIN_LENGTH, hash_of, new_token
from ota.store import actions, audit, devices, feedback, releases
from ota.store.rows import Action, Device, ReleaseRow, Role

routes = web.RouteTableDef()
ONLINE_INTERVALS = 3
"""A device is online when it was heard of within so many polling intervals."""


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Token = Annotated[str, Field(min_length=MIN_LENGTH, max_length=256, pattern=r"^[\x21-\x7e]+$")]


class NewDevice(_Body):
    """token: to use one that the device has already; without it one is made."""

    id: str
    name: Annotated[str, Field(pattern=NAME)] | None = None
    token: Token | None = None


class DeviceChange(_Body):
    name: Annotated[str, Field(pattern=NAME)]


class Assignment(_Body):
    """confirm: the device (or its owner) has to say yes first."""

    release: Annotated[int, Field(ge=1, lt=2**53)]
    forced: bool = False
    confirm: bool = False


def online_after_ms(services: Services) -> int:
    return services.clock_ms() - ONLINE_INTERVALS * services.settings.polling_s * 1000


@routes.get("/api/v1/devices")
@allowed(Role.VIEWER)
async def list_devices(request: web.Request) -> web.Response:
    """`?search=` part of id or name, `?update_status=`; `?filter=` in the language of rollouts, and then nothing else."""
    services, (limit, offset) = request.app[SERVICES], page_of(request)
    chosen = request.query.get("filter", "")
    query = {"search": request.query.get("search", ""), "status": request.query.get("update_status", "")}

    def look(connection: Connection) -> tuple[list[dict[str, Any]], int]:
        after_ms = online_after_ms(services)
        if chosen:
            matching = sorted(fleet.matching(connection, chosen, after_ms), key=lambda device: device.controller_id)
            found, total = matching[offset : offset + limit], len(matching)
        else:
            found, total = devices.page(connection, limit=limit, offset=offset, **query)
        serving = serving_of(connection, [device.id for device in found])
        return [device_json(device, serving[device.id], online_after_ms=after_ms) for device in found], total

    items, total = await (services.store.survey if chosen else services.store.read)(look)
    return listing("devices", items, total, offset)


@routes.get("/api/v1/device-counts")
@allowed(Role.VIEWER)
async def count_devices(request: web.Request) -> web.Response:
    """Of the whole fleet."""
    services = request.app[SERVICES]

    def look(connection: Connection) -> tuple[dict[str, int], dict[str, int]]:
        return devices.by_presence(connection, online_after_ms(services)), devices.by_update_status(connection)

    presence, by_status = await services.store.read(look)
    return web.json_response({"total": sum(presence.values()), "status": presence, "update_status": by_status})


@routes.get("/api/v1/devices/{device}")
@allowed(Role.VIEWER)
async def one_device(request: web.Request) -> web.Response:
    """With its latest actions."""
    services = request.app[SERVICES]

    def look(connection: Connection) -> dict[str, Any]:
        device = devices.get(connection, request.match_info["device"])
        serving = serving_of(connection, [device.id])[device.id]
        latest, _ = actions.page(connection, limit=20, offset=0, device_id=device.id)
        known = releases.many(connection, [action.release_id for action in latest])
        body = device_json(device, serving, online_after_ms=online_after_ms(services))
        body["actions"] = [action_json(action, device.controller_id, known[action.release_id]) for action in latest]
        return body

    return web.json_response(await services.store.read(look))


@routes.post("/api/v1/devices")
@allowed(Role.OPERATOR)
async def create_device(request: web.Request) -> web.Response:
    """The answer has the device's token, this once."""
    body = await read_body(request, NewDevice)
    if not is_controller_id(body.id):
        raise web.HTTPBadRequest(reason="id: 1 to 256 visible characters without space and slash")
    services, token = request.app[SERVICES], body.token or new_token()
    device = await services.change(
        request, "device.create", body.id, devices.create, body.id, name=body.name or "", token_hash=hash_of(token),
        now_ms=services.clock_ms(),
    )  # fmt: skip
    services.feed.tell("device", device.controller_id, change="created")
    return web.json_response(
        device_json(device, (), online_after_ms=online_after_ms(services)) | {"token": token}, status=201
    )


@routes.patch("/api/v1/devices/{device}")
@allowed(Role.OPERATOR)
async def change_device(request: web.Request) -> web.Response:
    body = await read_body(request, DeviceChange)
    device = await _changed(request, "device.change", {"name": body.name}, name=body.name)
    return web.json_response({"id": device.controller_id, "name": device.name})


@routes.post("/api/v1/devices/{device}/token")
@allowed(Role.OPERATOR)
async def renew_token(request: web.Request) -> web.Response:
    """The old one is worth nothing from now on; the answer has the new one, this once."""
    token = new_token()
    device = await _changed(request, "device.token", {}, token_hash=hash_of(token))
    return web.json_response({"id": device.controller_id, "token": token})


@routes.post("/api/v1/devices/{device}/ask-attributes")
@allowed(Role.OPERATOR)
async def ask_attributes(request: web.Request) -> web.Response:
    """Have the device send its attributes with one of its next polls."""
    device = await _changed(request, "device.ask_attributes", {}, ask_attributes=True)
    return web.json_response({"id": device.controller_id})


@routes.delete("/api/v1/devices/{device}")
@allowed(Role.ADMIN)
async def delete_device(request: web.Request) -> web.Response:
    """With its actions and reports; with the gateway's token it may come back as a new one. A rollout whose running group has no device
    any more pauses."""
    services, controller_id = request.app[SERVICES], request.match_info["device"]

    def work(connection: Connection) -> list[Change]:
        now = Moment(services.clock_ms(), online_after_ms(services))
        return remove_device(connection, devices.get(connection, controller_id).id, now)

    paused = await services.change(request, "device.delete", controller_id, work)
    services.feed.tell("device", controller_id, change="deleted")
    for one in paused:
        services.feed.tell("rollout", one.rollout_id, name=one.name, state=one.state, detail=one.detail, devices=0)
    return web.Response(status=204)


async def _changed(request: web.Request, what: str, detail: dict[str, Any], **values: Any) -> Device:
    services, controller_id = request.app[SERVICES], request.match_info["device"]

    def work(connection: Connection) -> Device:
        devices.change(connection, devices.get(connection, controller_id).id, **values)
        return devices.get(connection, controller_id)

    device = await services.change_with(request, what, controller_id, detail, work)
    services.feed.tell("device", controller_id, change=what.partition(".")[2])
    return device


# --- actions ----------------------------------------------------------------------------------------------------------


@routes.get("/api/v1/actions")
@allowed(Role.VIEWER)
async def list_actions(request: web.Request) -> web.Response:
    """Newest first; `?device=`, `?open=true`."""
    (limit, offset), controller_id = page_of(request), request.query.get("device", "")
    only_open = request.query.get("open", "") == "true"

    def look(connection: Connection) -> tuple[list[dict[str, Any]], int]:
        device_id = devices.get(connection, controller_id).id if controller_id else None
        found, total = actions.page(connection, limit=limit, offset=offset, device_id=device_id, only_open=only_open)
        names = devices.names(connection, [action.device_id for action in found])
        known = releases.many(connection, [action.release_id for action in found])
        return [action_json(one, names[one.device_id], known[one.release_id]) for one in found], total

    items, total = await request.app[SERVICES].store.read(look)
    return listing("actions", items, total, offset)


@routes.get("/api/v1/actions/{action}")
@allowed(Role.VIEWER)
async def one_action(request: web.Request) -> web.Response:
    """With its reports, newest first (`?reports=`, 100)."""
    action_id, number = id_in(request, "action"), number_in(request, "reports", 100, 0, feedback.MAX_REPORTS + 1)

    def look(connection: Connection) -> dict[str, Any]:
        action = actions.get(connection, action_id)
        name = devices.names(connection, [action.device_id])[action.device_id]
        body = action_json(action, name, releases.get(connection, action.release_id))
        body["reports"] = [report_json(row) for row in feedback.history(connection, action_id, limit=number)]
        return body

    return web.json_response(await request.app[SERVICES].store.read(look))


@routes.post("/api/v1/devices/{device}/actions")
@allowed(Role.OPERATOR)
async def assign(request: web.Request) -> web.Response:
    """Have one device install one release, whatever rollouts there are; in one of this release it counts all the same."""
    body = await read_body(request, Assignment)
    services, controller_id = request.app[SERVICES], request.match_info["device"]
    now_ms = services.clock_ms()

    def work(connection: Connection) -> tuple[Action, ReleaseRow]:
        action = steps.assign(
            connection, devices.get(connection, controller_id).id, body.release, by=who(request).name, now_ms=now_ms,
            forced=body.forced, confirm=body.confirm,
        )  # fmt: skip
        release = releases.get(connection, action.release_id)
        detail = {"action": action.id, "title": release.title} | body.model_dump()
        audit.add(connection, entry_of(request, now_ms, "action.assign", controller_id, detail))
        return action, release

    action, release = await services.store.write(work)
    _tell(services, action, controller_id)
    return web.json_response(action_json(action, controller_id, release), status=201)


@routes.post("/api/v1/actions/{action}/cancel")
@allowed(Role.OPERATOR)
async def cancel(request: web.Request) -> web.Response:
    """`?force=true`: close it without asking the device, which may install it all the same."""
    services, action_id = request.app[SERVICES], id_in(request, "action")
    force, now_ms = request.query.get("force", "") == "true", services.clock_ms()

    def work(connection: Connection) -> tuple[Action, str, ReleaseRow]:
        action = actions.cancel(connection, action_id, now_ms=now_ms, force=force)
        name = devices.names(connection, [action.device_id])[action.device_id]
        release = releases.get(connection, action.release_id)
        detail = {"device": name, "release": release.id, "title": release.title, "force": force}
        audit.add(connection, entry_of(request, now_ms, "action.cancel", str(action_id), detail))
        return action, name, release

    action, name, release = await services.store.write(work)
    _tell(services, action, name)
    return web.json_response(action_json(action, name, release))


def _tell(services: Services, action: Action, controller_id: str) -> None:
    services.feed.tell(
        "action", action.id, device=controller_id, rollout=action.rollout_id, release=action.release_id, state=action.state,
        detail=action.detail[:500],
    )  # fmt: skip
