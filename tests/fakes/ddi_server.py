"""A fleet server in memory that speaks hawkBit's DDI as its documentation has it, for one device, and can be made to misbehave."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

TENANT, DEVICE, TOKEN = "default", "gate-1", "a-token-of-this-device"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Offered:
    """One action. closed: by the device's feedback or the server."""

    action_id: str
    chunks: list[dict[str, Any]]
    confirmation: bool = False
    update: str = "forced"
    download: str = "forced"
    cancelling: bool = False
    closed: bool = False


@dataclass
class DdiServer:
    """feedback: (base, action id, body) in the order of arrival. misbehave: answers that are given in place of the right ones.
    full: no more reports are taken but those that end an action."""

    sleep: str = "00:00:00"
    token: str = TOKEN
    actions: dict[str, Offered] = field(default_factory=dict)
    feedback: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    full: bool = False
    polls: int = 0
    unchanged: int = 0
    misbehave: list[Answer] = field(default_factory=list)
    always: Answer | None = None
    url: str = ""

    def offer(self, action_id: str, target: str, slot: str, **fields: Any) -> Offered:
        """A deployment as ours are: one chunk whose metadata names the target."""
        name, _, version = target.rpartition("/")[2].removesuffix(".tar.zst").rpartition("-")
        chunk = {
            "part": slot, "name": name, "version": version, "artifacts": [],
            "metadata": [{"key": "tuf.target", "value": target}],
        }  # fmt: skip
        self.actions[action_id] = Offered(action_id, [chunk], **fields)
        return self.actions[action_id]

    def told(self, action_id: str, base: str = "deploymentBase") -> list[dict[str, Any]]:
        """What was reported about an action: `status` members, in order."""
        return [body["status"] for where, about, body in self.feedback if (where, about) == (base, action_id)]

    def phases(self, action_id: str) -> list[str]:
        """Without repetitions, in order."""
        found: list[str] = []
        for status in self.told(action_id):
            if not found or found[-1] != status["details"][0]:
                found.append(status["details"][0])
        return found

    def result(self, action_id: str) -> str:
        """`success`, `failure`, or empty while it goes on."""
        closed = [one for one in self.told(action_id) if one["execution"] == "closed"]
        return closed[-1]["result"]["finished"] if closed else ""

    # --- protocol -----------------------------------------------------------------------------------------------------

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._gate])
        base = "/{tenant}/controller/v1/{device}"
        app.router.add_get(base, self._poll)
        app.router.add_put(f"{base}/configData", self._config_data)
        app.router.add_get(base + "/{base:deploymentBase|installedBase}/{action}", self._deployment)
        app.router.add_get(base + "/confirmationBase/{action}", self._confirmation)
        app.router.add_get(base + "/cancelAction/{action}", self._cancel)
        app.router.add_post(base + "/{base:deploymentBase|cancelAction}/{action}/feedback", self._feedback)
        app.router.add_post(base + "/confirmationBase/{action}/feedback", self._confirm)
        return app

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.always is not None:
            return await self.always(request)
        if self.misbehave:
            return await self.misbehave.pop(0)(request)
        if request.headers.get("Authorization") != f"TargetToken {self.token}":
            return web.Response(status=401)
        if (request.match_info["tenant"], request.match_info["device"]) != (TENANT, DEVICE):
            return web.Response(status=404)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _poll(self, request: web.Request) -> web.Response:
        self.polls += 1
        links: dict[str, dict[str, str]] = {}
        here = str(request.url.with_query(None))
        if not self.attributes:
            links["configData"] = {"href": f"{here}/configData"}
        for action in self.actions.values():
            if action.closed:
                continue
            name = (
                "cancelAction" if action.cancelling else "confirmationBase" if action.confirmation else "deploymentBase"
            )
            version = zlib.crc32(repr(action).encode())  # hawkBit's `c`: which version of the deployment
            links.setdefault(name, {"href": f"{here}/{name}/{action.action_id}?c={version}"})
        body = {"config": {"polling": {"sleep": self.sleep}}, "_links": links}
        content = json.dumps(body).encode()
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        if request.headers.get("If-None-Match") == etag:
            self.unchanged += 1
            return web.Response(status=304, headers={"ETag": etag})
        return web.Response(body=content, headers={"ETag": etag}, content_type="application/hal+json")

    async def _config_data(self, request: web.Request) -> web.Response:
        self.attributes = (await request.json())["data"]
        return web.Response()

    def _action(self, request: web.Request) -> Offered:
        action = self.actions.get(request.match_info["action"])
        if action is None:
            raise web.HTTPNotFound
        return action

    async def _deployment(self, request: web.Request) -> web.Response:
        action = self._action(request)
        deployment = {"download": action.download, "update": action.update, "chunks": action.chunks}
        return web.json_response(
            {"id": action.action_id, "deployment": deployment, "actionHistory": {"status": "RUNNING"}}
        )

    async def _confirmation(self, request: web.Request) -> web.Response:
        action = self._action(request)
        confirmation = {"download": action.download, "update": action.update, "chunks": action.chunks}
        return web.json_response({"id": action.action_id, "confirmation": confirmation})

    async def _confirm(self, request: web.Request) -> web.Response:
        action, body = self._action(request), await request.json()
        self.feedback.append(("confirmationBase", action.action_id, body))
        action.confirmation = False
        action.closed = body["confirmation"] != "confirmed"
        return web.Response()

    async def _cancel(self, request: web.Request) -> web.Response:
        action = self._action(request)
        return web.json_response({"id": action.action_id, "cancelAction": {"stopId": action.action_id}})

    async def _feedback(self, request: web.Request) -> web.Response:
        action, body = self._action(request), await request.json()
        if action.closed:
            return web.Response(status=410)
        execution = body["status"]["execution"]
        if self.full and execution not in {"closed", "canceled"}:
            return web.Response(status=403)
        self.feedback.append((request.match_info["base"], action.action_id, body))
        if request.match_info["base"] == "cancelAction":
            action.cancelling = False
            action.closed = execution in {"canceled", "closed"}
        else:
            action.closed = execution in {"closed", "canceled"}
        return web.Response()


@asynccontextmanager
async def ddi_server() -> AsyncIterator[DdiServer]:
    """Listening on this machine."""
    server = DdiServer()
    running = TestServer(server.application())
    await running.start_server()
    server.url = f"http://127.0.0.1:{running.port}"
    try:
        yield server
    finally:
        await running.close()


def answers(status: int, body: bytes = b"", **headers: str) -> Answer:
    """Always this."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(
            status=status, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    return answer
