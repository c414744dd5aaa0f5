"""The HTTP face: a real server over a view of plain values, and the same server inside a running agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import cv2
import jsonschema
import numpy as np
import pytest
import pytest_asyncio
from fakes.http_site import JPEG, PlainView, Site, serving
from fakes.openapi import Api, ContractError
from fakes.plugin import install, save_recording
from fakes.replay import walkers
from fakes.video import make_video
from prometheus_client.parser import text_string_to_metric_families

from agent.app import Agent
from agent.config.load import load_config
from agent.config.schema import HttpConfig
from agent.errors import ConfigError, DataError, StorageError
from agent.events.cloudevents import load_schema
from agent.http.listen import Limits
from agent.http.openapi import document
from agent.http.server import MODES, EventFilter, HttpServer, describe
from agent.overlay import Mode

CHROMIUM = shutil.which("chromium")


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    before = asyncio.all_tasks()
    async with serving(PlainView()) as made:
        yield made
    await asyncio.sleep(0)
    assert {task for task in asyncio.all_tasks() - before if not task.done()} <= {asyncio.current_task()}


async def until(condition: Any, what: str) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


# --- for machines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "status"), [("ok", 200), ("degraded", 200), ("failed", 503)])
async def test_health_fails_only_when_the_agent_cannot_do_its_job(site: Site, level: str, status: int) -> None:
    site.view.level = level
    assert (await site.get("/health"))[:2] == (status, {"level": level, "reasons": []})


@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
async def test_ready(site: Site, ready: bool, status: int) -> None:
    site.view.is_ready = ready
    assert (await site.get("/ready"))[:2] == (status, {"ready": ready})


async def test_metrics_come_with_their_content_type(site: Site) -> None:
    status, body, response = await site.get("/metrics")
    assert (status, body) == (200, b"up 1\n")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4"


async def test_event_filters_reach_the_view(site: Site) -> None:
    path = "/api/v1/events?limit=7&since=2026-01-01T00:00Z&until=x&kind=fight&camera=cam"
    assert (await site.get(path))[:2] == (200, {"events": [{"id": "e1"}]})
    assert site.view.queries == [EventFilter(7, "2026-01-01T00:00Z", "x", "fight", "cam")]


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "1.5", "", "9" * 5000])
async def test_a_bad_limit_is_refused_with_a_reason(site: Site, limit: str) -> None:
    status, body, _ = await site.get(f"/api/v1/events?limit={limit}")
    assert status == 400
    assert "limit must be" in body["error"]


async def test_a_parameter_that_is_none_is_refused_by_name(site: Site) -> None:
    """Else a filter with a typing error would show everything."""
    status, body, _ = await site.get("/api/v1/events?limits=5&sincee=x&kind=fight")
    assert status == 400
    assert body["error"] == "unknown parameters: limits, sincee (known: camera, kind, limit, since, until)"
    status, body, _ = await site.get("/api/v1/events?%0d%0aX=%00" + "y" * 1000)
    assert status == 400
    assert len(body["error"]) < 300
    assert site.view.queries == []


def test_the_document_knows_every_route_and_no_other(site: Site) -> None:
    api = Api(document())
    api.check_schemas()
    routes = {
        (route.method, route.resource.canonical)
        for route in site.server._application().router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert routes - {("GET", path) for path in ("/", "/live.css", "/live.js")} == set(api.operations())


async def test_errors_of_the_agent_become_answers(site: Site) -> None:
    site.view.fault = DataError("'x' is no time")
    assert (await site.get("/api/v1/events"))[:2] == (400, {"error": "'x' is no time"})
    site.view.fault = StorageError("disk I/O error")
    assert (await site.get("/api/v1/events"))[:2] == (503, {"error": "disk I/O error"})


async def test_a_bug_is_an_answer_without_its_details(site: Site) -> None:
    site.view.fault = RuntimeError("rtsp://user:secret@cam")
    status, body, response = await site.get("/api/v1/events")
    assert status == 500
    assert b"secret" not in body
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert site.view.requests[-1] == ("GET", "/api/v1/events", 500)


async def test_what_is_not_there(site: Site) -> None:
    for path in ("/nothing", "/api/v1/", "/..%2f..%2fetc/passwd", "/static/live.js", "/%00"):
        status, body, _ = await site.get(path)
        assert (status, "error" in body) == (404, True), path
    assert {route for _, route, _ in site.view.requests} == {"unmatched"}


async def test_only_reading_is_allowed_and_the_answer_says_so(site: Site) -> None:
    status, body, response = await site.get("/health", "POST")
    assert (status, body) == (405, {"error": "Method Not Allowed"})
    assert set(response.headers["Allow"].split(",")) == {"GET", "HEAD"}
    status, body, _ = await site.get("/health", "HEAD")
    assert (status, body) == (200, b"")


async def test_a_wish_that_nobody_knows_is_answered(site: Site) -> None:
    async with site.client.get("/health", headers={"Expect": "wonders"}) as response:
        assert response.status == 417
        assert response.headers["Server"] == "recognizer-agent"


async def test_exotic_methods_do_not_become_metric_labels(site: Site) -> None:
    for method in ("PROPFIND", "MKCOL", "LOCK"):
        await site.get("/health", method)
    assert {method for method, _, _ in site.view.requests} == {"other"}


async def test_every_answer_carries_the_security_headers(site: Site) -> None:
    paths = ("/", "/health", "/nothing", "/api/v1/events?limit=0", "/api/v1/cameras/cam/snapshot.jpg")
    for path in paths:
        headers = (await site.get(path))[2].headers
        assert headers["Content-Security-Policy"] == "default-src 'self'; frame-ancestors 'none'", path
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Server"] == "recognizer-agent"  # and not which library in which version
    async with site.client.get("/api/v1/cameras/cam/live.mjpg") as stream:
        assert stream.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8080", "10.0.0.7", "[::1]:8080", "[fe80::1]", "localhost:8080", "LocalHost.", "cams.example", "CAMS.example:443",
        socket.gethostname(), f"{socket.gethostname()}.local:8080",
    ],
)  # fmt: skip
async def test_the_page_answers_to_its_names(host: str) -> None:
    async with serving(PlainView(), hosts=("cams.example",)) as site:
        response = await site.client.get("/api/v1/cameras/cam/snapshot.jpg", headers={"Host": host})
        assert (response.status, await response.read()) == (200, JPEG)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "cams.example.evil.example",
        "127.0.0.1.evil.example",
        "",
        "[evil]",
        "a" * 5000,
    ],
)
async def test_a_foreign_page_whose_name_leads_here_reads_nothing(host: str) -> None:
    """DNS rebinding: to the browser it is the same origin, and the name that it asks for is all that tells."""
    async with serving(PlainView(), hosts=("cams.example",)) as site:
        for path in ("/", "/health", "/metrics", "/nothing", "/api/v1/state", "/api/v1/cameras/cam/snapshot.jpg"):
            async with site.client.get(path, headers={"Host": host}) as response:
                assert response.status == 421, path
                assert "http.hosts" in (await response.json())["error"]
                assert response.headers["Server"] == "recognizer-agent"
        assert site.view.streams == 0


async def test_a_name_may_be_added_while_it_runs(site: Site) -> None:
    headers = {"Host": "cams.example"}
    assert (await site.client.get("/health", headers=headers)).status == 421
    site.server.reconfigure(HttpConfig(hosts=("cams.example",)))
    assert (await site.client.get("/health", headers=headers)).status == 200


async def test_who_names_no_host_is_no_browser(site: Site) -> None:
    assert (await raw(site, b"GET /health HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.0 200 OK")


async def raw(site: Site, data: bytes) -> bytes:
    """What the server says to `data` until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    try:
        writer.write(data)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("begun", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: "])
async def test_a_connection_that_asks_nothing_is_closed(begun: bytes) -> None:
    async with serving(PlainView(), limits=Limits(idle_s=0.2)) as site:
        assert await raw(site, begun) == b""


async def test_a_viewer_is_not_idle() -> None:
    limits = Limits(idle_s=0.05)
    async with (
        serving(PlainView(), limits=limits) as site,
        site.client.get("/api/v1/cameras/cam/live.mjpg") as response,
        asyncio.timeout(10),
    ):
        assert len(await read_parts(response, 30)) == 30  # one each 10 ms


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01blah\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 20000 + b"\r\n\r\n", b"OPTIONS\r\n\r\n", b"\0" * 99 + b"\r\n\r\n",
        b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    ],
)  # fmt: skip
async def test_what_a_port_scanner_sends_is_answered_and_not_logged(
    site: Site, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await raw(site, data)).startswith((b"HTTP/1.0 400", b"HTTP/1.1 400", b"HTTP/1.1 405"))
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_a_bug_is_logged_with_its_traceback(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.view.fault = RuntimeError("no such luck")
    await site.get("/api/v1/events")
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [site.view.fault]


# --- pictures ---------------------------------------------------------------------------------------------------------


async def test_snapshot(site: Site) -> None:
    status, body, response = await site.get("/api/v1/cameras/cam/snapshot.jpg?mode=raw")
    assert (status, body, response.content_type) == (200, JPEG, "image/jpeg")
    assert (await site.get("/api/v1/cameras/dark/snapshot.jpg"))[0] == 404


@pytest.mark.parametrize("kind", ["snapshot.jpg", "live.mjpg"])
async def test_unknown_cameras_and_modes_are_refused(site: Site, kind: str) -> None:
    for camera in ("none", "a%0Ab", "%3Cscript%3E", "x" * 500, "%F0%9F%98%80"):
        assert (await site.get(f"/api/v1/cameras/{camera}/{kind}"))[:2] == (404, {"error": "there is no such camera"})
    status, body, _ = await site.get(f"/api/v1/cameras/cam/{kind}?mode=x-ray")
    assert status == 400
    assert "full, skeleton, minimal, debug, raw" in body["error"]
    assert site.view.sessions == 0


def test_the_modes_offered_are_those_that_can_be_drawn() -> None:
    assert set(MODES) == {mode.value for mode in Mode}


async def read_parts(response: aiohttp.ClientResponse, count: int) -> list[bytes]:
    """The first `count` pictures of a multipart stream, read as a browser does: boundary, headers, body."""
    pictures = []
    assert await response.content.readline() == b"--frame\r\n"
    while len(pictures) < count:
        assert await response.content.readline() == b"Content-Type: image/jpeg\r\n"
        length = int((await response.content.readline()).removeprefix(b"Content-Length: "))
        assert await response.content.readline() == b"\r\n"
        pictures.append(await response.content.readexactly(length))
        assert await response.content.readexactly(11) == b"\r\n--frame\r\n"
    return pictures


async def test_live_stream_is_made_of_pictures_and_ends_with_its_viewer(site: Site) -> None:
    async with site.client.get("/api/v1/cameras/cam/live.mjpg") as response:
        assert response.headers["Content-Type"] == "multipart/x-mixed-replace; boundary=frame"
        assert await read_parts(response, 3) == [JPEG] * 3
        assert (site.view.sessions, site.view.streams) == (1, 1)
        await asyncio.sleep(0.3)
        response.close()
    await until(lambda: (site.view.sessions, site.view.streams) == (0, 0), "the stream ends")
    assert site.view.requests == [("GET", "/api/v1/cameras/{camera}/live.mjpg", 200)]
    assert site.view.slowest_s < 0.3  # its length is no response time


async def test_a_viewer_of_a_dark_camera_can_leave_too(site: Site) -> None:
    response = await site.client.get("/api/v1/cameras/dark/live.mjpg")
    await until(lambda: site.view.streams == 1, "the stream began")
    response.close()
    await until(lambda: (site.view.sessions, site.view.streams) == (0, 0), "the stream ends")


async def test_head_of_a_live_stream_ends_at_once(site: Site) -> None:
    assert (await asyncio.wait_for(site.get("/api/v1/cameras/cam/live.mjpg", "HEAD"), 5))[0] == 200
    assert (site.view.sessions, site.view.streams) == (0, 0)


async def test_viewers_do_not_keep_the_server_from_stopping() -> None:
    view = PlainView()
    async with asyncio.timeout(10), serving(view) as site:
        response = await site.client.get("/api/v1/cameras/cam/live.mjpg")
        await until(lambda: view.streams == 1, "the stream began")
    response.close()
    assert (view.sessions, view.streams) == (0, 0)


# --- too many of them, and those who do not read -----------------------------------------------------------------------


@asynccontextmanager
async def unread(site: Site, path: str, count: int) -> AsyncIterator[list[socket.socket]]:
    """Connections that ask for `path` and take nothing of the answer."""
    made = []
    try:
        for _ in range(count):
            one = socket.socket()
            made.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.setblocking(False)
            await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", site.port))
            await asyncio.get_running_loop().sock_sendall(
                one, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            )
        yield made
    finally:
        for one in made:
            one.close()


async def test_viewers_who_never_read_are_let_go() -> None:
    view = PlainView()
    view.jpeg = b"\xff" * 200_000
    async with serving(view, limits=Limits(unread_s=0.5)) as site:
        async with unread(site, "/api/v1/cameras/cam/live.mjpg", 5):
            await until(lambda: view.streams == 5, "all are served")
            await until(lambda: (view.sessions, view.streams) == (0, 0), "none of them is any more")
        async with site.client.get("/api/v1/cameras/cam/live.mjpg") as response:
            assert await read_parts(response, 20) == [view.jpeg] * 20, "one who reads goes on"


async def test_so_are_those_who_never_read_a_single_picture() -> None:
    view = PlainView()
    view.jpeg = b"\xff" * 5_000_000
    async with (
        serving(view, limits=Limits(unread_s=0.5, connections=4)) as site,
        unread(site, "/api/v1/cameras/cam/snapshot.jpg", 4),
    ):
        await until(lambda: len(view.requests) == 4, "all are answered")
        async with asyncio.timeout(10):
            while not await is_served(site):
                await asyncio.sleep(0.05)


async def is_served(site: Site) -> bool:
    return (await raw(site, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).startswith(
        b"HTTP/1.1 200"
    )


async def test_there_are_only_so_many_viewers() -> None:
    async with serving(PlainView(), limits=Limits(viewers=2)) as site:
        first = [await site.client.get("/api/v1/cameras/cam/live.mjpg") for _ in range(2)]
        status, body, _ = await site.get("/api/v1/cameras/dark/live.mjpg")
        assert (status, body) == (503, {"error": "2 live streams are being watched, no more are served"})
        assert (await site.get("/api/v1/cameras/cam/snapshot.jpg"))[0] == 200
        first[0].close()
        await until(lambda: site.view.streams == 1, "one has left")
        async with site.client.get("/api/v1/cameras/cam/live.mjpg") as response:
            assert response.status == 200
        first[1].close()


async def test_there_are_only_so_many_connections_and_a_place_is_free_again() -> None:
    async with serving(PlainView(), limits=Limits(connections=3)) as site:
        held = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(3)]
        async with asyncio.timeout(10):
            while await is_served(site):  # the last of them has not been accepted yet
                await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        for _, one in held:
            one.close()
        async with asyncio.timeout(10):
            while not await is_served(site):
                await asyncio.sleep(0.01)


# --- the address ------------------------------------------------------------------------------------------------------


async def test_a_port_in_use_is_named_with_a_hint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}.*another program"):
            await HttpServer(HttpConfig(port=port), PlainView()).run()


