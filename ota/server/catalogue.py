"""Which releases there are: what the repository's signed targets say, checked by TUF against a root that was given once.

An upload cannot add a release, and whoever can write to the repository's folder cannot either without the offline keys.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import structlog
from pydantic import ValidationError
from sqlalchemy import Connection
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater

from agent.durable import write_durably
from agent.errors import ConfigError, ConfigProblem, DataError, RecognizerError, TransientError, TrustError
from agent.update.release import Release
from ota.rollouts.steps import SERVER
from ota.server.files import open_below
from ota.server.services import Services
from ota.store import audit, devices, releases
from ota.store.rows import Entry, ReleaseRow
from ota.store.store import Store

_log = structlog.get_logger(__name__)
LOOK_EVERY_S = 2.0
AGAIN_S = 30.0
_BASE = "folder://repository/"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Offer:
    """A target that is a release."""

    target: str
    release: Release
    length: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Sums:
    sha1: str
    md5: str


class _FolderFetcher(FetcherInterface):
    """TUF's client on the folder itself, no server needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            file, _ = open_below(self._folder, unquote(url.removeprefix(_BASE)))
        except FileNotFoundError:
            raise DownloadHTTPError("not in the repository", 404) from None
        with file:
            while piece := file.read(_PIECE):
                yield piece


def pinned_root(data: Path, repository: Path, given: Path | None, *, pin: bool = True) -> bytes:
    """The root that is trusted: `given`, else the one of the first start, which was the repository's own first. pin: keep it from then
    on. Raises ConfigError."""
    pinned = data / "root.json"
    source = given or (pinned if pinned.exists() else repository / "metadata" / "1.root.json")
    try:
        root = source.read_bytes()
        if pin and source is not given and source != pinned:
            _log.warning("repository_root_pinned", file=str(source), sha256=hashlib.sha256(root).hexdigest())
            write_durably(pinned, root)
    except OSError as error:
        hint = "make the repository first (recognizer-fleet keys, publish), or name a root.json with `root`"
        if given is not None:
            hint = "metadata/1.root.json of the repository, or a later one"
        path = "repository" if given is None else "root"
        raise ConfigError([ConfigProblem(f"{source}: {error.strerror}", path=path, hint=hint)]) from error
    return root


def read_offers(repository: Path, trust: Path, root: bytes) -> tuple[list[Offer], int]:
    """What the signed targets offer, and when the timestamp expires, Unix time. trust: folder of what was seen before.

    Blocks. Raises TrustError, TransientError (half published just now).
    """
    trust.mkdir(parents=True, exist_ok=True)
    try:
        updater = Updater(str(trust), f"{_BASE}metadata/", fetcher=_FolderFetcher(repository), bootstrap=root)
        updater.refresh()
        signed = Metadata[Targets].from_file(str(trust / "targets.json")).signed
        expires = Metadata[Timestamp].from_file(str(trust / "timestamp.json")).signed.expires
    except DownloadError as error:
        raise TransientError(f"{repository}: incomplete: {error}") from error
    except RepositoryError as error:
        raise TrustError(f"{repository}: not to be trusted: {error}") from error
    except OSError as error:
        raise TransientError(f"{error.filename}: {error.strerror}") from error
    found = [_offer(path, target) for path, target in sorted(signed.targets.items())]
    return [offer for offer in found if offer is not None], int(expires.timestamp())


def _offer(path: str, target: TargetFile) -> Offer | None:
    """None for a target that is no release of ours (a repository may hold others), and for one that names itself otherwise."""
    try:
        release = Release.model_validate(target.custom)
    except ValidationError:
        return None
    sha256 = target.hashes.get("sha256")
    if sha256 is None or release.path != path:
        _log.warning("target_ignored", target=path, reason="its path does not fit what it says, or it has no SHA-256")
        return None
    return Offer(path, release, target.length, sha256)


def sums_of(repository: Path, offer: Offer) -> Sums:
    """Checksums that only foreign clients ask for. Blocks. Raises DataError when the file is not the one that was signed."""
    folder, slash, name = offer.target.rpartition("/")
    digests = [hashlib.sha256(), hashlib.sha1(usedforsecurity=False), hashlib.md5(usedforsecurity=False)]
    try:
        file, size = open_below(repository / "targets", f"{folder}{slash}{offer.sha256}.{name}")
    except FileNotFoundError:
        raise DataError(f"{offer.target}: the file is not in the repository") from None
    with file:
        while piece := file.read(_PIECE):
            for digest in digests:
                digest.update(piece)
    if size != offer.length or digests[0].hexdigest() != offer.sha256:
        raise DataError(f"{offer.target}: the file is not the one that was signed")
    return Sums(digests[1].hexdigest(), digests[2].hexdigest())


