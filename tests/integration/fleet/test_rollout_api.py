"""Rollouts by the management interface of a running server, and devices that speak DDI to it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.fleet_server import FleetDevice, FleetServer, Repository, fleet_server

from ota.rollouts import fleet


class Site:
    """A server with a signed release and devices, all driven over HTTP."""

    def __init__(self, server: FleetServer, first: int, second: int, boxes: list[FleetDevice]) -> None:
        self.server = server
        self.first = first
        self.second = second
        self.boxes = {box.id: box for box in boxes}

    async def call(
        self, method: str, path: str, body: Any = None, *, status: int = 200, token: str | None = None
    ) -> Any:
        answer = await self.server.api(method, path, body, token=token)
        assert answer.status == status, (answer.status, answer.raw)
        return answer.json

    async def create(self, status: int = 201, **given: Any) -> Any:
        return await self.call("POST", "/rollouts", {"name": "nano", "release": self.second, **given}, status=status)

    async def move(
        self, rollout: int, what: str, body: Any = None, *, status: int = 200, token: str | None = None
    ) -> Any:
        return await self.call("POST", f"/rollouts/{rollout}/{what}", body, status=status, token=token)

    async def until(self, rollout: int, holds: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + 30
        while True:
            found = await self.call("GET", f"/rollouts/{rollout}")
            if holds(found):
                return found
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.05)

    async def answer(self, finished: str = "success", number: int = 1000) -> list[str]:
        """So many of the devices that find something to install end it; who."""
        done: list[str] = []
        for name, box in self.boxes.items():
            links = await box.poll()
            if "deploymentBase" in links and len(done) < number:
                action = int(links["deploymentBase"].partition("?")[0].rpartition("/")[2])
                assert (await box.report(action, "closed", finished)).status == 200
                done.append(name)
        return done


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with fleet_server(tmp_path, repository=Repository(tmp_path / "repository")) as server:
        first, second = await server.publish(6, 7)
        boxes = [await server.device(f"box-{n:02}") for n in range(10)]
        for box in boxes:
            data = {"site": "berlin" if box.id < "box-05" else "paris"}
            assert (await box.ask("PUT", "/configData", {"mode": "merge", "data": data})).status == 200
        yield Site(server, first.id, second.id, boxes)


def count(rollout: Any, at: str) -> list[int]:
    return [group["counts"][at] for group in rollout["groups"]]


async def test_a_rollout_from_preview_to_its_end(site: Site) -> None:
    found = await site.call("POST", "/rollouts/preview", {"release": site.second, "filter": "site==berlin"})
    assert found == {
        "matched": 5, "already": 0, "newer": 0, "lacking": 0, "busy": {}, "devices": 5,
        "groups": [
            {"name": "canary", "devices": 1, "needed": 1, "limit": 1}, {"name": "rest", "devices": 4, "needed": 4, "limit": 1},
        ],
    }  # fmt: skip
    made = await site.create(filter="site==berlin")
    assert made["state"] == "ready"
    assert made["preview"]["devices"] == 5
    assert await site.answer() == []  # nothing before the start
    rollout = made["id"]
    assert (await site.move(rollout, "start"))["state"] == "running"
    await site.until(rollout, lambda found: count(found, "open") == [1, 0])
    assert len(await site.answer()) == 1
    await site.until(rollout, lambda found: count(found, "open") == [0, 4])
    assert set(await site.answer()) <= {"box-00", "box-01", "box-02", "box-03", "box-04"}
    done = await site.until(rollout, lambda found: found["state"] == "finished")
    assert done["reason"] == "5 succeeded"
    assert done["ended"] is not None
    members = await site.call("GET", f"/rollouts/{rollout}/devices?group=rest&at=succeeded")
    assert members["total"] == 4
    assert (await site.call("GET", "/devices?filter=pose.version==0.7.0"))["total"] == 5


async def test_a_bad_canary_is_rolled_back_by_itself(site: Site) -> None:
    first = await site.create(release=site.first, plan={"groups": [{"name": "all"}]})
    await site.move(first["id"], "start")
    await site.until(first["id"], lambda found: count(found, "open") == [10])
    await site.answer()
    await site.until(first["id"], lambda found: found["state"] == "finished")
    made = await site.create(plan={"groups": [{"name": "canary", "count": 4, "error_percent": 50}, {"name": "rest"}]})
    rollout = made["id"]
    await site.move(rollout, "start")
    await site.until(rollout, lambda found: count(found, "open") == [4, 0])
    await site.answer("success", 2)
    await site.answer("failure", 2)
    back = await site.until(rollout, lambda found: found["state"] == "rolling_back")
    assert "2 of 4 devices failed (50 %, limit 50 %)" in back["reason"]
    await site.until(rollout, lambda found: count(found, "returning") == [2, 0])
    assert len(await site.answer()) == 2
    done = await site.until(rollout, lambda found: found["state"] == "rolled_back")
    assert count(done, "waiting") == [0, 6]
    assert (await site.call("GET", "/devices?filter=pose.version==0.6.0"))["total"] == 10


async def test_pause_resume_abort(site: Site) -> None:
    rollout = (await site.create())["id"]
    await site.move(rollout, "resume", status=409)
    await site.move(rollout, "start")
    await site.until(rollout, lambda found: count(found, "open") == [1, 0])
    paused = await site.move(rollout, "pause")
    assert (paused["state"], paused["reason"]) == ("paused", "paused by admin")
    assert count(paused, "waiting") == [1, 9]
    assert await site.answer() == []  # not even the canary, which was offered it before
    await asyncio.sleep(1)
    assert count(await site.call("GET", f"/rollouts/{rollout}"), "waiting") == [1, 9]
    await site.move(rollout, "resume")
    await site.until(rollout, lambda found: count(found, "open") == [1, 0])
    await site.answer()
    await site.until(rollout, lambda found: count(found, "open") == [0, 9])
    assert (await site.move(rollout, "abort"))["state"] == "aborted"
    await site.until(rollout, lambda found: count(found, "left") == [0, 9])
    assert await site.answer() == []
    await site.move(rollout, "abort", status=409)


async def test_devices_that_are_hurried_count_in_their_rollout(site: Site) -> None:
    """The canary has begun and waits for its window; another one's turn has not come."""
    rollout = (await site.create())["id"]
    await site.move(rollout, "start")
    await site.until(rollout, lambda found: count(found, "open") == [1, 0])
    members = (await site.call("GET", f"/rollouts/{rollout}/devices"))["devices"]
    canary, other = [next(one["id"] for one in members if one["group"] == group) for group in ("canary", "rest")]
    link = (await site.boxes[canary].poll())["deploymentBase"]
    action = int(link.partition("?")[0].rpartition("/")[2])
    await site.boxes[canary].report(action, "proceeding", "none", "waiting: outside the maintenance windows")
    hurried = {"release": site.second, "forced": True}
    made = await site.call("POST", f"/devices/{canary}/actions", hurried, status=201)
    assert (made["id"], made["forced"], made["rollout"], made["state"]) == (action, True, rollout, "running")
    assert (await site.boxes[canary].poll())["deploymentBase"] != link  # it has to look once more
    body = (await site.boxes[canary].ask("GET", f"/deploymentBase/{action}")).json
    assert body["deployment"]["update"] == "forced"
    made = await site.call("POST", f"/devices/{other}/actions", hurried, status=201)
    assert (made["forced"], made["rollout"]) == (True, rollout)
    assert count(await site.call("GET", f"/rollouts/{rollout}"), "open") == [1, 1]
    assert sorted(await site.answer()) == sorted([canary, other])
    await site.until(rollout, lambda found: count(found, "open") == [0, 8])
    await site.answer()
    done = await site.until(rollout, lambda found: found["state"] == "finished")
    assert done["reason"] == "10 succeeded"


