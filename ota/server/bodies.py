"""Bodies of requests: of bounded size and time, JSON, of the expected shape."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

MAX_BODY = 1 << 16
BODY_TIMEOUT_S = 15.0
_MAX_PROBLEMS = 5
Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: web.Request, model: type[Model], *, nul: bool = False) -> Model:
    """nul: take texts with the character U+0000, which PostgreSQL cannot hold; the caller has to remove it.

    Raises 400 with what is wrong where, 408 for a slow one, 413 for a long one, 415 for another type than JSON.
    """
    kind = request.content_type
    if kind != "application/json" and not kind.endswith("+json"):
        raise web.HTTPUnsupportedMediaType(reason="the body must be application/json")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            raw = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(reason=f"the body did not come within {BODY_TIMEOUT_S:.0f} s") from None
    if not nul and b"\\u0000" in raw:
        raise web.HTTPBadRequest(reason="a text holds the character U+0000")
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise web.HTTPBadRequest(reason=_describe(error)) from None


def _describe(error: ValidationError) -> str:
    """One line, without what was sent: a reason goes into a header line of HTTP."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    told = [
        f"{place}: {item['msg']}" if (place := ".".join(str(part) for part in item["loc"])) else item["msg"]
        for item in found[:_MAX_PROBLEMS]
    ]
    text = "; ".join(told) + ("; ..." if len(found) > _MAX_PROBLEMS else "")
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text)[:500]


def number_in(request: web.Request, name: str, default: int, low: int, high: int) -> int:
    """A whole number of the query. Raises 400."""
    try:
        number = int(request.query.get(name, default))
    except ValueError:
        raise web.HTTPBadRequest(reason=f"{name} must be a whole number") from None
    if not low <= number <= high:
        raise web.HTTPBadRequest(reason=f"{name} must be {low} to {high}")
    return number


def id_in(request: web.Request, name: str) -> int:
    """A row's id in the path. Raises 404: nothing else is an id."""
    text = request.match_info[name]
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise web.HTTPNotFound(reason=f"there is no such {name}")
    return int(text)
