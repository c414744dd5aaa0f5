"""Kill the agent again and again while its broker comes and goes, and account for every event.

    python benchmarks/crash_campaign.py [--kills 200] [--rate 500] [--seed 1] [--json] [--break FAULT]

The agent of `crash_agent.py` puts alarms, events and states and is killed with -9 at random moments, some of them while it
starts. The broker (Mosquitto with persistence) restarts at random. An independent subscriber with a persistent session
writes down what arrives. At the end the agent runs once more until its outbox is empty. Exit code 0 only if

- nothing whose put had returned is lost, and the sequence numbers are complete,
- first arrivals are in order within each lane,
- duplicates have equal ids and equal contents,
- the last committed state of each topic arrived.

The broker is stopped politely: Mosquitto acknowledges before it has anything on disk, so one that is killed forgets what it
took over, and only the agent is on trial. `--break` makes the agent faulty (see `crash_agent.py`) and must end with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from crash_agent import FAULTS
from crash_ledger import Ledger, Verdict
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

ROOT = Path(__file__).resolve().parent.parent
AGENT = ROOT / "benchmarks" / "crash_agent.py"
PER_RUN = 1_000_000
"""Numbers per process: put number n of process k is k * PER_RUN + n."""
_EARLY_SHARE = 0.15
_EARLY_S = 1.0
_LIFE_S = (0.05, 2.5)
_BROKER_UP_S = (1.0, 6.0)
_BROKER_DOWN_S = (0.05, 1.5)
_DRAIN_TIMEOUT_S = 180.0


class Listener:
    """The independent subscriber. recoveries_s: per process that was heard of, from its start to its first arrival."""

    def __init__(self, port: int) -> None:
        self.ledger = Ledger()
        self.recoveries_s: list[float] = []
        self.started_s: dict[int, float] = {}
        self.last_s = time.monotonic()
        self._heard = 0
        self._subscribed = False
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id="listener",
            protocol=MQTTProtocolVersion.MQTTv311,
            clean_session=False,
        )
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(
            [("recognizer/+/events/#", 1), ("recognizer/+/cameras/#", 1)]
        )
        self._client.on_subscribe = lambda *_: setattr(self, "_subscribed", True)
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port, keepalive=5)
        self._client.loop_start()
        deadline_s = time.monotonic() + 10
        while not self._subscribed and time.monotonic() < deadline_s:
            time.sleep(0.01)

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        number = self.ledger.arrived(message.topic, bytes(message.payload))
        if number is None:
            return
        self.last_s = time.monotonic()
        run = number // PER_RUN
        if run > self._heard:
            self._heard = run
            self.recoveries_s.append(self.last_s - self.started_s[run])

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


@dataclass(slots=True)
class Result:
    """kills: done; broker_restarts; early: kills before the store was open; recovery_s: worst, median."""

    kills: int = 0
    early: int = 0
    broker_restarts: int = 0
    seconds: float = 0.0
    recovery_worst_s: float = 0.0
    recovery_median_s: float = 0.0
    troubles: list[str] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)

    @property
    def good(self) -> bool:
        """Whether the promise held."""
        return not self.troubles and not self.verdict.faults and self.verdict.committed > 0

    def figures(self) -> dict[str, Any]:
        """As a mapping."""
        own = {name: getattr(self, name) for name in Result.__slots__ if name != "verdict"}
        return {**own, **self.verdict.figures(), "good": self.good}


class Campaign:
    """One campaign in `folder`. dice: decides every moment."""

    def __init__(self, args: argparse.Namespace, folder: Path, broker: Any, listener: Listener) -> None:
        self.result = Result()
        self._args = args
        self._folder = folder
        self._broker = broker
        self._listener = listener
        self._dice = random.Random(args.seed)
        self._run = 0

    async def run(self) -> Result:
        """All kills, the last drain, and the sums."""
        begin_s = time.monotonic()
        disturbing = asyncio.create_task(self._disturb_broker())
        try:
            while self.result.kills < self._args.kills and not self.result.troubles:
                if time.monotonic() - begin_s > self._args.max_seconds:
                    self.result.troubles.append(f"only {self.result.kills} kills within {self._args.max_seconds:g} s")
                    break
                await self._kill_one()
        finally:
            disturbing.cancel()
            await asyncio.wait([disturbing])
        await self._drain()
        self.result.seconds = round(time.monotonic() - begin_s, 1)
        return self.result

    async def _disturb_broker(self) -> None:
        dice = random.Random(self._args.seed + 1)
        while True:
            await asyncio.sleep(dice.uniform(*_BROKER_UP_S))
            restart = asyncio.create_task(self._restart_broker(dice.uniform(*_BROKER_DOWN_S)))
            try:
                await asyncio.shield(restart)
            finally:
                await restart  # never left down

    async def _restart_broker(self, down_s: float) -> None:
        await asyncio.to_thread(self._broker.stop)
        await asyncio.sleep(down_s)
        await asyncio.to_thread(self._broker.start)
        self.result.broker_restarts += 1

    async def _kill_one(self) -> None:
        early = self._dice.random() < _EARLY_SHARE
        after_s = self._dice.uniform(0.0, _EARLY_S) if early else self._dice.uniform(*_LIFE_S)
        async with self._agent() as (process, ready, reading):
            if not early:
                await asyncio.wait([reading, asyncio.create_task(ready.wait())], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([reading], timeout=after_s)
            if process.returncode is not None or reading.done():
                self._trouble(f"the agent ended by itself with {await process.wait()}")
                return
            process.kill()
            await reading
            await process.wait()
        self.result.kills += 1
        self.result.early += not ready.is_set()

    async def _drain(self) -> None:
        """The last process lives until nothing waits; then the subscriber gets the time to hear it all."""
        async with self._agent("--seconds", "1") as (process, _, reading):
            try:
                async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                    await reading
                    if code := await process.wait():
                        self._trouble(f"the last agent ended with {code}")
            except TimeoutError:
                self._trouble(f"the outbox was not empty after {_DRAIN_TIMEOUT_S:g} s")
                process.kill()
        while self._listener.ledger.outstanding() and time.monotonic() - self._listener.last_s < self._args.silence_s:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(self._listener.close)
        self.result.verdict = self._listener.ledger.verdict()
        recoveries_s = sorted(self._listener.recoveries_s) or [float("inf")]
        self.result.recovery_worst_s = round(recoveries_s[-1], 2)
        self.result.recovery_median_s = round(recoveries_s[len(recoveries_s) // 2], 2)

    @contextlib.asynccontextmanager
    async def _agent(
        self, *more: str
    ) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.Event, asyncio.Task[None]]]:
        """A process, an event that it is ready, and the task that reads what it says."""
        self._run += 1
        self._listener.started_s[self._run] = time.monotonic()
        arguments = [
            str(self._folder / "events.db"), "--mqtt", json.dumps({"port": self._broker.port, **self._args.mqtt}), "--rate", str(self._args.rate),
            "--first", str(self._run * PER_RUN + 1), "--break", self._args.fault, *more,
        ]  # fmt: skip
        with (self._folder / "agent.log").open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(AGENT), *arguments, stdout=asyncio.subprocess.PIPE, stderr=errors
            )
        assert process.stdout is not None
        ready = asyncio.Event()
        reading = asyncio.create_task(self._read(process.stdout, ready))
        try:
            yield process, ready, reading
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await reading

    async def _read(self, lines: asyncio.StreamReader, ready: asyncio.Event) -> None:
        async for line in lines:
            words = line.decode().split()
            if words[0] == "ready":
                ready.set()
            else:
                _, lane, sequence, number, event_id, topic = words
                told = None if sequence == "-" else int(sequence)
                self._listener.ledger.committed(int(lane), told, int(number), event_id, topic)

    def _trouble(self, what: str) -> None:
        tail = (self._folder / "agent.log").read_text(errors="replace")[-1500:]
        self.result.troubles.append(f"{what}\n{tail}")


async def campaign(args: argparse.Namespace, folder: Path) -> Result:
    """Set up, run, tear down."""
    sys.path.insert(0, str(ROOT / "tests"))
    from fakes.brokers import MOSQUITTO, Mosquitto

    if MOSQUITTO is None:
        raise SystemExit("Mosquitto is not installed")
    broker = Mosquitto(folder / "broker")
    await asyncio.to_thread(broker.start)
    try:
        return await Campaign(args, folder, broker, await asyncio.to_thread(Listener, broker.port)).run()
    finally:
        await asyncio.to_thread(broker.stop)


def main() -> int:
    """Run and print; 0 when everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rate", type=float, default=500.0, help="puts per second, all lanes together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--max-seconds", type=float, default=1800.0, help="give up (exit code 1) when the kills take longer"
    )
    parser.add_argument(
        "--silence-s", type=float, default=20.0, help="nothing arrived for so long: what is missing is lost"
    )
    parser.add_argument("--folder", type=Path, help="keep database, logs and broker files here")
    parser.add_argument(
        "--mqtt", type=json.loads, default={}, help="keys of the configuration's section `mqtt`, as JSON"
    )
    parser.add_argument("--break", dest="fault", default="", choices=("", *FAULTS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crash-campaign-")))
        folder.mkdir(parents=True, exist_ok=True)
        result = asyncio.run(campaign(args, folder))
    figures = result.figures()
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:20} {value}")
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
