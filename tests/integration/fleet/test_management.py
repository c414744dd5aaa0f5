"""Management over HTTP: devices, actions, users, the event feed, metrics and health."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Self

import pytest
from fakes.fleet_server import FleetServer
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text


async def test_devices_by_page_and_search(fleet: FleetServer) -> None:
    for n in range(7):
        await fleet.device(f"box-{n}")
    await fleet.api("PATCH", "/devices/box-3", {"name": "Main hall"})
    seen, path = [], "/devices?limit=3"
    while path:
        page = (await fleet.api("GET", path)).json
        assert page["total"] == 7
        seen += [device["id"] for device in page["devices"]]
        path = f"/devices?limit=3&offset={page['next']}" if page["next"] is not None else ""
    assert seen == [f"box-{n}" for n in range(7)]
    found = (await fleet.api("GET", "/devices?search=hall")).json["devices"]
    assert [device["id"] for device in found] == ["box-3"]
    assert (await fleet.api("GET", "/devices?update_status=error")).json["devices"] == []


async def test_device_is_online_while_it_asks(fleet: FleetServer) -> None:
    device = await fleet.device()
    assert (await fleet.api("GET", "/devices/box-1")).json["status"] == "never"
    await device.poll()
    await fleet.services.heard.flush()
    shown = (await fleet.api("GET", "/devices/box-1")).json
    assert (shown["status"], shown["address"]) == ("online", "127.0.0.1")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", shown["last_seen"])
    later_ms = fleet.services.clock_ms() + 91_000
    fleet.services.clock_ms = lambda: later_ms
    assert (await fleet.api("GET", "/devices/box-1")).json["status"] == "offline"


async def test_devices_are_counted_as_filters_count_them(fleet: FleetServer) -> None:
    (release,) = await fleet.publish(1)
    boxes = [await fleet.device(f"box-{n}") for n in range(4)]
    for box in boxes[:2]:
        await box.poll()
    await fleet.services.heard.flush()
    later_ms = fleet.services.clock_ms() + 91_000
    fleet.services.clock_ms = lambda: later_ms
    await boxes[1].poll()
    await boxes[2].poll()
    await fleet.services.heard.flush()
    await fleet.assign(boxes[0], release.id)
    await boxes[1].report(await fleet.assign(boxes[1], release.id), "closed", "failure")
    found = (await fleet.api("GET", "/device-counts")).json
    assert found["total"] == 4
    assert found["status"] == {"online": 2, "offline": 1, "never": 1}
    assert found["update_status"] == {"unknown": 1, "registered": 1, "pending": 1, "in_sync": 0, "error": 1}
    for field, name in (("status", "status"), ("update", "update_status")):
        for value, number in found[name].items():
            assert (await fleet.api("GET", f"/devices?filter={field}=={value}")).json["total"] == number


async def test_token_of_its_own_for_a_device_that_has_one(fleet: FleetServer) -> None:
    body = {"id": "factory", "token": "token-of-the-factory-7"}
    assert (await fleet.api("POST", "/devices", body)).json["token"] == "token-of-the-factory-7"
    headers = {"Authorization": "TargetToken token-of-the-factory-7"}
    assert (await fleet.ask("GET", "/default/controller/v1/factory", headers=headers)).status == 200


async def test_a_deleted_canary_pauses_its_rollout(fleet: FleetServer) -> None:
    (release,) = await fleet.publish(7)
    boxes = [await fleet.device(f"box-{n}") for n in range(3)]
    rollout = (await fleet.api("POST", "/rollouts", {"name": "seven", "release": release.id})).json["id"]
    assert (await fleet.api("POST", f"/rollouts/{rollout}/start")).status == 200
    listened = fleet.services.feed.listen()
    try:
        following = asyncio.ensure_future(anext(listened))
        async with asyncio.timeout(20):
            while len(canaries := [box.id for box in boxes if "deploymentBase" in await box.poll()]) != 1:
                await asyncio.sleep(0.05)
            assert (await fleet.api("DELETE", f"/devices/{canaries[0]}")).status == 204
            told = await following
            while (told.kind, told.fields.get("state")) != ("rollout", "paused"):
                told = await anext(listened)
    finally:
        await listened.aclose()
    found = (await fleet.api("GET", f"/rollouts/{rollout}")).json
    assert (found["state"], found["reason"]) == ("paused", "group canary: its last device was deleted")
    audit = (await fleet.api("GET", "/audit?what=rollout.state")).json["audit"][0]
    assert (audit["who"], audit["detail"]["state"]) == ("fleet-server", "paused")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("POST", "/devices", {"id": "box-1"}, 409, "there is a device box-1 already"),
        ("POST", "/devices", {"id": ""}, 400, "1 to 256 visible characters"),
        ("POST", "/devices", {"id": "a/b"}, 400, "without space and slash"),
        ("POST", "/devices", {"id": "x", "token": "short"}, 400, "token: String should have at least 16"),
        ("POST", "/devices", {"id": "x", "nmae": "y"}, 400, "nmae: Extra inputs"),
        ("POST", "/devices", [], 400, "object"),
        ("PATCH", "/devices/box-1", {"name": " "}, 400, "name"),
        ("PATCH", "/devices/nobody", {"name": "y"}, 404, "no such device"),
        ("GET", "/devices/nobody", None, 404, "no such device"),
        ("DELETE", "/devices/nobody", None, 404, "no such device"),
        ("GET", "/devices?limit=0", None, 400, "limit must be 1 to 1000"),
        ("GET", "/devices?offset=x", None, 400, "offset must be a whole number"),
        ("GET", "/actions/4711", None, 404, "no such action"),
        ("GET", "/actions/1e3", None, 404, "no such action"),
        ("GET", "/actions?device=nobody", None, 404, "no such device"),
        ("POST", "/actions/4711/cancel", None, 404, "no such action"),
        ("POST", "/devices/box-1/actions", {"release": 4711}, 404, "no such release"),
        ("POST", "/devices/box-1/actions", {"release": "pose"}, 400, "release"),
        ("POST", "/devices/nobody/actions", {"release": 1}, 404, "no such device"),
        ("GET", "/releases/4711", None, 404, "no such release"),
        ("POST", "/users", {"name": "x", "role": "god"}, 400, "role"),
        ("POST", "/users", {"name": "a b", "role": "viewer"}, 400, "name"),
        ("POST", "/users", {"name": "admin", "role": "viewer"}, 409, "there is a user admin already"),
        ("POST", "/users", {"name": "fleet-server", "role": "viewer"}, 409, "the server itself in the audit log"),
        ("POST", "/users", {"name": "Fleet-Server", "role": "viewer"}, 409, "the server itself in the audit log"),
        ("PATCH", "/users/nobody", {"active": False}, 404, "no such user"),
        ("GET", "/nothing", None, 404, "Not Found"),
        ("PUT", "/devices", {}, 405, "Method Not Allowed"),
    ],
)
async def test_what_is_wrong_is_said(
    fleet: FleetServer, method: str, path: str, body: Any, status: int, text: str
) -> None:
    await fleet.device()
    answer = await fleet.api(method, path, body)
    assert answer.status == status
    assert text in answer.json["error"]


async def test_actions_of_a_device_with_what_it_reported(fleet: FleetServer) -> None:
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    action_id = await fleet.assign(device, release.id)
    await device.report(action_id, "proceeding", "none", "shadow", "agreement: 0.98")
    await device.report(action_id, "closed", "failure", "refused", "reason: slower")
    shown = (await fleet.api("GET", f"/actions/{action_id}")).json
    assert (shown["state"], shown["detail"], shown["title"]) == ("error", "refused; reason: slower", "pose-nano 0.1.0")
    assert [report["details"] for report in shown["reports"]] == [
        ["refused", "reason: slower"],
        ["shadow", "agreement: 0.98"],
    ]
    assert len((await fleet.api("GET", f"/actions/{action_id}?reports=1")).json["reports"]) == 1
    await fleet.assign(device, release.id)
    both = (await fleet.api("GET", "/actions?device=box-1")).json
    assert [action["state"] for action in both["actions"]] == ["pending", "error"]
    assert (await fleet.api("GET", "/actions?open=true")).json["total"] == 1


async def test_cancelling_asks_the_device_or_does_not(fleet: FleetServer) -> None:
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    action_id = await fleet.assign(device, release.id)
    await device.ask("GET", f"/deploymentBase/{action_id}")
    assert (await fleet.api("POST", f"/actions/{action_id}/cancel")).json["state"] == "canceling"
    assert "cancelAction" in await device.poll()
    assert (await fleet.api("POST", f"/actions/{action_id}/cancel?force=true")).json["state"] == "canceled"
    assert (await fleet.api("POST", f"/actions/{action_id}/cancel")).status == 409
    assert "cancelAction" not in await device.poll()


async def test_deleted_device_is_gone(fleet: FleetServer) -> None:
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    await fleet.assign(device, release.id)
    assert (await fleet.api("DELETE", "/devices/box-1")).status == 204
    assert (await device.ask("GET")).status == 401
    assert (await fleet.api("GET", "/actions")).json["total"] == 0
    assert await fleet.device()  # the same id once more


# --- events -----------------------------------------------------------------------------------------------------------


class Listener:
    """Reads server-sent events."""

    def __init__(self, fleet: FleetServer, after: str = "", token: str = "") -> None:
        self._fleet = fleet
        self._after = after
        self._token = token or fleet.admin

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self._token}"} | ({"Last-Event-ID": self._after} if self._after else {})
        self._response = await self._fleet.session.get(f"{self._fleet.url}/api/v1/events", headers=headers)
        assert self._response.status == 200
        assert self._response.headers["Content-Type"] == "text/event-stream"
        assert await self._response.content.readuntil(b"\n\n") == b"retry: 3000\n\n"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._response.close()

    async def next(self) -> tuple[str, str, dict[str, Any]]:
        """Id, kind and data."""
        async with asyncio.timeout(5):
            block = (await self._response.content.readuntil(b"\n\n")).decode()
        fields = dict(line.split(": ", 1) for line in block.strip().split("\n"))
        return fields.get("id", ""), fields["event"], json.loads(fields["data"])


async def test_events_of_one_update(fleet: FleetServer) -> None:
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    async with Listener(fleet) as listener:
        action_id = await fleet.assign(device, release.id)
        await device.ask("GET", f"/deploymentBase/{action_id}")
        await device.report(action_id, "closed", "success", "committed")
        found = [await listener.next() for _ in range(3)]
    assert [(kind, data["state"]) for _, kind, data in found] == [
        ("action", "pending"), ("action", "retrieved"), ("action", "finished"),
    ]  # fmt: skip
    assert {(data["subject"], data["device"], data["rollout"]) for _, _, data in found} == {(action_id, "box-1", None)}
    ids = [int(number) for number, _, _ in found]
    assert ids == sorted(set(ids))


async def test_listener_that_comes_back_misses_nothing(fleet: FleetServer) -> None:
    async with Listener(fleet) as listener:
        await fleet.device("one")
        first, _, _ = await listener.next()
    await fleet.device("two")
    await fleet.device("three")
    async with Listener(fleet, after=first) as listener:
        assert [(await listener.next())[2]["subject"] for _ in range(2)] == ["two", "three"]


async def test_listener_of_before_the_restart_reads_everything_again(fleet: FleetServer) -> None:
    async with Listener(fleet, after="17") as listener:
        assert (await listener.next())[1] == "reset"
        await fleet.device()
        assert (await listener.next())[1] == "device"


async def test_feeds_are_bounded(fleet: FleetServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Listener(fleet):
        monkeypatch.setattr("ota.server.events.MAX_LISTENERS", fleet.services.feed.listeners)
        answer = await fleet.api("GET", "/events")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "30")


async def test_quiet_feed_stays_open(fleet: FleetServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ota.server.events.PING_S", 0.05)
    async with Listener(fleet) as listener:
        assert await listener._response.content.readuntil(b"\n\n") == b": still here\n\n"
        await fleet.device()
        while not (block := await listener._response.content.readuntil(b"\n\n")).startswith(b"id: "):
            pass
        assert b"box-1" in block


async def test_feed_of_a_dismissed_user_ends(fleet: FleetServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ota.server.events.PING_S", 0.05)
    viewer = await fleet.user("viewer")
    async with Listener(fleet, token=viewer) as listener:
        await fleet.device()
        assert (await fleet.api("PATCH", "/users/a-viewer", {"active": False})).status == 200
        async with asyncio.timeout(10):
            assert b"box-1" in await listener._response.content.read()  # to its end


# --- metrics and health -----------------------------------------------------------------------------------------------


async def test_metrics(fleet: FleetServer) -> None:
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    action_id = await fleet.assign(device, release.id)
    await device.poll()
    await device.report(action_id, "closed", "failure")
    assert (await fleet.ask("GET", "/metrics")).status == 401
    answer = await fleet.ask("GET", "/metrics", headers={"Authorization": f"Bearer {fleet.admin}"})
    figures = {
        (sample.name.removeprefix("recognizer_fleet_"), *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.raw.decode())
        for sample in family.samples
    }
    assert figures["feedback_total", "closed", "failure"] == 1
    assert figures["devices", "error"] == 1
    assert figures["actions", "error"] == 1
    route = "/{tenant}/controller/v1/{controller}"
    assert figures["request_seconds_count", *sorted(("GET", route, "200"))] == 1
    assert figures["repository_expires_seconds",] > 1.7e9
    assert b"box-1" not in answer.raw  # a label per device would grow without bound


async def test_health_says_when_the_database_is_gone(fleet: FleetServer) -> None:
    assert (await fleet.ask("GET", "/health")).json == {"status": "ok"}

    async def fails(function: Any) -> Any:
        raise OSError("disk is gone")

    fleet.services.store._backend.read = fails  # type: ignore[method-assign]
    answer = await fleet.ask("GET", "/health")
    assert (answer.status, answer.json) == (503, {"error": "not possible at the moment"})
    assert answer.headers["Retry-After"] == "10"


async def test_report_that_the_database_refuses_is_not_answered_as_taken(fleet: FleetServer) -> None:
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    action_id = await fleet.assign(device, release.id)
    await fleet.services.store.write(
        lambda c: c.execute(
            text("CREATE TRIGGER full BEFORE INSERT ON feedback BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        )
    )
    assert (await device.report(action_id, "closed", "success")).status == 503
    assert (await fleet.action(action_id)).state == "pending"
    await fleet.services.store.write(lambda c: c.execute(text("DROP TRIGGER full")))
    assert (await device.report(action_id, "closed", "success")).status == 200


async def test_answers_carry_what_keeps_browsers_safe(fleet: FleetServer) -> None:
    for path in ("/health", "/api/v1/me", "/nothing"):
        headers = (await fleet.ask("GET", path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert headers["Server"] == "recognizer-fleet"
    assert (await fleet.api("GET", "/me")).headers["Cache-Control"] == "no-store"
