"""Fetch a model of the catalogue: its sources in order, nothing visible before it is verified."""

from __future__ import annotations

import asyncio
import hashlib
import lzma
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import ValidationError

from agent.catalogue.entries import MODEL, Entry, Source
from agent.catalogue.install import install
from agent.catalogue.store import ModelStore
from agent.errors import ModelError, TrustError
from agent.runtime.bundle import read_bundle, sha256_of
from agent.runtime.manifest import Provenance
from agent.transfer.download import Limits, Progress, Wanted, download, forget_part
from agent.transfer.faults import DownloadError, NoNetworkError, RefusedDownloadError

_MEMBER = "end2end.onnx"
"""What mmdeploy calls the model in its archives."""
_ENCRYPTED = 0x1
_CHUNK_BYTES = 1 << 20
_CONSENT = "hint: --allow-unverified takes it as it is, at your own risk"


Failure = ModelError | DownloadError | TrustError


class SkippedError(ModelError):
    """A source that was not even asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """source: name of one of the entry's, or an address that serves the same file; empty = all of the entry's, in order.

    allow_unverified: take a file whose checksum is not in the catalogue, and remember it.
    """

    source: str = ""
    allow_unverified: bool = False
    limits: Limits = field(default_factory=Limits)


def pull(entry: Entry, store: ModelStore, progress: Progress, options: PullOptions | None = None) -> Path:
    """The folder of the verified bundle, made from the first source that has the file.

    Raises ModelError that says what each source answered and what to do, TrustError when bytes were wrong, OSError.
    """
    job = _Pull(entry, store, progress, options or PullOptions())
    sources = _sources(entry, job.options.source)
    failures: list[tuple[str, Failure]] = []
    with store.lock(entry.name):
        for source in sources:
            try:
                return job.from_source(source)
            except (ModelError, DownloadError, TrustError) as error:
                failures.append((source.name, error))
                if source is not sources[-1]:  # else the error below says it
                    progress.note(f"{source.name}: {error}")
    raise _failure(entry, failures)


def pull_file(
    entry: Entry, file: Path, store: ModelStore, progress: Progress, options: PullOptions | None = None
) -> Path:
    """As `pull`, from a file that somebody brought: the model itself, or the archive with it. Errors name `file`."""
    with store.lock(entry.name):
        return _Pull(entry, store, progress, options or PullOptions()).from_file(file)


class _Pull:
    def __init__(self, entry: Entry, store: ModelStore, progress: Progress, options: PullOptions) -> None:
        self.entry = entry
        self.store = store
        self.progress = progress
        self.options = options

    def from_source(self, source: Source) -> Path:
        if not source.same_file and not self.options.allow_unverified:
            raise SkippedError("not asked: an archive whose checksum nobody knows (--allow-unverified takes it)")
        self.progress.note(f"{source.name}: {source.url}")
        with self.store.staging() as folder:
            fetch = self._fetch_model if source.same_file else self._fetch_archive
            asyncio.run(fetch(source, folder / MODEL))
            with _spoken_of("", folder):
                return self._install(folder, source.url, source.revision)

    def from_file(self, file: Path) -> Path:
        most = max(self.entry.file.bytes, *(source.max_bytes for source in self.entry.sources))
        with self.store.staging() as folder, _spoken_of(f"{file}: ", folder):
            if not stat.S_ISREG(file.stat().st_mode):  # a device has no end, and zipfile reads to it
                raise ModelError("a folder, pipe or device, not a file (hint: save the model as a file first)")
            if zipfile.is_zipfile(file):
                _extract(file, _MEMBER, folder / MODEL, most)
            else:
                _copy(file, folder / MODEL, *self._limit(most))
            return self._install(folder, f"file {file.name}")

    def _limit(self, most: int) -> tuple[int, ModelError | TrustError]:
        """How many bytes of a file are copied, and what is wrong with more."""
        if self.options.allow_unverified:
            return most, ModelError(f"larger than {most:,} bytes, the most that is taken (hint: is it the model?)")
        announced = self.entry.file.bytes
        told = f"not the file of the catalogue: larger than its {announced:,} bytes ({_CONSENT})"
        return announced, TrustError(told)

    async def _fetch_model(self, source: Source, model: Path) -> None:
        """Bytes with the catalogue's checksum; a resumed part that turns out wrong is fetched again, once."""
        expected = self.entry.file
        part = self.store.partial(expected.sha256)
        wanted = Wanted(expected.bytes, expected.bytes, checksum_known=True)
        while True:
            resumed = part.exists()
            await download(source.url, part, wanted, self.progress, limits=self.options.limits)
            found = sha256_of(part)
            if found == expected.sha256:
                break
            forget_part(part)
            if not resumed:
                raise TrustError(f"not the released file: sha256 is {found}, the catalogue says {expected.sha256}")
            self.progress.note("what was here before does not belong to this file; starting over")
        part.replace(model)
        forget_part(part)

    async def _fetch_archive(self, source: Source, model: Path) -> None:
        part = self.store.partial(hashlib.sha256(source.url.encode()).hexdigest())
        wanted = Wanted(None, source.max_bytes, checksum_known=False)
        await download(source.url, part, wanted, self.progress, limits=self.options.limits)
        try:
            _extract(part, source.member, model, source.max_bytes)
        finally:
            forget_part(part)

    def _install(self, folder: Path, source: str, revision: str = "") -> Path:
        trust = self._trust(sha256_of(folder / MODEL), source)
        provenance = Provenance(source=source, revision=revision, trust=trust)
        bundle, remark = install(self.entry, folder, provenance, self.store)
        self.progress.note(remark)
        return bundle

    def _trust(self, found: str, source: str) -> Literal["catalogue", "first_use"]:
        """Why the model with the checksum `found` may be used. Raises TrustError when it may not."""
        if found == self.entry.file.sha256:
            return "catalogue"
        if not self.options.allow_unverified:
            raise TrustError(
                f"not the file of the catalogue: sha256 is {found}, expected {self.entry.file.sha256} ({_CONSENT})"
            )
        before = self._taken_before(source)
        if before and before != found:
            raise TrustError(
                f"not the file that was taken here first: sha256 was {before} and is {found} now "
                f"(hint: delete {self.store.find(self.entry.name)} to take the new one)"
            )
        return "first_use"

    def _taken_before(self, source: str) -> str:
        """Checksum of the unverified model that came from this very source before; empty = none did."""
        folder = self.store.find(self.entry.name)
        if folder is None:
            return ""
        try:
            bundle = read_bundle(folder)
        except ModelError:
            return ""
        known = bundle.manifest.provenance if bundle.manifest else None
        same = known is not None and known.trust == "first_use" and known.source == source
        return bundle.model_sha256 if same else ""


