"""Rollouts on a real database: what the driver makes of reports, and that a killed one loses and doubles nothing."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fakes import fleet_store
from sqlalchemy import Connection, select

from agent.update.release import Release
from ota.rollouts import fleet, moves, records, steps
from ota.rollouts.driver import Driver
from ota.rollouts.engine import Stage, State, Tally
from ota.rollouts.plan import GroupPlan, Plan
from ota.rollouts.records import Stored
from ota.rollouts.steps import Change, Moment, carry_out, remove_device
from ota.store import actions, audit, devices, releases, reported, tables
from ota.store.errors import ConflictError
from ota.store.rows import Action
from ota.store.store import Store, open_store

NOW = 1_800_000_000_000
OFFLINE_MS = 90_000


class World:
    """A database with a fleet, a driver, and a clock that the test moves."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now_ms = NOW
        self.told: list[Change] = []
        self.driver = Driver(store, self.moment, self.told.append)
        self.old = self.new = 0
        self.ids: list[int] = []

    def moment(self) -> Moment:
        return Moment(self.now_ms, self.now_ms - OFFLINE_MS)

    async def build(self, number: int, *, installed: bool = True) -> None:
        def build(connection: Connection) -> tuple[int, int, list[int]]:
            old, new = fleet_store.add_release(connection, 6).id, fleet_store.add_release(connection, 7).id
            names = [f"box-{n:03}" for n in range(number)]
            ids = [device.id for device in fleet_store.add_devices(connection, names, attributes={"site": "berlin"})]
            if installed:
                fleet_store.install(connection, ids, old)
            return old, new, ids

        self.old, self.new, self.ids = await self.store.write(build)

    async def create(
        self, plan: Plan | None = None, *, chosen: str = "", name: str = "nano 0.7", release: int = 0
    ) -> int:
        def create(connection: Connection) -> int:
            return records.create(
                connection, name=name, release_id=release or self.new, chosen=chosen, plan=plan or Plan(), by="anna",
                now_ms=self.now_ms,
            )  # fmt: skip

        return await self.store.write(create)

    async def move(self, rollout_id: int, what: Any, *arguments: Any, **keywords: Any) -> None:
        """A person's move, and what follows from it."""

        def move(connection: Connection) -> None:
            stored = records.get(connection, rollout_id)
            carry_out(connection, stored, what(stored.rollout, *arguments, **keywords), self.moment(), by="anna")

        await self.store.write(move)
        await self.driver.settle(rollout_id)

    async def started(self, plan: Plan | None = None, **keywords: Any) -> int:
        rollout_id = await self.create(plan, **keywords)
        await self.move(rollout_id, moves.start)
        return rollout_id

    async def get(self, rollout_id: int) -> Stored:
        return await self.store.read(records.get, rollout_id)

    async def tallies(self, rollout_id: int) -> list[Tally]:
        return [group.tally for group in (await self.get(rollout_id)).rollout.groups]

    async def state(self, rollout_id: int) -> State:
        return (await self.get(rollout_id)).rollout.state

    async def assign(self, device_id: int, release: int, *, forced: bool = False, confirm: bool = False) -> Action:
        """By a person's word."""
        return await self.store.write(
            steps.assign, device_id, release, by="anna", now_ms=self.now_ms, forced=forced, confirm=confirm
        )

    async def say(self, device_id: int, version: int, *, number: int = 0) -> None:
        """What the device runs, in its attributes."""
        said = {"model.pose": f"pose-nano 0.{version}.0", "number.pose": str(number or version), "agent_version": "1"}

        def say(connection: Connection) -> None:
            devices.set_attributes(connection, device_id, "replace", said)
            reported.note(connection, device_id, said, whole=True, now_ms=self.now_ms)

        await self.store.write(say)

    async def report(self, rollout_id: int, finished: str, number: int = 1000) -> list[int]:
        """So many of the rollout's devices with an open action end it; who did."""

        def report(connection: Connection) -> list[int]:
            table = tables.actions.c
            mine = select(table.device_id).where(table.rollout_id == rollout_id, table.open).order_by(table.id)
            ids = list(connection.execute(mine.limit(number)).scalars())
            for device_id in ids:
                fleet_store.report(connection, device_id, finished, now_ms=self.now_ms)
            return ids

        ids = await self.store.write(report)
        await self.driver.settle(rollout_id)
        return ids

    async def open_actions(self) -> dict[int, int]:
        return await self.store.read(fleet_store.open_actions)

    async def running(self) -> Counter[int]:
        """How many devices run which release."""
        rows = await self.store.read(devices.installed, self.ids)
        return Counter(row.release_id for row in rows)


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


