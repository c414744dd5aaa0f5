"""How the fleet server holds up: N simulated devices over loopback, the server in a process of its own, the devices in this one.

    python benchmarks/fleet_load.py [--devices 10 100 1000 10000] [--interval-s 30] [--seconds 60] [--updating 0.1]
                                    [--database postgresql://USER@HOST/EMPTY] [--json]

Each device keeps its connection, asks every `interval-s` seconds at a moment of its own (with its ETag), and a share of them has an
update: it fetches the deployment and reports six times. Latency is from the moment that a request should go out (so a device that is
late is no excuse) to the last byte of its answer. After the run the server is stopped and every report that it answered is looked for
in the database. Exit code 0 only if p99 stays under 100 ms, no request failed and no report is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil
import uvloop
from sqlalchemy import Connection, insert, select

from agent.net import free_port
from agent.update.release import Contract, Release
from ota.server.tokens import hash_of
from ota.store import actions, feedback, releases, tables
from ota.store.store import open_store

ROOT = Path(__file__).resolve().parent.parent
BAR_MS = 100.0
REPORTS = 6
_STEP_S = 4.0
"""Between two reports of a device."""
_START_S = 30.0
_SETTLE = 500


@dataclass(slots=True)
class Result:
    """One run. lag: how late this process was to send, the 99th percentile; it is part of the latencies."""

    devices: int
    database: str
    seconds: float = 0.0
    polls: int = 0
    polls_per_s: float = 0.0
    requests: int = 0
    not_modified: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    report_p50_ms: float = 0.0
    report_p99_ms: float = 0.0
    lag_p99_ms: float = 0.0
    server_cpu_percent: float = 0.0
    server_rss_mb: float = 0.0
    reports_answered: int = 0
    reports_found: int = 0
    failures: int = 0

    @property
    def good(self) -> bool:
        """Whether all bars are met."""
        fast = self.p99_ms < BAR_MS and self.report_p99_ms < BAR_MS
        return fast and not self.failures and self.reports_found == self.reports_answered


class Line(asyncio.Protocol):
    """One connection of one device: HTTP/1.1 as little as it takes, for this machine has to play ten thousand of them."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, str, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end or self._answer is None:
            return
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        if len(body) < int(headers.get("content-length", "0")):
            return
        self._buffer = b""
        answer, self._answer = self._answer, None
        if not answer.done():
            answer.set_result((int(status.split(" ")[1]), headers.get("etag", ""), body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError(str(exc or "closed")))

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, str, bytes]]:
        """Status, ETag and body."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer


@dataclass(slots=True)
class Book:
    """What all devices saw."""

    polls_ms: list[float] = field(default_factory=list)
    reports_ms: list[float] = field(default_factory=list)
    lags_ms: list[float] = field(default_factory=list)
    not_modified: int = 0
    answered: int = 0
    failures: int = 0


class Device:
    """phase_s: of its polls within the interval."""

    def __init__(self, number: int, port: int, book: Book, phase_s: float) -> None:
        self._port = port
        self._book = book
        self._phase_s = phase_s
        self._path = f"/default/controller/v1/box-{number}"
        self._head = (
            f"Host: 127.0.0.1:{port}\r\nAuthorization: TargetToken {token_of(number)}\r\nAccept: application/json\r\n"
        )
        self._etag = ""
        self._line: Line | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._busy = asyncio.Lock()

    async def run(self, start: float, end: float, interval_s: float) -> None:
        """start, end: of the run, in the loop's time."""
        loop = asyncio.get_running_loop()
        at = start + self._phase_s
        while at < end:
            await asyncio.sleep(at - loop.time())
            body = await self._poll(at)
            if b"/deploymentBase/" in body and self._reporting is None:
                self._reporting = asyncio.create_task(self._update(body))
            at += interval_s
        if self._reporting is not None:
            await self._reporting

    async def _poll(self, due: float) -> bytes:
        known = f"If-None-Match: {self._etag}\r\n" if self._etag else ""
        status, etag, body = await self._ask(
            f"GET {self._path} HTTP/1.1\r\n{self._head}{known}\r\n", due, self._book.polls_ms
        )
        self._book.not_modified += status == 304
        self._etag = etag or self._etag
        return body

    async def _update(self, poll: bytes) -> None:
        loop = asyncio.get_running_loop()
        action = json.loads(poll)["_links"]["deploymentBase"]["href"].rpartition("/")[2].partition("?")[0]
        await self._ask(f"GET {self._path}/deploymentBase/{action} HTTP/1.1\r\n{self._head}\r\n", loop.time(), [])
        for n in range(REPORTS):
            last = n == REPORTS - 1
            result = {"finished": "success" if last else "none"}
            status = {"execution": "closed" if last else "proceeding", "result": result, "details": [f"step {n}"]}
            body = json.dumps({"status": status})
            head = f"POST {self._path}/deploymentBase/{action}/feedback HTTP/1.1\r\n{self._head}"
            kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            code, _, _ = await self._ask(head + kind + body, loop.time(), self._book.reports_ms)
            self._book.answered += code == 200
            await asyncio.sleep(_STEP_S * random.uniform(0.5, 1.5))

    async def _ask(self, request: str, due: float, into: list[float]) -> tuple[int, str, bytes]:
        loop = asyncio.get_running_loop()
        async with self._busy:  # one request at a time on one connection
            self._book.lags_ms.append((loop.time() - due) * 1000)
            try:
                if self._line is None:
                    _, self._line = await loop.create_connection(Line, "127.0.0.1", self._port)
                answer = await asyncio.wait_for(self._line.ask(request.encode()), 30)
            except (OSError, TimeoutError):
                self._book.failures += 1
                self._line = None
                return 0, "", b""
        into.append((loop.time() - due) * 1000)
        self._book.failures += answer[0] not in (200, 304)
        return answer