async def test_an_address_of_another_machine_is_named_with_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1.*address of this machine"):
        await HttpServer(HttpConfig(host="192.0.2.1"), PlainView()).run()


# --- inside a running agent -------------------------------------------------------------------------------------------


def write_config(folder: Path) -> Path:
    """A camera that plays two walkers in a loop, with a fight that comes and goes."""
    folder.mkdir(exist_ok=True)
    video = make_video(folder / "scene.mp4", 50, size=(320, 240), fps=25)
    document = {
        "device_id": "box",
        "state_dir": str(folder / "state"),
        "cameras": [{"id": "hall", "source": str(video), "loop": True, "pace": True, "frozen_after_s": 0, "blind_after_s": 0}],
        "pose": {"estimator": "replay", "model": str(save_recording(folder / "p.npz", walkers(2, 50, size=(240, 320))))},
        "services": {
            "fall": {"enabled": False},
            "fight": {
                "classifier": "scripted", "model": "/none", "options": {"script": [0.9, 0.1]},
                "window": {"length": 4, "stride": 2, "min_track_frames": 1},
                "rules": {
                    "alert_count": 1, "normal_count": 1, "cooldown_s": 0, "min_duration_s": 0.01, "max_duration_s": 9,
                },
            },
        },
        "mqtt": {"enabled": False},
        "http": {"port": 0},
        "health": {"probe_interval_s": 0.2, "governor": {"enabled": False, "cpu_high": 1, "memory_high": 1}},
    }  # fmt: skip
    config = folder / "agent.yaml"
    config.write_text(json.dumps(document))
    return config


