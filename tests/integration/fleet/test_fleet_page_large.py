"""The web page over a fleet of many: what it asks for, and what it says about that which it does not show."""

from __future__ import annotations

import asyncio

import pytest
from fakes.chromium import CHROMIUM, Browser
from fakes.fleet_server import FleetServer
from fakes.fleet_store import add_devices, add_release
from sqlalchemy import Connection

from ota.rollouts import records
from ota.rollouts.plan import Plan

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

GATE = """
window.asked = []; window.held = []; window.shut = true;
const plain = window.fetch;
window.fetch = async (path, options) => {
  window.asked.push(path);
  if (window.shut && path.includes("/devices?")) await new Promise((go) => window.held.push(go));
  return plain(path, options);
};
0
"""
"""Keeps the answers about devices back while it is shut."""


async def test_no_drawing_begins_while_one_runs_and_one_follows_it(fleet: FleetServer, browser: Browser) -> None:
    await browser.open(f"{fleet.url}/#devices")
    await browser.sign_in(fleet.admin)
    await browser.until("document.querySelector('#page').innerText.includes('No devices yet')")
    await browser.until("document.querySelector('#live').className === 'good'")
    await browser.run(GATE)
    await fleet.device("box-1")
    await browser.until("window.held.length === 1")
    await fleet.device("box-2")
    await fleet.device("box-3")
    await asyncio.sleep(2)  # time enough for another drawing to begin
    assert await browser.run("window.held.length") == 1
    await browser.run("window.shut = false; window.held.pop()()")
    await browser.until("document.querySelectorAll('#page tbody tr').length === 3")
    asked = await browser.run("window.asked")
    assert [path for path in asked if "filter" in path] == []
    assert asked.count("/api/v1/devices?limit=100") <= asked.count("/api/v1/device-counts") + 1
    assert browser.problems == []


async def test_the_tiles_count_and_choose(fleet: FleetServer, browser: Browser) -> None:
    for n in range(2):
        await fleet.device(f"box-{n}")
    await (await fleet.device("box-2")).poll()
    await fleet.services.heard.flush()
    await browser.open(f"{fleet.url}/#devices")
    await browser.sign_in(fleet.admin)
    tiles = "[...document.querySelectorAll('.tile')].map((tile) => tile.innerText.split(/\\s+/).join(' ')).join()"
    await browser.until(f"{tiles} === '3 devices,1 online,0 offline,0 updating,0 in sync,0 failed'")
    await browser.click(".tile", "online")
    await browser.until("document.querySelectorAll('#page tbody tr').length === 1")
    assert await browser.run("document.querySelector('#filter').value") == "status==online"
    assert browser.problems == []


def much(connection: Connection) -> None:
    """More rollouts, releases and members than a page shows at once; the newest rollout has the members."""
    made = [add_release(connection, number) for number in range(1, 206)]
    plan = Plan.model_validate({"groups": [{"name": "all"}]})
    for n in range(55):
        last = records.create(
            connection, name=f"rollout {n}", release_id=made[0].id, chosen="", plan=plan, by="anna", now_ms=1
        )
    boxes = add_devices(connection, [f"box-{n:03}" for n in range(503)])
    records.set_members(connection, last, [[box.id for box in boxes]])


async def test_what_is_not_shown_is_said(fleet: FleetServer, browser: Browser) -> None:
    await fleet.services.store.write(much)
    await browser.open(fleet.url)
    await browser.sign_in(fleet.admin)
    await browser.until("document.querySelectorAll('[data-rollout]').length === 50")
    await browser.click("[data-rollout] button", "Devices")
    await browser.until("document.querySelectorAll('#dialog tbody tr').length === 500")
    assert "3 more are not shown: recognizer-fleet rollout show 55 --devices" in await browser.text("#dialog")
    await browser.click("#dialog button", "Close")
    await browser.click("#page button", "More (5)")
    await browser.until("document.querySelectorAll('[data-rollout]').length === 55")
    assert "More" not in await browser.text("#page")
    await browser.run("location.hash = '#releases'")
    await browser.until("document.querySelectorAll('#page tbody tr').length === 200")
    await browser.click("#page button", "More (5)")
    await browser.until("document.querySelectorAll('#page tbody tr').length === 205")
    assert browser.problems == []


async def test_the_end_of_what_the_page_shows_is_said(fleet: FleetServer, browser: Browser) -> None:
    await fleet.services.store.write(add_devices, [f"box-{n:04}" for n in range(1003)])
    await browser.open(f"{fleet.url}/#devices")
    await browser.sign_in(fleet.admin)
    for shown in (100, 300, 500, 700, 900):
        await browser.until(f"document.querySelectorAll('#page tbody tr').length === {shown}")
        await browser.click("#page button", f"More ({1003 - shown})")
    await browser.until("document.querySelectorAll('#page tbody tr').length === 1000")
    assert "3 more are not shown" in await browser.text("#page")
    assert "More (" not in await browser.text("#page")
    assert browser.problems == []
