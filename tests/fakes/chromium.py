"""Chromium by its DevTools protocol: what a person does with a page, and what the page complains about."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

CHROMIUM = shutil.which("chromium")
PATIENCE_S = 30.0
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
)  # fmt: skip


class Browser:
    """One page of `width` x `height`. problems: what it logged as an error, and exceptions that nobody caught."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        self._folder = folder
        self._size = (width, height)
        self._scheme = scheme
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.problems: list[str] = []

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        width, height = self._size
        command = [
            str(CHROMIUM),
            *_FLAGS,
            f"--window-size={width},{height}",
            f"--user-data-dir={self._folder}",
            "about:blank",
        ]
        self._process = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._session = aiohttp.ClientSession()
        port = await self._port()
        async with self._session.get(f"http://127.0.0.1:{port}/json") as answer:
            address = next(page["webSocketDebuggerUrl"] for page in await answer.json() if page["type"] == "page")
        self._socket = await self._session.ws_connect(address, max_msg_size=0)
        self._reader = asyncio.create_task(self._read())
        for domain in ("Page", "Runtime", "Log"):
            await self.send(f"{domain}.enable")
        await self.send(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": self._scheme}]
        )
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._session.close()
        self._process.terminate()
        await self._process.wait()

    async def send(self, method: str, **given: Any) -> Any:
        """One call of the protocol."""
        number = next(self._ids)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": given})
        return await asyncio.wait_for(self._answers[number], PATIENCE_S)

    async def open(self, url: str) -> None:
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def run(self, script: str) -> Any:
        """The value of an expression."""
        found = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, script: str) -> Any:
        """The value of an expression once it is true."""
        async with asyncio.timeout(PATIENCE_S):
            while not (value := await self.run(script)):
                await asyncio.sleep(0.05)
        return value

    async def click(self, selector: str, text: str = "") -> None:
        """The first such element (with that text), once it is there."""
        find = f"[...document.querySelectorAll({json.dumps(selector)})].find((one) => one.textContent.includes({json.dumps(text)}))"
        await self.until(f"{find} !== undefined")
        await self.run(f"{find}.click()")

    async def type(self, selector: str, text: str) -> None:
        await self.until(f"document.querySelector({json.dumps(selector)}) !== null")
        await self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.send("Input.insertText", text=text)

    async def text(self, selector: str = "body") -> str:
        return str(await self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def shot(self, path: Path) -> None:
        """The whole page, however long."""
        found = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    async def sign_in(self, token: str) -> None:
        await self.type("#token", token)
        await self.click("#sign-in button")

    async def _port(self) -> int:
        file = self._folder / "DevToolsActivePort"
        async with asyncio.timeout(PATIENCE_S):
            while not (file.exists() and file.read_text().count("\n")):
                await asyncio.sleep(0.05)
        return int(file.read_text().splitlines()[0])

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told.get("result", told))
            elif told["method"] == "Runtime.exceptionThrown":
                self.problems.append(
                    told["params"]["exceptionDetails"].get("exception", {}).get("description", "exception")
                )
            elif told["method"] == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                entry = told["params"]["entry"]
                self.problems.append(f"{entry['text']} {entry.get('url', '')}")
