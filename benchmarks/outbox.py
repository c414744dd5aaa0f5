"""Durable puts per second, and how fast the outbox drains to Mosquitto beside a bare paho loop.

    python benchmarks/outbox.py [--seconds 3] [--messages 5000] [--rounds 3] [--folder DIR] [--port PORT] [--sync-ms MS]

Peers run in turn within each round, so that a busy machine hurts all of them; the median round is printed, and the median over
rounds of each ratio. `cpu` is processor time of this process per message, which a busy machine hardly changes. Without --port
a Mosquitto is started. `pip install persist-queue` adds that peer (SQLite in WAL mode, FULL, a commit per put, threads).

Where the disk of a virtual machine is a file of another, a sync takes some hundredths of a millisecond; an eMMC or a consumer's SSD
takes milliseconds. `--sync-ms 1` makes every sync of this process that much slower, for all peers alike (needs a C compiler).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import queue
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import structlog
import uvloop
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.config.delivery import MqttConfig, OutboxConfig
from agent.mqtt.client import MqttClient
from agent.mqtt.topics import Topics
from agent.outbox.relay import Relay
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import Lane

BODY = b"x" * 500
TOPICS = Topics("recognizer", "bench")
TOPIC = TOPICS.event("door", "fight")

SLOW_SYNC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
static int late(const char *name, int file) {
  const struct timespec wait = {SYNC_US / 1000000, SYNC_US % 1000000 * 1000L};
  nanosleep(&wait, 0);
  return ((int (*)(int))dlsym(RTLD_NEXT, name))(file);
}
int fsync(int file) { return late("fsync", file); }
int fdatasync(int file) { return late("fdatasync", file); }
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """rate: per second; cpu_us: processor time per message; p99_ms: of one operation, 0 = not measured."""

    rate: float
    cpu_us: float
    p99_ms: float = 0.0


def message(number: int) -> Message:
    """A message of 500 bytes."""
    return Message(Lane.EVENT, f"id-{number}", TOPIC, lambda _: BODY)


async def puts(folder: Path, producers: int, seconds: float) -> Figure:
    """`producers` tasks that each wait for their put before the next; the messages are there before the clock starts, as the
    peers' are."""
    messages = [message(number) for number in range(1000)]
    store = await OutboxStore.open(folder / "events.db", OutboxConfig())
    waits: list[float] = []
    start, cpu = time.perf_counter(), time.process_time()

    async def produce() -> None:
        while (begun := time.perf_counter()) - start < seconds:
            await store.put(messages[len(waits) % 1000])
            waits.append(time.perf_counter() - begun)

    await asyncio.gather(*(produce() for _ in range(producers)))
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    await store.close()
    return Figure(len(waits) / took, cpu / len(waits) * 1e6, statistics.quantiles(waits, n=100)[98] * 1e3)


class Raw:
    """sqlite3 alone: the same table with one index, WAL and FULL."""

    ROW = ("id", 1, TOPIC, BODY, "application/json", 0, "fight", "detected", "door", 0, 0)

    def __init__(self, folder: Path) -> None:
        self.connection = sqlite3.connect(folder / "raw.db", isolation_level=None, check_same_thread=False)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=FULL")
        self.connection.execute("CREATE TABLE m (id INTEGER PRIMARY KEY, a, b, c, d, e, f, g, h, i, j, k)")
        self.connection.execute("CREATE INDEX m_b ON m (b)")

    def commit(self, rows: list[tuple[Any, ...]]) -> None:
        """One transaction."""
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany("INSERT INTO m (a,b,c,d,e,f,g,h,i,j,k) VALUES (?,?,?,?,?,?,?,?,?,?,?)", rows)
        self.connection.execute("COMMIT")


def raw_commits(folder: Path, rows: int, seconds: float) -> Figure:
    """One thread that does nothing but commit `rows` at a time; nobody waits for it."""
    values, count, raw = [Raw.ROW] * rows, 0, Raw(folder)
    with contextlib.closing(raw.connection):
        start, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds:
            raw.commit(values)
            count += rows
        took, cpu = time.perf_counter() - start, time.process_time() - cpu
    return Figure(count / took, cpu / count * 1e6)