async def test_canary_then_the_rest_then_finished(world: World) -> None:
    await world.build(40)
    rollout = await world.started()
    assert await world.tallies(rollout) == [Tally(open=4), Tally(waiting=36)]
    await world.report(rollout, "success", 3)
    assert (await world.tallies(rollout))[1] == Tally(waiting=36)  # three of four are not nine of ten
    await world.report(rollout, "success", 1)
    assert (await world.tallies(rollout))[1] == Tally(open=36)
    await world.report(rollout, "success")
    assert await world.state(rollout) is State.FINISHED
    assert (await world.get(rollout)).reason == "40 succeeded"
    assert await world.running() == {world.new: 40}


async def test_a_bad_canary_goes_back_and_nobody_else_gets_it(world: World) -> None:
    await world.build(40)
    rollout = await world.started()
    await world.report(rollout, "success", 2)
    await world.report(rollout, "failure", 1)
    stored = await world.get(rollout)
    assert stored.rollout.state is State.ROLLING_BACK
    assert "1 of 4 devices failed (25 %, limit 10 %)" in stored.reason
    back = await world.open_actions()
    assert Counter(back.values()) == {world.old: 2}  # the fourth had fetched nothing: its action is simply gone
    assert await world.tallies(rollout) == [Tally(returning=2, failed=1, left=1), Tally(waiting=36)]
    await world.report(rollout, "success")
    stored = await world.get(rollout)
    assert stored.rollout.state is State.ROLLED_BACK
    assert stored.reason == "group canary: 1 of 4 devices failed (25 %, limit 10 %); 1 failed, 2 went back, 1 left"
    assert await world.running() == {world.old: 40}
    assert stored.ended_ms == NOW


async def test_a_device_that_succeeds_in_spite_of_being_cancelled_goes_back_too(world: World) -> None:
    await world.build(40)
    rollout = await world.started()
    await world.store.write(fleet_store.fetch_all, rollout)
    await world.report(rollout, "failure", 1)
    assert (await world.tallies(rollout))[0] == Tally(failed=1, ending=3)
    await world.report(rollout, "success", 1)
    assert (await world.tallies(rollout))[0] == Tally(failed=1, ending=2, returning=1)
    assert await world.state(rollout) is State.ROLLING_BACK


async def test_a_device_without_a_version_before_stays_and_is_named(world: World) -> None:
    await world.build(10, installed=False)
    plan = Plan(groups=(GroupPlan(name="two", count=2, error_percent=50), GroupPlan(name="rest")))
    rollout = await world.started(plan)
    await world.report(rollout, "success", 1)
    await world.report(rollout, "failure", 1)
    stored = await world.get(rollout)
    assert stored.rollout.state is State.ABORTED  # nothing was rolled back
    assert stored.reason == (
        "group two: 1 of 2 devices failed (50 %, limit 50 %); nobody went back: 1 succeeded, 1 failed, 1 have no way back"
    )


