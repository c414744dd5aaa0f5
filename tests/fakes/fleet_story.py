"""A fleet in the middle of its life, for looking at the web page: three sites, a rollout in its second group, others before it."""

from __future__ import annotations

import random

from fakes.fleet_server import FleetServer
from sqlalchemy import Connection, select

from ota.store import actions, devices, feedback, tables
from ota.store.feedback import DEPLOYMENT
from ota.store.rows import ReleaseRow, Report

MINUTE_MS = 60_000
SITES = ("berlin", "hamburg", "wien")
REFUSALS = (
    "slower: 31.4 ms a picture, 19.8 ms before (times 1.59, 1.50 allowed)",
    "unhealthy: camera hall-2 frozen during probation",
    "golden: 2 of 8 answers beyond tolerance",
)


def fill(connection: Connection, now_ms: int, known: dict[int, ReleaseRow]) -> None:
    """36 devices with what they say of themselves; most run release 6, all a fight model."""
    chance = random.Random(5)
    for number in range(36):
        site = SITES[number % 3]
        name = f"{site}-{'gate' if number % 2 else 'hall'}-{number // 3 + 1:02}"
        device = devices.create(
            connection, name, name=f"{site.title()} {'gate' if number % 2 else 'hall'} {number // 3 + 1}",
            token_hash="0" * 64, now_ms=now_ms - 40 * 24 * 60 * MINUTE_MS, address=f"10.{number % 3}.0.{20 + number}", seen=True,
        )  # fmt: skip
        health = "ok" if number % 11 else "degraded"
        kind = "jetson-orin-nx" if number % 4 == 0 else "x86-cpu"
        attributes = {
            "site": site,
            "agent_version": "0.1.0",
            "device": kind,
            "health": health,
            "cameras": str(number % 4 + 1),
        }
        devices.set_attributes(connection, device.id, "merge", attributes)
        devices.change(
            connection,
            device.id,
            last_seen_ms=now_ms - (9 * 60 * MINUTE_MS if number in {7, 22} else chance.randrange(25_000)),
        )
        for release in (known[1], known[6]):
            run_through(connection, device.id, release.id, "success", now_ms - 12 * 24 * 60 * MINUTE_MS)
    devices.create(connection, "wien-lager-01", token_hash="0" * 64, now_ms=now_ms - 90 * MINUTE_MS)


def run_through(connection: Connection, device_id: int, release_id: int, finished: str, now_ms: int) -> None:
    action = actions.assign(connection, device_id, release_id, by="setup", now_ms=now_ms)
    feedback.add(connection, device_id, action.id, Report(DEPLOYMENT, "closed", finished), now_ms=now_ms)


def answer(connection: Connection, rollout_id: int, finished: str, number: int, now_ms: int) -> int:
    """So many of the rollout's open actions end so; how many were there to."""
    table = tables.actions.c
    mine = select(table.id, table.device_id).where(table.rollout_id == rollout_id, table.open).order_by(table.id)
    rows = connection.execute(mine.limit(number)).all()
    for index, row in enumerate(rows):
        details = (
            (REFUSALS[index % len(REFUSALS)],)
            if finished == "failure"
            else ("probation passed after 600 s, agreement 0.997",)
        )
        said = Report(DEPLOYMENT, "closed", finished, details=details)
        feedback.add(connection, row.device_id, row.id, said, now_ms=now_ms)
    return len(rows)


async def tell_it(server: FleetServer) -> dict[str, int]:
    """The story on a running server with releases 6, 7, 8 of pose and 1 of action/fight; rollout ids by name."""
    store, clock_ms = server.services.store, server.services.clock_ms
    await server.publish(6, 7, 8)
    await server.publish(1, slot="action/fight")
    rows = await server.releases()
    known = {row.number: row for row in rows}
    await store.write(fill, clock_ms(), known)
    ids: dict[str, int] = {}

    async def create(name: str, release: int, **given: object) -> int:
        made = await server.api("POST", "/rollouts", {"name": name, "release": known[release].id, **given})
        assert made.status == 201, made.raw
        ids[name] = made.json["id"]
        return ids[name]

    async def move(rollout: int, what: str, body: object = None) -> None:
        assert (await server.api("POST", f"/rollouts/{rollout}/{what}", body)).status == 200

    async def until(rollout: int, at: str, counts: list[int]) -> None:
        import asyncio

        for _ in range(400):
            found = (await server.api("GET", f"/rollouts/{rollout}")).json
            if [group["counts"][at] for group in found["groups"]] == counts:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(found)

    bad = await create(
        "pose-nano 0.7 Hamburg",
        7,
        filter="site==hamburg",
        plan={"groups": [{"name": "canary", "count": 4, "error_percent": 50}, {"name": "rest"}]},
    )
    await move(bad, "start")
    await until(bad, "open", [4, 0])
    await store.write(answer, bad, "success", 2, clock_ms())
    await store.write(answer, bad, "failure", 2, clock_ms())
    server.services.feed.tell("action", 0, rollout=bad, device="hamburg-gate-03", state="error", detail=REFUSALS[0])
    await until(bad, "returning", [2, 0])
    await store.write(answer, bad, "success", 2, clock_ms())
    server.services.feed.tell("action", 0, rollout=bad, device="hamburg-hall-01", state="finished", detail="")
    await until(bad, "returned", [2, 0])

    stopped = await create("pose-nano 0.7 Wien", 7, filter="site==wien")
    await move(stopped, "start")
    await until(stopped, "open", [2, 0])
    await store.write(answer, stopped, "success", 1, clock_ms())
    await move(stopped, "abort")
    await until(stopped, "left", [1, 0])

    going = await create(
        "pose-nano 0.8 everywhere",
        8,
        plan={
            "groups": [
                {"name": "canary", "percent": 10, "error_percent": 10},
                {"name": "a third", "percent": 33, "wait_s": 0},
                {"name": "rest", "wait_s": 3600},
            ]
        },
    )
    await move(going, "start")
    await until(going, "open", [4, 0, 0])
    await store.write(answer, going, "success", 4, clock_ms())
    server.services.feed.tell(
        "action",
        0,
        rollout=going,
        device="berlin-hall-01",
        state="finished",
        detail="probation passed after 600 s, agreement 0.997",
    )
    await until(going, "open", [0, 13, 0])
    await store.write(answer, going, "success", 5, clock_ms())
    await store.write(answer, going, "failure", 1, clock_ms())
    await create(
        "pose-nano 0.8 second shift",
        8,
        filter="site==wien;id==*-lager-*",
        plan={"groups": [{"name": "canary", "count": 1, "approval": True}, {"name": "rest"}]},
    )
    return ids
