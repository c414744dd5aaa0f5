"""The DDI client over real sockets: what it sends, and what it makes of a server that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fakes import hawkbit_exchanges
from fakes.ddi_server import DEVICE, TENANT, TOKEN, Answer, DdiServer, answers, ddi_server
from fakes.downloads import proxying

from agent.errors import AccessError, BusyError, DataError, TransientError
from agent.update import ddi
from agent.update.ddi import DdiClient, ForbiddenError, GoneError, connect
from agent.update.ddi_documents import Reference
from agent.update.machine import Phase, report


@asynccontextmanager
async def client_of(server: DdiServer, token: str = TOKEN) -> AsyncIterator[DdiClient]:
    async with connect(server.url, TENANT, DEVICE, authorization=f"TargetToken {token}") as client:
        yield client


async def test_an_unchanged_answer_costs_no_body() -> None:
    async with ddi_server() as server, client_of(server) as client:
        server.offer("7", "pose/tiny-1.0.0.tar.zst", "pose")
        first = await client.poll()
        assert first is not None
        assert first.deployment is not None
        assert await client.poll() is None
        assert server.unchanged == 1
        client.forget()
        assert await client.poll() == first


async def test_every_exchange_of_the_documentation_goes_over_the_wire() -> None:
    """A server that plays back hawkBit's answers, at its addresses."""
    played = (*hawkbit_exchanges.POLLS[2:3], *hawkbit_exchanges.RESOURCES)
    recorded = {(one.method, one.path): one for one in reversed(played)}  # the first of an address is the good one
    sent: list[tuple[str, str, object]] = []

    async def play_back(request: web.Request) -> web.Response:
        path = request.path_qs.removeprefix(hawkbit_exchanges.BASE)
        if request.method != "GET":
            sent.append((request.method, path, await request.json()))
            return web.Response()
        exchange = recorded[request.method, path]
        return web.json_response(exchange.answer, status=exchange.status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", play_back)
    async with TestServer(app) as server:
        url = f"http://127.0.0.1:{server.port}"
        async with connect(url, "DEFAULT", hawkbit_exchanges.CONTROLLER, authorization="GatewayToken x") as client:
            poll = await client.poll()
            assert poll is not None
            assert poll.deployment is not None
            deployment = await client.deployment(poll.deployment)
            assert deployment.chunks[0].target == hawkbit_exchanges.TARGET
            assert (await client.installed(Reference("8"))).action_id == "8"
            assert await client.cancel(Reference("8")) == ("8", "8")
            assert (await client.confirmation(Reference("8"))).action_id == "8"
            with pytest.raises(GoneError):
                await client.deployment(Reference("4711"))
            await client.feedback("deployment", "8", report(Phase.COMMITTED))
            await client.feedback("cancel", "8", report(Phase.CANCELLED))
            await client.tell_attributes({"site": "berlin", "long": "x" * 500})
    expected = {(one.method, one.path): one.request for one in hawkbit_exchanges.REPORTS if one.status == 200}
    for method, path, body in sent:
        lacking = hawkbit_exchanges.differences(expected[method, path], body) if path.endswith("/feedback") else []
        assert [text for text in lacking if "progress" not in text and "code" not in text] == []
    assert sent[-1][2] == {"mode": "replace", "data": {"site": "berlin", "long": "x" * 128}}


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (answers(401), AccessError, "401 Unauthorized"),
        (answers(403, b"no"), ForbiddenError, "403 Forbidden: no"),
        (answers(404), AccessError, "404"),
        (answers(301, Location="http://elsewhere/"), AccessError, "redirects are not followed"),
        (answers(429, Retry_After="17"), BusyError, "429"),
        (answers(503, Retry_After="17"), BusyError, "503"),
        (answers(503), TransientError, "503"),
        (answers(500, b"<html>oops</html>"), TransientError, "500 Internal Server Error$"),
        (answers(418, b"I am a teapot"), DataError, "418"),
        (answers(200, b"{}" * 600_000), DataError, "more than 1,000,000 bytes"),
        (answers(200, b"[1, 2"), DataError, "no JSON"),
        (answers(200, b'{"config": {"polling": {"sleep": "1"}}}'), DataError, "polling.sleep"),
    ],
)
async def test_what_an_answer_means(answer: Answer, error: type[Exception], text: str) -> None:
    async with ddi_server() as server, client_of(server) as client:
        server.always = answer
        with pytest.raises(error, match=text) as caught:
            await client.poll()
        assert type(caught.value) is error
        if isinstance(caught.value, BusyError):
            assert caught.value.retry_after_s == 17
        assert TOKEN not in str(caught.value)


async def test_nobody_there_is_worth_another_try() -> None:
    async with ddi_server() as server:
        pass
    async with client_of(server) as client:
        with pytest.raises(TransientError, match="cannot reach"):
            await client.poll()


@pytest.mark.parametrize(("answer", "error"), [(503, TransientError), (407, AccessError)])
async def test_a_proxy_that_is_away_for_a_moment_is_not_the_server_denying_access(
    monkeypatch: pytest.MonkeyPatch, answer: int, error: type[Exception]
) -> None:
    for name in ("https_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with proxying() as proxy:
        proxy.refuse = answer
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with connect("https://fleet.example", TENANT, DEVICE) as client:
            with pytest.raises(error, match=f"the proxy answers {answer}") as caught:
                await client.poll()
            assert type(caught.value) is error


async def test_a_server_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.02)

    monkeypatch.setattr(ddi, "_TOTAL_S", 0.3)
    async with ddi_server() as server, client_of(server) as client:
        server.always = trickle
        with pytest.raises(TransientError, match="stalled"):
            await client.poll()


async def test_a_link_to_another_host_is_asked_of_our_server() -> None:
    """The token must not follow it."""
    async with ddi_server() as server, client_of(server) as client:
        offered = server.offer("7", "pose/tiny-1.0.0.tar.zst", "pose")
        body = b'{"_links": {"deploymentBase": {"href": "https://attacker.example/x/deploymentBase/7?c=1"}}}'
        server.misbehave.append(answers(200, body))
        poll = await client.poll()
        assert poll is not None
        assert poll.deployment is not None
        assert (await client.deployment(poll.deployment)).action_id == offered.action_id


async def test_a_closed_action_is_gone() -> None:
    async with ddi_server() as server, client_of(server) as client:
        server.offer("7", "pose/tiny-1.0.0.tar.zst", "pose").closed = True
        for action in ("7", "8"):
            with pytest.raises(GoneError):
                await client.feedback("deployment", action, report(Phase.COMMITTED))
