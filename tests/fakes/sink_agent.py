"""A process that puts events at a rate and has a webhook and a file take them, to be killed by the tests.

Usage: sink_agent.py DATABASE CONFIGURATION RATE_PER_S TOTAL
CONFIGURATION: JSON, the section `sinks`. Prints `put <sequence> <id>` once a put has returned, stops putting at sequence TOTAL, ends
when all sinks have everything.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from functools import partial
from pathlib import Path

import structlog
from fakes.sinks import record

from agent.config.delivery import OutboxConfig
from agent.config.schema import AgentConfig
from agent.health.reasons import HealthState
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.sinks.build import build_sink
from agent.sinks.runner import SinkRunner
from agent.types import Lane


def event() -> Message:
    """An event whose payload tells its own number and id."""
    event_id = str(uuid.uuid4())

    def payload(sequence: int | None) -> bytes:
        return json.dumps(json.loads(record(sequence or 0).payload) | {"id": event_id}).encode()

    return Message(Lane.EVENT, event_id, "recognizer/box/events/door/fight", payload, kind="fight")


async def main() -> None:
    """Open, deliver, put, drain."""
    database, sinks, rate, total = sys.argv[1:]
    path = Path(database)
    config = AgentConfig.model_validate({"sinks": json.loads(sinks)})
    store = await OutboxStore.open(path, OutboxConfig(reserve_bytes=0))
    await store.keep_sinks(config.sinks.keys())
    tasks = []
    for name, sink in config.sinks.items():
        runner = SinkRunner(name, sink, store, partial(build_sink, name, sink, state_dir=path.parent), HealthState())
        store.on_commit(runner.wake)
        tasks.append(asyncio.create_task(runner.run()))
    last = store.report.next_sequence - 1
    while last < int(total):
        message = event()
        last = await store.put(message) or 0
        os.write(1, f"put {last} {message.event_id}\n".encode())
        await asyncio.sleep(1 / float(rate))
    while any(depth.numbers for depth in (await store.sink_depth()).values()):
        await asyncio.sleep(0.02)
        for task in tasks:
            if task.done():
                task.result()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await store.close()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main())