async def raw_awaited(folder: Path, producers: int, seconds: float) -> Figure:
    """The same commits on a thread, for `producers` tasks of an event loop that each wait for theirs: what the way there and
    back costs, without anything that the store does for a message."""
    raw, loop, count = Raw(folder), asyncio.get_running_loop(), 0
    jobs: queue.SimpleQueue[asyncio.Future[None] | None] = queue.SimpleQueue()

    def answer(replies: list[asyncio.Future[None] | None]) -> None:
        for reply in replies:
            if reply is not None:
                reply.set_result(None)

    def write() -> None:
        while None not in (replies := [jobs.get() for _ in range(producers)]):
            raw.commit([Raw.ROW] * producers)
            loop.call_soon_threadsafe(answer, replies)

    async def produce() -> None:
        nonlocal count
        while producing:
            reply: asyncio.Future[None] = loop.create_future()
            jobs.put(reply)
            await reply
            count += 1

    producing, thread = True, threading.Thread(target=write)
    start, cpu = time.perf_counter(), time.process_time()
    thread.start()
    tasks = [asyncio.create_task(produce()) for _ in range(producers)]
    await asyncio.sleep(seconds)
    producing = False
    await asyncio.gather(*tasks)
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    for _ in tasks:
        jobs.put(None)
    thread.join()
    raw.connection.close()
    return Figure(count / took, cpu / count * 1e6)


