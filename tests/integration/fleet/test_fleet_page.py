"""The web page in Chromium, over a running server."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from fakes.chromium import CHROMIUM, Browser
from fakes.fleet_server import FleetDevice, FleetServer
from fakes.fleet_store import add_devices, install, open_actions, report
from fakes.fleet_story import tell_it

from ota.server.pages import PAGES

STATIC = Path(__file__).parents[3] / "ota" / "server" / "static"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


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
async def test_what_stayed_when_a_group_went_back_can_be_rolled_back(fleet: FleetServer, browser: Browser) -> None:
    old, new = await fleet.publish(6, 7)
    store = fleet.services.store
    ids = [device.id for device in await store.write(add_devices, ["box-1", "box-2"])]
    await store.write(install, ids, old.id)
    plan = {"groups": [{"name": "canary", "count": 1}, {"name": "rest"}]}
    made = (await fleet.api("POST", "/rollouts", {"name": "seven", "release": new.id, "plan": plan})).json["id"]
    await fleet.api("POST", f"/rollouts/{made}/start")
    async with asyncio.timeout(30):
        for finished in ("success", "failure"):
            while len(opened := list(await store.read(open_actions))) != 1:
                await asyncio.sleep(0.05)
            await store.write(report, opened[0], finished)
            fleet.services.feed.tell("action", 0, rollout=made, device="", state="", detail="")
    await browser.open(fleet.url)
    await browser.sign_in(fleet.admin)
    await browser.until("document.querySelector('.head .pill')?.innerText === 'rolled back'")
    await browser.click(f"[data-rollout='{made}'] button", "Roll back")
    await browser.click("#dialog button", "Roll back")
    await browser.until("document.querySelector('.head .pill')?.innerText === 'rolling back'")
    async with asyncio.timeout(30):
        while not (opened := await store.read(open_actions)):
            await asyncio.sleep(0.05)
    assert set(opened.values()) == {old.id}
    assert browser.problems == []


@needs_chromium
async def test_who_has_no_way_back_is_said_before_a_roll_back(fleet: FleetServer, browser: Browser) -> None:
    (first,) = await fleet.publish(7)
    store = fleet.services.store
    await store.write(add_devices, ["box-1", "box-2"])
    plan = {"groups": [{"name": "all"}]}
    made = (await fleet.api("POST", "/rollouts", {"name": "first", "release": first.id, "plan": plan})).json["id"]
    await fleet.api("POST", f"/rollouts/{made}/start")
    async with asyncio.timeout(30):
        while len(opened := list(await store.read(open_actions))) != 2:
            await asyncio.sleep(0.05)
    for device in opened:
        await store.write(report, device, "success")
    fleet.services.feed.tell("action", 0, rollout=made, device="", state="", detail="")
    await browser.open(fleet.url)
    await browser.sign_in(fleet.admin)
    await browser.until("document.querySelector('.head .pill')?.innerText === 'finished'")
    await browser.click(f"[data-rollout='{made}'] button", "Roll back")
    await browser.until("document.querySelector('#dialog').open")
    assert "2 of 2 that got it have no way back and stay as they are." in await browser.text("#dialog")
    await browser.click("#dialog button", "Roll back")
    await browser.until("document.querySelector('.head .pill')?.innerText === 'aborted'")
    assert "nobody went back" in await browser.text(f"[data-rollout='{made}']")
    assert browser.problems == []


# --- a new rollout ----------------------------------------------------------------------------------------------------


async def boxes(fleet: FleetServer, number: int = 31) -> list[FleetDevice]:
    """Devices, the first twenty in Berlin; none of them runs anything yet."""
    made = [await fleet.device(f"box-{n:02}") for n in range(number)]
    for box in made:
        data = {"site": "berlin" if box.id < "box-20" else "paris"}
        assert (await box.ask("PUT", "/configData", {"mode": "merge", "data": data})).status == 200
    return made


async def open_form(fleet: FleetServer, browser: Browser, token: str) -> None:
    await browser.open(fleet.url)
    await browser.sign_in(token)
    await browser.click("#new-rollout")
    await browser.until("document.querySelector('.count')?.innerText.includes('match')")


async def fill(browser: Browser, name: str, text: str) -> None:
    """As if typed, instead of what stands there."""
    await browser.run(f"document.querySelector('#new-{name}').select()")
    await browser.type(f"#new-{name}", text)


async def press(browser: Browser, key: str) -> None:
    text = {"text": "\r"} if key == "Enter" else {}
    code = {"Enter": 13, "Escape": 27, "Tab": 9}[key]
    for kind in ("keyDown", "keyUp"):
        await browser.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)
        text = {}


def problem(name: str, text: str) -> str:
    return f"document.querySelector('#new-{name}-problem')?.innerText.includes({text!r})"


async def rollouts(fleet: FleetServer) -> list[Any]:
    return list((await fleet.api("GET", "/rollouts")).json["rollouts"])


@needs_chromium
async def test_a_new_rollout_from_the_form_to_its_progress(fleet: FleetServer, browser: Browser) -> None:
    [*_, last] = await boxes(fleet)
    await last.ask("PUT", "/configData", {"mode": "merge", "data": {"agent_version": "0.1.0", "model.pose": "nano 1"}})
    await fleet.publish(6, 7)
    await fleet.publish(1, slot="action/fight")
    await open_form(fleet, browser, await fleet.user("operator"))
    offered = await browser.run("[...document.querySelector('#new-release').options].map((one) => one.innerText)")
    assert [text.partition(",")[0] for text in offered] == [
        "pose-nano 0.1.0 for action/fight", "pose-nano 0.7.0 for pose", "pose-nano 0.6.0 for pose",
    ]  # fmt: skip
    assert "box-00, box-01, box-02, box-03, box-04 and 26 more" in await browser.text(".count")
    assert "1 of these devices reports no such slot" in await browser.text(".count .warn")
    choose = "const list = document.querySelector('#new-release'); list.selectedIndex = 1"
    await browser.run(f"{{ {choose}; list.dispatchEvent(new Event('input', {{ bubbles: true }})) }}")
    assert await browser.run("document.querySelector('#new-name').value") == "pose-nano 0.7.0"
    await browser.type("#new-filter", "site==berlin")
    await browser.until("document.querySelector('.count').innerText.includes('20 devices match')")
    await fill(browser, "percent", "15")
    await browser.until(
        "document.querySelector('.count').innerText.includes('20 devices would get it (canary 3, rest 17)')"
    )
    await press(browser, "Enter")
    await browser.until("document.querySelector('#dialog h2').innerText === 'Start pose-nano 0.7.0?'")
    told = await browser.text("#dialog")
    assert "3 of 20 devices first (canary)." in told
    assert "Then the other 17 (rest), when 90 % of canary (3 of 3) run it well." in told
    assert "It stops when 10 % of canary (1 of 3) or 20 % of rest (4 of 17) failed" in told
    await press(browser, "Enter")  # held down by mistake: nothing has the focus that would start it
    assert (
        await browser.run("[document.activeElement.tagName, document.querySelector('#dialog .main').disabled].join()")
        == "H2,false"
    )
    assert await rollouts(fleet) == []
    await browser.click("#dialog button", "Create and start")
    await browser.until("document.querySelector('[data-group=canary]')?.innerText.includes('3 under way of 3 devices')")
    assert not await browser.run("document.querySelector('#dialog').open")
    [made] = await rollouts(fleet)
    assert (made["name"], made["state"], made["filter"]) == ("pose-nano 0.7.0", "running", "site==berlin")
    assert (made["created_by"], made["release"]["version"]) == ("a-operator", "0.7.0")
    assert await browser.run("document.activeElement.id") == "new-rollout"
    assert browser.problems == []


@needs_chromium
async def test_a_draft_waits_and_the_next_name_is_another(fleet: FleetServer, browser: Browser) -> None:
    await boxes(fleet, 3)
    await fleet.publish(7)
    await open_form(fleet, browser, fleet.admin)
    await browser.click("#dialog label", "as a draft")
    await browser.click("#dialog button", "Next")
    await browser.until("document.querySelector('#dialog h2').innerText === 'Create pose-nano 0.7.0?'")
    await browser.click("#dialog button", "Create")
    await browser.until("document.querySelector('#page .head .pill')?.innerText === 'ready'")
    assert [one["state"] for one in await rollouts(fleet)] == ["ready"]
    await browser.click("#new-rollout")
    await browser.until("document.querySelector('#new-name')?.value === 'pose-nano 0.7.0 (2)'")
    await press(browser, "Escape")
    await browser.until("!document.querySelector('#dialog').open && document.activeElement.id === 'new-rollout'")
    await browser.click("#page button", "Start")
    await browser.until("document.querySelector('#dialog').innerText.includes('1 of 3 devices first (canary)')")
    await browser.click("#dialog button", "Start")
    await browser.until("document.querySelector('#page .head .pill').innerText === 'running'")
    assert browser.problems == []


@needs_chromium
async def test_what_is_wrong_stands_beside_its_field(fleet: FleetServer, browser: Browser) -> None:
    await boxes(fleet, 3)
    await fleet.publish(7)
    await open_form(fleet, browser, fleet.admin)
    await browser.type("#new-filter", "site==berlin;id=x")
    await browser.until(problem("filter", "column 16: expected a comparison"))
    await browser.click("#dialog button", "Next")
    await browser.until("document.activeElement.id === 'new-filter'")
    assert await browser.run("document.activeElement.getAttribute('aria-invalid')") == "true"
    assert await browser.text(".count") == ""
    await fill(browser, "filter", "site==rome")
    await browser.until("document.querySelector('.count').innerText.includes('0 devices match')")
    await browser.click("#dialog button", "Next")
    await browser.until(problem("filter", "none of these devices would get the release"))
    await fill(browser, "filter", "site==berlin")
    await fill(browser, "percent", "0")
    await browser.until(problem("percent", "Input should be greater than 0"))
    await fill(browser, "percent", "10")
    await fill(browser, "success", "101")
    await browser.until(problem("success", "Input should be less than or equal to 100"))
    await fill(browser, "success", "90")
    await fill(browser, "name", "/slash")
    await browser.click("#dialog button", "Next")
    await browser.click("#dialog button", "Create and start")
    await browser.until(problem("name", "no slash as its first character"))
    assert await browser.run("document.activeElement.id") == "new-name"
    assert await rollouts(fleet) == []
    assert all(re.search(r"status of 400 .*/(devices\?|rollouts)", told) for told in browser.problems), browser.problems


@needs_chromium
async def test_what_changes_after_the_last_look_is_told(fleet: FleetServer, browser: Browser) -> None:
    """The release taken off the list: beside its field; devices taken by another rollout: there, but not started."""
    await boxes(fleet, 3)
    [release] = await fleet.publish(7)
    assert fleet.repository is not None
    await open_form(fleet, browser, fleet.admin)
    await browser.click("#dialog button", "Next")
    await browser.until("document.querySelector('#dialog h2').innerText.startsWith('Start')")
    target = fleet.repository.targets.pop(release.target)
    fleet.repository.publish()
    await fleet.sync()
    await browser.click("#dialog button", "Create and start")
    await browser.until(problem("release", "no longer among the signed targets"))
    fleet.repository.targets[release.target] = target
    fleet.repository.publish()
    await fleet.sync()
    await browser.click("#dialog button", "Next")
    await browser.until("document.querySelector('#dialog h2').innerText.startsWith('Start')")
    other = (await fleet.api("POST", "/rollouts", {"name": "faster", "release": release.id})).json["id"]
    assert (await fleet.api("POST", f"/rollouts/{other}/start")).status == 200
    await browser.click("#dialog button", "Create and start")
    await browser.until("document.querySelector('#dialog h2').innerText.includes('did not start')")
    assert "3 of the devices are in rollout faster" in await browser.text("#dialog")
    await browser.click("#dialog button", "Close")
    assert {one["name"]: one["state"] for one in await rollouts(fleet)} == {
        "faster": "running",
        "pose-nano 0.7.0": "ready",
    }
    await browser.click("#new-rollout")
    await browser.until(
        "document.querySelector('.count')?.innerText.includes('3 of these devices are in rollout faster')"
    )
    await browser.click("#dialog button", "Next")
    await browser.until(problem("when", "which has not ended: choose others, or keep it as a draft"))


@needs_chromium
async def test_a_token_that_is_taken_away_ends_the_form(fleet: FleetServer, browser: Browser) -> None:
    await fleet.publish(7)
    await open_form(fleet, browser, await fleet.user("operator"))
    assert (await fleet.api("PATCH", "/users/a-operator", {"active": False})).status == 200
    await browser.type("#new-filter", "site==berlin")
    await browser.until("!document.querySelector('#sign-in').hidden && !document.querySelector('#dialog').open")


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
    assert await browser.run("document.querySelector('#new-rollout') === null")
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
        await phone.run("location.hash = '#rollouts'")
        await phone.click("#new-rollout")
        await phone.until("document.querySelector('.count')?.innerText.includes('match')")
        wide = """[...document.querySelectorAll('#dialog, #dialog :not(input, select)')].filter((one) => one.getBoundingClientRect().right > innerWidth
            || (one.scrollWidth > one.clientWidth && !/inline|table/.test(getComputedStyle(one).display)))
            .map((one) => one.outerHTML.slice(0, 80))"""
        await fill(phone, "filter", "site==berlin;health==" + "very-" * 30 + "long=")
        await phone.until(problem("filter", "column"))
        assert await phone.run(wide) == []
        await fill(phone, "filter", "id==wien-lager-01;site!=berlin")
        await phone.until("document.querySelector('.count').innerText.includes('1 device matches')")
        await phone.click("#dialog label", "as a draft")
        await phone.click("#dialog button", "Next")
        await phone.until("document.querySelector('#dialog h2').innerText.startsWith('Create')")
        assert await phone.run(wide) == []
        await phone.click("#dialog button", "Create")
        await phone.until("document.querySelector('#page .head .pill').innerText === 'ready'")
        assert await phone.run("document.documentElement.scrollWidth <= innerWidth")
        assert await phone.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
