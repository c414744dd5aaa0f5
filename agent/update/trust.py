"""Is an update genuine? The device's side of The Update Framework (theupdateframework.github.io/specification/latest).

python-tuf does the work; here are its edges: metadata that survives a power loss (`trust_record`), a fetcher with limits
(`trust_fetch`), errors in the agent's terms, and what a target says about itself as a `Release`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import structlog
from pydantic import ValidationError
from tuf.api import exceptions as faults
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.updater import Updater

from agent.errors import AccessError, ConfigError, ConfigProblem, DataError, TransientError
from agent.transfer.tls import Tls
from agent.update.faults import Reason, UntrustedError
from agent.update.release import Release
from agent.update.trust_fetch import FetchLimits, MetadataFetcher
from agent.update.trust_record import Held, TrustRecord

_log = structlog.get_logger(__name__)

BUILT = datetime(2026, 11, 26, tzinfo=UTC)
"""Raised with every release of the agent: no honest clock shows less."""
_CLOCK_SLACK = timedelta(days=1)
"""Clocks are set, and time zones mended; what goes further back than this could revive metadata that has expired."""
_CONFIG = UpdaterConfig(max_delegations=8)
_NO_ACCESS = frozenset({401, 403, 407})


@dataclass(frozen=True, slots=True)
class Target:
    """What the signed metadata says about one file. length: bytes; url: its full address, to be downloaded from there and judged
    by `Trust.verify`."""

    path: str
    release: Release
    length: int
    sha256: str
    url: str


@dataclass(frozen=True, slots=True)
class Session:
    """A repository whose metadata was found fresh and genuine a moment ago."""

    updater: Updater
    fetcher: MetadataFetcher
    targets_url: str
    consistent: bool

    def address(self, info: TargetFile) -> str:
        """Where the file of `info` lies; with consistent snapshots its digest stands before its name."""
        folder, slash, name = info.path.rpartition("/")
        digest = info.hashes.get("sha256") or next(iter(info.hashes.values()), "")
        prefix = f"{digest}." if self.consistent and digest else ""
        return f"{self.targets_url}{quote(f'{folder}{slash}{prefix}{name}')}"


class Trust:
    """The client of one repository. All methods block: call them in a thread.

    folder: for what is held for true, 0700; url: of the repository, with `metadata/` and `targets/` below it; root: the root of
    trust that came with the image or by hand, any version of the repository's root.json; tls: None = the system's authorities;
    headers: sent to the repository's host only; not_before: what the clock must show at least.
    notes: after a call, what was found damaged and repaired; the log has it as well.
    Raises ConfigError when `root` is no root metadata.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        root: bytes,
        *,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        limits: FetchLimits | None = None,
        not_before: datetime = BUILT,
    ) -> None:
        _require_root(root)
        self.notes: tuple[str, ...] = ()
        self._record = TrustRecord(folder)
        self._url = url.rstrip("/")
        self._root = root
        self._tls = tls
        self._headers = headers
        self._limits = limits
        self._not_before = not_before
        self._fetcher: MetadataFetcher | None = None
        self._given_up = False

    def give_up(self) -> None:
        """From any thread: whatever is being asked of the repository ends, in a TransientError, and nothing is asked any more."""
        self._given_up = True
        if (fetcher := self._fetcher) is not None:
            fetcher.give_up()

    def refresh(self) -> None:
        """Bring the metadata up to date. Errors as of `find`."""
        with self.session():
            pass

    def find(self, path: str) -> Target:
        """What the newest metadata says about the target `path`.

        Raises TransientError (no network, a server error, a slow answer), AccessError (rights, certificates), UntrustedError
        with its `reason`, DataError (no such target, or no release), OSError.
        """
        with self.session() as session:
            info = session.updater.get_targetinfo(path)
            url = session.address(info) if info else ""
        if info is None:
            raise DataError(f"the signed metadata has no target {path!r} (hint: withdrawn, or not published yet?)")
        return Target(path, _release_of(info), info.length, info.hashes["sha256"], url)

    def verify(self, file: Path, target: Target) -> None:
        """Are the bytes of `file` the signed ones? Raises UntrustedError (length, hash), OSError."""
        size = file.stat().st_size
        if size != target.length:
            raise UntrustedError("length", f"{target.path}: {size:,} bytes came, {target.length:,} are signed")
        try:
            with file.open("rb") as stream:
                TargetFile(target.length, {"sha256": target.sha256}, target.path).verify_length_and_hashes(stream)
        except faults.LengthOrHashMismatchError as error:
            raise UntrustedError("hash", f"{target.path}: other bytes came than those signed: {error}") from error

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """The repository, refreshed. What was learned is on record afterwards, also when it ends in an error.

        Errors as of `find`, also python-tuf's raised inside."""
        with self._record.locked():
            held = self._record.load()
            self.notes = held.notes
            for note in held.notes:
                _log.warning("trust_record_damaged", detail=note)
            now = self._now(held)
            self._record.unfold(held)
            seen = None
            try:
                with MetadataFetcher(self._tls, self._headers, self._limits) as fetcher:
                    self._fetcher = fetcher
                    if self._given_up:
                        fetcher.give_up()
                    try:
                        yield self._refreshed(fetcher)
                    except (faults.RepositoryError, faults.DownloadError) as error:
                        raise _translated(error, fetcher.last, self._before(held)) from error
                seen = now
            finally:
                self._record.keep(held, seen)

    def _refreshed(self, fetcher: MetadataFetcher) -> Session:
        folder = str(self._record.workplace)
        updater = Updater(folder, f"{self._url}/metadata/", fetcher=fetcher, config=_CONFIG, bootstrap=self._root)
        updater.refresh()
        root = Metadata[Root].from_file(str(self._record.workplace / "root.json")).signed
        return Session(updater, fetcher, f"{self._url}/targets/", root.consistent_snapshot is not False)

    def _now(self, held: Held) -> datetime:
        """Raises UntrustedError (clock)."""
        now = datetime.now(UTC)
        if now < self._not_before:
            since = f"this agent was built ({self._not_before:%Y-%m-%d})"
        elif held.seen and now < held.seen - _CLOCK_SLACK:
            since = f"the repository was last seen ({held.seen:%Y-%m-%d %H:%M} UTC)"
        else:
            return now
        raise UntrustedError(
            "clock",
            f"the clock of this device says {now:%Y-%m-%d %H:%M} UTC, which is before {since}: whether metadata has expired "
            "cannot be told (hint: set the clock, `timedatectl set-ntp true`; a battery for it is missing or empty?)",
        )

    def _before(self, held: Held) -> Mapping[str, bytes]:
        """What was known before, with the newest root that is known now."""
        with contextlib.suppress(OSError):
            return held.files | {"root.json": (self._record.workplace / "root.json").read_bytes()}
        return held.files