def _sources(entry: Entry, wish: str) -> Sequence[Source]:
    if not wish:
        return entry.sources
    if not wish.startswith(("http://", "https://")):
        return (entry.source(wish),)
    try:
        return (Source(name="mirror", url=wish, member=_MEMBER if wish.partition("?")[0].endswith(".zip") else ""),)
    except ValidationError as error:
        raise ModelError(f"{wish}: {error.errors()[0]['msg']}") from error


@contextmanager
def _spoken_of(name: str, folder: Path) -> Iterator[None]:
    """Errors begin with `name`, and leave out where in `folder` the model lies: the user knows nothing of that place."""
    try:
        yield
    except (ModelError, TrustError) as error:
        raise type(error)(name + str(error).replace(f"{folder / MODEL}: ", "")) from error


def _copy(file: Path, model: Path, limit_bytes: int, too_long: ModelError | TrustError) -> None:
    """Raises `too_long` instead of writing more than `limit_bytes`; OSError."""
    left = limit_bytes
    with file.open("rb") as source, model.open("wb") as target:
        while chunk := source.read(min(_CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise too_long
            target.write(chunk)


def _extract(archive: Path, member: str, model: Path, max_bytes: int) -> None:
    """The one file called `member`, in whatever folder of the archive it lies, into `model`."""
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = [info for info in opened.infolist() if PurePosixPath(info.filename).name == member]
            if len(infos) != 1:
                raise RefusedDownloadError(f"the archive holds {len(infos)} files called {member}, expected one")
            if infos[0].file_size > max_bytes or infos[0].flag_bits & _ENCRYPTED:
                raise RefusedDownloadError(f"{member} in the archive is encrypted or larger than {max_bytes:,} bytes")
            with opened.open(infos[0]) as source, model.open("wb") as target:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise RefusedDownloadError(f"not a sound zip archive: {error}") from error


def _failure(entry: Entry, failures: Sequence[tuple[str, Failure]]) -> ModelError | TrustError:
    lines = [f"{entry.name} could not be pulled", *(f"  {name}: {error}" for name, error in failures)]
    asked = [error for _, error in failures if not isinstance(error, SkippedError)]
    if asked and all(isinstance(error, NoNetworkError) for error in asked):
        direct = next((source for source in entry.sources if source.same_file), entry.sources[0])
        lines += [
            "There is no network here. Behind a proxy: HTTPS_PROXY=... in agent.env, or after `sudo`. Without one: fetch the file on another machine,",
            f"  {direct.url}",
            f"  {entry.file.bytes:,} bytes, sha256 {entry.file.sha256}",
            f"bring it here, and: recognizer-agent models pull {entry.name} --file PATH",
        ]
    kind = TrustError if asked and all(isinstance(error, TrustError) for error in asked) else ModelError
    return kind("\n".join(lines))
