"""The daemon with a webhook and a file beside the broker, or without one: everything is in all of them, through restarts."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import jsonschema
import pytest
from fakes.brokers import free_port
from fakes.webhooks import Receiver, code, verify
from harness import AgentProcess, wait_for

from agent.events.cloudevents import load_schema
from agent.outbox.history import EventArchive, EventQuery

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
QUICK = {"initial_s": 0.05, "max_s": 0.3}
MakeAgent = Callable[..., AgentProcess]


class ReceiverThread:
    """A receiver with a loop of its own, for tests that wait for a process."""

    def __init__(self) -> None:
        self.receiver = Receiver()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def start(self) -> None:
        asyncio.run_coroutine_threadsafe(self.receiver.start(), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.receiver.stop(), self._loop).result(10)

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def taken(self) -> list[str]:
        """Ids in order, doubles left out."""
        return list(dict.fromkeys(self.receiver.taken))


@pytest.fixture
def hook() -> Iterator[ReceiverThread]:
    thread = ReceiverThread()
    thread.start()
    yield thread
    thread.close()


@pytest.fixture
def make_agent(tmp_path: Path, hook: ReceiverThread) -> Iterator[MakeAgent]:
    made: list[AgentProcess] = []
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text(SECRET)

    def make(**overrides: object) -> AgentProcess:
        sinks = {
            "pager": {"type": "webhook", "url": hook.receiver.url, "secret_files": [str(secret)], "backoff": QUICK},
            "lines": {"type": "file", "backoff": QUICK},
        }  # fmt: skip
        keys = {"mqtt": {"enabled": False}, "sinks": sinks} | overrides
        made.append(AgentProcess(tmp_path, mqtt_port=free_port(), script=[0.9, 0.1], **keys))
        return made[-1]

    yield make
    for agent in made:
        agent.kill()


def lines(agent: AgentProcess) -> list[str]:
    path = agent.state_dir / "events.jsonl"
    return [json.loads(line)["id"] for line in path.read_text().splitlines()] if path.exists() else []


def committed(agent: AgentProcess) -> list[str]:
    with EventArchive(agent.state_dir / "events.db") as archive:
        return [row.event_id for row in archive.events(EventQuery(limit=None))]


def metric(agent: AgentProcess, name: str, **labels: str) -> float:
    wanted = ",".join(f'{key}="{value}"' for key, value in labels.items())
    with urlopen(f"http://127.0.0.1:{agent.http_port}/metrics", timeout=5) as response:
        for line in response.read().decode().splitlines():
            if line.startswith(f"recognizer_{name}{{{wanted}}}"):
                return float(line.rpartition(" ")[2])
    return -1.0


@pytest.mark.timeout(180)
def test_every_event_of_the_history_is_in_all_sinks_in_order(make_agent: MakeAgent, hook: ReceiverThread) -> None:
    agent = make_agent()
    agent.start()
    wait_for(lambda: len(hook.taken) >= 10 and len(lines(agent)) >= 10, "events in both")
    hook.receiver.answers.extend([code(500), code(429, Retry_After="1"), code(302, Location="/other")])
    wait_for(lambda: not hook.receiver.answers, "a receiver that fails")
    before = len(hook.taken)
    wait_for(lambda: len(hook.taken) >= before + 5, "events after that")
    agent.kill()
    agent.start()
    before = len(hook.taken)
    wait_for(lambda: len(hook.taken) >= before + 10, "events after a crash")

    hook.stop()
    before, there = len(hook.taken), len(lines(agent))
    wait_for(lambda: len(lines(agent)) >= there + 10, "the file goes on while the receiver is away")
    figures = wait_for(
        lambda: (one := agent.get("/api/v1/state")["health"]["sinks"])["pager"]["waiting"] >= 5 and one, "a backlog"
    )
    assert figures["pager"]["failed"] >= 1
    assert figures["pager"]["oldest_age_s"] > 0
    assert "Connection refused" in figures["pager"]["error"]
    assert figures["lines"]["waiting"] <= 3
    wait_for(lambda: metric(agent, "sink_deliveries_total", result="ok", sink="lines") >= 10, "metrics of the file")
    assert metric(agent, "sink_depth", sink="pager") >= 5
    assert metric(agent, "sink_oldest_age_seconds", sink="pager") > 0
    assert metric(agent, "sink_deliveries_total", result="retry", sink="pager") >= 1
    health = agent.get("/api/v1/state")["health"]
    jsonschema.Draft202012Validator(load_schema("health")).validate(health)
    assert agent.stop() == 0
    assert len(hook.taken) == before

    hook.start()
    agent.document["cameras"] = []
    agent.write_config()
    agent.start()
    ids = committed(agent)
    wait_for(lambda: len(hook.taken) >= len(ids), "the rest")
    wait_for(lambda: len(set(lines(agent))) >= len(ids), "the rest in the file")
    assert agent.stop() == 0
    ids = committed(agent)
    assert hook.taken == ids
    assert list(dict.fromkeys(lines(agent))) == ids
    validator = jsonschema.Draft202012Validator(load_schema())
    for headers, body in hook.receiver.seen:
        assert verify(headers, body, SECRET, float(headers["webhook-timestamp"]))
        if json.loads(body)["type"].startswith("recognizer.event."):
            validator.validate(json.loads(body))
    assert SECRET[6:] not in agent.log_text()
    assert "T0KEN" not in agent.log_text()


@pytest.mark.timeout(120)
def test_a_clean_stop_delivers_what_it_can(make_agent: MakeAgent, hook: ReceiverThread) -> None:
    agent = make_agent()
    agent.start()
    wait_for(lambda: len(hook.taken) >= 5, "events")
    assert agent.stop() == 0
    assert hook.taken == committed(agent) == lines(agent)


@pytest.mark.timeout(120)
def test_a_sink_that_cannot_be_built_is_named_and_the_rest_goes_on(make_agent: MakeAgent, tmp_path: Path) -> None:
    agent = make_agent()
    (tmp_path / "secret").chmod(0o644)
    agent.start()
    wait_for(lambda: len(lines(agent)) >= 5, "events in the file")
    reasons = {one["reason"]: one["detail"] for one in agent.get("/health")["reasons"]}
    assert "others can read" in reasons["part_failed:sink.pager"]
    assert agent.stop() == 0


@pytest.mark.timeout(120)
def test_a_receiver_that_does_not_know_us_is_a_reason(make_agent: MakeAgent, hook: ReceiverThread) -> None:
    hook.receiver.always = code(401)
    agent = make_agent()
    agent.start()
    reasons = wait_for(
        lambda: {one["reason"]: one["detail"] for one in agent.get("/health")["reasons"]}.get("sink_failing:pager"),
        "a reason",
    )
    assert reasons == "HTTP 401: the receiver does not accept the signature"
    hook.receiver.always = None
    wait_for(lambda: len(hook.taken) >= 5, "events")
    wait_for(
        lambda: not [one for one in agent.get("/health")["reasons"] if one["reason"].startswith("sink")], "its end"
    )
    assert agent.stop() == 0
    assert hook.taken == committed(agent)