async def test_a_failed_group_without_a_way_back_waits_for_a_person(site: Site) -> None:
    rollout = (await site.create(plan={"roll_back": "none"}))["id"]
    await site.move(rollout, "start")
    await site.until(rollout, lambda found: count(found, "open") == [1, 0])
    await site.answer("failure")
    stopped = await site.until(rollout, lambda found: found["state"] == "paused")
    assert stopped["groups"][0]["state"] == "failed"
    refused = await site.move(rollout, "resume", status=409)
    assert "resume with accept" in refused["error"]
    await site.move(rollout, "resume", {"accept": True})
    await site.until(rollout, lambda found: count(found, "open") == [0, 9])


async def test_approval_takes_a_second_person(site: Site) -> None:
    plan = {"groups": [{"name": "canary", "count": 1, "approval": True}, {"name": "rest", "approval": True}]}
    made = await site.create(plan=plan)
    rollout = made["id"]
    assert (made["state"], made["waits_for_approval"]) == ("draft", "canary")
    await site.move(rollout, "start", status=409)
    assert "second person" in (await site.move(rollout, "approve", status=409))["error"]
    operator = await site.server.user("operator")
    assert (await site.move(rollout, "approve", token=operator))["state"] == "ready"
    await site.move(rollout, "start")
    await site.until(rollout, lambda found: count(found, "open") == [1, 0])
    await site.answer()
    await site.until(rollout, lambda found: found["waits_for_approval"] == "rest")
    await site.move(rollout, "approve", token=operator)
    found = await site.until(rollout, lambda found: count(found, "open") == [0, 9])
    assert [group["approved_by"] for group in found["groups"]] == ["a-operator", "a-operator"]