async def test_roll_back_all_reaches_the_canary_as_well(world: World) -> None:
    await world.build(20)
    rollout = await world.started(Plan(roll_back="all"))
    await world.report(rollout, "success", 2)
    await world.report(rollout, "success", 10)
    await world.report(rollout, "failure", 4)
    assert await world.state(rollout) is State.ROLLING_BACK
    assert Counter((await world.open_actions()).values()) == {world.old: 12}
    await world.report(rollout, "success")
    assert await world.running() == {world.old: 20}
    assert [group.stage for group in (await world.get(rollout)).rollout.groups] == [Stage.WITHDRAWN, Stage.FAILED]


async def test_after_a_group_was_rolled_back_the_others_can_be_too(world: World) -> None:
    await world.build(20)
    rollout = await world.started()
    canaries = await world.report(rollout, "success")
    await world.report(rollout, "failure", 4)
    await world.report(rollout, "canceled")
    stored = await world.get(rollout)
    assert (stored.rollout.state, stored.rollout.groups[0].tally) == (State.ROLLED_BACK, Tally(succeeded=2))
    await world.move(rollout, moves.abort, "anna", roll_back=True)
    assert await world.open_actions() == dict.fromkeys(canaries, world.old)
    await world.report(rollout, "success")
    assert await world.state(rollout) is State.ROLLED_BACK
    assert await world.running() == Counter({world.old: 20})


async def test_pause_starts_nothing_and_resume_goes_on(world: World) -> None:
    await world.build(40)
    rollout = await world.started()
    await world.store.write(fleet_store.fetch_all, rollout)
    await world.move(rollout, moves.pause, "anna")
    await world.report(rollout, "success")
    assert (await world.tallies(rollout))[1] == Tally(waiting=36)
    await world.move(rollout, moves.resume)
    assert (await world.tallies(rollout))[1] == Tally(open=36)


async def test_a_pause_leaves_nothing_that_a_device_could_still_fetch(world: World) -> None:
    await world.build(300)
    rollout = await world.started(Plan(groups=(GroupPlan(name="all"),)))
    await world.store.write(fleet_store.fetch, rollout, 20)

    def pause(connection: Connection) -> Stored:
        stored = records.get(connection, rollout)
        carry_out(connection, stored, moves.pause(stored.rollout, "anna"), world.moment(), by="anna")
        return records.get(connection, rollout)

    paused = await world.store.write(pause)  # at once: the driver has yet to look
    assert paused.rollout.groups[0].tally == Tally(waiting=280, open=20)
    assert len(await world.open_actions()) == 20
    stand = await world.store.read(devices.by_update_status)
    assert (stand["in_sync"], stand["pending"]) == (280, 20)
    await world.driver.settle(rollout)
    assert await world.tallies(rollout) == [Tally(waiting=280, open=20)]
    await world.move(rollout, moves.resume)
    assert await world.tallies(rollout) == [Tally(open=300)]
    await world.report(rollout, "success")
    assert (await world.get(rollout)).reason == "300 succeeded"


async def test_a_stop_without_a_way_back_takes_back_what_is_open(world: World) -> None:
    await world.build(10)
    rollout = await world.started(Plan(groups=(GroupPlan(name="all", error_percent=10),), roll_back="none"))
    await world.store.write(fleet_store.fetch, rollout, 3)
    await world.report(rollout, "failure", 1)
    assert await world.state(rollout) is State.PAUSED
    assert await world.tallies(rollout) == [Tally(waiting=7, ending=2, failed=1)]
    await world.report(rollout, "canceled")
    await world.move(rollout, moves.resume, accept=True)
    assert await world.tallies(rollout) == [Tally(open=7, left=2, failed=1)]


async def test_abort_takes_back_what_is_open(world: World) -> None:
    await world.build(300)
    rollout = await world.started(Plan(groups=(GroupPlan(name="all"),)))
    await world.report(rollout, "success", 10)
    await world.move(rollout, moves.abort, "anna")
    assert await world.tallies(rollout) == [Tally(succeeded=10, left=290)]
    assert await world.open_actions() == {}
    with pytest.raises(ConflictError, match="aborted already"):
        await world.move(rollout, moves.abort, "anna")
    await world.move(rollout, moves.abort, "anna", roll_back=True)  # a thing one may think of later
    assert await world.tallies(rollout) == [Tally(returning=10, left=290)]


