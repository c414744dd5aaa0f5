"""What a loss of power has left of a device's updates, looked at before the device touches it, with as little of its own code as can be."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from agent.update.boot import JOURNAL
from agent.update.journal import Journal
from agent.update.machine import Phase
from agent.update.models import slot_of
from agent.update.records import Action, Serving
from agent.update.trust_record import TrustRecord

SLOT = "pose"
_ORDER = {phase: number for number, phase in enumerate(Phase)}
_TOLD = {"download": Phase.DOWNLOADING, "downloaded": Phase.VERIFIED, "proceeding": Phase.VALIDATED}


@dataclass(frozen=True)
class Known:
    """What was seen on the platter once must not be gone. told: executions and results that the server has of the last update."""

    action_id: str = ""
    phase: Phase = Phase.DOWNLOADING
    highest: int = 0
    trusted: int = 0
    told: tuple[tuple[str, str], ...] = ()


@dataclass
class Survivors:
    """What a loss of power has left in `folder`, a copy. known: what has to be there; manifests: sha256 by version, as released."""

    folder: Path
    known: Known
    manifests: dict[str, str]
    troubles: list[str] = field(default_factory=list)
    action: Action | None = None
    serving: Serving = field(default_factory=lambda: Serving(SLOT))
    trusted: int = 0

    def look(self) -> None:
        """Fill in everything."""
        root = self.folder / "updates"
        self._journal(root / JOURNAL)
        whole = self._versions(root / "sha256")
        self._links(root / "current", whole)
        for version in (self.serving.current, self.serving.before):
            if version is not None and version.sha256 not in whole:
                self.troubles.append(f"{version.release.version} serves, or did before, and is not there")
        self._told()
        self._trust(root / "trust")

    def _journal(self, file: Path) -> None:
        self.troubles += [f"the journal was given up: {one.name}" for one in file.parent.glob(f"{JOURNAL}.corrupt-*")]
        if file.exists() and self._sound(file):
            journal = Journal.open_to_read(file)
            with contextlib.closing(journal):
                self.action = next(iter(journal.recent(1)), None)
                self.serving = journal.serving(SLOT)
        if self.serving.highest < self.known.highest:
            self.troubles.append(f"{self.known.highest} was committed, the journal knows of {self.serving.highest}")
        if not self.known.action_id:
            return
        if self.action is None:
            self.troubles.append(f"update {self.known.action_id} is not in the journal any more")
        elif self.action.action_id == self.known.action_id and _ORDER[self.action.phase] < _ORDER[self.known.phase]:
            self.troubles.append(f"was {self.known.phase}, is {self.action.phase}")

    def _sound(self, file: Path) -> bool:
        """Whether there are tables in it."""
        with contextlib.closing(sqlite3.connect(file)) as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
            if verdict != "ok":
                self.troubles.append(f"the journal is damaged: {verdict}")
                return False
            return bool(connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'actions'").fetchall())

    def _versions(self, folder: Path) -> set[str]:
        """Digests of those that are what was released; nothing else may be in sight."""
        whole = set()
        for entry in folder.iterdir() if folder.is_dir() else ():
            if problem := self._problem(entry):
                self.troubles.append(f"{entry.name[:8]} is torn: {problem}")
            else:
                whole.add(entry.name)
        return whole

    def _problem(self, entry: Path) -> str:
        try:
            version = json.loads((entry / "release.json").read_bytes())["version"]
            manifest = (entry / "bundle" / "manifest.json").read_bytes()
            files = {name: info["sha256"] for name, info in json.loads(manifest)["files"].items()}
        except (OSError, ValueError) as error:
            return str(error)
        if _sha256(manifest) != self.manifests[version]:
            return f"{version}: another manifest than was released"
        found = {
            file.relative_to(entry / "bundle").as_posix(): _sha256(file.read_bytes())
            for file in (entry / "bundle").rglob("*")
            if file.is_file() and file.name != "manifest.json"
        }
        return "" if found == files else f"{version}: other files than were released"

    def _links(self, folder: Path, whole: set[str]) -> None:
        for link in folder.iterdir() if folder.is_dir() else ():
            if link.name.startswith("."):
                continue  # one that was being made
            if slot_of(link.name) != SLOT or link.readlink().name not in whole:
                self.troubles.append(f"{link.name} serves {link.readlink()}, which is not there")

    def _told(self) -> None:
        """Whatever the server was told of the update is on the platter."""
        phase = self.action.phase if self.action is not None else None
        for execution, finished in sorted(set(self.known.told)):
            if execution == "canceled":
                good = phase is Phase.CANCELLED
            elif execution == "rejected":
                continue
            elif finished == "success":
                good = phase is Phase.COMMITTED
            elif execution == "closed":
                good = phase in {Phase.REFUSED, Phase.ROLLED_BACK}
            else:
                good = phase is not None and _ORDER[phase] >= _ORDER[_TOLD[execution]]
            if not good:
                self.troubles.append(f"the server was told {execution} ({finished}), the journal says {phase}")

    def _trust(self, folder: Path) -> None:
        held = TrustRecord(folder).load()
        self.troubles += held.notes
        if "timestamp.json" in held.files:
            self.trusted = int(json.loads(held.files["timestamp.json"])["signed"]["version"])
        if self.trusted < self.known.trusted:
            self.troubles.append(f"trusted state {self.known.trusted} of the repository, now {self.trusted}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
