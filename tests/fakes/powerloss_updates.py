"""The campaign of updates (`benchmarks/ota_campaign.py`) on a state folder that forgets what was not synced.

Every life of the device ends with a loss of power, a proper stop included. What is left is looked at (`fakes.powerloss_survivors`),
then what serves at the next start, and in the end how the update ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fakes.bundles import FIELDS
from fakes.fleet_server import FleetServer, Repository, fleet_server
from fakes.powerloss_disk import Fate, Mode
from fakes.powerloss_fs import Moment
from fakes.powerloss_survivors import SLOT, Known, Survivors
from fakes.powerloss_tree_fs import PowerLossTreeMount
from ota_campaign import AGENT, Campaign

from agent.errors import ModelError, StorageError, TrustError
from agent.health.reasons import Reason
from agent.runtime.bundle import load_bundle, seal_bundle
from agent.update.machine import Phase
from agent.update.records import Action, Serving
from agent.update.requests import Request, RequestFolder
from ota.store.feedback import CANCEL, DEPLOYMENT

CONFIGURED = "1.0.0"
FATES: tuple[Fate, ...] = ("torn", "some", "drop")
_BALLAST_BYTES = 400_000
_BYTES_PER_S = 300_000
"""A download takes part of a second; the first second's bytes come at once."""
_TRIAL_S = 15.0


