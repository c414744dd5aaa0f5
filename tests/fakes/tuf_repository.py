"""A TUF repository in memory, made with python-tuf, that can be made to lie: what an attacker with this or that key could serve.

repository = TufRepository()
repository.add(release, content)      # bytes of the archive
repository.publish()                  # all four roles, next versions
with serving_tuf(repository) as server: Trust(folder, server.url("/repository"), repository.root_bytes())
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

from fakes.downloads import Behaviour, FileServer, Handler, good
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from agent.update.release import Release
from ota.release.repository import custom_of

ROLES = ("root", "targets", "snapshot", "timestamp")
BASE = "/repository"


class TufRepository:
    """files: what is served, by path below BASE; signers: who signs for a role, its keys in the root unless an attack says otherwise.

    The signed parts (`root`, `targets`, `snapshot`, `timestamp`) may be changed at will between publications.
    """

    def __init__(self, *, thresholds: dict[str, int] | None = None, days: float = 10.0) -> None:
        self.files: dict[str, bytes] = {}
        self.days = days
        expires = self.in_days(days)
        self.root = Root(expires=expires, consistent_snapshot=True)
        self.targets = Targets(expires=expires)
        self.snapshot = Snapshot(expires=expires)
        self.timestamp = Timestamp(expires=expires)
        self.signers: dict[str, list[CryptoSigner]] = {}
        self.root_signers: list[CryptoSigner] = []
        for role in ROLES:
            count = (thresholds or {}).get(role, 1)
            self.signers[role] = [CryptoSigner.generate_ed25519() for _ in range(count)]
            for signer in self.signers[role]:
                self.root.add_key(signer.public_key, role)
            self.root.roles[role].threshold = count
        self.publish(*ROLES, bump=False)

    @staticmethod
    def in_days(days: float) -> datetime:
        return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)

    def part(self, role: str) -> Any:
        return getattr(self, role)

    def root_bytes(self, version: int = 1) -> bytes:
        """What a device has embedded."""
        return self.files[f"/metadata/{version}.root.json"]

    def add(self, release: Release, content: bytes, *, path: str = "", custom: dict[str, Any] | None = None) -> str:
        """Put a target on the list (not published yet); its path."""
        path = path or release.path
        digest = hashlib.sha256(content).hexdigest()
        info = TargetFile(len(content), {"sha256": digest}, path, {"custom": custom or custom_of(release)})
        self.targets.targets[path] = info
        folder, _, name = path.rpartition("/")
        self.files[f"/targets/{folder}/{digest}.{name}"] = content
        return path

    def publish(self, *roles: str, bump: bool = True) -> None:
        """Sign `roles` (default: all but the root) with their next versions and lay them out; later ones name the earlier ones of
        the same call."""
        for role in roles or ROLES[1:]:
            if bump:
                self.part(role).version += 1
            self.lay_out(role)
            if role == "targets":
                self.snapshot.meta["targets.json"] = self._meta("targets")
            elif role == "snapshot":
                self.timestamp.snapshot_meta = self._meta("snapshot")

    def lay_out(self, role: str, signers: Sequence[CryptoSigner] | None = None) -> bytes:
        """Sign the part as it is and put it where clients look; signers: in place of the role's."""
        self.files[self.address(role)] = content = self.signed(role, signers)
        return content

    def signed(self, role: str, signers: Sequence[CryptoSigner] | None = None) -> bytes:
        metadata = Metadata(copy.deepcopy(self.part(role)))
        extra = self.root_signers if role == "root" else []
        for signer in signers if signers is not None else [*self.signers[role], *extra]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def address(self, role: str) -> str:
        return "/metadata/timestamp.json" if role == "timestamp" else f"/metadata/{self.part(role).version}.{role}.json"

    def rotate(self, role: str, count: int = 1) -> list[CryptoSigner]:
        """New keys for a role in the next root (not published yet); the old ones."""
        old = self.signers[role]
        if role == "root":
            self.root_signers = old
        for signer in old:
            self.root.revoke_key(signer.public_key.keyid, role)
        self.signers[role] = [CryptoSigner.generate_ed25519() for _ in range(count)]
        for signer in self.signers[role]:
            self.root.add_key(signer.public_key, role)
        self.root.roles[role].threshold = count
        return old

    def expire(self, role: str) -> None:
        """The part is as of yesterday."""
        self.part(role).expires = self.in_days(-1)

    def state(self) -> dict[str, bytes]:
        """What is served now, to be served again later."""
        return dict(self.files)

    def _meta(self, role: str) -> MetaFile:
        return MetaFile.from_data(self.part(role).version, self.files[self.address(role)], ["sha256"])


class TufHandler(Handler):
    """As a file server should, unless the path has a behaviour of its own."""

    server: TufServer

    def do_GET(self) -> None:  # noqa: N802
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        with contextlib.suppress(OSError):
            self.server.behaviours.get(path.removeprefix(BASE), good)(self)

    @property
    def content(self) -> bytes:
        return self.server.files[urlsplit(self.path).path]


class _Below(dict[str, bytes]):
    """The repository's files as the server sees them."""

    def __init__(self, files: Callable[[], dict[str, bytes]]) -> None:
        super().__init__()
        self._files = files

    def __contains__(self, path: object) -> bool:
        return unquote(str(path)).removeprefix(BASE) in self._files()

    def __getitem__(self, path: str) -> bytes:
        return self._files()[unquote(path).removeprefix(BASE)]


class TufServer(FileServer):
    """behaviours: by path below BASE; asked: such paths, in order."""

    def __init__(self, repository: TufRepository) -> None:
        super().__init__(_Below(lambda: repository.files))
        self.RequestHandlerClass = TufHandler
        self.behaviours: dict[str, Behaviour] = {}

    @property
    def asked(self) -> list[str]:
        return [unquote(path).removeprefix(BASE) for path, _ in self.requests]

    def url(self, path: str = BASE, host: str = "127.0.0.1") -> str:
        return super().url(path, host)


@contextlib.contextmanager
def serving_tuf(repository: TufRepository) -> Iterator[TufServer]:
    """The repository over HTTP."""
    import threading

    server = TufServer(repository)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="tuf-server", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.let_go.set()
        server.shutdown()
        thread.join()
        server.server_close()


def release(slot: str = "action/fight", version: str = "1.0.0", number: int = 1, **changes: Any) -> Release:
    """A description that fits a made-up bundle; changes: of its fields."""
    task = slot.partition("/")[0]
    contract = {
        "task": task, "inputs": [{"name": "input", "shape": ["batch", 4], "meaning": "skeleton"}],
        "outputs": [{"name": "scores", "shape": ["batch", 2], "meaning": "logits"}], "labels": ["other", "fight"],
    }  # fmt: skip
    fields: dict[str, Any] = {
        "slot": slot, "name": f"{task}-model", "version": version, "number": number, "manifest_sha256": "0" * 64, "unpacked_bytes": 1000,
        "contract": None if slot == "configuration" else contract,
    }  # fmt: skip
    return Release.model_validate(fields | changes)
