"""Management of who manages: users, their tokens, the gateway's token, the audit log."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from ota.rollouts.steps import SERVER
from ota.server.auth import allowed, who
from ota.server.bodies import read_body
from ota.server.management import listing, moment, page_of
from ota.server.services import SERVICES, Services
from ota.server.tokens import hash_of, new_token
from ota.store import audit, settings, users
from ota.store.errors import ConflictError
from ota.store.rows import AuditRow, Role, User

routes = web.RouteTableDef()
GATEWAY = "gateway_token_hash"
"""Key of the settings."""


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NewUser(_Body):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")]
    role: Role


class UserChange(_Body):
    role: Role | None = None
    active: bool | None = None


def user_json(user: User) -> dict[str, Any]:
    return {
        "name": user.name, "role": user.role, "active": user.active, "created_by": user.created_by,
        "created": moment(user.created_ms),
    }  # fmt: skip


@routes.get("/api/v1/me")
@allowed(Role.VIEWER)
async def me(request: web.Request) -> web.Response:
    user = who(request)
    return web.json_response({"name": user.name, "role": user.role})


@routes.get("/api/v1/users")
@allowed(Role.ADMIN)
async def list_users(request: web.Request) -> web.Response:
    found = await request.app[SERVICES].store.read(users.all_of)
    return listing("users", [user_json(user) for user in found], len(found), 0)


@routes.post("/api/v1/users")
@allowed(Role.ADMIN)
async def create_user(request: web.Request) -> web.Response:
    """The answer has the token, this once."""
    body, services, token = await read_body(request, NewUser), request.app[SERVICES], new_token()
    if body.name.lower() == SERVER:
        raise ConflictError(f"{SERVER} is the server itself in the audit log: choose another name")
    user = await services.change_with(
        request, "user.create", body.name, {"role": body.role}, users.create, body.name, body.role, hash_of(token),
        by=who(request).name, now_ms=services.clock_ms(),
    )  # fmt: skip
    return web.json_response(user_json(user) | {"token": token}, status=201)


@routes.patch("/api/v1/users/{user}")
@allowed(Role.ADMIN)
async def change_user(request: web.Request) -> web.Response:
    """A user is never deleted, the audit log names it: `{"active": false}` takes every right."""
    body, name = await read_body(request, UserChange), request.match_info["user"]
    user = await request.app[SERVICES].change_with(
        request,
        "user.change",
        name,
        body.model_dump(exclude_none=True),
        users.change,
        name,
        role=body.role,
        active=body.active,
    )
    return web.json_response(user_json(user))


@routes.post("/api/v1/users/{user}/token")
@allowed(Role.ADMIN)
async def renew_user_token(request: web.Request) -> web.Response:
    """The old one is worth nothing from now on; the answer has the new one, this once."""
    name, token = request.match_info["user"], new_token()
    user = await request.app[SERVICES].change(
        request, "user.token", name, users.change, name, token_hash=hash_of(token)
    )
    return web.json_response(user_json(user) | {"token": token})


@routes.get("/api/v1/gateway-token")
@allowed(Role.ADMIN)
async def gateway_state(request: web.Request) -> web.Response:
    return web.json_response({"active": request.app[SERVICES].gateway_hash is not None})


@routes.post("/api/v1/gateway-token")
@allowed(Role.ADMIN)
async def renew_gateway_token(request: web.Request) -> web.Response:
    """Whoever has it can register devices; the answer has it, this once."""
    services, token = request.app[SERVICES], new_token()
    _refuse_token_of_a_file(services)
    await services.change(request, "gateway.token", "gateway", settings.put, GATEWAY, hash_of(token))
    services.gateway_hash = hash_of(token)
    return web.json_response({"token": token}, status=201)


@routes.delete("/api/v1/gateway-token")
@allowed(Role.ADMIN)
async def drop_gateway_token(request: web.Request) -> web.Response:
    """No device can register itself any more, and none can sign in by it."""
    services = request.app[SERVICES]
    _refuse_token_of_a_file(services)
    await services.change(request, "gateway.off", "gateway", settings.put, GATEWAY, None)
    services.gateway_hash = None
    return web.Response(status=204)


def _refuse_token_of_a_file(services: Services) -> None:
    """The next start would bring it back. Raises ConflictError."""
    file = services.settings.gateway_token_file
    if file is not None:
        raise ConflictError(
            f"the gateway's token is in {file} (gateway_token_file): change it there, or remove the setting, and restart the server"
        )


@routes.get("/api/v1/audit")
@allowed(Role.OPERATOR)
async def list_audit(request: web.Request) -> web.Response:
    """Newest first; `?who=`, `?what=` (`device` or `device.create`)."""
    limit, offset = page_of(request)
    query = {name: request.query.get(name, "") for name in ("who", "what")}
    found, total = await request.app[SERVICES].store.read(audit.page, limit=limit, offset=offset, **query)
    return listing("audit", [_audit_json(row) for row in found], total, offset)


def _audit_json(row: AuditRow) -> dict[str, Any]:
    return {
        "id": row.id, "at": moment(row.at_ms), "who": row.who, "role": row.role, "address": row.address, "what": row.what,
        "subject": row.subject, "detail": dict(row.detail),
    }  # fmt: skip
