"""hawkBit's Direct Device Integration API, version 1: https://eclipse.dev/hawkbit/rest-api/ddi/

A report is answered after its commit, so what a device has an answer for is on the disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import structlog
from aiohttp import web
from sqlalchemy import Connection

from ota.server import ddi_json
from ota.server.auth import DEVICE, admit, base_url, client_address
from ota.server.bodies import id_in, number_in, read_body
from ota.server.ddi_bodies import (
    ActionFeedback,
    AutoConfirmation,
    ConfigData,
    ConfirmationFeedback,
    InstalledVersion,
)
from ota.server.ddi_json import Links
from ota.server.services import SERVICES
from ota.store import actions, audit, devices, feedback, releases, reported
from ota.store.errors import ConflictError
from ota.store.polls import Poll
from ota.store.rows import Action, ActionState, Entry, FeedbackRow, ReleaseRow, Report

_log = structlog.get_logger(__name__)
routes = web.RouteTableDef()
BASE = "/{tenant}/controller/v1/{controller}"
MAX_HISTORY = 100
_dumps = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))


def links_of(request: web.Request, poll: Poll) -> Links:
    return Links(base_url(request), request.app[SERVICES].settings.tenant, poll.device.controller_id)


def answer(request: web.Request, body: Any) -> web.Response:
    """JSON with an ETag of its bytes; 304 without them when the device has them."""
    raw = _dumps(body).encode()
    etag = f'"{hashlib.blake2b(raw, digest_size=12).hexdigest()}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    if (known := request.headers.get("If-None-Match")) and etag in (part.strip() for part in known.split(",")):
        return web.Response(status=304, headers=headers)
    hal = "application/hal+json" in request.headers.get("Accept", "")
    return web.Response(body=raw, headers=headers, content_type="application/hal+json" if hal else "application/json")


@routes.get(BASE)
async def poll_base(request: web.Request) -> web.Response:
    poll = await admit(request)
    return answer(request, ddi_json.poll(links_of(request, poll), request.app[SERVICES].settings.polling, poll))


@routes.put(BASE + "/configData")
async def config_data(request: web.Request) -> web.Response:
    poll = await admit(request)
    body = await read_body(request, ConfigData, nul=True)
    services = request.app[SERVICES]
    mode, values, now_ms = body.mode or "merge", body.values, services.clock_ms()

    def work(connection: Connection) -> None:
        devices.set_attributes(connection, poll.device.id, mode, values)
        if mode != "remove":
            reported.note(connection, poll.device.id, values, whole=mode == "replace", now_ms=now_ms)

    await services.store.write(work)
    services.feed.tell("device", poll.device.controller_id, change="attributes")
    return web.Response()


# --- deployment -------------------------------------------------------------------------------------------------------


@routes.get(BASE + "/deploymentBase/{action}")
async def deployment_base(request: web.Request) -> web.Response:
    poll = await admit(request)
    action, release, history = await _look_up(request, poll)
    if action.state is ActionState.PENDING:
        action = await _note_retrieved(request, poll, action)
    if not action.open or action.state in (ActionState.CANCELING, ActionState.WAITING):
        raise web.HTTPNotFound(reason="the action is not to be carried out")
    return answer(request, ddi_json.deployment(links_of(request, poll), action, release, history))


async def _note_retrieved(request: web.Request, poll: Poll, action: Action) -> Action:
    services = request.app[SERVICES]

    def note(connection: Connection) -> Action:
        now = actions.get(connection, action.id)  # it may have been cancelled meanwhile
        if now.state is not ActionState.PENDING:
            return now
        return actions.set_state(connection, now, ActionState.RETRIEVED, now_ms=services.clock_ms())

    retrieved = await services.store.write(note)
    _tell(request, poll, retrieved)
    return retrieved


@routes.get(BASE + "/installedBase/{action}")
async def installed_base(request: web.Request) -> web.Response:
    poll = await admit(request)
    action, release, history = await _look_up(request, poll)
    if action.state is not ActionState.FINISHED:
        raise web.HTTPNotFound(reason="the action did not install anything")
    return answer(request, ddi_json.deployment(links_of(request, poll), action, release, history))


@routes.put(BASE + "/installedBase")
async def installed_version(request: web.Request) -> web.Response:
    """What was installed by hand. 201 when that was not known, 404 for what is no release here."""
    poll = await admit(request)
    body = await read_body(request, InstalledVersion)
    now_ms = request.app[SERVICES].clock_ms()

    def work(connection: Connection) -> Action | None:
        release = releases.find(connection, body.name, body.version)
        action = actions.note_by_hand(connection, poll.device.id, release, now_ms=now_ms)
        if action is not None:
            detail = {"action": action.id, "release": release.id, "title": release.title}
            audit.add(connection, _entry(request, poll, now_ms, "device.installed", detail))
        return action

    action = await request.app[SERVICES].store.write(work)
    if action is not None:
        _tell(request, poll, action)
    return web.Response(status=200 if action is None else 201)


@routes.post(BASE + "/deploymentBase/{action}/feedback")
async def deployment_feedback(request: web.Request) -> web.Response:
    poll = await admit(request)
    body = await read_body(request, ActionFeedback, nul=True)
    return await _report(request, poll, body.report(feedback.DEPLOYMENT))


# --- cancellation -----------------------------------------------------------------------------------------------------


@routes.get(BASE + "/cancelAction/{action}")
async def cancel_action(request: web.Request) -> web.Response:
    poll = await admit(request)
    action, _, _ = await _look_up(request, poll)
    if action.state not in (ActionState.CANCELING, ActionState.CANCELED):
        raise web.HTTPNotFound(reason="nobody asked to cancel the action")
    return answer(request, ddi_json.cancellation(action.id))


@routes.post(BASE + "/cancelAction/{action}/feedback")
async def cancel_feedback(request: web.Request) -> web.Response:
    poll = await admit(request)
    body = await read_body(request, ActionFeedback, nul=True)
    try:
        return await _report(request, poll, body.report(feedback.CANCEL))
    except ConflictError as error:  # as hawkBit answers it
        raise web.HTTPMethodNotAllowed("POST", ["GET"], reason=str(error)) from None


# --- confirmation -----------------------------------------------------------------------------------------------------


@routes.get(BASE + "/confirmationBase")
async def confirmation_base(request: web.Request) -> web.Response:
    poll = await admit(request)
    return answer(request, ddi_json.confirmation(links_of(request, poll), poll.device, poll.due))


@routes.get(BASE + "/confirmationBase/{action}")
async def confirmation_of_action(request: web.Request) -> web.Response:
    poll = await admit(request)
    action, release, history = await _look_up(request, poll)
    if action.state is not ActionState.WAITING:
        raise web.HTTPNotFound(reason="the action does not wait for a confirmation")
    body = ddi_json.deployment(links_of(request, poll), action, release, history)
    body["confirmation"] = body.pop("deployment")
    return answer(request, body)


@routes.post(BASE + "/confirmationBase/{action}/feedback")
async def confirmation_feedback(request: web.Request) -> web.Response:
    poll = await admit(request)
    body = await read_body(request, ConfirmationFeedback, nul=True)
    what = "action.confirm" if body.confirmation == "confirmed" else "action.deny"
    return await _report(request, poll, body.report(), what=what)


@routes.post(BASE + "/confirmationBase/activateAutoConfirm")
async def activate_auto_confirm(request: web.Request) -> web.Response:
    """What waits now is confirmed with it."""
    poll = await admit(request)
    body = await read_body(request, AutoConfirmation) if request.can_read_body else AutoConfirmation()
    now_ms = request.app[SERVICES].clock_ms()

    def activate(connection: Connection) -> list[Action]:
        values = {"auto_confirm_by": body.initiator, "auto_confirm_remark": body.remark, "auto_confirm_ms": now_ms}
        devices.change(connection, poll.device.id, **values)
        detail = {"on": True, "initiator": body.initiator, "remark": body.remark}
        audit.add(connection, _entry(request, poll, now_ms, "device.auto_confirm", detail))
        waiting, _ = actions.page(connection, limit=100, offset=0, device_id=poll.device.id, only_open=True)
        yes = Report(feedback.CONFIRMATION, "confirmed", "none", details=("confirmed by itself from now on",))
        return [
            feedback.add(connection, poll.device.id, action.id, yes, now_ms=now_ms)
            for action in waiting if action.state is ActionState.WAITING
        ]  # fmt: skip

    for action in await request.app[SERVICES].store.write(activate):
        _tell(request, poll, action)
    return web.Response()


@routes.post(BASE + "/confirmationBase/deactivateAutoConfirm")
async def deactivate_auto_confirm(request: web.Request) -> web.Response:
    poll = await admit(request)
    now_ms = request.app[SERVICES].clock_ms()

    def deactivate(connection: Connection) -> None:
        if devices.get(connection, poll.device.controller_id).auto_confirm is None:
            return
        nothing = dict.fromkeys(("auto_confirm_by", "auto_confirm_remark", "auto_confirm_ms"))
        devices.change(connection, poll.device.id, **nothing)
        audit.add(connection, _entry(request, poll, now_ms, "device.auto_confirm", {"on": False}))

    await request.app[SERVICES].store.write(deactivate)
    return web.Response()


# --- all of them ------------------------------------------------------------------------------------------------------


async def _look_up(request: web.Request, poll: Poll) -> tuple[Action, ReleaseRow, list[FeedbackRow]]:
    """An action of this device; `?actionHistory=N` has N of its reports told, -1 the most there may be. Raises 404."""
    action_id = id_in(request, "action")
    number = number_in(request, "actionHistory", 0, -(2**31), 2**31)
    limit = MAX_HISTORY if number < 0 else min(number, MAX_HISTORY)

    def look(connection: Connection) -> tuple[Action, ReleaseRow, list[FeedbackRow]]:
        action, release = actions.of_device(connection, poll.device.id, action_id)
        return action, release, feedback.history(connection, action_id, limit=limit) if limit else []

    return await request.app[SERVICES].store.read(look)


async def _report(request: web.Request, poll: Poll, report: Report, *, what: str = "") -> web.Response:
    """what: how the audit log names it, which has only what somebody at the device decided."""
    services = request.app[SERVICES]
    action_id, now_ms = id_in(request, "action"), services.clock_ms()

    def work(connection: Connection) -> Action:
        action = feedback.add(connection, poll.device.id, action_id, report, now_ms=now_ms)
        if what and action.open:  # else its answer was lost, and it is there already
            title = releases.get(connection, action.release_id).title
            detail = {"action": action.id, "release": action.release_id, "title": title, "details": report.details}
            audit.add(connection, _entry(request, poll, now_ms, what, detail))
        return action

    action = await services.store.write(work)
    services.metrics.feedback.labels(report.execution, report.finished).inc()
    _tell(request, poll, action)
    return web.Response()


def _entry(request: web.Request, poll: Poll, at_ms: int, what: str, detail: Mapping[str, Any]) -> Entry:
    name = poll.device.controller_id
    return Entry(at_ms, name, DEVICE, client_address(request), what, name, detail)


def _tell(request: web.Request, poll: Poll, action: Action) -> None:
    request.app[SERVICES].feed.tell(
        "action", action.id, device=poll.device.controller_id, rollout=action.rollout_id, release=action.release_id,
        state=action.state, detail=action.detail[:500],
    )  # fmt: skip