async def test_a_device_goes_back_to_what_it_ran_at_last(world: World) -> None:
    """The rollout before was aborted too late for it: it came to its end after this one had been assigned."""
    await world.build(4)
    plan = Plan(groups=(GroupPlan(name="all", error_percent=50),))
    first = await world.started(plan)
    await world.store.write(fleet_store.fetch_all, first)
    await world.move(first, moves.abort, "anna")
    newest = await world.store.write(fleet_store.add_release, 8)
    second = await world.started(plan, name="nano 0.8", release=newest.id)
    await world.report(first, "success")
    assert await world.running() == {world.new: 4}
    await world.report(second, "success", 2)
    await world.report(second, "failure", 2)
    assert await world.state(second) is State.ROLLING_BACK
    assert Counter((await world.open_actions()).values()) == {world.new: 2}


async def test_who_is_hurried_goes_back_with_the_others(world: World) -> None:
    await world.build(10)
    rollout = await world.started(Plan(groups=(GroupPlan(name="all", error_percent=20),)))
    await world.store.write(fleet_store.fetch_all, rollout)
    hurried = await world.assign(world.ids[0], world.new, forced=True)
    assert (hurried.rollout_id, hurried.forced, hurried.state) == (rollout, True, "running")
    await world.report(rollout, "success", 1)
    await world.report(rollout, "failure", 2)
    assert await world.tallies(rollout) == [Tally(returning=1, failed=2, ending=7)]
    assert (await world.open_actions())[world.ids[0]] == world.old


async def test_a_persons_word_stands_for_the_yes_of_a_device_or_asks_for_it(world: World) -> None:
    await world.build(10)
    rollout = await world.started(Plan(groups=(GroupPlan(name="all"),), confirmation=True))
    offered = [(await world.assign(box, world.new, confirm=True)).id for box in world.ids[:2]]
    assert [(await world.assign(box, world.new)).id for box in world.ids[:2]] == offered
    assert (await world.store.read(actions.get, offered[0])).state == "pending"
    asked = await world.assign(world.ids[1], world.new, confirm=True)
    assert (asked.id != offered[1], asked.rollout_id, asked.state) == (True, rollout, "waiting")
    assert await world.tallies(rollout) == [Tally(open=10)]


async def test_a_release_that_is_given_after_its_rollout_has_stopped_does_not_count_in_it(world: World) -> None:
    await world.build(20)
    rollout = await world.started(Plan(roll_back="none"))
    await world.report(rollout, "failure", 1)
    assert await world.state(rollout) is State.PAUSED
    late = await world.store.read(records.waiting, rollout, 1, 1)
    assert (await world.assign(late[0], world.new)).rollout_id is None
    await world.driver.settle(rollout)
    assert await world.open_actions() == {late[0]: world.new}


async def test_a_device_goes_back_to_what_it_says_it_ran(world: World) -> None:
    """Somebody went back on site; the server that was here before had given it something."""
    await world.build(4)
    newest = await world.store.write(fleet_store.add_release, 8)
    await world.store.write(fleet_store.install, world.ids[:2], world.new)
    await world.say(world.ids[0], 6)
    strangers = await world.store.write(fleet_store.add_devices, ["new-1"], attributes={"site": "berlin"})
    await world.say(strangers[0].id, 6)
    rollout = await world.started(Plan(groups=(GroupPlan(name="all", error_percent=20),)), release=newest.id)
    await world.report(rollout, "success", 2)
    await world.store.write(fleet_store.report, strangers[0].id, "success")
    await world.report(rollout, "failure", 2)
    assert await world.state(rollout) is State.ROLLING_BACK
    back = {world.ids[0]: world.old, world.ids[1]: world.new, strangers[0].id: world.old}
    assert await world.open_actions() == back