def _require_root(root: bytes) -> None:
    try:
        metadata = Metadata[Root].from_bytes(root)
        problem = "" if isinstance(metadata.signed, Root) else f"it is {metadata.signed.type} metadata"
        if not problem:
            metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    except faults.RepositoryError as error:
        problem = str(error)
    if problem:
        hint = "the repository's root.json, as `recognizer-fleet keys ceremony` writes it"
        raise ConfigError([ConfigProblem(f"not a root of trust: {problem}", path="update.root_file", hint=hint)])


def _release_of(info: TargetFile) -> Release:
    """Raises DataError: the signer named the target wrongly."""
    try:
        release = Release.model_validate(info.custom)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"target {info.path!r} is no release: {where}: {first['msg']}") from error
    if release.path != info.path:
        raise DataError(f"target {info.path!r} holds {release.title} for {release.slot}: it should be {release.path!r}")
    if "sha256" not in info.hashes:
        raise DataError(f"target {info.path!r} has no sha256")
    return release


def _translated(
    error: faults.RepositoryError | faults.DownloadError, last: bytes, before: Mapping[str, bytes]
) -> UntrustedError | TransientError:
    """In the agent's terms. last: the file fetched last; before: what was held for true."""
    text = str(error) or type(error).__name__
    if isinstance(error, faults.DownloadLengthMismatchError):
        return UntrustedError("length", f"endless data? {text}")
    if isinstance(error, faults.DownloadHTTPError):
        hint = "the repository's address is the folder with metadata/ and targets/ in it"
        kind = AccessError if error.status_code in _NO_ACCESS else TransientError
        return kind(f"{text} (hint: {hint})" if error.status_code == 404 else text)
    if isinstance(error, faults.DownloadError):
        cause = error.__cause__
        return (
            AccessError(text)
            if cause and not isinstance(cause, (TransientError, TimeoutError))
            else TransientError(text)
        )
    reason = _reason(error, last, before)
    return UntrustedError(reason, f"metadata refused ({reason}): {text}")


def _reason(error: faults.RepositoryError, last: bytes, before: Mapping[str, bytes]) -> Reason:
    if isinstance(error, faults.ExpiredMetadataError):
        return "expired"
    if isinstance(error, faults.UnsignedMetadataError):
        return "signature"
    if isinstance(error, faults.LengthOrHashMismatchError):
        return "mix-and-match"
    if _goes_back(last, before):
        return "rollback"
    return "mix-and-match" if isinstance(error, faults.BadVersionNumberError) else "format"


def _goes_back(last: bytes, before: Mapping[str, bytes]) -> bool:
    """Is `last` older than its own kind in `before`, or does it name something older, or leave out what was there?"""
    new = _signed(last)
    old = _signed(before.get(f"{new.get('_type')}.json", b""))
    try:
        if new["_type"] == "root":
            return bool(new["version"] <= old["version"])
        named, known = new.get("meta", {}), old.get("meta", {})
        return new["version"] < old["version"] or any(
            name not in named or named[name]["version"] < known[name]["version"] for name in known
        )
    except (KeyError, TypeError):
        return False


def _signed(content: bytes) -> dict[str, Any]:
    try:
        signed = json.loads(content)["signed"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return signed if isinstance(signed, dict) else {}