@asynccontextmanager
async def running_agent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """An agent in this process; the address of its pages."""
    install(folder / "plugins")
    monkeypatch.syspath_prepend(str(folder / "plugins"))
    config = load_config([write_config(folder)], env={})
    agent = Agent(config, environ={}, load=lambda: config)
    task = asyncio.create_task(agent.run())
    try:
        async with asyncio.timeout(30):
            await agent.ready_event.wait()
            assert agent.http is not None
            await agent.http.started.wait()
        yield f"http://127.0.0.1:{agent.http.port}"
    finally:
        agent.stop()
        await asyncio.wait_for(task, 30)


REQUIRED_METRICS = {
    "recognizer_pose_estimation_duration_seconds", "recognizer_tracking_duration_seconds",
    "recognizer_classification_duration_seconds", "recognizer_api_requests", "recognizer_api_request_duration_seconds",
    "recognizer_active_realtime_sessions", "recognizer_gpu_memory_usage_bytes", "recognizer_frames",
    "recognizer_outbox_depth", "recognizer_mqtt_connected", "recognizer_health_level", "recognizer_events",
}  # fmt: skip


async def test_a_running_agent_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_agent(tmp_path, monkeypatch) as url, aiohttp.ClientSession(url) as client:

        async def get(path: str) -> Any:
            async with client.get(path) as response:
                return await response.json()

        async with asyncio.timeout(30):
            while len((await get("/api/v1/state"))["events"]) < 6:
                await asyncio.sleep(0.1)
        state = await get("/api/v1/state")
        (camera,) = state["cameras"]
        assert (state["device"], state["ready"], state["health"]["level"]) == ("box", True, "ok")
        assert (camera["camera"], camera["state"], camera["live"]["people"]) == ("hall", "streaming", 2)
        assert "fight" in camera["live"]["scores"]
        assert describe(state) == "ok; 1 of 1 cameras streaming"
        assert (await get("/ready")) == {"ready": True}

        events = (await get("/api/v1/events?limit=3&kind=fight&camera=hall"))["events"]
        assert len(events) == 3
        for event in events:
            assert event.pop("delivery") in ("delivered", "pending")
            jsonschema.validate(event, load_schema())
        numbers = [event["data"]["sequence"] for event in events]
        assert numbers == sorted(numbers, reverse=True)
        assert (await get("/api/v1/events?kind=fall"))["events"] == []
        assert (await get("/api/v1/events?until=2026-01-01T00:00Z"))["events"] == []
        for bad in ("yesterday", "2026-13-01", "0001-01-01T00:00%2B14:00"):
            async with client.get(f"/api/v1/events?since={bad}") as response:
                assert response.status == 400
                assert (await response.json())["error"]

        async with client.get("/metrics") as response:
            text = await response.text()
        families = {family.name for family in text_string_to_metric_families(text)}
        assert families >= REQUIRED_METRICS
        async with client.get("/api/v1/cameras/hall/snapshot.jpg") as response:
            image = cv2.imdecode(np.frombuffer(await response.read(), np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        assert image.shape == (240, 320, 3)
        async with client.get("/api/v1/cameras/hall/live.mjpg?mode=skeleton") as response:
            for jpeg in await read_parts(response, 3):
                assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) is not None
            assert "recognizer_active_realtime_sessions 1.0" in await (await client.get("/metrics")).text()
            response.close()
        await asyncio.sleep(0.2)
        assert "recognizer_active_realtime_sessions 0.0" in await (await client.get("/metrics")).text()


async def test_a_running_agent_answers_as_its_document_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(document())
    async with running_agent(tmp_path, monkeypatch) as url, aiohttp.ClientSession(url) as client:

        async def get(path: str) -> Any:
            async with client.get(path) as response:
                head = "live" in path and response.status == 200
                content = b"" if head else await response.read()
                if not head:
                    api.hold("GET", path, None, response.status, content, response.content_type)
                else:
                    operation = api.operations()["GET", "/api/v1/cameras/{camera}/live.mjpg"]
                    assert response.content_type in operation["responses"]["200"]["content"]
                    response.close()
                return json.loads(content) if response.content_type == "application/json" else content

        async with asyncio.timeout(30):
            while not (state := await get("/api/v1/state"))["events"] or not state["cameras"][0]["live"]["scores"]:
                await asyncio.sleep(0.1)
        assert await get("/api/v1/openapi.json") == json.loads(json.dumps(document()))
        assert (await get("/api/v1/events?limit=5"))["events"]
        for path in ("/health", "/ready", "/metrics", "/api/v1/cameras/hall/snapshot.jpg?mode=debug"):
            await get(path)
        await get("/api/v1/cameras/hall/live.mjpg")
        for path in ("/api/v1/events?limit=0", "/api/v1/events?since=x", "/api/v1/cameras/none/snapshot.jpg"):
            assert "error" in await get(path)
        assert api.refused == {400, 404}
        assert {path for _, path in api.operations()} - {path for _, path in api.seen} == {
            "/api/v1/cameras/{camera}/live.mjpg"
        }
        spoilt = json.dumps(state | {"shape": 1}).encode()
        with pytest.raises(ContractError, match="shape"):
            api.hold("GET", "/api/v1/state", None, 200, spoilt, "application/json")


async def test_an_event_that_cannot_be_read_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_agent(tmp_path, monkeypatch) as url, aiohttp.ClientSession(url) as client:

        async def events() -> list[dict[str, Any]]:
            async with client.get("/api/v1/events?limit=1000") as response:
                assert response.status == 200
                return list((await response.json())["events"])

        async with asyncio.timeout(30):
            while len(await events()) < 2:
                await asyncio.sleep(0.1)
        with contextlib.closing(sqlite3.connect(tmp_path / "state" / "events.db", timeout=10)) as database, database:
            database.execute("UPDATE messages SET payload = x'fffe00' WHERE sequence = 2")
        found = await events()
        assert found[-2] == {"payload_base64": "//4A", "delivery": found[-2]["delivery"]}
        assert found[-1]["data"]["sequence"] == 1


async def test_two_agents_want_one_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_agent(tmp_path / "one", monkeypatch) as url:
        folder = tmp_path / "two"
        config = load_config([write_config(folder)], env={})
        taken = config.http.model_copy(update={"port": int(url.rsplit(":", 1)[1])})
        config = config.model_copy(update={"http": taken})
        agent = Agent(config, environ={}, load=lambda: config)
        task = asyncio.create_task(agent.run())
        await asyncio.wait_for(agent.ready_event.wait(), 30)

        def failing() -> list[str]:
            return [reason.detail for reason in agent.health.snapshot().reasons if reason.code == "http"]

        await until(failing, "the second one says what is wrong")
        assert "another program uses it" in failing()[0]
        agent.stop()
        await asyncio.wait_for(task, 30)


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind", "part"),
    [
        ("/", "text/html", b"Latest events"),
        ("/live.css", "text/css", b"--bad"),
        ("/live.js", "text/javascript", b"poll()"),
    ],
)
async def test_the_page_is_served(site: Site, path: str, kind: str, part: bytes) -> None:
    status, body, response = await site.get(path)
    assert (status, response.content_type, response.charset) == (200, kind, "utf-8")
    assert part in body


