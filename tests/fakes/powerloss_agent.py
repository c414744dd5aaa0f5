"""A process that puts events from several producers at once until it is killed or its disk is gone.

Usage: powerloss_agent.py DATABASE SEED [--synchronous NORMAL]
Prints `put SEQUENCE ID` once a put has returned. Rows are forgotten after a while, so that deletes and checkpoints happen too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import uuid
from pathlib import Path

import structlog

from agent.config.delivery import OutboxConfig
from agent.errors import StorageError
from agent.outbox.store import OutboxStore
from agent.ports import Message
from agent.types import Lane

PRODUCERS = 8
_KEEP_PENDING = 50


def message(lane: Lane, event_id: str, size: int) -> Message:
    """An event whose payload begins with its number."""
    return Message(lane, event_id, "recognizer/box/events/door/fight", lambda n: f"{n}:".encode() + os.urandom(size))


async def produce(store: OutboxStore, dice: random.Random) -> None:
    """Put, tell, forget some."""
    pending: list[int] = []
    while True:
        lane = Lane.ALARM if dice.random() < 0.2 else Lane.EVENT
        event_id = str(uuid.uuid4())
        sequence = await store.put(message(lane, event_id, dice.choice((50, 500, 5000))))
        os.write(1, f"put {sequence} {event_id}\n".encode())
        if dice.random() < 0.1:
            pending += [record.row_id for record in await store.fetch(lane, 20)]
        if len(pending) > _KEEP_PENDING:
            store.forget(pending)
            pending = []
        await asyncio.sleep(dice.choice((0, 0, 0.001, 0.01)))


async def main() -> None:
    """Until the disk fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("database", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("--synchronous", default="FULL")
    args = parser.parse_args()
    store = await OutboxStore.open(args.database, OutboxConfig())
    if args.synchronous != "FULL":
        statement = f"PRAGMA synchronous={args.synchronous}"
        await store._ask(lambda tables: tables.connection.execute(statement))
    await asyncio.gather(*(produce(store, random.Random(args.seed * 100 + n)) for n in range(PRODUCERS)))


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(50), logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )
    try:
        asyncio.run(main())
    except StorageError as error:
        sys.exit(f"the disk is gone: {error}")
