"""The web page in Chromium, over a running server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes.chromium import CHROMIUM, Browser
from fakes.fleet_server import FleetServer
from fakes.fleet_story import tell_it

from ota.server.pages import PAGES

STATIC = Path(__file__).parents[3] / "ota" / "server" / "static"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    async with Browser(tmp_path / "profile") as opened:
        yield opened


async def test_the_page_is_served_to_anybody_with_a_strict_policy(fleet: FleetServer) -> None:
    for path, (_, content_type) in PAGES.items():
        answer = await fleet.ask("GET", path)
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith(content_type)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_every_file_is_served_and_fetches_nothing_from_elsewhere() -> None:
    assert {file.name for file in STATIC.iterdir()} == {name for name, _ in PAGES.values()}
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"https?://", text), file
        for dangerous in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "localStorage",
            "style=",
            "onclick=",
        ):
            assert dangerous not in text, (file, dangerous)


@needs_chromium
async def test_signing_in_and_out(fleet: FleetServer, browser: Browser) -> None:
    await browser.open(fleet.url)
    await browser.sign_in("not a token")
    await browser.until("document.querySelector('#sign-in-problem').textContent.includes('does not know this token')")
    assert browser.problems.pop().startswith("Failed to load resource: the server responded with a status of 401")
    await browser.sign_in(fleet.admin)
    await browser.until("document.querySelector('#page').innerText.includes('No rollouts yet')")
    await browser.until("document.querySelector('#live').className === 'good'")
    assert await browser.run("document.cookie + JSON.stringify(localStorage)") == "{}"
    await browser.open(fleet.url)  # the tab remembers
    await browser.until("document.querySelector('#user').innerText === 'admin (admin)'")
    await browser.click("#sign-out")
    await browser.until("!document.querySelector('#sign-in').hidden && document.querySelector('#fleet').hidden")
    assert await browser.run("sessionStorage.length") == 0
    assert browser.problems == []


@needs_chromium
async def test_devices_with_filter_and_detail(fleet: FleetServer, browser: Browser) -> None:
    await tell_it(fleet)
    await browser.open(f"{fleet.url}/#devices")
    await browser.sign_in(fleet.admin)
    await browser.until("document.querySelectorAll('#page tbody tr').length === 37")
    text = await browser.text("#page")
    assert "berlin-hall-01" in text
    assert "pose-nano 0.6.0 pose" in text
    await browser.type("#filter", "site==berlin;health==degraded")
    await browser.run("document.querySelector('#filter').dispatchEvent(new Event('change'))")
    await browser.until("document.querySelectorAll('#page tbody tr').length === 2")
    await browser.click("#page tbody tr")
    await browser.until("document.querySelector('#dialog').open")
    assert "degraded" in await browser.text("#dialog")
    await browser.click("#dialog button", "Close")
    await browser.run("document.querySelector('#filter').value = 'site=berlin'")
    await browser.run("document.querySelector('#filter').dispatchEvent(new Event('change'))")
    await browser.until("document.querySelector('.problem')?.textContent.includes('column 5')")
    assert all("400" in problem for problem in browser.problems)


@needs_chromium
async def test_a_rollout_is_paused_resumed_and_aborted_by_hand(fleet: FleetServer, browser: Browser) -> None:
    rollout = (await tell_it(fleet))["pose-nano 0.8 everywhere"]
    mine = f"[data-rollout='{rollout}']"
    await browser.open(fleet.url)
    await browser.sign_in(fleet.admin)
    await browser.until(
        f"document.querySelector(\"{mine} [data-group='a third']\")?.innerText.includes('5 well, 7 under way, 1 failed of 13 devices')"
    )
    await browser.click(f"{mine} button", "Pause")
    await browser.until(f"document.querySelector(\"{mine} .head .pill\").innerText === 'paused'")
    assert (await fleet.api("GET", f"/rollouts/{rollout}")).json["reason"] == "paused by admin"
    await browser.click(f"{mine} button", "Resume")
    await browser.until(f"document.querySelector(\"{mine} .head .pill\").innerText === 'running'")
    await browser.click(f"{mine} button", "Abort")
    await browser.click("#dialog button", "Not now")
    await asyncio.sleep(0.2)
    assert (await fleet.api("GET", f"/rollouts/{rollout}")).json["state"] == "running"
    await browser.click(f"{mine} button", "Abort")
    await browser.click("#dialog input[type=checkbox]")
    await browser.click("#dialog button", "Abort")
    await browser.until(f"document.querySelector(\"{mine} .head .pill\").innerText === 'rolling back'")
    assert browser.problems == []


@needs_chromium
async def test_what_happens_is_shown_without_reloading(fleet: FleetServer, browser: Browser) -> None:
    await browser.open(f"{fleet.url}/#events")
    await browser.sign_in(fleet.admin)
    await browser.until("document.querySelector('#live').className === 'good'")
    await fleet.device("<img src=x onerror=alert(1)>".replace(" ", "-"))
    await browser.until("document.querySelector('.feed')?.innerText.includes('<img-src=x-onerror=alert(1)>')")
    assert await browser.run("document.querySelectorAll('#page img').length") == 0
    assert browser.problems == []


@needs_chromium
async def test_a_viewer_sees_and_changes_nothing(fleet: FleetServer, browser: Browser) -> None:
    rollout = (await tell_it(fleet))["pose-nano 0.8 everywhere"]
    await browser.open(fleet.url)
    await browser.sign_in(await fleet.user("viewer"))
    await browser.until(f"document.querySelector(\"[data-rollout='{rollout}']\") !== null")
    words = await browser.run("[...document.querySelectorAll('#page button')].map((one) => one.innerText).join()")
    assert set(words.split(",")) == {"Devices"}
    assert await browser.run("document.querySelector('a[href=\"#audit\"]').hidden")


@needs_chromium
async def test_a_phone_needs_no_scrolling_sideways(fleet: FleetServer, tmp_path: Path) -> None:
    await tell_it(fleet)
    async with Browser(tmp_path / "phone", 360, 740, "dark") as phone:
        await phone.open(fleet.url)
        await phone.sign_in(fleet.admin)
        for page in ("rollouts", "devices", "releases", "events", "audit"):
            await phone.run(f"location.hash = '#{page}'")
            await phone.until(
                f"document.querySelector('nav a[aria-current]')?.hash === '#{page}' && document.querySelector('#page').children.length > 0"
            )
            await asyncio.sleep(0.5)
            assert await phone.run("document.documentElement.scrollWidth <= innerWidth"), page
        assert await phone.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