def test_the_page_never_writes_markup() -> None:
    script = (Path(__file__).parents[2] / "agent/http/static/live.js").read_text()
    for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert dangerous not in script


def chromium(folder: Path, *arguments: str) -> list[str]:
    quiet = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
    return [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", *quiet,
        f"--user-data-dir={folder}", *arguments,
    ]  # fmt: skip


async def browse(folder: Path, *arguments: str) -> str:
    """What Chromium prints; three seconds of the page's own time pass first."""
    command = chromium(folder / "profile", "--virtual-time-budget=3000", *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return (await asyncio.wait_for(process.communicate(), 60))[0].decode()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
async def test_a_browser_shows_state_cameras_and_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_agent(tmp_path, monkeypatch) as url:
        dom = await browse(tmp_path, "--dump-dom", url)
    assert '<p id="level" role="status" class="ok">ok</p>' in dom
    assert 'class="camera' in dom
    assert 'data-id="hall"' in dom
    assert "2 people" in dom
    assert "live picture of camera hall" in dom
    assert dom.count("<tr") > 3
    assert "fight detected" in dom
    assert "<dt>Processor</dt>" in dom


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
async def test_a_browser_plays_the_live_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shot = tmp_path / "page.png"
    async with running_agent(tmp_path, monkeypatch) as url:
        await browse(tmp_path, "--window-size=1300,800", f"--screenshot={shot}", url)
    page = cv2.imread(str(shot))
    assert page is not None
    inside = page[150:650, 60:780]  # the camera card, less its edges
    assert inside.max() > 100  # a picture; without one the card is black
    assert (inside.max(axis=2) - inside.min(axis=2)).max() > 60  # with coloured skeletons on it
