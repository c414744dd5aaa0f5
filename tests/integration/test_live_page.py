"""The live page in a real browser, as a guard has it open all night: many cameras, cameras that are gone, an agent that is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fakes.chromium import CHROMIUM, Browser
from fakes.http_site import PlainView, serving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

CAMERAS = 7
"""One more than the connections that a browser opens to one server."""
DRAWN = "document.querySelectorAll('.camera canvas[width=\"64\"]').length"


class PageView(PlainView):
    """What the page asks for. dark: cameras without a picture; phases: by camera; events: times of the latest."""

    def __init__(self) -> None:
        super().__init__()
        self.states_told = 0
        self.dark: set[str] = set()
        self.phases: dict[str, str] = {}
        self.events: list[datetime] = []

    def camera_ids(self) -> list[str]:
        return [f"cam-{number}" for number in range(CAMERAS)]

    async def picture(self, camera_id: str, mode: str) -> bytes | None:
        return None if camera_id in self.dark else await super().picture("cam", mode)

    def state(self) -> dict[str, Any]:
        self.states_told += 1
        return {
            "device": "box", "version": "1", "live_fps": 10, "mqtt": {"enabled": False, "connected": False},
            "health": {
                "level": "ok", "reasons": [], "gpus": [], "system": None, "outbox": {"rows": {}},
                "degradation": {"step": 0, "steps": 7},
            },
            "cameras": [
                {
                    "camera": name, "state": self.phases.get(name, "streaming"), "fps": 10.0, "error": "",
                    "live": {"people": 0, "scores": {}},
                }
                for name in self.camera_ids()
            ],
            "active": [],
            "events": [
                {
                    "t": moment.isoformat(), "kind": "fight", "phase": "resolved", "camera": "cam-0", "duration_s": 2.0,
                    "confidence": 0.9,
                }
                for moment in self.events
            ],
        }  # fmt: skip


class Page:
    """The page in a browser, and the view behind it."""

    def __init__(self, browser: Browser, view: PageView) -> None:
        self.browser = browser
        self.view = view

    async def polls(self, times: int) -> None:
        """The page has asked for the state so many times more, and shown it."""
        wanted = self.view.states_told + times + 1
        while self.view.states_told < wanted:
            await self.browser.until("new Promise((done) => setTimeout(() => done(true), 50))")

    async def has(self, camera: str, name: str) -> bool:
        return bool(
            await self.browser.run(f"document.querySelector('[data-id={camera}]').classList.contains('{name}')")
        )


@pytest_asyncio.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    view = PageView()
    async with serving(view) as site, Browser(tmp_path / "profile") as browser:
        await browser.open(f"http://127.0.0.1:{site.port}/")
        yield Page(browser, view)


async def test_more_cameras_than_connections_are_all_shown_and_the_state_still_comes(page: Page) -> None:
    await page.browser.until(f"{DRAWN} === {CAMERAS}")
    await page.polls(7)  # the patience with a request that finds no connection is five seconds
    assert await page.browser.text("#level") == "ok"
    assert page.view.streams == 0


async def test_what_is_not_live_does_not_look_live(page: Page) -> None:
    await page.browser.until(f"{DRAWN} === {CAMERAS}")
    page.view.phases["cam-1"] = "offline"
    page.view.dark.add("cam-2")
    await page.browser.until("document.querySelector('[data-id=cam-1].old') !== null")
    await page.browser.until("document.querySelector('[data-id=cam-2].dark') !== null")
    hidden = "getComputedStyle(document.querySelector('[data-id=cam-2] canvas')).visibility"
    assert await page.browser.run(hidden) == "hidden"
    assert not await page.has("cam-0", "old")
    assert not await page.has("cam-0", "dark")
    page.view.phases.clear()
    page.view.dark.clear()
    await page.browser.until("document.querySelector('.old, .dark') === null")


async def test_an_event_of_another_day_has_its_date(page: Page) -> None:
    now = datetime.now(UTC)
    page.view.events = [now, now - timedelta(days=400)]
    await page.browser.until("document.querySelectorAll('#events tr').length === 2")
    cells = "[...document.querySelectorAll('#events td:first-child')].map((cell) => cell.textContent)"
    today, long_ago = await page.browser.run(cells)
    year = str(page.view.events[1].year)
    assert year not in today
    assert year in long_ago