async def test_roles_and_audit(site: Site) -> None:
    viewer, operator = await site.server.user("viewer"), await site.server.user("operator")
    proposal = {"name": "x", "release": site.second}
    assert (await site.server.api("POST", "/rollouts", proposal, token=viewer)).status == 403
    made = await site.call("POST", "/rollouts", proposal, status=201, token=operator)
    assert made["created_by"] == "a-operator"
    for what in ("start", "pause", "resume", "abort", "approve"):
        assert (await site.server.api("POST", f"/rollouts/{made['id']}/{what}", token=viewer)).status == 403
        assert (await site.server.api("POST", f"/rollouts/{made['id']}/{what}", token="wrong")).status == 401
    assert (await site.call("GET", "/rollouts", token=viewer))["total"] == 1
    assert (await site.call("POST", "/rollouts/preview", {"release": site.second}, token=viewer))["devices"] == 10
    for what in ("start", "pause", "resume", "abort"):
        await site.move(made["id"], what, token=operator)
    await site.move(made["id"], "pause", status=409, token=operator)  # refused: not a change, not in the log
    entries = (await site.call("GET", "/audit?what=rollout"))["audit"]
    mine = [(entry["who"], entry["what"]) for entry in reversed(entries) if entry["who"] != "fleet-server"]
    assert mine == [("a-operator", f"rollout.{what}") for what in ("create", "start", "pause", "resume", "abort")]
    assert {entry["subject"] for entry in entries} == {f"{made['id']} x"}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"name": "x"}, "release: Field required"),
        ({"name": "x", "release": 1, "filter": "site=berlin"}, "column 5"),
        (
            {"name": "x", "release": 1, "plan": {"groups": [{"name": "a", "percent": 5}]}},
            "the last group takes what is left",
        ),
        ({"name": "", "release": 1}, "name: "),
        ({"name": "x", "release": 1, "speed": 1}, "speed: "),
    ],
)
async def test_what_does_not_hold_is_refused_with_the_place(site: Site, body: Any, problem: str) -> None:
    refused = await site.call("POST", "/rollouts", body, status=400)
    assert problem in refused["error"]


async def test_filters_of_a_plan_are_bounded_together(site: Site) -> None:
    """Every device is held against each of them, for whoever may look."""
    viewer = await site.server.user("viewer")

    def proposal(text: str) -> Any:
        groups = [{"name": f"g{n}", "count": 1, "filter": text} for n in range(49)]
        return {"release": site.second, "filter": "site==*", "plan": {"groups": [*groups, {"name": "rest"}]}}

    large = proposal("id>9,name>9;" + "id=in=(" + ",".join(f"box-{n}" for n in range(100)) + "),site==berlin")
    assert (await site.call("POST", "/rollouts/preview", large, token=viewer))["devices"] == 10
    over = proposal(",".join(["id>9"] * 5))
    refused = await site.call("POST", "/rollouts/preview", over, status=400, token=viewer)
    assert "246 comparisons, more than 200: name the values of a field in one list" in refused["error"]
    await site.call("POST", "/rollouts", over | {"name": "x"}, status=400)


