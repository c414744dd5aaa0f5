"""A thread for what blocks: one job after the other, in the order of the calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class OneThread:
    """name: of the thread. A caller that is cancelled leaves its job to finish; the next one waits for it."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def do(self, work: Callable[..., T], *args: Any, **more: Any) -> T:
        """The result of `work`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(work, *args, **more))

    def close(self) -> None:
        """After the job under way."""
        self._executor.shutdown(wait=True, cancel_futures=True)