def persist_queue(folder: Path, producers: int, seconds: float) -> Figure:
    """Its acknowledging SQLite queue: `producers` threads that each wait for their put before the next."""
    from persistqueue import SQLiteAckQueue

    queue = SQLiteAckQueue(str(folder), multithreading=True, auto_commit=True)
    counts = [0] * producers
    start, cpu = time.perf_counter(), time.process_time()

    def produce(index: int) -> None:
        while time.perf_counter() - start < seconds:
            queue.put(BODY)
            counts[index] += 1

    threads = [threading.Thread(target=produce, args=(index,)) for index in range(producers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    queue.close()
    return Figure(sum(counts) / took, cpu / sum(counts) * 1e6)


async def drain(folder: Path, port: int, messages: int, window: int) -> Figure:
    """Store, relay and client until the last row is acknowledged; the rows are there before the clock starts."""
    store = await OutboxStore.open(folder / "events.db", OutboxConfig())
    await asyncio.gather(*(store.put(message(n)) for n in range(messages)))
    client = MqttClient(MqttConfig(port=port, max_in_flight=window), TOPICS)
    relay = Relay(store, client, max_in_flight=window)
    connecting = asyncio.create_task(client.run())
    await client.wait_connected()
    start, cpu = time.perf_counter(), time.process_time()
    relaying = asyncio.create_task(relay.run())
    while relay.stats.delivered < messages:  # noqa: ASYNC110 - the relay has no event for it
        await asyncio.sleep(0.005)
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    for task in (relaying, connecting):
        task.cancel()
        await asyncio.wait([task])
    await store.close()
    return Figure(messages / took, cpu / messages * 1e6)


def bare_paho(port: int, messages: int, window: int) -> Figure:
    """paho's own network thread, a semaphore as the window, no database."""
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.max_inflight_messages_set(0)
    slots, connected, finished = threading.Semaphore(window), threading.Event(), threading.Event()
    acknowledged = 0

    def on_publish(*_: Any) -> None:
        nonlocal acknowledged
        acknowledged += 1
        slots.release()
        if acknowledged == messages:
            finished.set()

    client.on_publish = on_publish
    client.on_connect = lambda *_: connected.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    connected.wait(10)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(messages):
        slots.acquire()
        client.publish(TOPIC, BODY, 1)
    finished.wait(120)
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    client.disconnect()
    client.loop_stop()
    return Figure(messages / took, cpu / messages * 1e6)


async def latency(folder: Path, port: int, messages: int) -> Figure:
    """From `put` to PUBACK with an idle broker, one event every 10 ms."""
    store = await OutboxStore.open(folder / "events.db", OutboxConfig())
    client = MqttClient(MqttConfig(port=port), TOPICS)
    relay = Relay(store, client)
    tasks = [asyncio.create_task(part.run()) for part in (client, relay)]
    await client.wait_connected()
    waits: list[float] = []
    for number in range(messages):
        begun = time.perf_counter()
        await store.put(message(number))
        while relay.stats.delivered <= number:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        waits.append(time.perf_counter() - begun)
        await asyncio.sleep(0.01)
    for task in reversed(tasks):
        task.cancel()
        await asyncio.wait([task])
    await store.close()
    return Figure(1 / statistics.median(waits), 0.0, statistics.quantiles(waits, n=100)[98] * 1e3)


@contextlib.contextmanager
def broker(port: int) -> Iterator[int]:
    """The broker at `port`, or a Mosquitto of our own."""
    if port:
        yield port
        return
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        raise SystemExit("Mosquitto is not installed; give --port of a running broker")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([program, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.01)
        yield port
    finally:
        process.terminate()
        process.wait()


def with_slow_syncs(ms: float, arguments: list[str]) -> int:
    """This program once more, with every sync `ms` later; its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "slow_sync.c"), Path(folder, "slow_sync.so")
        source.write_text(SLOW_SYNC)
        compiler = shutil.which("cc")
        if compiler is None:
            raise SystemExit("--sync-ms needs a C compiler (Debian: apt install gcc libc6-dev)")
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-DSYNC_US={ms * 1000:.0f}", "-o", library, source, "-ldl"], check=True
        )
        environment = os.environ | {"LD_PRELOAD": str(library)}
        return subprocess.run([sys.executable, __file__, *arguments], env=environment, check=False).returncode


def median(figures: list[Figure]) -> Figure:
    """The round with the median rate."""
    return sorted(figures, key=lambda figure: figure.rate)[len(figures) // 2]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the databases lie; default: the system's temporary folder")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--sync-ms", type=float, help="make syncs slower, as on a device's disk")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.sync_ms is not None and "slow_sync" not in os.environ.get("LD_PRELOAD", ""):
        raise SystemExit(with_slow_syncs(args.sync_ms, sys.argv[1:]))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    results: dict[str, list[Figure]] = {}

    def measure(name: str, work: Callable[[Path], Figure]) -> None:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            results.setdefault(name, []).append(work(Path(folder)))

    with broker(args.port) as port:
        for _ in range(args.rounds):
            for rows in (1, 10, 100):
                measure(f"outbox, {rows} producers", lambda f, n=rows: uvloop.run(puts(f, n, args.seconds)))  # type: ignore[misc]
                measure(f"raw sqlite3, {rows} rows a commit", lambda f, n=rows: raw_commits(f, n, args.seconds))  # type: ignore[misc]
                measure(
                    f"raw sqlite3 awaited, {rows} tasks",
                    lambda f, n=rows: uvloop.run(raw_awaited(f, n, args.seconds)),  # type: ignore[misc]
                )
                if importlib.util.find_spec("persistqueue") is not None:
                    measure(f"persist-queue, {rows} threads", lambda f, n=rows: persist_queue(f, n, args.seconds))  # type: ignore[misc]
            for window in (1, 20, 100):
                measure(f"drain, {window} in flight", lambda f, w=window: uvloop.run(drain(f, port, args.messages, w)))  # type: ignore[misc]
                measure(f"bare paho, {window} in flight", lambda _, w=window: bare_paho(port, args.messages, w))  # type: ignore[misc]
            measure("put to PUBACK, idle", lambda f: uvloop.run(latency(f, port, 300)))
    if args.json:
        print(json.dumps({name: vars_of(median(figures)) for name, figures in results.items()}, indent=2))
        return
    print(f"{'':32}{'per s':>10}{'cpu us':>10}{'p99 ms':>10}")
    for name, figures in results.items():
        figure = median(figures)
        p99 = f"{figure.p99_ms:.1f}" if figure.p99_ms else ""
        print(f"{name:32}{figure.rate:10.0f}{figure.cpu_us:10.0f}{p99:>10}")
    for ours, peer in pairs(list(results)):
        ratios = [one.rate / other.rate for one, other in zip(results[ours], results[peer], strict=True)]
        print(f"{ours} / {peer}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def pairs(names: list[str]) -> list[tuple[str, str]]:
    """Which of `names` is compared with which."""
    found = []
    for number in (1, 10, 100):
        peers = (
            f"raw sqlite3, {number} rows a commit",
            f"raw sqlite3 awaited, {number} tasks",
            f"persist-queue, {number} threads",
        )
        found += [(f"outbox, {number} producers", peer) for peer in peers]
    found += [(f"drain, {window} in flight", f"bare paho, {window} in flight") for window in (1, 20, 100)]
    return [pair for pair in found if set(pair) <= set(names)]


def vars_of(figure: Figure) -> dict[str, float]:
    """`figure` as a mapping."""
    return {"per_s": figure.rate, "cpu_us": figure.cpu_us, "p99_ms": figure.p99_ms}


if __name__ == "__main__":
    main()
