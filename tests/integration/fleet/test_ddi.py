"""The device interface, over HTTP: what hawkBit documents, and what a device lives through."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fakes.fleet_server import FleetDevice, FleetServer, Repository, fleet_server
from fakes.hawkbit_exchanges import ACTION, ALL, CONTROLLER, MODULE, Exchange, differences
from fakes.postgres import Postgres
from sqlalchemy import Connection

from ota.store.rows import UpdateStatus
from ota.store.store import Store


async def arrange(fleet: FleetServer, exchange: Exchange) -> tuple[FleetDevice, int, int]:
    """Device, action and module in the state that the exchange begins in."""
    device = await fleet.device(CONTROLLER)
    if exchange.state != "asked":
        assert (await device.ask("PUT", "/configData", {"data": {"a": "b"}})).status == 200
    (release,) = await fleet.publish(7)
    if exchange.state in ("", "asked"):
        return device, 0, release.id
    forced = exchange.state == "forced"
    action_id = await fleet.assign(device, release.id, forced=forced, confirm=exchange.state == "waiting")
    if exchange.state == "running":
        await device.ask("GET", f"/deploymentBase/{action_id}")
        for detail in ("Download done", "Write firmware", "Reboot"):
            assert (await device.report(action_id, "proceeding", "none", detail)).status == 200
    elif exchange.state not in ("waiting", "forced"):
        await fleet.set_state(action_id, exchange.state)
    return device, action_id, release.id


@pytest.mark.parametrize("exchange", ALL, ids=str)
async def test_answers_as_hawkbit_documents(fleet: FleetServer, exchange: Exchange) -> None:
    device, action_id, module_id = await arrange(fleet, exchange)
    path = exchange.path.replace(f"/{ACTION}", f"/{action_id}").replace(f"/{MODULE}/", f"/{module_id}/")
    answer = await device.ask(exchange.method, path, exchange.request, **dict(exchange.headers))
    assert answer.status == exchange.status, answer.raw
    if exchange.answer is not None:
        assert differences(exchange.answer, answer.json) == []
    if "poll" in exchange.name:
        assert set(answer.json.get("_links", {})) == set(exchange.answer.get("_links", {}))


@pytest.mark.parametrize(
    ("begin", "kind", "execution", "finished", "end"),
    [
        ("retrieved", "deploymentBase", "proceeding", "none", "running"),
        ("retrieved", "deploymentBase", "scheduled", "none", "running"),
        ("retrieved", "deploymentBase", "resumed", "none", "running"),
        ("retrieved", "deploymentBase", "download", "none", "running"),
        ("retrieved", "deploymentBase", "downloaded", "none", "downloaded"),
        ("retrieved", "deploymentBase", "rejected", "none", "warning"),
        ("retrieved", "deploymentBase", "canceled", "none", "canceled"),
        ("running", "deploymentBase", "closed", "success", "finished"),
        ("running", "deploymentBase", "closed", "none", "finished"),
        ("running", "deploymentBase", "closed", "failure", "error"),
        ("pending", "deploymentBase", "closed", "success", "finished"),
        ("canceling", "deploymentBase", "proceeding", "none", "canceling"),
        ("canceling", "deploymentBase", "rejected", "none", "canceling"),
        ("canceling", "deploymentBase", "closed", "success", "finished"),
        ("canceling", "cancelAction", "closed", "success", "canceled"),
        ("canceling", "cancelAction", "canceled", "success", "canceled"),
        ("canceling", "cancelAction", "closed", "failure", "running"),
        ("canceling", "cancelAction", "rejected", "none", "running"),
        ("canceling", "cancelAction", "proceeding", "none", "canceling"),
    ],
)
async def test_report_moves_the_action(
    fleet: FleetServer, begin: str, kind: str, execution: str, finished: str, end: str
) -> None:
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    action_id = await fleet.assign(device, release.id)
    await fleet.set_state(action_id, begin)
    assert (await device.report(action_id, execution, finished, "why", kind=kind)).status == 200
    action = await fleet.action(action_id)
    assert (action.state, action.open) == (end, end not in ("finished", "error", "canceled"))
    assert action.detail == "why"


async def test_one_update_from_assignment_to_success(fleet: FleetServer) -> None:
    device = await fleet.device()
    assert set(await device.poll()) == {"configData"}
    assert (await device.ask("PUT", "/configData", {"data": {"site": "north"}})).status == 200
    assert await device.poll() == {}
    content = b"the bundle " * 1000
    (release,) = await fleet.publish(3, content=content)
    action_id = await fleet.assign(device, release.id)
    assert (await fleet.device_row(device.id)).update_status is UpdateStatus.PENDING

    link = urlsplit((await device.poll())["deploymentBase"])
    assert link.path == f"{device.base}/deploymentBase/{action_id}"
    body = (await device.ask("GET", f"/deploymentBase/{action_id}?{link.query}")).json
    (chunk,) = body["deployment"]["chunks"]
    assert (chunk["part"], chunk["name"], chunk["version"]) == ("pose", "pose-nano", "0.3.0")
    assert chunk["metadata"] == [{"key": "tuf.target", "value": "pose/pose-nano-0.3.0.tar.zst"}]
    assert (await fleet.action(action_id)).state == "retrieved"

    (artifact,) = chunk["artifacts"]
    download = urlsplit(artifact["_links"]["download-http"]["href"])
    got = await fleet.ask("GET", download.path, headers=device.headers)
    assert got.status == 200
    assert got.raw == content + b"\x03"
    assert artifact["hashes"] == {
        "sha256": hashlib.sha256(got.raw).hexdigest(),
        "sha1": hashlib.sha1(got.raw, usedforsecurity=False).hexdigest(),
        "md5": hashlib.md5(got.raw, usedforsecurity=False).hexdigest(),
    }
    assert artifact["size"] == len(got.raw)

    assert (await device.report(action_id, "proceeding", "none", "probation")).status == 200
    assert (await device.report(action_id, "closed", "success", "committed")).status == 200
    assert set(await device.poll()) == {"installedBase", "configData"}  # its versions have changed
    shown = (await fleet.api("GET", f"/devices/{device.id}")).json
    assert shown["update_status"] == "in_sync"
    assert shown["installed"]["pose"]["version"] == "0.3.0"
    assert shown["actions"][0]["state"] == "finished"


async def test_poll_with_its_etag_costs_no_body(fleet: FleetServer) -> None:
    device = await fleet.device()
    first = await device.ask("GET")
    etag = first.headers["ETag"]
    again = await device.ask("GET", If_None_Match=etag)
    assert (again.status, again.raw) == (304, b"")
    assert (await device.ask("GET", If_None_Match=f'"other", {etag}')).status == 304
    (release,) = await fleet.publish(1)
    await fleet.assign(device, release.id)
    changed = await device.ask("GET", If_None_Match=etag)
    assert changed.status == 200
    assert changed.headers["ETag"] != etag


async def test_forcing_an_action_changes_its_link(fleet: FleetServer) -> None:
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    await fleet.assign(device, release.id)
    before = (await device.poll())["deploymentBase"]
    await fleet.assign(device, release.id, forced=True)
    assert (await device.poll())["deploymentBase"] != before


async def test_attribute_modes(fleet: FleetServer) -> None:
    device = await fleet.device()

    async def put(mode: str | None, **data: str) -> dict[str, Any]:
        body = {"data": data} | ({"mode": mode} if mode else {})
        assert (await device.ask("PUT", "/configData", body)).status == 200
        return dict((await fleet.device_row(device.id)).attributes)

    assert await put(None, a="1", b="2") == {"a": "1", "b": "2"}
    assert await put("merge", b="3", c="4") == {"a": "1", "b": "3", "c": "4"}
    assert await put("remove", a="", x="") == {"b": "3", "c": "4"}
    assert await put("replace", z="9") == {"z": "9"}


async def test_what_a_device_runs_is_what_it_says_of_itself(fleet: FleetServer) -> None:
    device, plain = await fleet.device(), await fleet.device("plain")
    said = {"agent_version": "0.1.0", "model.action-fight": "pose-nano 0.1.0", "number.action-fight": "1"}

    async def put(**data: str) -> dict[str, Any]:
        assert (await device.ask("PUT", "/configData", {"data": data, "mode": "replace"})).status == 200
        return dict((await fleet.api("GET", f"/devices/{device.id}")).json["installed"])

    assert await put(**said) == {}  # a server that was begun anew has yet to read its repository
    assert (await plain.ask("PUT", "/configData", {"data": {"site": "berlin"}})).status == 200
    assert "configData" not in await device.poll()
    (release,) = await fleet.publish(1, slot="action/fight")
    assert "configData" in await device.poll()
    assert "configData" not in await plain.poll()
    found = await put(**said)
    assert (found["action/fight"]["release"], found["action/fight"]["number"]) == (release.id, 1)
    assert "configData" not in await device.poll()
    assert await put(agent_version="0.1.0") == {}  # it was left aside at the device's start


async def test_too_many_attributes_are_refused_whole(fleet: FleetServer) -> None:
    device = await fleet.device()
    assert (await device.ask("PUT", "/configData", {"data": {str(n): "" for n in range(100)}})).status == 200
    answer = await device.ask("PUT", "/configData", {"data": {"one more": ""}})
    assert answer.status == 403
    assert len((await fleet.device_row(device.id)).attributes) == 100


async def test_action_that_is_cancelled_while_it_is_fetched_is_not_handed_out(fleet: FleetServer) -> None:
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    action_id = await fleet.assign(device, release.id)
    await device.poll()
    store, begun, go_on = fleet.services.store, threading.Event(), threading.Event()

    def busy(_: Connection) -> None:
        begun.set()
        go_on.wait(10)

    working = asyncio.create_task(store.write(busy))
    await asyncio.to_thread(begun.wait, 10)
    cancelling = asyncio.create_task(fleet.api("POST", f"/actions/{action_id}/cancel"))
    await waiting_writes(store, 1)
    fetching = asyncio.create_task(device.ask("GET", f"/deploymentBase/{action_id}"))
    await waiting_writes(store, 2)  # it was still there when the device asked
    go_on.set()
    await working
    assert (await cancelling).json["state"] == "canceled"
    assert (await fetching).status == 404


async def waiting_writes(store: Store, number: int) -> None:
    async with asyncio.timeout(10):
        while len(store._jobs) != number:
            await asyncio.sleep(0.01)


async def test_newer_assignment_in_the_slot_replaces_the_older(fleet: FleetServer) -> None:
    device = await fleet.device()
    first, second, third = await fleet.publish(1, 2, 3)
    unfetched = await fleet.assign(device, first.id)
    fetched = await fleet.assign(device, second.id)
    assert (await fleet.action(unfetched)).state == "canceled"
    await device.ask("GET", f"/deploymentBase/{fetched}")
    newest = await fleet.assign(device, third.id)
    assert (await fleet.action(fetched)).state == "canceling"
    assert set(await device.poll()) >= {"cancelAction"}  # before it begins the next
    assert "deploymentBase" not in await device.poll()
    assert (await device.report(fetched, "closed", "success", kind="cancelAction")).status == 200
    assert f"/deploymentBase/{newest}?" in (await device.poll())["deploymentBase"]


async def test_slots_do_not_disturb_each_other(fleet: FleetServer) -> None:
    device = await fleet.device()
    (pose,) = await fleet.publish(1)
    (fight,) = await fleet.publish(1, slot="action/fight")
    one, two = await fleet.assign(device, pose.id), await fleet.assign(device, fight.id)
    assert f"/deploymentBase/{one}?" in (await device.poll())["deploymentBase"]
    await device.report(one, "closed", "success")
    assert f"/deploymentBase/{two}?" in (await device.poll())["deploymentBase"]
    assert (await fleet.device_row(device.id)).update_status is UpdateStatus.PENDING
    await device.report(two, "closed", "failure")
    shown = (await fleet.api("GET", f"/devices/{device.id}")).json
    assert (set(shown["installed"]), shown["update_status"]) == ({"pose"}, "error")


async def test_previous_release_is_remembered_for_the_way_back(fleet: FleetServer) -> None:
    device = await fleet.device()
    first, second = await fleet.publish(1, 2)
    await device.report(await fleet.assign(device, first.id), "closed", "success")
    action = await fleet.action(await fleet.assign(device, second.id))
    assert action.previous_release_id == first.id


async def test_answer_that_was_lost_can_be_had_again(fleet: FleetServer) -> None:
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    action_id = await fleet.assign(device, release.id)
    for _ in range(3):
        assert (await device.report(action_id, "closed", "success", "committed")).status == 200
    assert (await device.report(action_id, "closed", "failure", "committed")).status == 410
    assert (await device.report(action_id, "proceeding")).status == 410
    assert await fleet.reports(action_id) == [("deployment", "closed", "success")]


async def test_confirmation_and_saying_yes_to_everything(fleet: FleetServer) -> None:
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    action_id = await fleet.assign(device, release.id, confirm=True)
    assert set(await device.poll()) == {"confirmationBase", "configData"}
    denied = await device.ask("POST", f"/confirmationBase/{action_id}/feedback", {"confirmation": "denied"})
    assert denied.status == 200
    assert (await fleet.action(action_id)).state == "waiting"
    yes = await device.ask("POST", "/confirmationBase/activateAutoConfirm", {"initiator": "owner", "remark": "always"})
    assert yes.status == 200
    assert (await fleet.action(action_id)).state == "pending"
    base = (await device.ask("GET", "/confirmationBase")).json
    assert base["autoConfirm"]["active"] is True
    assert (base["autoConfirm"]["initiator"], base["autoConfirm"]["remark"]) == ("owner", "always")
    again = await fleet.action(await fleet.assign(device, release.id, confirm=True))
    assert again.state == "pending"
    assert (await device.ask("POST", "/confirmationBase/deactivateAutoConfirm")).status == 200
    once_more = await fleet.action(await fleet.assign(device, release.id, confirm=True))
    assert once_more.state == "waiting"


async def test_action_of_another_device_does_not_exist(fleet: FleetServer) -> None:
    mine, other = await fleet.device("mine"), await fleet.device("other")
    (release,) = await fleet.publish(1)
    action_id = await fleet.assign(mine, release.id)
    assert (await other.ask("GET", f"/deploymentBase/{action_id}")).status == 404
    assert (await other.report(action_id, "closed", "failure")).status == 404
    assert (await fleet.action(action_id)).state == "pending"


async def test_old_clients_are_understood(fleet: FleetServer) -> None:
    """SWUpdate sends `id` and `time`, rauc-hawkbit an empty progress or one in per cent."""
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    action_id = await fleet.assign(device, release.id)
    for progress in ({}, {"percentage": 20}, {"cnt": 1, "of": 2}, None):
        body = {
            "id": str(action_id), "time": "20261126T120000",
            "status": {"result": {"finished": "none", "progress": progress}, "execution": "proceeding", "details": None},
        }  # fmt: skip
        assert (await device.ask("POST", f"/deploymentBase/{action_id}/feedback", body)).status == 200
    shown = (await fleet.api("GET", f"/actions/{action_id}")).json
    assert [report["progress"] for report in shown["reports"]] == [{}, {"cnt": 1, "of": 2}, {}, {}]


async def test_log_of_one_action_is_bounded_but_takes_its_end(
    fleet: FleetServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ota.store.feedback.MAX_REPORTS", 5)
    device = await fleet.device()
    (release,) = await fleet.publish(1)
    action_id = await fleet.assign(device, release.id)
    answers = [(await device.report(action_id, "proceeding")).status for _ in range(7)]
    assert answers == [200] * 5 + [403] * 2
    assert (await device.report(action_id, "closed", "success")).status == 200
    assert (await fleet.action(action_id)).state == "finished"


async def test_same_on_postgresql(tmp_path: Path, postgres: Postgres) -> None:
    """One update, one roll-back by the operator, and texts that PostgreSQL is particular about."""
    url = await asyncio.to_thread(postgres.create)
    async with fleet_server(tmp_path, repository=Repository(tmp_path / "r"), database=url) as fleet:
        await test_one_update_from_assignment_to_success(fleet)
        (device,) = (await fleet.api("GET", "/devices")).json["devices"]
        box = FleetDevice(fleet, device["id"], {"Authorization": f"TargetToken {await renewed(fleet, device['id'])}"})
        (release,) = await fleet.publish(4)
        action_id = await fleet.assign(box, release.id)
        assert (await box.report(action_id, "proceeding", "none", "nul\x00 \U0001f3a5")).status == 200
        assert (await box.ask("PUT", "/configData", {"data": {"a\x00": "b\x00"}})).status == 200
        assert (await box.report(action_id, "closed", "failure", "reason: slower")).status == 200
        assert (await fleet.api("GET", "/devices?search=%00")).status == 400
        assert (await fleet.api("PATCH", f"/devices/{box.id}", {"name": "a\x00b"})).status == 400
        assert (await fleet.api("POST", "/users", {"name": "x\x00", "role": "viewer"})).status == 400
        assert (await fleet.api("GET", "/actions")).json["actions"][0]["detail"] == "reason: slower"
        await fleet.services.heard.flush()
        assert (await fleet.api("GET", f"/devices/{box.id}")).json["status"] == "online"


async def renewed(fleet: FleetServer, controller_id: str) -> str:
    return str((await fleet.api("POST", f"/devices/{controller_id}/token")).json["token"])


async def test_links_are_those_of_a_trusted_proxy_or_as_configured(fleet: FleetServer) -> None:
    device = await fleet.device()
    forged = await device.ask("GET", X_Forwarded_Host="evil.example", X_Forwarded_Proto="https")
    assert forged.json["_links"]["configData"]["href"].startswith(f"http://127.0.0.1:{fleet.port}/")


async def test_many_at_once_lose_nothing(fleet: FleetServer) -> None:
    devices = [await fleet.device(f"box-{n}") for n in range(20)]
    (release,) = await fleet.publish(1)
    ids = [await fleet.assign(device, release.id) for device in devices]
    before = fleet.services.store.commits
    sent = [(device, action_id, n) for n in range(10) for device, action_id in zip(devices, ids, strict=True)]
    answers = await asyncio.gather(
        *(device.report(action_id, "proceeding", "none", str(n)) for device, action_id, n in sent)
    )
    assert {answer.status for answer in answers} == {200}
    assert sum([len(await fleet.reports(action_id)) for action_id in ids]) == 200
    assert fleet.services.store.commits - before < 200  # they shared commits
