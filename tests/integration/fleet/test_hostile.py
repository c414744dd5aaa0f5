"""What nobody should send: the server answers shortly, stays up, and believes nothing of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from fakes.fleet_server import FleetDevice, FleetServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GOOD = {"status": {"execution": "proceeding", "result": {"finished": "none"}}}


@pytest.fixture
async def target(fleet: FleetServer) -> AsyncIterator[tuple[FleetDevice, int]]:
    """A device with an open action; whatever was sent to it, the server works afterwards and the action is as it was."""
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    action_id = await fleet.assign(device, release.id)
    await device.ask("GET", f"/deploymentBase/{action_id}")
    yield device, action_id
    assert (await fleet.ask("GET", "/health")).status == 200
    assert (await fleet.action(action_id)).state == "retrieved"
    assert await fleet.reports(action_id) == []


async def send(device: FleetDevice, action_id: int, body: bytes, kind: str = "application/json") -> int:
    path = f"{device.base}/deploymentBase/{action_id}/feedback"
    answer = await device.server.ask("POST", path, headers=device.headers | {"Content-Type": kind}, data=body)
    return answer.status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"null", 400),
        (b"[]", 400),
        (b'"status"', 400),
        (b"\xff\xfe{}", 400),
        (b"[" * 60_000, 400),
        (b'{"status":' * 5_000, 400),
        (b'{"status": {"execution": "closed", "result": {"finished": "maybe"}}}', 400),
        (b'{"status": {"execution": "CLOSED", "result": {"finished": "none"}}}', 400),
        (b'{"status": {"execution": "closed", "result": {"finished": "none"}, "code": 1e99}}', 400),
        (b'{"status": {"execution": "closed", "result": {"finished": "none"}, "code": 99999999999}}', 400),
        (b'{"status": {"execution": "closed", "result": {"finished": "none"}, "details": [1, {}]}}', 400),
        (b'{"status": {"execution": "closed", "result": {"finished": "none"}, "details": ["\\ud800"]}}', 400),
        (b'{"x": "' + b"a" * 70_000 + b'"}', 413),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
async def test_bodies_that_are_no_report(target: tuple[FleetDevice, int], body: bytes, status: int) -> None:
    assert await send(*target, body) == status


@pytest.mark.parametrize("kind", ["text/plain", "application/cbor", "application/x-www-form-urlencoded", "x"])
async def test_other_types_than_json(target: tuple[FleetDevice, int], kind: str) -> None:
    assert await send(*target, json.dumps(GOOD).encode(), kind) == 415


@pytest.mark.parametrize(
    "action",
    [
        "0",
        "-1",
        "1.0",
        "9" * 18,
        "9" * 40,
        "%31%2f..",
        "abc",
        "1;drop table actions",
        "1'",
        "\N{ARABIC-INDIC DIGIT ONE}",
    ],
)
async def test_ids_that_are_none(target: tuple[FleetDevice, int], action: str) -> None:
    device, _ = target
    for path in (f"/deploymentBase/{action}", f"/cancelAction/{action}", f"/installedBase/{action}"):
        assert (await device.ask("GET", path)).status == 404
    assert (await device.ask("POST", f"/deploymentBase/{action}/feedback", GOOD)).status == 404


@pytest.mark.parametrize("name", ["a b", "a%20b", "%0d%0aX-Evil:1", "..", "x" * 300, "%00", "a%2fb", "%e2%80%ae"])
async def test_controller_ids_that_are_none(fleet: FleetServer, name: str) -> None:
    gateway = await fleet.set_gateway()
    reader, writer = await asyncio.open_connection("127.0.0.1", fleet.port)
    request = f"GET /default/controller/v1/{name} HTTP/1.1\r\nHost: x\r\nAuthorization: {gateway['Authorization']}\r\n"
    writer.write(f"{request}Connection: close\r\n\r\n".encode())
    status = (await reader.readline()).split(b" ")[1]
    writer.close()
    await writer.wait_closed()
    assert status in (b"400", b"401", b"404")
    assert (await fleet.api("GET", "/devices")).json["total"] == 0


@pytest.mark.parametrize("host", [b"\xff\xfe", "b\N{LATIN SMALL LETTER U WITH DIAERESIS}chse".encode()])
async def test_a_host_that_is_none(fleet: FleetServer, caplog: pytest.LogCaptureFixture, host: bytes) -> None:
    """Answers would have it in their links."""
    device = await fleet.device()
    reader, writer = await asyncio.open_connection("127.0.0.1", fleet.port)
    head = (
        f"GET {device.base} HTTP/1.1\r\nAuthorization: {device.headers['Authorization']}\r\nConnection: close\r\nHost: "
    )
    writer.write(head.encode() + host + b"\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"Host" in answer.partition(b"\r\n\r\n")[2]
    assert not [record for record in caplog.records if record.exc_info]


async def test_other_tenants_do_not_exist(fleet: FleetServer) -> None:
    device = await fleet.device()
    path = device.base.replace("default", "other")
    assert (await fleet.ask("GET", path, headers=device.headers)).status == 404
    assert (await fleet.ask("GET", device.base.replace("default", "DEFAULT"), headers=device.headers)).status == 200


async def test_slow_body_is_given_up(fleet: FleetServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ota.server.bodies.BODY_TIMEOUT_S", 0.2)
    device = await fleet.device()
    reader, writer = await asyncio.open_connection("127.0.0.1", fleet.port)
    head = f"PUT {device.base}/configData HTTP/1.1\r\nHost: x\r\nAuthorization: {device.headers['Authorization']}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
    async with asyncio.timeout(5):
        assert b"408" in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_reports_of_many_kinds_of_text_are_kept_as_they_are(fleet: FleetServer) -> None:
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    action_id = await fleet.assign(device, release.id)
    texts = ["<script>alert(1)</script>", "'; DROP TABLE actions; --", "日本語 🎥", "\u202eevil", "line\nbreak"]
    assert (await device.report(action_id, "proceeding", "none", *texts)).status == 200
    assert (await device.report(action_id, "proceeding", "none", "nul\x00byte")).status == 200
    shown = (await fleet.api("GET", f"/actions/{action_id}")).json["reports"]
    assert shown[1]["details"] == texts
    assert shown[0]["details"] == ["nul\N{REPLACEMENT CHARACTER}byte"]


async def test_long_texts_are_cut_and_the_report_counts(fleet: FleetServer) -> None:
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    action_id = await fleet.assign(device, release.id)
    assert (await device.report(action_id, "closed", "success", *["x" * 1500] * 40)).status == 200
    assert (await fleet.action(action_id)).state == "finished"
    assert (
        await device.report(action_id, "closed", "success", *["x" * 1500] * 40)
    ).status == 200  # again, all the same
    reports = (await fleet.api("GET", f"/actions/{action_id}")).json["reports"]
    assert [len(text) for text in reports[0]["details"]] == [1024] * 40


# --- whatever may come ------------------------------------------------------------------------------------------------

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=15,
)
EXECUTIONS = ["closed", "proceeding", "canceled", "scheduled", "rejected", "resumed", "downloaded", "download"]
NEARLY = st.fixed_dictionaries(
    {
        "status": st.fixed_dictionaries(
            {
                "execution": st.sampled_from(EXECUTIONS) | ANY_JSON,
                "result": st.fixed_dictionaries(
                    {"finished": st.sampled_from(["success", "failure", "none"]) | ANY_JSON},
                    optional={"progress": ANY_JSON},
                ),
            },
            optional={
                "details": st.lists(st.text(max_size=20), max_size=3) | ANY_JSON,
                "code": st.integers() | ANY_JSON,
            },
        )
    },
    optional={"id": ANY_JSON, "time": ANY_JSON, "timestamp": ANY_JSON},
)


async def test_any_body_is_taken_or_refused_but_never_breaks_anything(fleet: FleetServer) -> None:
    """What was answered with 200 is in the log, as often; all else left nothing."""
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    loop = asyncio.get_running_loop()

    async def once(body: object, kind: str) -> None:
        action_id = await fleet.assign(device, release.id)
        await fleet.set_state(action_id, "canceling" if kind == "cancelAction" else "running")
        raw = json.dumps(body).encode()
        headers = device.headers | {"Content-Type": "application/json"}
        answer = await fleet.ask("POST", f"{device.base}/{kind}/{action_id}/feedback", headers=headers, data=raw)
        assert answer.status in (200, 400), (answer.status, body)
        reports = await fleet.reports(action_id)
        assert len(reports) == (answer.status == 200)
        action = await fleet.action(action_id)
        assert action.open == (action.state not in ("finished", "error", "canceled"))
        if answer.status == 200:
            assert isinstance(body, dict)
            assert reports[0][1:] == (body["status"]["execution"], body["status"]["result"]["finished"])

    @settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(NEARLY | ANY_JSON, st.sampled_from(["deploymentBase", "cancelAction"]))
    def fuzz(body: object, kind: str) -> None:
        asyncio.run_coroutine_threadsafe(once(body, kind), loop).result(30)

    await asyncio.to_thread(fuzz)


async def test_any_attributes_are_taken_whole_or_not_at_all(fleet: FleetServer) -> None:
    device = await fleet.device()
    loop = asyncio.get_running_loop()
    keys, values = st.text(max_size=140), st.text(max_size=40) | st.none()

    async def once(data: dict[str, str | None], mode: str) -> None:
        before = dict((await fleet.device_row(device.id)).attributes)
        answer = await device.ask("PUT", "/configData", {"data": data, "mode": mode})
        after = dict((await fleet.device_row(device.id)).attributes)
        if answer.status == 200:
            clean = {
                key.replace("\x00", "\ufffd"): (value or "").replace("\x00", "\ufffd") for key, value in data.items()
            }
            wanted = {
                "merge": before | clean, "replace": clean, "remove": {k: v for k, v in before.items() if k not in clean},
            }  # fmt: skip
            assert after == wanted[mode]
        else:
            assert answer.status in (400, 403)
            assert after == before

    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.dictionaries(keys, values, max_size=6), st.sampled_from(["merge", "replace", "remove"]))
    def fuzz(data: dict[str, str | None], mode: str) -> None:
        asyncio.run_coroutine_threadsafe(once(data, mode), loop).result(30)

    await asyncio.to_thread(fuzz)
