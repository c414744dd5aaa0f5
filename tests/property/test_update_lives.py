"""Client, journal and store under deaths at every step, damage and commands: a model of what may serve, held against the real ones."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from pathlib import Path

from fakes.death import Death
from fakes.trials import FakeTrials
from fakes.update_world import QUICK, Releases
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.commands.ota import roll_back_here
from agent.config.update import UpdateConfig
from agent.errors import DataError, StorageError, TrustError
from agent.runtime.bundle import read_bundle
from agent.update.archive import unpack
from agent.update.boot import JOURNAL, boot
from agent.update.client import UpdateClient
from agent.update.fit import DeviceFacts, contract_of
from agent.update.journal import Journal
from agent.update.journal_file import sole_owner
from agent.update.machine import Phase, report
from agent.update.models import VersionStore
from agent.update.parts import Parts
from agent.update.records import Action, Serving
from agent.update.release import Release
from agent.update.requests import RequestFolder
from agent.update.threads import OneThread
from agent.update.trust import Target

KINDS: tuple[dict[str, str], ...] = (
    {}, {}, {"validate": "slower"}, {}, {"shadow": "worse"}, {"watch": "unhealthy"}, {}, {"install": "crash"},
)  # fmt: skip
CONFIG = UpdateConfig(reserve_bytes=0, retries=1)


class Died(BaseException):
    """The process was killed; from then on nothing reaches the disk."""


def kill() -> None:
    raise Died


class Shelf:
    """Signed archives at hand: `Genuine` and `Fetch` without a network."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="update-machine-"))
        self.releases = Releases(self._folder)
        self.made: list[tuple[Release, dict[str, str]]] = []
        for number, fake in enumerate(KINDS, 1):
            self.made.append((self.releases.make(f"1.{number}.0", publish=False, number=number, **fake), fake))
        self._archives = {
            path.rpartition("/")[2].partition(".")[2]: content
            for path, content in self.releases.repository.files.items()
            if path.endswith(".tar.zst")
        }

    def find(self, path: str) -> Target:
        for release, _ in self.made:
            if release.path == path:
                content = self._archives[path.rpartition("/")[2]]
                return Target(path, release, len(content), hashlib.sha256(content).hexdigest(), path)
        raise DataError(f"no target {path}")

    def verify(self, file: Path, target: Target) -> None:
        if hashlib.sha256(file.read_bytes()).hexdigest() != target.sha256:
            raise TrustError("other bytes")

    async def fetch(self, target: Target, part: Path, advance: Callable[[int], None]) -> None:
        content = self._archives[target.path.rpartition("/")[2]]
        have = part.stat().st_size if part.exists() else 0
        with part.open("ab") as file:
            for end in (len(content) // 2, len(content)):
                file.write(content[have:end] if end > have else b"")
                have = max(have, end)
                file.flush()
                os.fsync(file.fileno())
                advance(have)


_SHELF: list[Shelf] = []


def shelf() -> Shelf:
    """Made once: packing takes its time."""
    if not _SHELF:
        _SHELF.append(Shelf())
    return _SHELF[0]


class UpdateMachine(RuleBasedStateMachine):
    """One device. expected: what must serve when nothing is under way, None = as configured."""

    @initialize()
    def begin(self) -> None:
        self.shelf = shelf()
        self.folder = Path(tempfile.mkdtemp(prefix="update-device-"))
        self.root = self.folder / "updates"
        self.store = VersionStore(self.root)
        self.serial = 0
        self.under_way: tuple[str, Release, dict[str, str]] | None = None
        self.deaths_in_probation = 0
        self.known: Serving = Serving("pose")

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)

    # --- the device ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def journal(self) -> Iterator[Journal]:
        with sole_owner(self.root / JOURNAL):
            journal = Journal.open(self.root / JOURNAL)
            try:
                yield journal
            finally:
                journal.close()

    @contextlib.asynccontextmanager
    async def client(self, journal: Journal) -> AsyncIterator[tuple[UpdateClient, asyncio.Task[None]]]:
        booted = boot(journal, self.store, enabled=True)
        self.judge_start(journal, booted.models.get("pose"))
        disk, trust_thread = OneThread("disk"), OneThread("trust")
        manifest = read_bundle(self.shelf.releases.configured).manifest
        assert manifest is not None
        facts = DeviceFacts("1.0.0", "cpu", {"pose": contract_of(manifest)}, 10_000_000)
        self.trials = FakeTrials({"pose": self.shelf.releases.configured}, booted.models)
        parts = Parts(
            journal=journal, store=self.store, disk=disk, trust_thread=trust_thread, trust=lambda: self.shelf,
            trials=self.trials, unpack=unpack, fetch=self.shelf.fetch, facts=lambda: facts, config=lambda: CONFIG,
            attributes=dict, changed=lambda: client.notice(),  # noqa: PLW0108 - made below
            local_time=lambda: datetime.now().astimezone(), pace=QUICK,
        )  # fmt: skip
        client = UpdateClient(parts, RequestFolder(self.root / "requests"), None)
        task = asyncio.create_task(client.run())
        try:
            yield client, task
        finally:
            task.cancel()
            await asyncio.wait([task])
            disk.close()
            trust_thread.close()

    async def life(self, journal: Journal) -> None:
        """Until nothing is left to do."""
        async with self.client(journal) as (_, task):
            for _ in range(2000):
                if task.done():
                    break
                if not journal.unsettled():
                    await asyncio.sleep(0.02)  # it tidies up
                    if not task.done():
                        return
                await asyncio.sleep(0.005)
            assert task.done(), f"it does not end: {journal.unsettled()}"
            error = task.exception()
            raise Died if died(error) else error or AssertionError("it ended")

    def judge_start(self, journal: Journal, path: Path | None) -> None:
        """Whole, and either what was committed last or what is on trial."""
        unsettled = [one for one in journal.unsettled() if one.phase is Phase.PROBATION]
        current = journal.serving("pose").current
        allowed = {self.store.path(one.version) for one in unsettled if one.release} or {
            self.store.path(current) if current else None
        }
        assert path in allowed
        if path is not None:
            found = [version for version in self.store.versions() if self.store.path(version) == path]
            assert found, "what serves is not in the store"
            assert not self.store.problem(found[0])

    # --- rules --------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.under_way is None)
    @rule(index=st.integers(0, len(KINDS) - 1))
    def offer(self, index: int) -> None:
        release, fake = self.shelf.made[index]
        self.serial += 1
        with self.journal() as journal:
            journal.begin(str(self.serial), release.path, "pose", report(Phase.DOWNLOADING))
        self.under_way, self.deaths_in_probation = (str(self.serial), release, fake), 0

    @precondition(lambda self: self.under_way is not None)
    @rule(at=st.integers(1, 150).map(lambda number: number * 7 % 151))  # large ones as often as small ones
    def die_at_a_step(self, at: int) -> None:
        self.live_and_die(Death(kill, at))

    @precondition(lambda self: self.under_way is not None)
    @rule(phase=st.sampled_from([*Phase]), before=st.booleans())
    def die_at_a_transition(self, phase: Phase, before: bool) -> None:
        self.live_and_die(Death(kill, phase=phase.value, before=before))

    def live_and_die(self, death: Death) -> None:
        try:
            with self.journal() as journal, death.at_work():
                asyncio.run(self.life(journal))
        except Died:
            with self.journal() as journal:
                action = self.action(journal)
                self.deaths_in_probation += action.phase is Phase.PROBATION
        else:
            self.judge_end()

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def finish(self) -> None:
        with self.journal() as journal:
            asyncio.run(self.life(journal))
        self.judge_end()

    @precondition(lambda self: self.under_way is None)
    @rule(while_running=st.booleans())
    def go_back(self, while_running: bool) -> None:
        async def ask(journal: Journal) -> None:
            async with self.client(journal) as (client, _):
                await client.roll_back("pose", "test")

        try:
            with self.journal() as journal:
                if while_running:
                    asyncio.run(ask(journal))
                else:
                    assert roll_back_here(journal, self.store, "pose").good
        except StorageError:
            assert not self.known.has_before
            return
        assert self.known.has_before
        with self.journal() as journal:
            found = journal.serving("pose")
        assert (found.current, found.before) == (self.known.before, self.known.current)
        self.known = found

    @precondition(lambda self: self.under_way is None)
    @rule(how=st.sampled_from(["gone", "garbage"]))
    def lose_the_journal(self, how: str) -> None:
        file = self.root / JOURNAL
        if not file.exists():
            return
        with self.journal() as journal:
            boot(journal, self.store, enabled=True)
        file.unlink() if how == "gone" else file.write_bytes(b"\xa5" * 20_000)
        with self.journal() as journal:
            boot(journal, self.store, enabled=True)
            found = journal.serving("pose")
        assert found.current == self.known.current
        assert found.highest >= self.known.highest
        self.known = found

    @precondition(lambda self: self.under_way is None and self.known.current is not None)
    @rule()
    def rot(self) -> None:
        """A bit of the model that serves falls over: the one before serves, or the configured."""
        current = self.known.current
        assert current is not None
        model = self.store.path(current) / "model.onnx"
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)
        with self.journal() as journal:
            booted = boot(journal, self.store, enabled=True)
            found = journal.serving("pose")
        assert booted.remarks
        assert found.current == self.known.before
        assert found.highest == self.known.highest
        self.known = found

    # --- what must hold -----------------------------------------------------------------------------------------------

    def action(self, journal: Journal) -> Action:
        assert self.under_way is not None
        found = journal.action(self.under_way[0])
        assert found is not None
        return found

    def judge_end(self) -> None:
        assert self.under_way is not None
        action_id, release, fake = self.under_way
        with self.journal() as journal:
            action, serving = self.action(journal), journal.serving("pose")
            finals = [one for one in journal.waiting() if one.action_id == action_id and one.report.final]
        assert action.settled
        assert len(finals) == 1, "the server hears of every end, once"
        same = self.known.current is not None and self.known.current.release == release
        before = self.known.before.release.number if self.known.before else None
        welcome = same or release.number >= self.known.highest or release.number == before
        if action.phase is Phase.COMMITTED:
            assert welcome
            assert same or not fake
            assert serving.current is not None
            assert serving.current.release == release
            assert same or serving.before == self.known.current
        else:
            assert serving == self.known, "what was not committed has changed nothing"
            assert fake or not welcome or (self.deaths_in_probation >= 2 and action.reason == "restart")
        assert serving.highest >= self.known.highest
        self.known, self.under_way = serving, None

    @invariant()
    def nothing_but_what_is_needed_lies_there(self) -> None:
        if getattr(self, "under_way", "x") is not None:
            return
        needed = {one for one in (self.known.current, self.known.before) if one is not None}
        linked = self.store.linked().get("pose")
        assert linked == self.known.current
        assert {one.sha256 for one in needed} <= {one.sha256 for one in self.store.versions()} | self._rotten()

    def _rotten(self) -> set[str]:
        return {one.sha256 for one in (self.known.before,) if one is not None}


def died(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(died(one) for one in error.exceptions)
    return isinstance(error, Died)


TestUpdates = UpdateMachine.TestCase
TestUpdates.settings = settings(
    max_examples=20, stateful_step_count=14, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)  # fmt: skip
