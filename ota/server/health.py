"""For machines that watch the server: is it well, and in figures."""

from __future__ import annotations

from aiohttp import web
from sqlalchemy import Connection, text

from ota.rollouts import records
from ota.server.auth import authorise_as
from ota.server.management_devices import online_after_ms
from ota.server.services import SERVICES
from ota.store import actions, devices
from ota.store.rows import ActionState, Role

routes = web.RouteTableDef()


@routes.get("/health")
async def health(request: web.Request) -> web.Response:
    """200 when the database answers (else the middleware says 503). Nothing about the fleet: anybody may ask."""
    await request.app[SERVICES].store.read(lambda connection: connection.execute(text("SELECT 1")).scalar_one())
    return web.json_response({"status": "ok"})


@routes.get("/metrics")
async def metrics(request: web.Request) -> web.Response:
    """Prometheus. For viewers, or for everybody with `open_metrics`."""
    services = request.app[SERVICES]
    if not services.settings.open_metrics:
        await authorise_as(request, Role.VIEWER)

    def look(connection: Connection) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        presence = devices.by_presence(connection, online_after_ms(services))
        return presence, devices.by_update_status(connection), actions.counts(connection)

    presence, by_status, by_state = await services.store.read(look)
    figures = services.metrics
    figures.online.set(presence["online"])
    for status, number in by_status.items():
        figures.devices.labels(status).set(number)
    for state in ActionState:
        figures.actions.labels(state).set(by_state.get(state, 0))
    figures.writes.set(services.store.writes)
    figures.commits.set(services.store.commits)
    figures.listeners.set(services.feed.listeners)
    figures.rollouts.show(*await services.store.read(_rollouts))
    body, content_type = figures.expose()
    return web.Response(body=body, headers={"Content-Type": content_type})


def _rollouts(connection: Connection) -> tuple[dict[str, int], list[records.Stored]]:
    return records.states(connection), [records.get(connection, one) for one in records.alive(connection)]