async def test_who_went_back_on_site_is_not_sent_back_further_nor_taken_for_up_to_date(world: World) -> None:
    await world.build(3)
    plan = Plan(groups=(GroupPlan(name="all"),))
    first = await world.started(plan)
    await world.report(first, "success")
    newest = await world.store.write(fleet_store.add_release, 8)
    second = await world.started(plan, release=newest.id, name="nano 0.8")
    await world.report(second, "success")
    for box in world.ids[:2]:
        await world.say(box, 7)
    await world.say(world.ids[1], 8)  # and forth again
    choice = await world.store.read(fleet.choose, Plan(), "", newest, 0)
    assert (choice.already, choice.total) == (2, 1)
    await world.move(first, moves.abort, "anna", roll_back=True)
    assert await world.open_actions() == {}  # none would take it: what ran before 0.7 is gone from them
    await world.move(second, moves.abort, "anna", roll_back=True)
    assert await world.open_actions() == dict.fromkeys(world.ids[1:], world.new)


async def test_a_device_that_moved_on_is_not_sent_back(world: World) -> None:
    await world.build(5)
    rollout = await world.started(Plan(groups=(GroupPlan(name="all"),)))
    await world.report(rollout, "success")
    assert await world.state(rollout) is State.FINISHED
    newer = await world.store.write(fleet_store.add_release, 8)
    await world.store.write(fleet_store.install, world.ids[:2], newer.id)
    await world.move(rollout, moves.abort, "anna", roll_back=True)
    assert Counter((await world.open_actions()).values()) == {world.old: 3}


async def test_new_devices_do_not_slip_in(world: World) -> None:
    await world.build(10)
    rollout = await world.started(chosen="site==berlin")
    late = await world.store.write(fleet_store.add_devices, ["late"], attributes={"site": "berlin"})
    while await world.report(rollout, "success"):
        pass
    assert await world.state(rollout) is State.FINISHED
    members, total = await world.store.read(records.members, await world.get(rollout), limit=100, offset=0)
    assert total == 10
    assert late[0].id not in {member.device_id for member in members}


async def test_a_device_that_is_deleted_no_longer_counts(world: World) -> None:
    await world.build(20)
    rollout = await world.started()
    gone = next(iter(await world.open_actions()))
    await world.store.write(devices.remove, gone)
    await world.report(rollout, "success", 1)
    assert (await world.tallies(rollout))[1] == Tally(open=18)


async def test_a_canary_that_is_deleted_lets_nobody_else_get_the_release_unseen(world: World) -> None:
    await world.build(10)
    rollout = await world.started()
    canary = next(iter(await world.open_actions()))
    changes = await world.store.write(remove_device, canary, world.moment())
    assert [(change.rollout_id, change.state) for change in changes] == [(rollout, State.PAUSED)]
    await world.driver.settle(rollout)
    stored = await world.get(rollout)
    assert (stored.rollout.state, stored.reason) == (State.PAUSED, "group canary: its last device was deleted")
    assert await world.open_actions() == {}
    await world.move(rollout, moves.resume)
    assert len(await world.open_actions()) == 9


async def test_a_canary_that_is_deleted_during_a_pause_is_told_to_whoever_resumes(world: World) -> None:
    await world.build(10)
    rollout = await world.started()
    canary = next(iter(await world.open_actions()))
    await world.move(rollout, moves.pause, "anna")
    told = await world.store.write(remove_device, canary, world.moment())
    reason = "paused by anna; group canary: its last device was deleted"
    assert [(change.rollout_id, change.state, change.detail) for change in told] == [(rollout, State.PAUSED, reason)]
    stored = await world.get(rollout)
    assert (stored.rollout.state, stored.reason) == (State.PAUSED, reason)
    await world.move(rollout, moves.resume)
    assert len(await world.open_actions()) == 9