async def test_looking_at_every_device_holds_up_nobody_else(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer, services = await site.server.user("viewer"), site.server.services
    may_end, at_once, most = threading.Event(), 0, 0
    choose, matching = fleet.choose, fleet.matching

    def slow(real: Callable[..., Any]) -> Callable[..., Any]:
        def look(*given: Any, **named: Any) -> Any:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            may_end.wait(30)
            at_once -= 1
            return real(*given, **named)

        return look

    monkeypatch.setattr(fleet, "choose", slow(choose))
    monkeypatch.setattr(fleet, "matching", slow(matching))
    proposal = {"release": site.second}
    looking = [asyncio.create_task(site.call("POST", "/rollouts/preview", proposal, token=viewer)) for _ in range(3)]
    looking += [asyncio.create_task(site.call("GET", "/devices?filter=site==berlin", token=viewer)) for _ in range(3)]
    try:
        while not at_once:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            await asyncio.gather(*(box.poll() for box in site.boxes.values()), services.polls.look("box-00"))
            assert (await site.server.ask("GET", "/health")).status == 200
        assert not any(task.done() for task in looking)
    finally:
        may_end.set()
    await asyncio.gather(*looking)
    assert most == 1


async def test_refusals(site: Site) -> None:
    await site.create(release=999, status=404)
    assert "column 9" in (await site.call("GET", "/devices?filter=site==a;;b", status=400))["error"]
    await site.call("GET", "/rollouts/77", status=404)
    await site.call("GET", "/rollouts/x", status=404)
    await site.call("GET", "/rollouts?state=odd", status=400)
    none = (await site.create(filter="site==rome"))["id"]
    assert "takes no device" in (await site.move(none, "start", status=409))["error"]
    first = (await site.create(name="first"))["id"]
    second = (await site.create(name="second"))["id"]
    await site.move(first, "start")
    assert "in rollout first" in (await site.move(second, "start", status=409))["error"]
    preview = await site.call("POST", "/rollouts/preview", {"release": site.second})
    assert preview["busy"] == {"first": 10}


async def test_who_reports_no_such_slot_is_counted_before_anything_starts(site: Site) -> None:
    for box, models in zip(site.boxes.values(), (["pose"], ["pose", "action-fight"], []), strict=False):
        data = {"agent_version": "0.1.0"} | {f"model.{slot}": "some 1.0" for slot in models}
        assert (await box.ask("PUT", "/configData", {"mode": "merge", "data": data})).status == 200
    for slot, lacking in (("pose", 0), ("action/fight", 1), ("action/fihgt", 2), ("configuration", 0)):
        (release,) = await site.server.publish(1, slot=slot)
        found = await site.call("POST", "/rollouts/preview", {"release": release.id})
        assert (found["matched"], found["lacking"]) == (10, lacking)


async def test_metrics_and_feed(site: Site) -> None:
    headers = {"Authorization": f"Bearer {site.server.admin}"}
    async with site.server.session.get(f"{site.server.url}/api/v1/events", headers=headers) as feed:
        rollout = (await site.create())["id"]
        await site.move(rollout, "start")
        await site.until(rollout, lambda found: count(found, "open") == [1, 0])
        told = b""
        while b"offered" not in told:
            told += await asyncio.wait_for(feed.content.readany(), 10)
    assert b"event: rollout\n" in told
    assert b'"group": "canary", "state": "running"' in told
    text = (await site.server.ask("GET", "/metrics", headers=headers)).raw.decode()
    assert 'recognizer_fleet_rollouts{state="running"} 1.0' in text
    assert f'recognizer_fleet_rollout_devices{{at="open",group="canary",rollout="{rollout}"}} 1.0' in text
    assert 'recognizer_fleet_rollout_moves_total{what="offered"} 1.0' in text
