"""Partitions between the agent and its broker: real hosts as network namespaces, real packets that vanish."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from crash_ledger import Ledger, Verdict
from fakes.brokers import MOSQUITTO, Mosquitto, Subscriber
from fakes.netns import Cable, why_not
from fakes.partition import AGENT, Trial
from fakes.slow_proxy import SlowProxy

pytestmark = [pytest.mark.mosquitto, pytest.mark.skipif(MOSQUITTO is None, reason="needs the Mosquitto broker")]

RATE = 50.0
BACKOFF_S = 1.0
"""The longest wait of the agent in these tests."""
BAR_S = 5.0 + BACKOFF_S


@cache
def missing() -> str:
    return why_not(packet_filter=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    if missing():
        pytest.skip(missing())
    with Cable() as made:
        yield made


def pull(cable: Cable) -> None:
    cable.pull()


def cut(cable: Cable) -> None:
    cable.cut()


def lose_most(cable: Cable) -> None:
    cable.lose(60)


def survive(cable: Cable, folder: Path, fault: Callable[[Cable], None], outage_s: float, still_arrive: bool) -> None:
    """Nothing lost, order kept, and arrivals again within the bar."""
    with Trial(cable, folder, rate=RATE, seconds=outage_s + 4) as trial:
        trial.wait_for_arrivals(20, 10)
        fault(cable)
        time.sleep(0.5)
        before = len(trial.arrivals_s)
        time.sleep(outage_s)
        if still_arrive:  # how much is luck: one packet that gets through may hold many messages
            assert cable.lost() > 0
        else:
            assert len(trial.arrivals_s) == before
        cable.mend()
        recovery_s = trial.wait_for_arrivals(1, 60)
        verdict = trial.finish(60)
    print(f"recovery {recovery_s:.2f} s, {verdict.duplicates} duplicates")
    assert not verdict.faults, verdict
    assert verdict.committed == verdict.delivered > RATE * outage_s / 2
    assert recovery_s <= BAR_S


@pytest.mark.parametrize(
    ("fault", "outage_s"),
    [
        (pull, 2.0),
        (cut, 2.0),
        pytest.param(pull, 15.0, marks=pytest.mark.slow),
        pytest.param(cut, 8.0, marks=pytest.mark.slow),
        pytest.param(cut, 25.0, marks=pytest.mark.slow),
        pytest.param(cut, 40.0, marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(240)
def test_it_recovers_from_a_partition(
    cable: Cable, tmp_path: Path, fault: Callable[[Cable], None], outage_s: float
) -> None:
    survive(cable, tmp_path, fault, outage_s, still_arrive=False)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_it_recovers_when_the_network_returns_between_two_transmissions(cable: Cable, tmp_path: Path) -> None:
    """TCP sends again after about 13 and 26 s; between them only the agent itself can know better."""
    survive(cable, tmp_path, cut, 13.3, still_arrive=False)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_it_recovers_when_a_router_forgot_the_connection(cable: Cable, tmp_path: Path) -> None:
    """Nobody says that the connection is dead, and a new one would work at once."""
    with Trial(cable, tmp_path, rate=RATE, seconds=30) as trial:
        trial.wait_for_arrivals(20, 10)
        cable.forget_connections()
        time.sleep(0.3)
        recovery_s = trial.wait_for_arrivals(1, 60)
        verdict = trial.finish(60)
    assert not verdict.faults, verdict
    assert recovery_s <= BAR_S


@pytest.mark.parametrize("outage_s", [4.0, pytest.param(20.0, marks=pytest.mark.slow)])
@pytest.mark.timeout(240)
def test_it_lives_with_most_packets_lost(cable: Cable, tmp_path: Path, outage_s: float) -> None:
    survive(cable, tmp_path, lose_most, outage_s, still_arrive=True)


async def over_a_thin_line(
    broker: Mosquitto, subscriber: Subscriber, folder: Path, puts: int, filler_bytes: int
) -> tuple[int, Verdict]:
    """Puts through 2 s of delay and 1 kB/s until all is delivered: connections that it took, and the books."""
    ledger, rate = Ledger(), 40
    async with SlowProxy(broker.port, delay_s=2.0, bytes_per_s=1000.0) as proxy:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(AGENT), str(folder / "events.db"), "--mqtt", json.dumps({"port": proxy.port}),
            "--rate", str(rate), "--seconds", str(puts / rate), "--filler-bytes", str(filler_bytes),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode == 0
        connections = proxy.connections
    for line in output.decode().splitlines():
        if line.startswith("put "):
            _, lane, sequence, number, event_id, topic = line.split()
            ledger.committed(int(lane), None if sequence == "-" else int(sequence), int(number), event_id, topic)
    await asyncio.sleep(1)  # the subscriber is near
    for topic, payload, _ in subscriber.messages:
        if not topic.endswith("/status"):
            ledger.arrived(topic, payload)
    return connections, ledger.verdict()


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_far_and_thin_line_delivers_everything_over_one_connection(
    mosquitto: Mosquitto, subscribe: Callable[..., Subscriber], tmp_path: Path
) -> None:
    subscriber = await asyncio.to_thread(subscribe, mosquitto.port)
    connections, verdict = await over_a_thin_line(mosquitto, subscriber, tmp_path, puts=16, filler_bytes=200)
    assert not verdict.faults, verdict
    assert verdict.delivered >= 8  # of 16, less on a busy machine; all of what was put
    assert (connections, verdict.duplicates) == (1, 0)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_window_that_takes_longer_than_the_timeout_is_not_sent_again(
    mosquitto: Mosquitto, subscribe: Callable[..., Subscriber], tmp_path: Path
) -> None:
    subscriber = await asyncio.to_thread(subscribe, mosquitto.port)
    connections, verdict = await over_a_thin_line(mosquitto, subscriber, tmp_path, puts=60, filler_bytes=900)
    assert not verdict.faults, verdict
    assert (connections, verdict.duplicates) == (1, 0)