async def test_other_devices_may_be_deleted(world: World) -> None:
    await world.build(21)
    rollout = await world.started()
    canaries = list(await world.open_actions())
    assert await world.store.write(remove_device, canaries[0], world.moment()) == []
    await world.report(rollout, "success")
    for device in [*canaries[1:], *await world.open_actions()]:
        assert await world.store.write(remove_device, device, world.moment()) == []
    await world.driver.settle(rollout)
    assert await world.state(rollout) is State.FINISHED


async def test_who_has_it_already_or_something_newer_is_left_out(world: World) -> None:
    await world.build(10)
    newer = await world.store.write(fleet_store.add_release, 8)
    await world.store.write(fleet_store.install, world.ids[:3], world.new)
    await world.store.write(fleet_store.install, world.ids[3:5], newer.id)
    release = await world.store.read(releases.get, world.new)
    choice = await world.store.read(fleet.choose, Plan(), "site==berlin", release, 0)
    assert (choice.matched, choice.already, choice.newer, choice.total) == (10, 3, 2, 5)
    assert [len(group) for group in choice.members] == [1, 4]


async def test_who_has_the_same_bytes_under_a_lower_number_is_offered_the_new_one(world: World) -> None:
    await world.build(10)
    for box in world.ids[:3]:
        await world.say(box, 6)
    old = await world.store.read(releases.get, world.old)
    signed = Release.model_validate(dict(old.custom) | {"number": 9})
    again = await world.store.write(releases.sign_anew, world.old, signed)
    choice = await world.store.read(fleet.choose, Plan(), "", again, 0)
    assert (choice.already, choice.total) == (7, 3)  # the others do not say under which number
    await world.say(world.ids[0], 6, number=9)
    assert (await world.store.read(fleet.choose, Plan(), "", again, 0)).total == 2


async def test_two_rollouts_do_not_pull_at_one_device(world: World) -> None:
    await world.build(10)
    await world.started(name="first")
    second = await world.create(name="second")
    with pytest.raises(ConflictError, match="10 of the devices are in rollout first, which has not ended"):
        await world.move(second, moves.start)
    assert await world.state(second) is State.READY
    action = await world.store.write(fleet_store.add_release, 1, name="fight", slot="action/fight")
    other_slot = await world.started(name="third", release=action.id)
    assert await world.state(other_slot) is State.RUNNING


async def test_a_scheduled_rollout_begins_by_itself_once_it_can(world: World) -> None:
    await world.build(10)
    first = await world.started(name="first")
    plan = Plan.model_validate({"start_at": (NOW + 60_000) / 1000})
    rollout = await world.create(plan)
    assert await world.driver.settle(rollout) == NOW + 60_000
    world.now_ms += 60_000
    await world.driver.settle(rollout)
    stored = await world.get(rollout)
    assert stored.rollout.state is State.READY
    assert "in rollout first" in stored.reason
    await world.move(first, moves.abort, "anna")
    await world.driver.settle(rollout)
    assert await world.state(rollout) is State.RUNNING


async def test_a_first_group_that_takes_nobody_keeps_the_rollout_from_starting(world: World) -> None:
    """It would be met at once, and the next group get the release without a canary."""
    await world.build(10)
    groups = (GroupPlan(name="bench", filter="site==rome", percent=10), GroupPlan(name="rest"))
    rollout = await world.create(Plan(groups=groups))
    with pytest.raises(ConflictError, match="the first group, bench, takes no device"):
        await world.move(rollout, moves.start)
    assert await world.state(rollout) is State.READY
    scheduled = await world.create(Plan(groups=groups, start_at=datetime.fromtimestamp(NOW / 1000, UTC)))
    await world.driver.settle(scheduled)
    stored = await world.get(scheduled)
    assert stored.rollout.state is State.READY
    assert "bench, takes no device" in stored.reason
    assert await world.open_actions() == {}


