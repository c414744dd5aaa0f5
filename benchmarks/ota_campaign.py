"""Kill a device again and again while updates come, and see that it always has a working model and always gets to an end.

    python benchmarks/ota_campaign.py [--kills 100] [--seed 1] [--json] [--break FAULT]

A real fleet server and a signed repository; the device is the real update client, store and journal in a process of its own
(`tests/fakes/update_agent.py`), with trials that say what the release's manifest tells them to. Each update is cut off with -9, by
turns: right before and right after it enters each phase, at a random one of the steps that reach the disk (a rename, a link, an fsync,
before and after each commit), and at random moments; now and then several times. Then the device runs until the server has heard how
it ended. Exit code 0 only if

- every start had a whole model to serve, and the right one: the new version only from its probation on,
- every update ended: committed, refused or rolled back, the same at the device and at the server,
- a good release that died at most once in its probation was committed, and a bad one never,
- what serves afterwards is the last one committed, and nothing but it and the one before lies on the disk.

`--break early-link` makes the device faulty (the new version serves before its state is written) and must end with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
AGENT = ROOT / "tests" / "fakes" / "update_agent.py"

from agent.errors import StorageError  # noqa: E402 - the path comes first
from agent.runtime.bundle import load_bundle, seal_bundle  # noqa: E402 - the path comes first
from agent.update.boot import JOURNAL  # noqa: E402
from agent.update.journal import Journal  # noqa: E402
from agent.update.machine import Phase  # noqa: E402
from agent.update.models import VersionStore  # noqa: E402
from agent.update.records import Action  # noqa: E402
from ota.release.pack import Wishes, pack  # noqa: E402

KINDS: tuple[dict[str, str], ...] = (
    {}, {}, {"validate": "slower"}, {}, {"shadow": "worse"}, {}, {"watch": "unhealthy"}, {}, {"install": "crash"}, {"watch": "die"},
)  # fmt: skip
"""What the releases do, in turn; most are good."""
_WAY = {"downloading", "verified", "validated", "shadow", "probation"}
REACHED = {
    "": _WAY | {"committed"}, "validate": {"downloading", "verified", "refused"},
    "shadow": _WAY - {"probation"} | {"refused"}, "install": _WAY | {"rolled_back"}, "watch": _WAY | {"rolled_back"},
}  # fmt: skip
"""Phases that a release comes through, by the step that is bad about it."""
_END_S = 60.0
_LIFE_S = (0.0, 2.0)
_MOST_STEPS = 160
"""About what an update takes."""
TRANSITIONS = [(phase.value, before) for phase in Phase if phase is not Phase.CANCELLED for before in (True, False)]


@dataclass
class Verdict:
    """What was seen. transitions: those at which a life was ended; steps: how many different ones of the others."""

    kills: int = 0
    updates: int = 0
    committed: int = 0
    refused: int = 0
    rolled_back: int = 0
    steps: int = 0
    transitions: list[str] = field(default_factory=list)
    kills_by_phase: dict[str, int] = field(default_factory=dict)
    longest_end_s: float = 0.0
    troubles: list[str] = field(default_factory=list)


class Campaign:
    """One device, one server. fleet: `fakes.fleet_server.FleetServer`."""

    def __init__(self, folder: Path, fleet: Any, seed: int, fault: str) -> None:
        self.folder = folder
        self.fleet = fleet
        self.random = random.Random(seed)
        self.fault = fault
        self.verdict = Verdict()
        self.state = folder / "state"
        self.root = self.state / "updates"
        self.configured = folder / "bundle"
        self.token_file = folder / "token"
        self.number = 0
        self.transitions = list(TRANSITIONS)
        self.steps: set[int] = set()
        self.served = "1.0.0"
        self.starts: list[str] = []

    async def prepare(self) -> None:
        from fakes.bundles import make_bundle

        make_bundle(self.configured, golden=False)
        self.device = await self.fleet.device("box-1")
        self.token_file.write_text(self.device.headers["Authorization"].partition(" ")[2])
        self.token_file.chmod(0o600)
        (self.folder / "root.json").write_bytes(self.fleet.repository.root)

    async def release(self, fake: dict[str, str]) -> tuple[str, int]:
        """A new version that is known to the server: version, release id."""
        self.number += 1
        version = f"1.{self.number}.0"
        work = self.folder / f"work-{version}"
        shutil.copytree(self.configured, work)
        fields = json.loads((work / "manifest.json").read_bytes())
        fields.pop("files")
        seal_bundle(work, fields | {"version": version, "figures": {"fake": fake}})
        packed = pack(work, self.folder, {"pose": self.number - 1}, Wishes())
        self.fleet.repository.add(packed.release, packed.file.read_bytes())
        self.fleet.repository.publish()
        await self.fleet.sync()
        found = [row for row in await self.fleet.releases() if row.version == version]
        shutil.rmtree(work)
        packed.file.unlink()
        return version, found[0].id

    # --- lives --------------------------------------------------------------------------------------------------------

    async def life(self, *, after_s: float | None = None, end: Any = None, **death: Any) -> bool:
        """One life of the device; whether it died. death: see `fakes.death`; end: awaited, then it is stopped properly."""
        given = {
            "state_dir": str(self.state), "server": self.fleet.url, "root_file": str(self.folder / "root.json"),
            "token_file": str(self.token_file), "configured": str(self.configured), "step_s": 0.08,
            "fault": self.fault, **death,
        }  # fmt: skip
        with (self.folder / "device.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(AGENT), json.dumps(given), stdout=asyncio.subprocess.PIPE, stderr=log
            )
        assert process.stdout is not None
        ended = asyncio.create_task(process.wait())
        try:
            line = await process.stdout.readline()
            if line:
                self.look_at_start(json.loads(line))
            if after_s is not None:
                await asyncio.wait({ended}, timeout=after_s)
                if not ended.done():
                    os.kill(process.pid, signal.SIGKILL)
            elif end is not None:
                await asyncio.wait({ended, asyncio.create_task(end())}, return_when=asyncio.FIRST_COMPLETED)
                if not ended.done():
                    process.terminate()
            else:
                await asyncio.wait({ended}, timeout=_END_S)
        finally:
            if process.returncode is None and not ended.done():
                await asyncio.wait({ended}, timeout=10)
            if process.returncode is None:
                process.kill()
            await ended
        died = process.returncode == -signal.SIGKILL
        if died:
            self.verdict.kills += 1
            phase = self.phase()
            self.verdict.kills_by_phase[phase] = self.verdict.kills_by_phase.get(phase, 0) + 1
        elif process.returncode:
            self.trouble(
                f"the device ended with {process.returncode}: {(self.folder / 'device.log').read_text()[-800:]}"
            )
        return died

    def phase(self) -> str:
        action = self.latest()
        return "idle" if action is None or action.settled else action.phase.value

    def latest(self) -> Action | None:
        try:
            journal = Journal.open_to_read(self.root / JOURNAL)
        except StorageError:  # not begun yet
            return None
        try:
            found = journal.recent(1)
        finally:
            journal.close()
        return found[0] if found else None

    def look_at_start(self, told: dict[str, Any]) -> None:
        """Whatever happened before: a whole model, and the right one."""
        path = Path(told["serving"])
        try:
            manifest = load_bundle(path).manifest
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the campaign looks for
            self.trouble(f"a start without a whole model: {error}")
            return
        version = manifest.version if manifest is not None else "?"
        action = self.latest()
        on_trial = action is not None and action.phase is Phase.PROBATION and action.release is not None
        allowed = {self.served} | ({action.release.version} if on_trial and action and action.release else set())
        if action is not None and action.phase is Phase.COMMITTED and action.release is not None:
            allowed = {action.release.version}
        if version not in allowed:
            self.trouble(f"serves {version} at a start, expected {' or '.join(sorted(allowed))}")

    # --- one update ---------------------------------------------------------------------------------------------------

    async def update(self, fake: dict[str, str]) -> None:
        version, release_id = await self.release(fake)
        action_id = await self.fleet.assign(self.device, release_id)
        deaths_in_probation = 0
        for cut in self.cuts(fake):
            died = await self.life(**cut)
            deaths_in_probation += died and self.phase() == Phase.PROBATION
            if died:
                self.count(cut)
        started_s = time.monotonic()
        while True:
            died = await self.life(end=lambda: self.ended(action_id))
            if not died:
                break
            deaths_in_probation += 1
        self.verdict.longest_end_s = max(self.verdict.longest_end_s, round(time.monotonic() - started_s, 1))
        await self.check(version, action_id, fake, deaths_in_probation)

    def cuts(self, fake: dict[str, str]) -> list[dict[str, Any]]:
        """Where the lives before the last one end."""
        reached = REACHED[next(iter(fake), "")]
        fitting = [one for one in self.transitions if one[0] in reached]
        if fitting:
            self.transitions.remove(fitting[0])
            return [{"die_in": fitting[0][0], "before": fitting[0][1], "after_s": 8.0}]
        if self.random.random() < 0.5:
            return [{"after_s": self.random.uniform(*_LIFE_S)} for _ in range(self.random.choice((1, 1, 2, 3)))]
        return [{"die_at": self.random.randint(1, _MOST_STEPS), "after_s": 8.0}]

    def count(self, cut: dict[str, Any]) -> None:
        if "die_in" in cut:
            self.verdict.transitions.append(f"{'before' if cut['before'] else 'after'} {cut['die_in']}")
        elif "die_at" in cut:
            self.steps.add(cut["die_at"])
            self.verdict.steps = len(self.steps)

    async def ended(self, action_id: int) -> None:
        """Until the server has heard the end and the device has tidied up, or for too long."""
        deadline_s = time.monotonic() + _END_S
        while time.monotonic() < deadline_s:
            row = await self.fleet.action(action_id)
            latest = self.latest()
            if not row.open and latest is not None and latest.settled and not self.waiting():
                await asyncio.sleep(0.3)
                return
            await asyncio.sleep(0.05)
        self.trouble(f"update {action_id} has not ended within {_END_S:g} s: {self.latest()}")

    def waiting(self) -> int:
        journal = Journal.open_to_read(self.root / JOURNAL)
        try:
            return len(journal.waiting())
        finally:
            journal.close()

    async def check(self, version: str, action_id: int, fake: dict[str, str], deaths: int) -> None:
        action, row = self.latest(), await self.fleet.action(action_id)
        self.verdict.updates += 1
        if action is None or action.action_id != str(action_id):
            self.trouble(f"update {action_id} ({version}) is not in the journal")
            return
        end = action.phase
        if end not in {Phase.COMMITTED, Phase.REFUSED, Phase.ROLLED_BACK}:
            self.trouble(f"{version} ended {end}")
        else:
            setattr(self.verdict, end.value, getattr(self.verdict, end.value) + 1)
        if fake and end is Phase.COMMITTED:
            self.trouble(f"{version} is bad ({fake}) and was committed")
        if not fake and end is not Phase.COMMITTED and deaths < 2:
            self.trouble(
                f"{version} is good, the device died {deaths} times in its probation, and it ended {end}: {action.text}"
            )
        if (row.state == "finished") != (end is Phase.COMMITTED):
            self.trouble(f"{version} ended {end} here and {row.state} at the server")
        if end is Phase.COMMITTED:
            self.served = version
        self.check_disk()

    def check_disk(self) -> None:
        store = VersionStore(self.root)
        linked = store.linked().get("pose")
        link_says = linked.release.version if linked is not None else "1.0.0"
        if link_says != self.served:
            self.trouble(f"the link names {link_says}, {self.served} was committed last")
        if linked is not None and (problem := store.problem(linked)):
            self.trouble(f"what serves is damaged: {problem}")
        if len(store.versions()) > 2:
            self.trouble(f"{len(store.versions())} versions on the disk")

    def trouble(self, text: str) -> None:
        self.verdict.troubles.append(text)
        print(f"TROUBLE {text}", file=sys.stderr)


async def run(args: argparse.Namespace) -> Verdict:
    from fakes.fleet_server import Repository, fleet_server

    folder = Path(tempfile.mkdtemp(prefix="ota-campaign-"))
    try:
        repository = Repository(folder / "repository")
        async with fleet_server(folder / "server", repository=repository, polling="00:00:01") as fleet:
            campaign = Campaign(folder, fleet, args.seed, args.fault)
            await campaign.prepare()
            index = 0
            while campaign.verdict.kills < args.kills and not (args.fault and campaign.verdict.troubles):
                await campaign.update(KINDS[index % len(KINDS)])
                index += 1
                if not args.json:
                    print(f"{campaign.verdict.kills} kills, {campaign.verdict.updates} updates", flush=True)
            return campaign.verdict
    finally:
        if args.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true", help="leave the folder behind")
    parser.add_argument("--break", dest="fault", default="", choices=("", "early-link"))
    args = parser.parse_args()
    from agent.config.schema import LogConfig
    from agent.observe.logging import configure_logging

    configure_logging(LogConfig(level="error"))
    verdict = asyncio.run(run(args))
    print(json.dumps(asdict(verdict), indent=None if args.json else 2))
    return 1 if verdict.troubles or verdict.kills < args.kills else 0


if __name__ == "__main__":
    raise SystemExit(main())
