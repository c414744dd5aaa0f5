"""Releases that the signed targets name. Read only: what is in the repository decides, not an upload."""

from __future__ import annotations

from aiohttp import web

from agent.errors import TransientError, TrustError
from ota.server.auth import allowed
from ota.server.bodies import id_in
from ota.server.management import listing, page_of, release_json
from ota.server.services import SERVICES
from ota.store import releases
from ota.store.rows import Role

routes = web.RouteTableDef()


@routes.get("/api/v1/releases")
@allowed(Role.VIEWER)
async def list_releases(request: web.Request) -> web.Response:
    """`?slot=`; `?all=true`: also those that the signed targets no longer name."""
    limit, offset = page_of(request)
    found, total = await request.app[SERVICES].store.read(
        releases.page, limit=limit, offset=offset, slot=request.query.get("slot", ""),
        all_of_them=request.query.get("all", "") == "true",
    )  # fmt: skip
    return listing("releases", [release_json(release) for release in found], total, offset)


@routes.post("/api/v1/releases/sync")
@allowed(Role.OPERATOR)
async def sync(request: web.Request) -> web.Response:
    """Read the repository now instead of some seconds later; what is new. 409 with the reason when it is not to be trusted."""
    services = request.app[SERVICES]
    if services.sync is None:
        raise web.HTTPNotFound(reason="this server has no repository")
    try:
        found = await services.sync()
    except (TrustError, TransientError) as error:
        return web.json_response({"error": str(error)}, status=409)
    return web.json_response({"releases": [release_json(release) for release in found]})


@routes.get("/api/v1/releases/{release}")
@allowed(Role.VIEWER)
async def one_release(request: web.Request) -> web.Response:
    return web.json_response(
        release_json(await request.app[SERVICES].store.read(releases.get, id_in(request, "release")))
    )