async def test_groups_wait_and_are_approved(world: World) -> None:
    await world.build(20)
    groups = (GroupPlan(name="canary", count=2), GroupPlan(name="rest", wait_s=60, approval=True))
    rollout = await world.started(Plan(groups=groups))
    await world.report(rollout, "success")
    world.now_ms += 3_600_000
    await world.driver.settle(rollout)
    assert (await world.tallies(rollout))[1] == Tally(waiting=18)
    await world.move(rollout, moves.approve)
    assert (await world.tallies(rollout))[1] == Tally(open=18)
    assert (await world.get(rollout)).times[1].approved_by == "anna"


async def test_what_waits_for_a_person_is_not_looked_at_by_the_clock(world: World) -> None:
    await world.build(20)
    groups = (GroupPlan(name="canary", count=2), GroupPlan(name="rest", wait_s=60, approval=True))
    rollout = await world.started(Plan(groups=groups))
    await world.report(rollout, "success")
    assert await world.driver.settle(rollout) is None
    await world.move(rollout, moves.approve)
    assert await world.driver.settle(rollout) == NOW + 60_000
    world.now_ms += 60_000
    assert await world.driver.settle(rollout) is None
    assert (await world.tallies(rollout))[1] == Tally(open=18)


async def test_a_release_withdrawn_from_the_signed_targets_pauses_the_rollout(world: World) -> None:
    await world.build(20)
    rollout = await world.started()
    await world.store.write(releases.set_available, world.new, False)
    await world.report(rollout, "success", 2)
    stored = await world.get(rollout)
    assert stored.rollout.state is State.PAUSED
    assert stored.reason == "pose-nano 0.7.0 is no longer among the signed targets"
    assert (await world.tallies(rollout))[1] == Tally(waiting=18)


async def test_what_the_server_does_by_itself_is_in_the_audit_log(world: World) -> None:
    await world.build(40)
    rollout = await world.started()
    await world.report(rollout, "failure", 1)
    entries, _ = await world.store.read(audit.page, limit=100, offset=0)
    mine = [(entry.who, entry.what, entry.detail.get("group"), entry.detail["state"]) for entry in reversed(entries)]
    assert ("fleet-server", "rollout.group", "canary", "failed") in mine
    assert mine[-1] == ("fleet-server", "rollout.state", None, "rolled_back")
    assert {entry.subject for entry in entries} == {f"{rollout} nano 0.7"}


