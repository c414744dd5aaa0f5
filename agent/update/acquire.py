"""From a target path to a version in the store: is it genuine, does it fit, is there room; download, verify, unpack."""

from __future__ import annotations

import asyncio
import errno
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from agent.backoff import full_jitter
from agent.errors import AccessError, DataError, ModelError, StorageError, StorageFullError, TransientError, TrustError
from agent.transfer.download import WORTH_BYTES, forget_part
from agent.transfer.faults import RefusedDownloadError
from agent.update.faults import UntrustedError
from agent.update.fit import objection
from agent.update.parts import Parts, Progress
from agent.update.records import Action, Version
from agent.update.trials import Figures, Refusal
from agent.update.trust import Target

_log = structlog.get_logger(__name__)

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class AlreadyHere:
    """What was asked for serves already."""


@dataclass(slots=True)
class _Held:
    """The action as it is on the disk now. denied: how often in a row there was something for a person to mend; reached: the most bytes
    that were here."""

    action: Action
    denied: int = 0
    reached: int = 0


class Acquirer:
    """The work of the phase `downloading`. note: is told what becomes known of the action on the way."""

    def __init__(self, parts: Parts, progress: Progress, note: Callable[[Action], None]) -> None:
        self._parts = parts
        self._progress = progress
        self._note = note
        self._random = random.Random()  # noqa: S311 - jitter, no secret

    async def acquire(self, action: Action) -> Figures | Refusal | AlreadyHere:
        """Tries until it is here, refused, or has failed too often. Raises StorageError."""
        held = _Held(action)
        while True:
            try:
                return await self._try(held)
            except AccessError as error:  # says nothing about the release, however long it takes
                held.denied += 1
                await self._wait(held, error)
            except TransientError as error:
                known, held.denied = held.action, 0
                await self._keep(held, self._parts.journal.failed_once, known, known.failures + 1)
                if held.action.failures > self._parts.config().retries:
                    return Refusal("download", f"given up after {held.action.failures} failures: {error}")
                await self._wait(held, error)
            except (TrustError, DataError, ModelError, StorageFullError) as error:
                return _refusal(error)

    async def _keep(self, held: _Held, write: Callable[..., Action], *values: object) -> None:
        held.action = await self._parts.disk.do(write, *values)
        self._note(held.action)

    async def _wait(self, held: _Held, error: TransientError) -> None:
        pace, action = self._parts.pace, held.action
        times = held.denied or action.failures
        wait_s = full_jitter(times - 1, pace.first_s, pace.longest_s, self._random.random)
        self._progress.waiting = f"{error}; again in {wait_s:.0f} s"
        self._parts.changed()
        _log.warning("update_download_waits", action=action.action_id, error=str(error), wait_s=round(wait_s, 1))
        await asyncio.sleep(wait_s)
        self._progress.waiting = ""

    async def _try(self, held: _Held) -> Figures | Refusal | AlreadyHere:
        parts, slot = self._parts, held.action.slot
        target = await self._find(held.action.target)
        version = Version(target.sha256, target.release)
        serving = await parts.disk.do(parts.journal.serving, slot)
        if target.release.slot != slot:
            return Refusal("deployment", f"asked for {slot}, but {target.release.title} is for {target.release.slot}")
        await self._keep(held, parts.journal.identified, held.action, version)
        here = serving.current is not None and serving.current.sha256 == target.sha256
        if here and parts.store.is_in_use(version, parts.trials.running(slot)):
            return AlreadyHere()
        if refusal := objection(target.release, target.length, serving, parts.facts()):
            return refusal
        if await parts.disk.do(parts.store.has, target.sha256) and not await parts.disk.do(
            parts.store.problem, version
        ):
            return {"download_bytes": 0}
        await self._leave()
        return await self._bring(held, target, version)

    async def _leave(self) -> None:
        """Until the server lets the download begin."""
        while not self._progress.may_download:
            if not self._progress.waiting:
                self._progress.waiting = "the server holds the download back"
                self._parts.changed()
            await asyncio.sleep(self._parts.pace.look_s)
        self._progress.waiting = ""

    async def _find(self, path: str) -> Target:
        """A clock that is not set yet is no fault of the release."""
        try:
            return await self._parts.trust_thread.do(lambda: self._parts.trust().find(path))
        except UntrustedError as error:
            if error.reason == "clock":
                raise AccessError(str(error)) from error
            raise

    async def _bring(self, held: _Held, target: Target, version: Version) -> Figures:
        parts, started_s = self._parts, time.monotonic()
        part = await parts.disk.do(parts.store.partial, target.sha256)
        while True:
            resumed = await parts.disk.do(_size, part)
            need = target.length - resumed + target.release.unpacked_bytes
            await parts.disk.do(parts.store.require_room, need, parts.config().reserve_bytes)
            try:
                await parts.fetch(target, part, lambda have: self._advance(have, target.length))
            except TransientError:
                await self._credit(held, part, resumed)
                raise
            try:
                await parts.trust_thread.do(lambda: parts.trust().verify(part, target))
                break
            except TrustError:
                await parts.disk.do(forget_part, part)
                if not resumed:
                    raise
                _log.warning("update_starts_over", target=target.path)  # the disk, or another server's part
        self._progress.text = "unpacking"
        await self._unpack(part, version)
        await parts.disk.do(forget_part, part)
        seconds = time.monotonic() - started_s
        return {"download_bytes": target.length - resumed, "download_s": round(seconds, 2)}

    async def _credit(self, held: _Held, part: Path, resumed: int) -> None:
        """A try that brought as much as this was a success cut short: the count of failures starts again."""
        have, reached = await self._parts.disk.do(_size, part), max(held.reached, resumed)
        if have - reached >= WORTH_BYTES:
            held.action = replace(held.action, failures=0)
        held.reached = max(have, reached)

    async def _unpack(self, part: Path, version: Version) -> None:
        parts = self._parts
        try:
            await parts.disk.do(parts.store.add, version, lambda folder: parts.unpack(part, folder, version.release))
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise StorageFullError(f"no room to unpack {version.release.title}") from error
            raise StorageError(f"{parts.store.root}: {error.strerror or error}") from error

    def _advance(self, have: int, total: int) -> None:
        share = have / total if total else 1.0
        noticed = int(share * 100) != int(self._progress.share * 100)
        self._progress.text, self._progress.share = "downloading", share
        if noticed:
            self._parts.changed()


def _refusal(error: TrustError | DataError | ModelError | StorageFullError) -> Refusal:
    if isinstance(error, UntrustedError):
        return Refusal("trust", str(error), {"trust": error.reason})
    if isinstance(error, TrustError | DataError):
        return Refusal("trust", str(error))
    if isinstance(error, StorageFullError):
        return Refusal("space", str(error))
    return Refusal("download" if isinstance(error, RefusedDownloadError) else "archive", str(error))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
