"""A subscriber to be killed by the tests: prints `<sequence> <id>` of each event, then deals with it for a moment.

Usage: subscriber_process.py URL STATE_FILE
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from agent.client import ReceivedEvent, subscribe


async def main() -> None:
    """Until killed."""
    url, state_file = sys.argv[1:]
    async with subscribe(url, state_file=Path(state_file), reconnect_s=(0.05, 0.2), grace_s=30) as events:
        async for item in events:
            print(item.sequence, item.event_id if isinstance(item, ReceivedEvent) else item, flush=True)  # type: ignore[union-attr]
            await asyncio.sleep(0.001)


if __name__ == "__main__":
    asyncio.run(main())