async def test_the_driver_wakes_for_reports_and_waits(world: World) -> None:
    """As the server runs it: nobody calls settle."""
    await world.build(10)
    groups = (GroupPlan(name="canary", count=2), GroupPlan(name="rest", wait_s=1))
    rollout = await world.create(Plan(groups=groups))
    running = asyncio.create_task(world.driver.run())
    try:
        await world.store.write(
            lambda c: carry_out(c, records.get(c, rollout), [steps.Begin()], world.moment(), by="anna")
        )
        world.driver.wake(rollout)
        await until(world, rollout, Tally(open=2), 0)
        await world.store.write(report_open, "success")
        world.driver.wake(rollout)
        await asyncio.sleep(0.5)
        assert (await world.tallies(rollout))[1] == Tally(waiting=8)
        world.now_ms += 1000
        await until(world, rollout, Tally(open=8), 1)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_report_during_a_look_is_not_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver has read the tallies and not yet gone to rest when the last device reports."""
    await world.build(10)
    rollout = await world.create(Plan(groups=(GroupPlan(name="canary", count=2), GroupPlan(name="rest"))))
    await world.store.write(lambda c: carry_out(c, records.get(c, rollout), [steps.Begin()], world.moment(), by="anna"))
    look, reported = world.store.read, False

    async def read(function: Any, *arguments: Any) -> Any:
        nonlocal reported
        found = await look(function, *arguments)
        if not reported and found == (True, None) and (await world.tallies(rollout))[0] == Tally(open=2):
            reported = True
            await world.store.write(report_open, "success")
            world.driver.wake(rollout)
        return found

    tallies = world.tallies
    monkeypatch.setattr(world.driver, "_store", Watched(world.store, read))
    running = asyncio.create_task(world.driver.run())
    try:
        world.driver.wake(rollout)
        deadline = time.monotonic() + 10
        while (await tallies(rollout))[1] != Tally(open=8):
            assert time.monotonic() < deadline, await tallies(rollout)
            await asyncio.sleep(0.05)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class Watched:
    """A store whose reads the test goes along with."""

    def __init__(self, store: Store, read: Any) -> None:
        self.write = store.write
        self.read = read


def report_open(connection: Connection, finished: str) -> None:
    for device_id in fleet_store.open_actions(connection):
        fleet_store.report(connection, device_id, finished, now_ms=NOW)


async def until(world: World, rollout: int, tally: Tally, group: int) -> None:
    deadline = time.monotonic() + 20
    while (await world.tallies(rollout))[group] != tally:
        assert time.monotonic() < deadline, await world.tallies(rollout)
        await asyncio.sleep(0.05)


# --- kill -9 ----------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[3]
PATHS = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
DEVICES = 300
KILLS = 4


def kill_and_go_on(database: Path, seed: int) -> int:
    """Runs the driver in processes that are killed at random moments, then one to its end; how many were killed at work."""
    moments, killed = random.Random(seed), 0
    for attempt in range(KILLS + 1):
        command = [sys.executable, "-m", "fakes.rollout_driver", str(database)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": PATHS}
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()  # it is at work from here on
            try:
                code = process.wait(moments.uniform(0.0, 0.2) if attempt < KILLS else 60)
            except subprocess.TimeoutExpired:
                process.kill()
                assert attempt < KILLS, "the last one does not come to its end"
                killed += 1
                continue
            assert code == 0
    return killed


def members(database: Path) -> Sequence[tuple[int, int, int]]:
    """Device, offers, returns that the tables hold for it."""
    with sqlite3.connect(database) as connection:
        return connection.execute(
            "SELECT m.device_id, (SELECT count(*) FROM actions a WHERE a.rollout_id = m.rollout_id"
            " AND a.device_id = m.device_id AND a.release_id = r.release_id),"
            " (SELECT count(*) FROM actions a WHERE a.rollout_id = m.rollout_id AND a.device_id = m.device_id"
            " AND a.release_id != r.release_id)"
            " FROM rollout_members m JOIN rollouts r ON r.id = m.rollout_id"
        ).fetchall()


async def test_a_driver_killed_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    database = tmp_path / "fleet.db"
    async with open_store(f"sqlite:///{database}") as store:
        world = World(store)
        await world.build(DEVICES)
        plan = Plan(groups=(GroupPlan(name="all", error_percent=50, success_percent=50),))
        rollout = await world.create(plan)
        await store.write(lambda c: carry_out(c, records.get(c, rollout), [steps.Begin()], world.moment(), by="anna"))
    assert kill_and_go_on(database, 1)  # offers
    assert [(offers, back) for _, offers, back in members(database)] == [(1, 0)] * DEVICES
    async with open_store(f"sqlite:///{database}") as store:
        await store.write(half_succeed)
        await store.write(take_back, rollout)
    assert kill_and_go_on(database, 2)  # cancellations and ways back
    found = Counter((offers, back) for _, offers, back in members(database))
    assert found == {(1, 1): DEVICES // 2, (1, 0): DEVICES // 2}
    async with open_store(f"sqlite:///{database}") as store:
        tallies = [group.tally for group in (await store.read(records.get, rollout)).rollout.groups]
        assert tallies == [Tally(returning=DEVICES // 2, left=DEVICES // 2)]


def take_back(connection: Connection, rollout: int) -> None:
    stored = records.get(connection, rollout)
    decisions = moves.abort(stored.rollout, "anna", roll_back=True)
    carry_out(connection, stored, decisions, Moment(NOW, 0), by="anna")


def half_succeed(connection: Connection) -> None:
    for device_id in list(fleet_store.open_actions(connection))[: DEVICES // 2]:
        fleet_store.report(connection, device_id, "success", now_ms=NOW)
