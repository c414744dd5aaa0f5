"""Downloads: what devices of any make get through DDI, and the TUF repository as static files."""

from __future__ import annotations

import re
from pathlib import Path

from aiohttp import web
from sqlalchemy import Connection

from ota.server import ddi_json
from ota.server.auth import admit
from ota.server.bodies import id_in
from ota.server.ddi import BASE, answer, links_of
from ota.server.files import send_file
from ota.server.services import SERVICES, Services
from ota.store import actions, releases
from ota.store.errors import MissingError
from ota.store.rows import ReleaseRow

routes = web.RouteTableDef()
FOLDERS = ("metadata", "targets")
"""Of the repository; what else lies there is not for clients."""
_VERSIONED = re.compile(r"metadata/\d+\.[^/]+\.json")
_FOR_EVER = "public, max-age=31536000, immutable"


@routes.get(BASE + "/softwaremodules/{module}/artifacts")
async def module_artifacts(request: web.Request) -> web.Response:
    poll = await admit(request)
    release = await _release(request, poll.device.id)
    return answer(request, [ddi_json.artifact(links_of(request, poll), release)])


@routes.get(BASE + "/softwaremodules/{module}/artifacts/{file}")
async def artifact(request: web.Request) -> web.StreamResponse:
    """The bytes, or with `.MD5SUM` at the end their checksum as `md5sum -c` takes it. Only a device that was told to may have them."""
    poll = await admit(request)
    release = await _release(request, poll.device.id)
    name = request.match_info["file"]
    if name == f"{release.file_name}.MD5SUM":
        return web.Response(text=f"{release.md5}  {release.file_name}")
    if name != release.file_name:
        raise web.HTTPNotFound(reason="there is no such file")
    disposition = {"Content-Disposition": f'attachment; filename="{release.file_name}"'}
    return await send_file(
        request, _repository(request.app[SERVICES]) / "targets", stored_name(release), disposition, etag=release.sha256
    )


async def _release(request: web.Request, device_id: int) -> ReleaseRow:
    module = id_in(request, "module")

    def look(connection: Connection) -> ReleaseRow:
        if not actions.gets(connection, device_id, module):
            raise MissingError("there is no such software module for this device")
        return releases.get(connection, module)

    return await request.app[SERVICES].store.read(look)


def stored_name(release: ReleaseRow) -> str:
    """Where a consistent snapshot keeps a target: the hash before its last part."""
    folder, slash, name = release.target.rpartition("/")
    return f"{folder}{slash}{release.sha256}.{name}"


def _repository(services: Services) -> Path:
    if services.settings.repository is None:
        raise web.HTTPNotFound(reason="this server has no repository")
    return services.settings.repository


@routes.get("/repository/{path:.+}")
async def repository_file(request: web.Request) -> web.StreamResponse:
    """No sign-in: everything in it is signed, and meant for any static server."""
    path = request.match_info["path"]
    if path.partition("/")[0] not in FOLDERS:
        raise web.HTTPNotFound(reason="there is no such file")
    fixed = path.startswith("targets/") or _VERSIONED.fullmatch(path) is not None
    headers = {"Cache-Control": _FOR_EVER if fixed else "no-cache"}
    if path.endswith(".json"):
        headers["Content-Type"] = "application/json"
    return await send_file(request, _repository(request.app[SERVICES]), path, headers)