async def take_over(
    store: Store, repository: Path, offers: list[Offer], now_ms: int
) -> tuple[list[ReleaseRow], frozenset[str]]:
    """Bring the table in line with the offers: what is new in it, or signed anew, and why files that do not hold were left out."""
    known = await store.read(releases.known)
    fresh: list[tuple[Offer, Sums]] = []
    left_out: set[str] = set()
    for offer in offers:
        if (offer.target, offer.sha256) not in known:
            try:
                fresh.append((offer, await asyncio.to_thread(sums_of, repository, offer)))
            except DataError as error:
                left_out.add(str(error))
    offered = {(offer.target, offer.sha256): offer.release for offer in offers}

    def work(connection: Connection) -> list[ReleaseRow]:
        def log(what: str, row: ReleaseRow, **detail: Any) -> None:
            audit.add(connection, Entry(now_ms, SERVER, "server", "", what, row.title, {"release": row.id} | detail))

        for key, row in known.items():
            if row.available != (key in offered):
                releases.set_available(connection, row.id, key in offered)
                log("release.offer" if key in offered else "release.withdraw", row)
        anew = [
            releases.sign_anew(connection, row.id, offered[key])
            for key, row in known.items()
            if key in offered and not releases.says(row, offered[key])
        ]
        for row in anew:
            log("release.sign_anew", row, number=row.number)
        if fresh:
            devices.ask_those_without(connection)
        return anew + [
            releases.add(
                connection, offer.release, target=offer.target, length=offer.length, sha256=offer.sha256, sha1=sums.sha1,
                md5=sums.md5, now_ms=now_ms,
            )
            for offer, sums in fresh
        ]  # fmt: skip

    return await store.write(work), frozenset(left_out)


class Catalogue:
    """Follows one repository."""

    def __init__(self, services: Services, repository: Path, root: bytes) -> None:
        self._services = services
        self._repository = repository
        self._root = root
        self._seen: object = None
        self._left_out: frozenset[str] = frozenset()
        self._reading = asyncio.Lock()

    async def sync(self) -> list[ReleaseRow]:
        """Read it now; what is new, or signed anew. Raises TrustError, TransientError, StorageError."""
        services = self._services
        trust = services.settings.data / "trust"
        async with self._reading:
            offers, expires_s = await asyncio.to_thread(read_offers, self._repository, trust, self._root)
            services.metrics.repository_expires.set(expires_s)
            fresh, left_out = await take_over(services.store, self._repository, offers, services.clock_ms())
            for problem in sorted(left_out - self._left_out):
                _log.error("release_refused", error=problem)
            self._left_out = left_out
        for row in fresh:
            _log.info("release_known", release=row.title, slot=row.slot, number=row.number)
            services.feed.tell("release", row.id, slot=row.slot, title=row.title)
        return fresh

    async def run(self) -> None:
        """Reads it again whenever its timestamp changes, and now and then while a file is missing: it may still be on its way."""
        while True:
            try:
                state = await asyncio.to_thread(self._state)
                if state != self._seen or self._left_out:
                    await self.sync()
                    self._seen = state
                await asyncio.sleep(AGAIN_S if self._left_out else LOOK_EVERY_S)
            except RecognizerError as error:
                self._services.metrics.sync_failures.inc()
                _log.error("repository_not_read", error=str(error))
                await asyncio.sleep(AGAIN_S)

    def _state(self) -> object:
        try:
            status = (self._repository / "metadata" / "timestamp.json").stat()
        except OSError as error:
            raise TransientError(f"{error.filename}: {error.strerror}") from error
        return status.st_mtime_ns, status.st_ino, status.st_size


async def run(services: Services) -> None:
    """A part of the application: nothing to do without a repository."""
    if services.settings.repository is not None and services.root is not None:
        catalogue = Catalogue(services, services.settings.repository, services.root)
        services.sync = catalogue.sync
        await catalogue.run()
