"""Management of rollouts. What follows from a change is the driver's work, which runs beside the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Annotated, Any, Self, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import Connection

from ota.rollouts import filters, fleet, moves, records, steps
from ota.rollouts.driver import Driver
from ota.rollouts.engine import Decision, Rollout, SetState, State
from ota.rollouts.plan import FilterText, Plan
from ota.rollouts.records import Stored
from ota.rollouts.steps import Change, Moment
from ota.server.auth import allowed, who
from ota.server.bodies import id_in, read_body
from ota.server.management import NAME, listing, moment, page_of
from ota.server.management_devices import online_after_ms
from ota.server.rollout_json import choice_json, rollout_json
from ota.server.services import SERVICES, Services, entry_of
from ota.store import audit, releases
from ota.store.errors import ConflictError
from ota.store.rows import Role

routes = web.RouteTableDef()
Move = Callable[[Rollout], list[Decision]]
Model = TypeVar("Model", bound=BaseModel)
MAX_COMPARISONS = 200
"""Of all the filters of a rollout, which bounds how long every device is looked at."""


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Proposal(_Body):
    """release: id; filter: of devices, empty takes all; plan: the default is a canary of one in ten first."""

    release: Annotated[int, Field(ge=1, lt=2**53)]
    filter: FilterText = ""
    plan: Plan = Plan()

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        texts = (self.filter, *(group.filter for group in self.plan.groups))
        if (number := sum(filters.parse(text).comparisons for text in texts)) > MAX_COMPARISONS:
            hint = "name the values of a field in one list, as in site=in=(berlin,paris)"
            raise ValueError(f"its filters make {number} comparisons, more than {MAX_COMPARISONS}: {hint}")
        return self


class NewRollout(Proposal):
    name: Annotated[str, Field(pattern=NAME)]


class Resume(_Body):
    """accept: go on although a group has failed."""

    accept: bool = False


class Abort(_Body):
    """roll_back: whoever runs the release gets the version before."""

    roll_back: bool = False


# --- the driver beside the requests -----------------------------------------------------------------------------------


async def run(services: Services) -> None:
    """Lets rollouts go on, woken by what the feed tells."""
    driver = Driver(services.store, lambda: moment_of(services), lambda change: _tell(services, change))
    async with asyncio.TaskGroup() as group:
        group.create_task(driver.run(), name="fleet-rollouts-driver")
        group.create_task(_listen(services, driver), name="fleet-rollouts-listener")


async def _listen(services: Services, driver: Driver) -> None:
    async with aclosing(services.feed.listen()) as events:
        async for event in events:
            rollout = event.fields.get("rollout") if event.kind == "action" else None
            if event.kind == "rollout":
                rollout = event.subject
            if isinstance(rollout, int):
                driver.wake(rollout)
            elif event.kind == "reset" or event.fields.get("change") == "deleted":
                driver.wake_all()


def moment_of(services: Services) -> Moment:
    return Moment(services.clock_ms(), online_after_ms(services))


def _tell(services: Services, change: Change) -> None:
    fields: dict[str, Any] = {"state": change.state, "detail": change.detail, "devices": change.devices}
    if change.devices:
        services.metrics.rollouts.moved(change.state, change.devices)
    if change.group is None:
        services.feed.tell("rollout", change.rollout_id, name=change.name, **fields)
    else:
        services.feed.tell(
            "group", change.rollout_id, rollout=change.rollout_id, name=change.name, group=change.group, **fields
        )


# --- looking ----------------------------------------------------------------------------------------------------------


@routes.get("/api/v1/rollouts")
@allowed(Role.VIEWER)
async def list_rollouts(request: web.Request) -> web.Response:
    """Newest first; `?state=`."""
    limit, offset = page_of(request)
    state = request.query.get("state", "")
    if state and state not in set(State):
        raise web.HTTPBadRequest(reason=f"state must be one of {', '.join(State)}")
    found, total = await request.app[SERVICES].store.read(records.page, limit=limit, offset=offset, state=state)
    return listing("rollouts", [rollout_json(stored) for stored in found], total, offset)


@routes.get("/api/v1/rollouts/{rollout}")
@allowed(Role.VIEWER)
async def one_rollout(request: web.Request) -> web.Response:
    stored = await request.app[SERVICES].store.read(records.get, id_in(request, "rollout"))
    return web.json_response(rollout_json(stored))


@routes.get("/api/v1/rollouts/{rollout}/devices")
@allowed(Role.VIEWER)
async def rollout_devices(request: web.Request) -> web.Response:
    """Who takes part, and where each stands; `?group=` (its name), `?at=` (waiting, open, failed, ...)."""
    (limit, offset), rollout_id = page_of(request), id_in(request, "rollout")
    group, at = request.query.get("group", ""), request.query.get("at", "")

    def look(connection: Connection) -> tuple[list[dict[str, Any]], int]:
        stored = records.get(connection, rollout_id)
        names = [plan.name for plan in stored.rollout.plan.groups]
        if group and group not in names:
            return [], 0
        position = names.index(group) if group else None
        found, total = records.members(connection, stored, limit=limit, offset=offset, group=position, at=at)
        return [
            {
                "id": member.controller_id, "group": names[member.group], "at": member.at, "detail": member.detail,
                "updated": moment(member.updated_ms),
            }
            for member in found
        ], total  # fmt: skip

    items, total = await request.app[SERVICES].store.read(look)
    return listing("devices", items, total, offset)


@routes.post("/api/v1/rollouts/preview")
@allowed(Role.VIEWER)
async def preview(request: web.Request) -> web.Response:
    """How many devices a rollout would take, if it began now. Changes nothing."""
    body, services = await read_body(request, Proposal), request.app[SERVICES]
    choice = await services.store.survey(_choose, body, online_after_ms(services))
    return web.json_response(choice_json(choice, body.plan))


def _choose(connection: Connection, body: Proposal, seen_after_ms: int) -> fleet.Choice:
    release = releases.get(connection, body.release)
    return fleet.choose(connection, body.plan, body.filter, release, seen_after_ms)


# --- changing ---------------------------------------------------------------------------------------------------------


@routes.post("/api/v1/rollouts")
@allowed(Role.OPERATOR)
async def create_rollout(request: web.Request) -> web.Response:
    """With a preview. Nothing happens before its start."""
    body, services = await read_body(request, NewRollout), request.app[SERVICES]
    now_ms = services.clock_ms()
    detail = body.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)

    def work(connection: Connection) -> tuple[Stored, fleet.Choice]:
        release = releases.get(connection, body.release)
        if not release.available:
            raise ConflictError(f"{release.title} is no longer among the signed targets")
        rollout_id = records.create(
            connection, name=body.name, release_id=body.release, chosen=body.filter, plan=body.plan,
            by=who(request).name, now_ms=now_ms,
        )  # fmt: skip
        stored = records.get(connection, rollout_id)
        audit.add(connection, entry_of(request, now_ms, "rollout.create", steps.subject(stored), detail))
        return stored, _choose(connection, body, online_after_ms(services))

    stored, choice = await services.store.write(work)
    _tell(services, Change(stored.id, stored.name, stored.rollout.state))
    return web.json_response(rollout_json(stored) | {"preview": choice_json(choice, body.plan)}, status=201)


@routes.post("/api/v1/rollouts/{rollout}/approve")
@allowed(Role.OPERATOR)
async def approve(request: web.Request) -> web.Response:
    """Lets the group begin that waits for it. Somebody else's word than that of who created the rollout."""
    user = who(request)

    def check(stored: Stored) -> None:
        if stored.created_by == user.name:
            raise ConflictError("approval takes a second person: you created this rollout")

    return await _move(request, "rollout.approve", {}, moves.approve, check)


