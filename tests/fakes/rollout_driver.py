"""The driver alone on a database, for tests that kill it: `rollout_driver.py FILE` settles all rollouts and ends."""

from __future__ import annotations

import asyncio
import sys

from ota.rollouts import records, steps
from ota.rollouts.driver import Driver
from ota.rollouts.steps import Moment
from ota.store.store import open_store

steps.CHUNK = 7  # many transactions, many moments to be killed at


async def main(database: str) -> None:
    async with open_store(f"sqlite:///{database}") as store:
        driver = Driver(store, lambda: Moment(1_800_000_000_000, 0), lambda change: None)
        print("at work", flush=True)
        for rollout_id in await store.read(records.alive):
            await driver.settle(rollout_id)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
