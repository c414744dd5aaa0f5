"""The web page: static files. They know nothing; what they show they ask of the management interface, with a person's token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from aiohttp import web

PAGES = {
    "/": ("index.html", "text/html"),
    "/fleet.css": ("fleet.css", "text/css"),
    "/fleet.js": ("fleet.js", "text/javascript"),
    "/api.js": ("api.js", "text/javascript"),
    "/create.js": ("create.js", "text/javascript"),
    "/parts.js": ("parts.js", "text/javascript"),
    "/rollouts.js": ("rollouts.js", "text/javascript"),
}
_ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="4" fill="#2166c2"/>
<path d="M4 11l2.5-3L9 10l3-5" fill="none" stroke="#fff" stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round"/></svg>
"""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


def add_routes(app: web.Application) -> None:
    for path, (name, content_type) in PAGES.items():
        app.router.add_get(path, _page(name, content_type))
    app.router.add_get("/icon.svg", _icon)


async def _icon(_: web.Request) -> web.Response:
    return web.Response(text=_ICON, content_type="image/svg+xml", headers=_HEADERS)


def _page(name: str, content_type: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def page(_: web.Request) -> web.Response:
        text = files("ota.server").joinpath("static", name).read_text(encoding="utf-8")
        return web.Response(text=text, content_type=content_type, headers=_HEADERS)

    return page