class PowerLossCampaign(Campaign):
    """One device, one server, and a disk that forgets. ignore_sync: and lies."""

    def __init__(
        self, folder: Path, fleet: FleetServer, seed: int, mode: Mode, fault: str, *, ignore_sync: bool
    ) -> None:
        super().__init__(folder, fleet, seed, fault)
        self.mode = mode
        self.ignore_sync = ignore_sync
        self.safe = folder / "safe"
        self.state = folder / "mount"
        self.root = self.safe / "updates"
        self.fates: Iterator[Fate] = itertools.cycle(FATES)
        self.action_id = 0
        self.backs = 0
        self.manifests: dict[str, str] = {}
        self.known = Known()
        self.at_stake = 0
        self.last: Survivors | None = None
        self._deaths: Counter[Phase] = Counter()

    async def prepare(self) -> None:
        await super().prepare()
        (self.configured / "ballast.data").write_bytes(secrets.token_bytes(_BALLAST_BYTES))
        seal_bundle(self.configured, FIELDS)

    async def release(self, fake: dict[str, str]) -> tuple[str, int]:
        version, release_id = await super().release(fake)
        target = next(one for one in self.fleet.repository.targets.values() if version in one.path)
        self.manifests[version] = target.unrecognized_fields["custom"]["manifest_sha256"]
        return version, release_id

    async def update(self, fake: dict[str, str], *lives: dict[str, Any]) -> None:
        """One after the other to an end. lives: how those before the last one end, keywords of `life`."""
        version, release_id = await self.release(fake)
        self._deaths.clear()
        self.action_id = await self.fleet.assign(self.device, release_id)
        for cut in lives:
            await self.life(**cut)
        while await self.life(end=lambda: self.ended(self.action_id)):
            pass
        if any(cut.get("ask") == self.cancel for cut in lives):
            row, action = await self.fleet.action(self.action_id), self.latest()
            if row.state != "canceled" or action is None or action.phase is not Phase.CANCELLED:
                self.trouble(f"cancelled, but {row.state} at the server and here {action}")
            self.check_disk()
        else:
            await self.check(version, self.action_id, fake, max(self._deaths.values(), default=0))

    async def cancel(self) -> None:
        """The operator thinks better of it once the update is under way (`ask` of a life)."""
        while (action := self.latest()) is None or action.action_id != str(self.action_id):
            await asyncio.sleep(0.01)
        answer = await self.fleet.api("POST", f"/actions/{self.action_id}/cancel", {})
        assert answer.status < 300, answer

    async def go_back(self, moment: Moment, count: int) -> None:
        """People at the device want the version before, and the power goes meanwhile: they get it once, or not."""
        before = self.pair()
        told: list[bool] = []

        async def ask() -> None:
            folder = RequestFolder(self.state / "updates" / "requests")
            with contextlib.suppress(StorageError):  # nobody answers without power
                answer = await asyncio.to_thread(folder.ask, Request("rollback", SLOT, "the test"), _TRIAL_S)
                told.append(answer.good)

        await self.life(moment=moment, count=count, ask=ask)
        after = self.pair()
        await self.life(end=self._nobody_asks)  # a wish that survived is met now
        now = self.pair()
        if now not in {before, before[::-1]} or (now == before and (True in told or after != before)):
            self.trouble(f"served {before}, then {after}, then {now}; {told=}")
        self.backs += now != before
        self.served = now[0]
        self.check_disk()

    async def _nobody_asks(self) -> None:
        while list((self.state / "updates" / "requests").glob("*.json")):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)

    def pair(self) -> tuple[str, str]:
        """The version that serves and the one before, as the last loss of power left them."""
        serving = self.last.serving if self.last is not None else Serving(SLOT)
        current, before = (one.release.version if one else CONFIGURED for one in (serving.current, serving.before))
        return current, before

    def latest(self) -> Action | None:
        if self.root.is_relative_to(self.state):
            return super().latest()
        return self.last.action if self.last is not None else None  # only the device mends what a loss of power left

    # --- one life -----------------------------------------------------------------------------------------------------

    async def life(self, *, after_s: float | None = None, end: Any = None, **cut: Any) -> bool:
        """end: awaited, then the device is stopped properly; without it the power goes after `after_s`, or when the device kills
        itself (see `fakes.death`), or instead of a write or sync (`moment`, `count`) after the start, or from its first step on
        (`boot`). ask: runs beside it after the start. Whether the power went before the device had stopped."""
        fate, seed = next(self.fates), self.random.randrange(1 << 30)
        with PowerLossTreeMount(self.safe, self.state, self.mode, ignore_sync=self.ignore_sync) as disk:
            self.root = self.state / "updates"
            try:
                stopped = await self._until_the_end(disk, (fate, seed), after_s, end, cut)
                lost = await asyncio.to_thread(disk.lose_power, fate, seed)
                self.at_stake += lost["unsynced"]
            finally:
                self.root = self.safe / "updates"
        await self.look()
        self.count_life(cut, stopped=stopped)
        return not stopped

    async def _until_the_end(
        self, disk: PowerLossTreeMount, how: tuple[Fate, int], after_s: float | None, end: Any, cut: dict[str, Any]
    ) -> bool:
        """Whether the device stopped properly."""

        def arm() -> dict[str, Any]:
            return disk.lose_power(*how, cut["moment"], cut["count"])

        armed = asyncio.create_task(asyncio.to_thread(arm)) if cut.get("boot") else None
        process = await self._begin({key: cut[key] for key in ("die_at", "die_in", "before", "step_s") if key in cut})
        assert process.stdout is not None
        ended = asyncio.create_task(process.wait())
        try:
            line = await process.stdout.readline() if armed is None else b""
            if line:
                self.look_at_start(json.loads(line))
            asked = asyncio.create_task(cut["ask"]()) if "ask" in cut else None
            if end is not None:
                waiting = asyncio.create_task(end())
                await asyncio.wait({ended, waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if not ended.done():
                    process.terminate()
                    await asyncio.wait({ended}, timeout=_TRIAL_S)
            elif "moment" in cut:
                await (armed or asyncio.to_thread(arm))
            else:
                await asyncio.wait({ended}, timeout=_TRIAL_S if after_s is None else after_s)
                if "die_in" in cut and not ended.done():
                    self.trouble(f"never came to {cut['die_in']}")
            if asked is not None:
                await asked
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await ended
        if process.returncode not in {0, -signal.SIGKILL} and armed is None:
            self.trouble(f"the device ended with {process.returncode}: {self.device_log()[-800:]}")
        return process.returncode == 0

    async def _begin(self, death: dict[str, Any]) -> asyncio.subprocess.Process:
        given = {
            "state_dir": str(self.state), "server": self.fleet.url, "root_file": str(self.folder / "root.json"),
            "token_file": str(self.token_file), "configured": str(self.configured), "step_s": 0.05,
            "fault": self.fault, "update": {"max_bytes_per_s": _BYTES_PER_S}, **death,
        }  # fmt: skip
        with (self.folder / "device.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable, str(AGENT), json.dumps(given), stdout=asyncio.subprocess.PIPE, stderr=log
            )

    def count_life(self, cut: dict[str, Any], *, stopped: bool) -> None:
        if stopped:
            return
        phase = self.phase()
        self.verdict.kills += 1
        self.verdict.kills_by_phase[phase] = self.verdict.kills_by_phase.get(phase, 0) + 1
        if (action := self.latest()) is not None and not action.settled:
            self._deaths[action.phase] += 1

    def device_log(self) -> str:
        return (self.folder / "device.log").read_text()

    def look_at_start(self, told: dict[str, Any]) -> None:
        for one in told["reasons"]["reasons"]:
            if one["code"] == Reason.UPDATE_STORE.value:
                self.trouble(f"something had to be mended at a start: {one['detail']}")
        path = Path(told["serving"])
        try:
            manifest = load_bundle(path).manifest
        except (ModelError, TrustError) as error:
            self.trouble(f"a start without a whole model: {error}")
            return
        version = manifest.version if manifest is not None else "?"
        if version not in (allowed := self.allowed()):
            self.trouble(f"serves {version} at a start, expected {' or '.join(sorted(allowed))}")

    def allowed(self) -> set[str]:
        """What may serve at a start, by what the loss of power before it has left."""
        if self.last is None:
            return {CONFIGURED}
        current, action = self.last.serving.current, self.last.action
        on_trial = action is not None and action.phase is Phase.PROBATION and action.release is not None
        return {current.release.version if current else CONFIGURED} | (
            {action.release.version} if on_trial and action and action.release else set()
        )

    # --- after a loss of power ----------------------------------------------------------------------------------------

    async def look(self) -> None:
        """What is left, in a copy: a look may mend."""
        copy = self.folder / "look"
        shutil.copytree(self.safe, copy, symlinks=True)
        last = self.last = Survivors(copy, await self._told(), self.manifests)
        last.look()
        shutil.rmtree(copy)
        for text in last.troubles:
            self.trouble(text)
        action = last.action
        self.known = Known(
            action.action_id if action else "", action.phase if action else Phase.DOWNLOADING, last.serving.highest, last.trusted
        )  # fmt: skip

    async def _told(self) -> Known:
        """What is known, with what the server has heard of the latest update."""
        known = self.known
        rows = [] if not self.action_id else await self.fleet.reports(self.action_id)
        told = tuple((execution, finished) for kind, execution, finished in rows if kind in {DEPLOYMENT, CANCEL})
        return Known(known.action_id, known.phase, known.highest, known.trusted, told)


@asynccontextmanager
async def power_loss_campaign(
    folder: Path, mode: Mode, *, seed: int = 1, fault: str = "", ignore_sync: bool = False
) -> AsyncIterator[PowerLossCampaign]:
    """With its server. fault: of `fakes.update_agent`; ignore_sync: the disk lies."""
    repository = Repository(folder / "repository")
    async with fleet_server(folder / "server", repository=repository, polling="00:00:01") as fleet:
        campaign = PowerLossCampaign(folder, fleet, seed, mode, fault, ignore_sync=ignore_sync)
        await campaign.prepare()
        yield campaign