def token_of(number: int) -> str:
    return f"token-of-simulated-device-{number}"


def provision(connection: Connection, first: int, last: int, updating: int) -> None:
    """Devices `first` to `last` (exclusive); those below `updating` have an update."""
    rows = [
        {
            "controller_id": f"box-{n}", "name": f"box {n}", "token_hash": hash_of(token_of(n)), "created_ms": 0, "address": "",
            "attributes": {"site": f"s{n % 50}", "agent_version": "0.7.0"}, "update_status": "registered", "ask_attributes": False,
        }
        for n in range(first, last)
    ]  # fmt: skip
    connection.execute(insert(tables.devices), rows)
    known = releases.known(connection)
    contract = Contract(task="pose", inputs=(), outputs=())
    release = Release(
        slot="pose", name="load", version="1.0", number=1, contract=contract, manifest_sha256="0" * 64, unpacked_bytes=1
    )
    row = next(iter(known.values()), None) or releases.add(
        connection, release, target=release.path, length=1, sha256="0" * 64, sha1="", md5="", now_ms=0
    )
    names = [f"box-{n}" for n in range(first, min(last, updating))]
    if names:
        chosen = select(tables.devices.c.id).where(tables.devices.c.controller_id.in_(names))
        actions.assign_many(connection, list(connection.execute(chosen).scalars()), row.id, by="load", now_ms=0)


async def measure(count: int, options: argparse.Namespace, folder: Path) -> Result:
    """One run."""
    url = options.database or f"sqlite:///{folder / 'fleet.db'}"
    updating = max(1, round(count * options.updating))
    async with open_store(url) as store:
        for first in range(0, count, _SETTLE):
            await store.write(provision, first, min(first + _SETTLE, count), updating)
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "ota.cli", "serve", "--data", str(folder), "--port", str(port), "--database", url]
    command += ["--polling", time.strftime("%H:%M:%S", time.gmtime(options.interval_s))]
    result, book = Result(count, "postgresql" if options.database else "sqlite"), Book()
    with (folder / "log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            await _wait_for(port, server, folder)
            await _drive(Run(port, options, psutil.Process(server.pid)), book, result)
        finally:
            server.terminate()
            await server.wait()
    async with open_store(url) as store:
        result.reports_found = await store.read(feedback.total)
    _sum_up(book, result)
    return result


async def _wait_for(port: int, server: asyncio.subprocess.Process, folder: Path) -> None:
    end = time.monotonic() + _START_S
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if server.returncode is not None or time.monotonic() > end:
                raise RuntimeError((folder / "log").read_text()[-2000:]) from None
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return


@dataclass(frozen=True, slots=True)
class Run:
    port: int
    options: argparse.Namespace
    server: psutil.Process


async def _drive(run: Run, book: Book, result: Result) -> None:
    options, server = run.options, run.server
    loop = asyncio.get_running_loop()
    dice = random.Random(7)
    start = loop.time() + 1
    devices = [Device(n, run.port, book, dice.uniform(0, options.interval_s)) for n in range(result.devices)]
    before, began = server.cpu_times(), time.monotonic()
    async with asyncio.TaskGroup() as group:
        for device in devices:
            group.create_task(device.run(start, start + options.seconds, options.interval_s))
    result.seconds = time.monotonic() - began
    after = server.cpu_times()
    used_s = after.user + after.system - before.user - before.system
    result.server_cpu_percent = 100 * used_s / result.seconds
    result.server_rss_mb = server.memory_info().rss / 2**20


def _sum_up(book: Book, result: Result) -> None:
    result.polls, result.not_modified = len(book.polls_ms), book.not_modified
    result.polls_per_s = result.polls / result.seconds
    result.requests = len(book.lags_ms)
    result.failures, result.reports_answered = book.failures, book.answered
    result.p50_ms, result.p99_ms = share(book.polls_ms, 0.5), share(book.polls_ms, 0.99)
    result.max_ms = max(book.polls_ms, default=0.0)
    result.report_p50_ms, result.report_p99_ms = share(book.reports_ms, 0.5), share(book.reports_ms, 0.99)
    result.lag_p99_ms = share(book.lags_ms, 0.99)


def share(values: Sequence[float], part: float) -> float:
    """The value that `part` (0-1) of them do not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--interval-s", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--updating", type=float, default=0.1, help="share of devices with an update, 0-1 (default 0.1)"
    )
    parser.add_argument("--database", help="an empty PostgreSQL database instead of SQLite; for one number of devices")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line (or one JSON object) a run."""
    options = _options(argv)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    good = True
    for count in options.devices:
        with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(measure(count, options, Path(folder)))
        good = good and result.good
        print(json.dumps(asdict(result)) if options.json else _line(result), flush=True)
    return 0 if good else 1


def _line(result: Result) -> str:
    figures: dict[str, Any] = {
        "polls/s": f"{result.polls_per_s:.1f}",
        "poll p50/p99/max ms": f"{result.p50_ms:.1f}/{result.p99_ms:.1f}/{result.max_ms:.1f}",
        "report p50/p99 ms": f"{result.report_p50_ms:.1f}/{result.report_p99_ms:.1f}",
        "late p99 ms": f"{result.lag_p99_ms:.1f}",
        "server CPU": f"{result.server_cpu_percent:.0f} %",
        "RSS": f"{result.server_rss_mb:.0f} MB",
        "reports answered/found": f"{result.reports_answered}/{result.reports_found}",
        "failed": result.failures,
    }
    text = ", ".join(f"{name} {value}" for name, value in figures.items())
    return f"{result.devices:>6} devices ({result.database}): {text}{'' if result.good else '  <- BAR MISSED'}"


if __name__ == "__main__":
    sys.exit(main())
