"""The management interface's own description."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from aiohttp import web

from ota.server.auth import allowed
from ota.store.rows import Role

routes = web.RouteTableDef()


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1, as in openapi.yaml."""
    text = files("ota.server").joinpath("openapi.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


@cache
def _encoded() -> bytes:
    return json.dumps(document()).encode()


@routes.get("/api/v1/openapi.json")
@allowed(Role.VIEWER)
async def openapi(_: web.Request) -> web.Response:
    return web.Response(body=_encoded(), content_type="application/json")
