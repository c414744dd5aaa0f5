"""A long time without a network: how the agent's memory behaves, and how the backlog drains.

    python benchmarks/backlog.py [--events 1000000] [--filler-bytes 200] [--json]

The process of `crash_agent.py` puts alarms and events while its broker is down, then the broker (Mosquitto) comes up and all
is drained to an independent subscriber. Exit code 0 only if everything arrived in order within its lane, without a duplicate, and
resident memory grew by less than 30 MB, from the first 2 % of the events on to the end of the drain.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import psutil
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

ROOT = Path(__file__).resolve().parent.parent
AGENT = ROOT / "benchmarks" / "crash_agent.py"
BAR_MB = 30.0
_SAMPLE_S = 0.2
_BASE_SHARE = 0.02


@dataclass(slots=True)
class Result:
    """growth: of resident memory, against `base_rss_mb`. faults: arrivals out of order, doubled, or missing."""

    events: int = 0
    base_rss_mb: float = 0.0
    growth_buffering_mb: float = 0.0
    growth_draining_mb: float = 0.0
    puts_per_s: float = 0.0
    drained_per_s: float = 0.0
    database_mb: float = 0.0
    arrived: int = 0
    faults: int = 0

    @property
    def good(self) -> bool:
        """Whether all bars are met."""
        growth_mb = max(self.growth_buffering_mb, self.growth_draining_mb)
        return growth_mb < BAR_MB and not self.faults and self.arrived == self.events


class Counter:
    """A subscriber that keeps counts only: sequences that rise within each lane, as many as there are, are complete."""

    def __init__(self, port: int) -> None:
        self.arrived = 0
        self.faults = 0
        self._last: dict[int, int] = {}
        self._ready = threading.Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id="counter", protocol=MQTTProtocolVersion.MQTTv311, clean_session=False
        )
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe("recognizer/+/events/#", 1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._ready.wait(10)

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        body = json.loads(bytes(message.payload))
        lane, sequence = body.get("lane"), body.get("sequence")
        if sequence is None or sequence <= self._last.get(lane, 0):
            self.faults += 1
            return
        self._last[lane] = sequence
        self.arrived += 1

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


class Memory:
    """Resident memory of a process, sampled on a thread. highest_mb: since the last `mark`."""

    def __init__(self, pid: int) -> None:
        self.highest_mb = 0.0
        self._process = psutil.Process(pid)
        threading.Thread(target=self._sample, daemon=True).start()

    def now_mb(self) -> float:
        """At this moment; 0 when the process has ended."""
        try:
            return float(self._process.memory_info().rss) / 1e6
        except psutil.NoSuchProcess:
            return 0.0

    def mark(self) -> float:
        """Begin anew; returns the highest until now."""
        highest_mb, self.highest_mb = self.highest_mb, 0.0
        return highest_mb

    def _sample(self) -> None:
        while (now_mb := self.now_mb()) > 0:
            self.highest_mb = max(self.highest_mb, now_mb)
            time.sleep(_SAMPLE_S)


async def measure(args: argparse.Namespace, folder: Path) -> Result:
    """Buffer, drain, count."""
    sys.path.insert(0, str(ROOT / "tests"))
    from fakes.brokers import MOSQUITTO, Mosquitto

    if MOSQUITTO is None:
        raise SystemExit("Mosquitto is not installed")
    result = Result(events=args.events)
    broker = Mosquitto(folder / "broker")
    await asyncio.to_thread(broker.start)
    counter = await asyncio.to_thread(Counter, broker.port)
    await asyncio.to_thread(broker.stop)
    database = folder / "events.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(AGENT), str(database), "--count", str(args.events), "--filler-bytes", str(args.filler_bytes),
        "--mqtt", json.dumps({"port": broker.port}), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    memory = Memory(process.pid)
    await process.stdout.readline()
    begin_s = time.monotonic()
    buffered = asyncio.create_task(process.stdout.readline())
    while not buffered.done():
        await asyncio.wait([buffered], timeout=_SAMPLE_S)
        if not result.base_rss_mb and database.stat().st_size > args.events * args.filler_bytes * _BASE_SHARE:
            result.base_rss_mb = memory.now_mb()
            memory.mark()
    result.puts_per_s = args.events / (time.monotonic() - begin_s)
    result.growth_buffering_mb = memory.mark() - result.base_rss_mb
    result.database_mb = database.stat().st_size / 1e6
    await asyncio.to_thread(broker.start)
    begin_s = time.monotonic()
    code = await process.wait()
    result.drained_per_s = args.events / (time.monotonic() - begin_s)
    result.growth_draining_mb = memory.mark() - result.base_rss_mb
    deadline_s = time.monotonic() + 60
    while counter.arrived < args.events and time.monotonic() < deadline_s:  # noqa: ASYNC110 - counted on another thread
        await asyncio.sleep(0.2)
    await asyncio.to_thread(counter.close)
    await asyncio.to_thread(broker.stop)
    result.arrived, result.faults = counter.arrived, counter.faults + (code != 0)
    return result


def main() -> int:
    """Measure and print; 0 when the bars are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--filler-bytes", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where the database lies; default: the system's temporary folder")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = asyncio.run(measure(args, Path(folder)))
    figures = {name: round(value, 1) for name, value in asdict(result).items()} | {"good": result.good}
    print(json.dumps(figures, indent=2) if args.json else "\n".join(f"{k:22} {v}" for k, v in figures.items()))
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
