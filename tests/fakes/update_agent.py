"""A device's updates as a process that may be killed: the real client and store, trials without models.

    python tests/fakes/update_agent.py '{"state_dir": ..., "server": ..., "token_file": ..., "root_file": ..., "configured": ...}'

It prints a line of JSON at its start (`{"serving": path}`) and runs until SIGTERM. die_at, die_in, before: it kills itself with -9 at
that many-th step that reaches the disk, or when an update enters that phase (`fakes.death`). update: more of the configuration's section.
fault: one of FAULTS, made on purpose.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fakes.death import Death  # noqa: E402 - the path comes first
from fakes.trials import FakeTrials  # noqa: E402
from fakes.update_ports import ports_of  # noqa: E402

from agent.config.schema import AgentConfig, LogConfig  # noqa: E402
from agent.daemon.updates import Updates  # noqa: E402
from agent.health.reasons import HealthState  # noqa: E402
from agent.observe.logging import configure_logging  # noqa: E402
from agent.observe.metrics import Metrics  # noqa: E402
from agent.supervise import EDGE, supervise  # noqa: E402
from agent.update import journal as update_journal  # noqa: E402
from agent.update.parts import Pace  # noqa: E402
from agent.update.records import Action  # noqa: E402
from agent.update.worker import Worker  # noqa: E402

QUICK = Pace(first_s=0.1, longest_s=0.5, look_s=0.02, progress_s=0.2, requests_s=0.1)


def link_early() -> None:
    """The link is switched when the shadow run begins, before anything says so."""
    shadow = Worker._shadow

    async def early(worker: Worker, action: Action) -> Any:
        worker._parts.store.switch(action.slot, action.version)
        return await shadow(worker, action)

    Worker._shadow = early  # type: ignore[method-assign]


def sync_nothing() -> None:
    """Files and folders are left to the kernel's whim; SQLite, which is no Python, still syncs its own."""
    os.fsync = lambda _: None


def sync_no_folder() -> None:
    """Contents are synced, names are not."""
    sync = os.fsync
    os.fsync = lambda descriptor: None if stat.S_ISDIR(os.fstat(descriptor).st_mode) else sync(descriptor)


def sync_no_journal() -> None:
    """SQLite is told not to wait for the disk."""
    open_file = update_journal.open_file

    def careless(path: Path) -> Any:
        connection, damage = open_file(path)
        connection.execute("PRAGMA synchronous=OFF")
        return connection, damage

    update_journal.open_file = careless


FAULTS: dict[str, Callable[[], None]] = {
    "early-link": link_early, "no-sync": sync_nothing, "no-folder-sync": sync_no_folder, "no-journal-sync": sync_no_journal,
}  # fmt: skip


async def run(given: dict[str, Any]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    config = AgentConfig.model_validate(
        {
            "device_id": given.get("device", "box-1"), "state_dir": given["state_dir"],
            "update": {
                "enabled": True, "server": given["server"], "repository": f"{given['server']}/repository",
                "root_file": given["root_file"], "token_file": given["token_file"], "poll_min_s": 0.1, "poll_max_s": 2.0,
                "reserve_bytes": 0, **given.get("update", {}),
            },
        }
    )  # fmt: skip
    trials = FakeTrials({"pose": Path(given["configured"])}, step_s=given.get("step_s", 0.05))
    health, metrics = HealthState(), Metrics("test")
    tasks: list[asyncio.Task[None]] = []
    async with AsyncExitStack() as stack:
        updates = Updates(ports_of(config, trials), health=health, metrics=metrics, environ={}, pace=QUICK)
        await updates.open(stack)
        trials.begin(updates.models)
        print(json.dumps({"serving": str(trials.running("pose")), "reasons": health.snapshot().as_dict()}), flush=True)

        def start(name: str, factory: Callable[[], Coroutine[Any, Any, None]]) -> None:
            work = supervise(name, factory, EDGE, health=health)
            tasks.append(asyncio.create_task(work, name=name))

        updates.start(start)
        await stop.wait()
        await updates.stop()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


if __name__ == "__main__":
    configure_logging(LogConfig(level="warning"))
    wishes = json.loads(sys.argv[1])
    death = Death(
        lambda: os.kill(os.getpid(), signal.SIGKILL), wishes.get("die_at", 0), wishes.get("die_in", ""),
        before=wishes.get("before", False),
    )  # fmt: skip
    if wishes.get("fault"):
        FAULTS[wishes["fault"]]()
    with death.at_work():
        asyncio.run(run(wishes))