@routes.post("/api/v1/rollouts/{rollout}/start")
@allowed(Role.OPERATOR)
async def start(request: web.Request) -> web.Response:
    """Now, whatever its plan says. The devices that take part are settled by this."""
    return await _move(request, "rollout.start", {}, moves.start)


@routes.post("/api/v1/rollouts/{rollout}/pause")
@allowed(Role.OPERATOR)
async def pause(request: web.Request) -> web.Response:
    """No further device gets the release; those that have got it go on."""
    name = who(request).name
    return await _move(request, "rollout.pause", {}, lambda rollout: moves.pause(rollout, name))


@routes.post("/api/v1/rollouts/{rollout}/resume")
@allowed(Role.OPERATOR)
async def resume(request: web.Request) -> web.Response:
    """A rollout that stopped for a failed group goes on only with `accept`."""
    body = await _optional(request, Resume)
    return await _move(
        request, "rollout.resume", body.model_dump(), lambda rollout: moves.resume(rollout, accept=body.accept)
    )


@routes.post("/api/v1/rollouts/{rollout}/abort")
@allowed(Role.OPERATOR)
async def abort(request: web.Request) -> web.Response:
    """What is open is taken back; with `roll_back` the version before goes out again, also after the rollout's end."""
    body, name = await _optional(request, Abort), who(request).name
    return await _move(
        request,
        "rollout.abort",
        body.model_dump(),
        lambda rollout: moves.abort(rollout, name, roll_back=body.roll_back),
    )


async def _move(
    request: web.Request,
    what: str,
    detail: dict[str, Any],
    move: Move,
    check: Callable[[Stored], None] = lambda _: None,
) -> web.Response:
    """A person's decision, in one transaction with its line in the audit log; the rollout as it is after that."""
    services, rollout_id, by = request.app[SERVICES], id_in(request, "rollout"), who(request).name

    def work(connection: Connection) -> tuple[Stored, list[Change]]:
        stored = records.get(connection, rollout_id)
        check(stored)
        decisions = move(stored.rollout)
        _refuse_overlap(connection, stored, decisions)
        changes = steps.carry_out(connection, stored, decisions, moment_of(services), by=by)
        return records.get(connection, rollout_id), changes

    before = await services.store.read(records.get, rollout_id)
    stored, changes = await services.change_with(request, what, steps.subject(before), detail, work)
    for change in changes:
        _tell(services, change)
    if all(change.group is not None for change in changes):
        _tell(services, Change(stored.id, stored.name, stored.rollout.state, stored.reason))
    return web.json_response(rollout_json(stored))


def _refuse_overlap(connection: Connection, stored: Stored, decisions: list[Decision]) -> None:
    """A rollout that ended and is to roll back must not pull at devices that another one has by now. Raises ConflictError."""
    if any(isinstance(decision, SetState) and decision.state is State.ROLLING_BACK for decision in decisions):
        ids = records.member_ids(connection, stored.id)
        for name in set(records.taken(connection, ids, stored.release.slot, but=stored.id).values()):
            raise ConflictError(f"some of the devices are in rollout {name}, which has not ended")


async def _optional(request: web.Request, model: type[Model]) -> Model:
    """Without a body: the defaults."""
    return await read_body(request, model) if request.can_read_body else model()
