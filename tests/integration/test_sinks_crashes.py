"""Killed with -9 at random moments, a receiver that misbehaves and goes away: both sinks get everything, in order."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import sys
from pathlib import Path

import pytest
from fakes.webhooks import code, hang, receiving, reset, verify

from agent.outbox.history import EventArchive, EventQuery

AGENT = Path(__file__).parent.parent / "fakes" / "sink_agent.py"
TESTS = Path(__file__).parent.parent
SECRET = "whsec_" + base64.b64encode(bytes(range(40))).decode()
TOTAL = 700


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_every_committed_event_reaches_both_sinks_in_order(tmp_path: Path) -> None:
    dice = random.Random(11)
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text(SECRET)
    told: dict[int, str] = {}
    async with receiving() as receiver:
        backoff = {"initial_s": 0.02, "max_s": 0.2}
        sinks = {
            "pager": {
                "type": "webhook", "url": receiver.url, "secret_files": [str(secret)], "timeout_s": 0.5, "backoff": backoff,
            },
            "lines": {"type": "file", "max_bytes": 40_000, "keep_files": 100, "backoff": backoff},
        }  # fmt: skip
        command = [sys.executable, str(AGENT), str(tmp_path / "events.db"), json.dumps(sinks), "400", str(TOTAL)]
        kills = 0
        while True:
            agent = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": str(TESTS)},
            )  # fmt: skip
            talk = asyncio.create_task(agent.communicate())
            if kills < 8:
                misbehaviour = [code(503), code(429, Retry_After="0"), reset, hang, code(500), code(302, Location="/")]
                receiver.answers.extend(dice.sample(misbehaviour, 3))
                await asyncio.sleep(dice.uniform(0.5, 1.3))
                if kills == 3:
                    await receiver.stop()
                if kills == 5:
                    await receiver.start()
                agent.kill()
                kills += 1
            output, errors = await talk
            for line in output.splitlines():
                _, sequence, event_id = line.decode().split()
                told[int(sequence)] = event_id
            if agent.returncode == 0:
                break
            assert agent.returncode == -9, errors.decode()[-2000:]

    with EventArchive(tmp_path / "events.db") as archive:
        committed = [row.event_id for row in archive.events(EventQuery(limit=None))]
    assert len(committed) == TOTAL
    assert all(committed[sequence - 1] == event_id for sequence, event_id in told.items())
    taken = receiver.taken
    assert list(dict.fromkeys(taken)) == committed, "the webhook's, doubles left out"
    files = sorted(tmp_path.glob("events.jsonl.*[0-9]"), key=lambda path: -int(path.suffix[1:]))
    lines = [json.loads(line) for path in [*files, tmp_path / "events.jsonl"] for line in path.read_text().splitlines()]
    assert list(dict.fromkeys(line["id"] for line in lines)) == committed, "the file's, doubles left out"
    assert len(files) > 3
    assert len(receiver.seen) > len(taken), "it has misbehaved"
    for headers, body in receiver.seen:
        assert verify(headers, body, SECRET, float(headers["webhook-timestamp"]))
        assert json.loads(body)["id"] == headers["webhook-id"]
